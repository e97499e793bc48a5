"""Build a funnel around a bundle's two towers: the same as `twotower build_funnel`.

python experiments/build_funnel.py --help
"""

from twotower.commands.main import main

if __name__ == "__main__":
    main("build_funnel")
