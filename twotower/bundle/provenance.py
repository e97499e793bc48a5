"""Where a number comes from: command, commit, hardware, versions, date."""

import datetime
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys

# An absolute path in an argument: all of it, behind `=`, or one of a list. A comma within a path is
# part of it unless another path or flag follows.
PATH = re.compile(r"(?:^|(?<=[=,]))/.+?(?=,/|,--|$)", re.DOTALL)
PACKAGES = ("tensorflow", "tf-keras", "tensorflow-recommenders", "scann", "faiss-cpu", "numpy")


@functools.cache
def commit() -> str:
    """The git commit of this code, `-dirty` behind it where files differ; "" outside a checkout.

    Files of results do not count: a study changes them row by row, and no figure depends on them.
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
    """The command line, in which only the last part is left of each absolute path: folders of this
    machine mean nothing elsewhere."""
    words = [PATH.sub(lambda path: pathlib.Path(path[0]).name, word) for word in sys.argv]
    root, script = pathlib.Path(__file__).parents[2], pathlib.Path(sys.argv[0]).resolve()
    if script.is_relative_to(root / "experiments"):
        words[0] = script.relative_to(root).as_posix()
    if words[0] == "twotower":  # the console command
        return shlex.join(words)
    return shlex.join(["python", *words])


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


def result_text(result: dict[str, object]) -> str:
    """A result as JSON: one line for each entry, and one for each row of a list of rows.

    So the difference of two results shows which rows have changed.
    """
    lines = []
    for name, value in result.items():
        text = json.dumps(value)
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            text = "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
        lines.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write_result(path: str | pathlib.Path, result: dict[str, object]) -> None:
    """Writes `result_text`, whole or not at all; makes the folder that it goes to."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(result_text(result))
    partial.replace(path)
