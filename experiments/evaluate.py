"""Compare bundles and baselines on known answers: the same as `twotower evaluate`.

python experiments/evaluate.py --help
"""

from twotower.commands.main import main

if __name__ == "__main__":
    main("evaluate")
