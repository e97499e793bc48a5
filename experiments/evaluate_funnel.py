"""Say what each stage of a bundle's funnel gives and loses: the same as `twotower evaluate_funnel`.

python experiments/evaluate_funnel.py --help
"""

from twotower.commands.main import main

if __name__ == "__main__":
    main("evaluate_funnel")
