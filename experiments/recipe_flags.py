"""One absl flag for every field of a Recipe, with the help text of the field's docstring."""

import dataclasses
import re

from absl import flags

from twotower.training.recipe import Recipe

# The flags are the calling script's own, so that its --help shows them.
flags.disclaim_key_flags()

# These are one flag for both towers: their vectors must have the same length and scale, and a
# reader who wants two heads of different sizes has the code.
SHARED = ("hidden", "dim", "l2_normalise", "dropout", "batch_norm", "shortcut")
PARTS = {
    "query": "query_",
    "item": "item_",
    "task": "",
    "negatives": "",
    "mining": "mining_",
    "examples": "",
    "fit": "",
}


def _name(part: str, field: str) -> str:
    return field if field in SHARED else PARTS[part] + field


def _fields():
    """(part, field) of every field once, and its flag's name."""
    seen = set()
    default = Recipe()
    for part in PARTS:
        for field in dataclasses.fields(getattr(default, part)):
            name = _name(part, field.name)
            if name not in seen:
                seen.add(name)
                yield name, getattr(default, part), field


def _help(config, field: str) -> str:
    """The text behind `field:` in the Attributes section of the config's docstring."""
    text = re.search(rf"^ +{field}: ((?:.+\n?)(?: {{12}}.+\n?)*)", type(config).__doc__, re.M)
    return re.sub(r"\s+", " ", text.group(1)).strip().replace("`", "")


def define() -> None:
    """Defines the flags; call it once, at the top of a script."""
    for name, config, field in _fields():
        text = _help(config, field.name)
        default = field.default
        if isinstance(default, bool):
            flags.DEFINE_bool(name, default, text)
        elif isinstance(default, int):
            flags.DEFINE_integer(name, default, text)
        elif isinstance(default, float):
            flags.DEFINE_float(name, default, text)
        elif isinstance(default, tuple):
            flags.DEFINE_list(name, [str(value) for value in default], text)
        else:
            flags.DEFINE_string(name, default, text)


def recipe() -> Recipe:
    """The Recipe that the flags ask for."""
    default, parts = Recipe(), {}
    for part in PARTS:
        config, values = getattr(default, part), {}
        for field in dataclasses.fields(config):
            value = flags.FLAGS[_name(part, field.name)].value
            if isinstance(field.default, tuple):
                kind = type(field.default[0])
                value = tuple(kind(entry) for entry in value)
            values[field.name] = value
        parts[part] = type(config)(**values)
    return Recipe(**parts)
