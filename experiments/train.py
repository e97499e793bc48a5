"""Train a model and export its bundle: the same as `twotower train`.

python experiments/train.py --help
"""

from twotower.commands.main import main

if __name__ == "__main__":
    main("train")
