"""Where a number comes from: command, commit, hardware, versions, date."""

import datetime
import functools
import importlib.metadata
import os
import pathlib
import platform
import shlex
import subprocess
import sys

PACKAGES = ("tensorflow", "tf-keras", "tensorflow-recommenders", "scann", "faiss-cpu", "numpy")


@functools.cache
def commit() -> str:
    """The git commit of this code, `-dirty` behind it where files differ; "" outside a checkout.

    Results differ while a study writes them, row by row, and are not what made them.
    """
    here = pathlib.Path(__file__).parent
    but_results = ["--", ":/", ":(exclude,top)experiments/results"]
    git = ["git", "-C", str(here)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno", *but_results], capture_output=True, text=True
        )
    except OSError:
        return ""
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def hardware() -> str:
    """Processor, cores and memory."""
    model = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {gib:.0f} GiB"


def command() -> str:
    """The command line, with paths shortened to their last part so that they mean something
    elsewhere, too."""
    words = []
    for word in [sys.argv[0], *sys.argv[1:]]:
        flag, equals, value = word.partition("=")
        path = value if equals else flag
        if path.startswith("/"):
            path = pathlib.Path(path).name
        words.append(f"{flag}={path}" if equals else path)
    script = words[0]
    if (pathlib.Path("experiments") / pathlib.Path(script).name).exists():
        script = f"experiments/{pathlib.Path(script).name}"
    return shlex.join(["python", script, *words[1:]])


def provenance() -> dict[str, object]:
    """All of it, for a JSON row."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "command": command(),
        "commit": commit(),
        "hardware": hardware(),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.date.today().isoformat(),
    }
