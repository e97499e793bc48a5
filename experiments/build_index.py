"""Build one more index into a bundle: the same as `twotower build_index`.

python experiments/build_index.py --help
"""

from twotower.commands.main import main

if __name__ == "__main__":
    main("build_index")
