"""Train a ranker on what a funnel finds: the same as `twotower train_ranker`.

python experiments/train_ranker.py --help
"""

from twotower.commands.main import main

if __name__ == "__main__":
    main("train_ranker")
