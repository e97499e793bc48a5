"""Draw a map of a bundle's items into it: the same as `twotower build_map`.

python experiments/build_map.py --help
"""

from twotower.commands.main import main

if __name__ == "__main__":
    main("build_map")
