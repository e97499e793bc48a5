"""Compare rankers with the order they are given: the same as `twotower evaluate_ranker`.

python experiments/evaluate_ranker.py --help
"""

from twotower.commands.main import main

if __name__ == "__main__":
    main("evaluate_ranker")
