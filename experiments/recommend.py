"""Print what a bundle recommends to somebody: the same as `twotower recommend`.

python experiments/recommend.py --help
"""

from twotower.commands.main import main

if __name__ == "__main__":
    main("recommend")
