"""How many threads a search or a build may start. Imports nothing of this package."""

import os

CORES = os.cpu_count() or 1

_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def bounded(threads: int, all_threads: int = CORES) -> int:
    """The number of threads to start, for the `threads` of a config.

    A pool of threads does not survive `os.fork`: OpenMP and ScaNN would wait for threads that the
    child does not have. So a process that was forked after this module was imported gets one
    thread, which needs no pool.

    Args:
        threads: The number that the config asks for; 0 for `all_threads`.
        all_threads: The number that 0 stands for.

    Returns:
        From 1 to the number of cores. More threads would wait for one another, and a process may
        not start thousands.
    """
    return 1 if _forked else min(threads or all_threads, CORES)
