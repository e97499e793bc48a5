"""How many threads a search or a build may start in this process. No package imports."""

import os

CORES = os.cpu_count() or 1

_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def bounded(threads: int, all_threads: int = CORES) -> int:
    """Threads to start where a config asks for so many.

    A pool of threads does not survive `os.fork`: OpenMP's and ScaNN's go on waiting for threads
    that the child has not got. So a process that was forked after this module was imported gets
    one, which needs no pool.

    Args:
        threads: 0 for all.
        all_threads: How many those are.

    Returns:
        From 1 to the number of cores: more would wait for one another, and thousands are more than
        a process may have.
    """
    return 1 if _forked else min(threads or all_threads, CORES)
