"""The command line: `twotower COMMAND --flag=value ...`."""

import importlib
import sys

# Each is a module of this chapter, which is imported only when it is called.
COMMANDS = {
    "train": "train a model and export its bundle",
    "evaluate": "compare bundles and baselines on known answers",
    "recommend": "print what a bundle recommends to somebody",
    "build_index": "build one more index into a bundle",
    "build_map": "draw a map of a bundle's items into it",
    "build_funnel": "build a funnel of many sources into a bundle",
    "train_ranker": "train a ranker on what a funnel finds",
    "evaluate_funnel": "say what each stage of a funnel gives and loses",
    "evaluate_ranker": "compare rankers with the order they are given",
}


def main(command: str | None = None) -> None:
    """Runs a command with the arguments of the process.

    Args:
        command: Its name; by default the first argument is the name.
    """
    arguments = sys.argv[1:]
    name = f"python experiments/{command}.py"
    if command is None:
        command, *arguments = arguments or [""]
        name = f"twotower {command}"
    if command not in COMMANDS:
        lines = [f"  {known:16s} {text}" for known, text in COMMANDS.items()]
        usage = "\n".join(["twotower COMMAND --flag=value ...", *lines])
        if command in ("", "help", "-h", "-help", "--help"):
            print(f"{usage}\nEach command answers --help.")
            return
        sys.exit(f"twotower: there is no command {command!r}.\n{usage}")
    from twotower.commands import script

    script.run_command(importlib.import_module(f"twotower.commands.{command}"), [name, *arguments])


if __name__ == "__main__":  # python -m twotower.commands.main
    main()
