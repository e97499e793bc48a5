"""Recipe: all choices of a training run, as plain data."""

import dataclasses
import difflib
import math
from typing import Any

import numpy as np

from twotower.data.config import TIME_DEPENDENT, ExamplesConfig
from twotower.evaluation.metrics import KS, MRR_AT
from twotower.limits import at_least, refuse, typed, unread
from twotower.objective.config import MiningConfig, NegativesConfig, TaskConfig, check_columns
from twotower.towers.config import DenseConfig, ItemConfig, QueryConfig
from twotower.towers.history.config import READERS, HistoryConfig, MeanConfig, changed

# A part of the part `query`, whose fields depend on the history's encoder.
HISTORY = "query.history"
OPTIMIZERS = ("adam", "adamw", "adagrad")
# Fields of both towers' dense layers.
HEAD = tuple(field.name for field in dataclasses.fields(DenseConfig))
# Validation figures that can select an epoch.
BY_QUERY = ("recall", "recall_micro", "hit_rate", "precision", "ndcg")
SELECTING = {f"{name}@{k}" for name in BY_QUERY for k in KS} | {f"mrr@{MRR_AT}"}


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How long and how fast to train.

    Attributes:
        epochs: Passes over the training rows, at most.
        optimizer: `adam`, `adamw` or `adagrad`.
        learning_rate: The highest learning rate of the training.
        weight_decay: Only for `adamw`, which needs one above 0: each step subtracts
            weight_decay * learning_rate * weight from a weight.
        warmup_steps: Steps in which the learning rate rises from 0, with `cosine`; at most
            `WARMUP_SHARE` of all steps (fitting.py).
        cosine: After the warm-up, let the learning rate fall along a half cosine, to a twentieth of
            `learning_rate` at the last epoch. Without it the learning rate is constant.
        patience: Stop after this many epochs without a better validation figure; 0 for never.
        metric: The validation figure that selects the epoch. If its k is most of a small catalogue,
            it is taken at the largest k that can tell models apart.
        keep_best: Keep the weights of the best validated epoch; without it those of the last epoch,
            as in tutorials without validation.
        validate_every: Epochs from one validation to the next.
        topk_every: Epochs from one FactorizedTopK validation in `fit`'s log to the next; 0 for
            none. They rank seen items, too, so the log names their figures `+seen`.
        seed: Seed of the weights, of dropout and of the order of the examples.
        deterministic: Make runs equal to the last bit, at a cost in speed
            (`tf.config.experimental.enable_op_determinism`).

    >>> FitConfig(epochs=3, cosine=False, warmup_steps=0).learning_rate
    0.002
    """

    epochs: int = 12
    optimizer: str = "adam"
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    warmup_steps: int = 200
    cosine: bool = True
    patience: int = 5
    metric: str = "recall_micro@100"
    keep_best: bool = True
    validate_every: int = 1
    topk_every: int = 0
    seed: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        typed(self)
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {OPTIMIZERS}; got {self.optimizer!r}.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"learning_rate must be positive and finite; got {self.learning_rate}."
            )
        at_least(self, epochs=1, validate_every=1)
        at_least(self, warmup_steps=0, patience=0, topk_every=0, weight_decay=0, seed=0)
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below 2**32; got {self.seed}.")
        if self.warmup_steps and not self.cosine:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} has no effect without cosine: the learning rate "
                "is the same from the first step on. Take warmup_steps=0."
            )
        if self.patience and not self.keep_best:
            raise ValueError(
                f"patience={self.patience} has no effect without keep_best: the last epoch counts, "
                "whatever came before. Take patience=0."
            )
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(f"weight_decay is of adamw; {self.optimizer!r} would ignore it.")
        if self.optimizer == "adamw" and not self.weight_decay:
            raise ValueError(
                "adamw with weight_decay=0 is adam. Set weight_decay above 0, such as 0.01, or "
                "take optimizer='adam'."
            )
        if self.metric not in SELECTING:
            raise ValueError(f"metric must be one of {sorted(SELECTING)}; got {self.metric!r}.")


@dataclasses.dataclass(frozen=True, init=False)
class Recipe:
    """All choices of a training run. It is stored in a bundle's manifest.

    Args:
        **choices: Whole parts (`fit=FitConfig(...)`), or single choices by their names
            (`epochs=4`), which are also the names of the flags (`CHOICES`). A choice has the name
            of its field, with `query_`, `item_` or `mining_` before it for these three parts.
            `query_history` is the history's encoder, and `query_history_...` its fields. The
            fields of both towers' dense layers (`HEAD`) and `seed` have one name each, which sets
            the field of both parts. `negatives` is a part if it is a `NegativesConfig`; otherwise
            it names the pools.

    Raises:
        TypeError: No such part or choice; the message lists similar names.
        ValueError: A value out of its bounds, or choices that do not go together.

    >>> recipe = Recipe(epochs=4, dim=64, item_id_dim=32)
    >>> recipe.fit.epochs, recipe.query.dim, recipe.item.dim, recipe.item.id_dim
    (4, 64, 64, 32)
    >>> Recipe(epoch=4)
    Traceback (most recent call last):
    TypeError: a recipe has no choice 'epoch'; near are 'epochs'.
    """

    query: QueryConfig = QueryConfig()
    item: ItemConfig = ItemConfig()
    task: TaskConfig = TaskConfig()
    negatives: NegativesConfig = NegativesConfig()
    mining: MiningConfig = MiningConfig()
    examples: ExamplesConfig = ExamplesConfig()
    fit: FitConfig = FitConfig()

    def __init__(self, **choices: Any) -> None:
        changes: dict[str, dict[str, Any]] = {}
        parts = {field.name: field.default for field in PARTS}
        for name, value in choices.items():
            if name in parts and isinstance(value, type(parts[name])):
                parts[name] = value
                continue
            if name in parts and name not in CHOICES:
                raise TypeError(f"{name} must be a {type(parts[name]).__name__}; got {value!r}.")
            if name not in CHOICES:
                raise TypeError(_unknown(name))
            for part, field in CHOICES[name]:
                if isinstance(field.default, tuple):  # a list or one value will do
                    several = isinstance(value, list | tuple | np.ndarray)
                    value = tuple(value) if several else (value,)
                changes.setdefault(part, {})[field.name] = value
        for name, part in parts.items():
            fields = changes.get(name, {})
            if name == "query" and HISTORY in changes:
                fields["history"] = changed(part.history, **changes[HISTORY])
            object.__setattr__(self, name, dataclasses.replace(part, **fields))
        self._check()

    def _check(self) -> None:
        """Raises ValueError if parts do not go together, or a field of one has no effect."""
        negatives, examples = self.negatives, self.examples
        check_columns(self.task, negatives)
        is_mined = negatives.hard_negative_share > 0
        of_mining = [field.name for field in dataclasses.fields(self.mining)]
        refuse(
            [
                *unread(self.mining, is_mined, "hard_negative_share", *of_mining),
                *unread(examples, examples.sequence_length > 0, "sequence_length", "hidden_share"),
                *(
                    sentence
                    for tower in (self.query, self.item)
                    for sentence in unread(
                        tower, bool(tower.hidden), "hidden layers", "dropout", "batch_norm"
                    )
                ),
            ]
        )
        if self.query.shared != "nothing" and "history" in self.query.features:
            self.query.history.sized(self.item.id_dim)
        for name in HEAD if self.query.shared == "tower" else ():
            if getattr(self.query, name) != getattr(self.item, name):
                raise ValueError(
                    f"shared='tower': the query's {name}={getattr(self.query, name)!r} has no "
                    f"effect beside the item tower's {getattr(self.item, name)!r}. Set both alike."
                )

    def unread(self) -> list[str]:
        """A sentence for each size or rate that is set for a feature which the towers do not have.

        They are logged and not refused, so that one can change the features of a recipe alone.
        """
        query, item = self.query, self.item
        categories = set(query.features) - {"user_id", "history"}
        columns = set(item.features) - {"item_id", *TIME_DEPENDENT}
        texts = {"title", "description"} & set(item.features)
        has_user, has_item = "user_id" in query.features, "item_id" in item.features
        of_query = [
            *unread(query, has_user, "the feature user_id", "user_dim", "unknown_rate"),
            *unread(query, bool(categories), "a category or search text", "category_dim"),
            *unread(query, "history" in query.features, "the feature history", "history", "shared"),
        ]
        of_item = [
            *unread(item, has_item, "the feature item_id", "id_dim", "unknown_rate"),
            *unread(item, bool(columns), "a text or category", "token_dim"),
            *unread(item, bool(texts), "a title or description", "min_token_count"),
        ]
        return [f"query.{text}" for text in of_query] + [f"item.{text}" for text in of_item]

    def to_json(self) -> dict:
        """The recipe as plain dictionaries, part -> field -> value."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "Recipe":
        """The inverse of `to_json`. A missing part or field gets its default value.

        Raises:
            TypeError: An unknown part or field, which the message names.
            ValueError: As for `Recipe`.
        """
        if unknown := values.keys() - {field.name for field in PARTS}:
            raise TypeError(f"a recipe has no parts {sorted(unknown)}.")
        parts = {}
        for field in PARTS:
            part = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values.get(field.name, {}).items()
            }
            if field.name == "query" and "history" in part:
                part["history"] = changed(MeanConfig(), **_history(part))
            parts[field.name] = type(field.default)(**part)
        return cls(**parts)


