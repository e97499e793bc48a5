"""One absl flag for every choice of a Recipe, with the help text of the field's docstring."""

import re

from absl import flags

from twotower.towers.history.config import CONFIGS, READERS
from twotower.training.recipe import CHOICES, HISTORY, PARTS, Recipe

# The flags belong to the calling command, so that its --help shows them.
flags.disclaim_key_flags()

# Parts whose choices go together: if a flag sets one of them, `recipe` takes none of them from its
# `default`.
COUPLED = ("task", "negatives", "mining")
TITLES = {
    "query": "Query tower, and what both towers have in common",
    HISTORY: "History encoder of the query tower",
    "item": "Item tower",
    "task": "Loss",
    "negatives": "Negatives",
    "mining": "Mining of hard negatives",
    "examples": "Batches",
    "fit": "Training",
}


def define() -> dict[str, list[str]]:
    """Defines the flags; call it once, at the top of a command.

    Returns:
        Title of each group -> names of its flags, in the order of `--help`.
    """
    groups: dict[str, list[str]] = {title: [] for title in TITLES.values()}
    for name, ((part, field), *_) in CHOICES.items():
        text, default = _help(part, field.name), field.default
        groups[TITLES[part]].append(name)
        if isinstance(default, bool):
            flags.DEFINE_bool(name, default, text)
        elif field.type in (int, int | None):
            flags.DEFINE_integer(name, default, text)
        elif isinstance(default, float):
            flags.DEFINE_float(name, default, text)
        elif isinstance(default, tuple):
            flags.DEFINE_list(name, [str(value) for value in default], text)
        else:
            flags.DEFINE_string(name, default, text)
    return groups


def recipe(default: Recipe | None = None) -> Recipe:
    """The recipe that the flags ask for.

    Args:
        default: Values of the flags that are not set, such as `recipe_for` of the data; `Recipe()`
            if left out. If a flag sets a choice of one of the parts `COUPLED`, all these parts have
            the defaults of `Recipe()`.

    Raises:
        ValueError: A list with an entry of another type, or as for `Recipe`.
    """
    default, usual = default or Recipe(), Recipe()
    given = [name for name in CHOICES if not flags.FLAGS[name].using_default_value]
    is_coupled = any(part in COUPLED for name in given for part, _ in CHOICES[name])
    choices = {
        part.name: getattr(usual if is_coupled and part.name in COUPLED else default, part.name)
        for part in PARTS
    }
    for name in given:
        value, ((_, field), *_) = flags.FLAGS[name].value, CHOICES[name]
        if isinstance(field.default, tuple):
            kind = type(field.default[0])
            try:
                value = tuple(kind(entry) for entry in value)
            except ValueError as error:
                default = ",".join(map(str, field.default))
                raise ValueError(f"--{name} is a list such as {default}; {error}.") from error
        choices[name] = value
    return Recipe(**choices)


def _help(part: str, field: str) -> str:
    """The text of `field` in the Attributes section of the docstring of its part, and which history
    encoders read it if others do not."""
    kinds = READERS[field] if part == HISTORY else [type(getattr(Recipe, part))]
    doc = "\n".join(base.__doc__ or "" for base in reversed(kinds[0].__mro__))
    text = re.search(rf"^ +{field}: ((?:.+\n?)(?: {{12}}.+\n?)*)", doc, re.M)
    if text is None:
        raise LookupError(f"the docstring of {kinds[0].__name__} has no entry {field!r}.")
    text = re.sub(r"\s+", " ", text.group(1)).strip().replace("`", "")
    if part == HISTORY and len(kinds) < len(CONFIGS):
        text += f" For {', '.join(kind.encoder for kind in kinds)}."
    return text