PARTS = dataclasses.fields(Recipe)


def _history(query: dict[str, Any]) -> dict[str, Any]:
    """The fields of the history in a query's JSON. Older recipes had them in the query itself, as
    `history_dim`, with "" for an encoder's default; these are removed from `query`."""
    if isinstance(query["history"], dict):
        return query["history"]
    flat = {name: query.pop(name) for name in [*query] if name.startswith("history_")}
    fields = {name.removeprefix("history_"): value for name, value in flat.items() if value != ""}
    return {"encoder": query["history"], **fields}


def _choices() -> dict[str, list[tuple[str, dataclasses.Field]]]:
    """Name of each choice -> the parts and fields that it sets."""
    found: dict[str, list[tuple[str, dataclasses.Field]]] = {}
    for part in PARTS:
        prefix = f"{part.name}_" if part.name in ("query", "item", "mining") else ""
        for field in dataclasses.fields(part.default):
            if isinstance(field.default, HistoryConfig):
                # A field's default is that of the first encoder that reads it.
                found |= {
                    f"query_history_{name}".removesuffix("_encoder"): [
                        (HISTORY, first.__dataclass_fields__[name])
                    ]
                    for name, (first, *_) in READERS.items()
                }
                continue
            name = field.name if field.name in HEAD else prefix + field.name
            found.setdefault(name, []).append((part.name, field))
    return found


CHOICES = _choices()


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))


def _unknown(name: str) -> str:
    """The error message for a choice that does not exist."""
    near = [known for known in CHOICES if known.endswith(f"_{name}")]
    near += difflib.get_close_matches(name, CHOICES)
    # Short forms: `temp`, and `lr`.
    short = [known for known in CHOICES if name in (known[: len(name)], _initials(known))]
    near += sorted(short, key=len)[:3]
    near = [repr(known) for known in dict.fromkeys(near)]
    return f"a recipe has no choice {name!r}; " + (
        f"near are {', '.join(near)}." if near else f"there are {', '.join(CHOICES)}."
    )
