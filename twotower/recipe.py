"""Recipe: all choices of a training run, as plain data."""

import dataclasses

from twotower import require_legacy_keras

require_legacy_keras()
from twotower.data.examples import ExamplesConfig  # noqa: E402
from twotower.evaluation import KS, MRR_AT  # noqa: E402
from twotower.limits import at_least  # noqa: E402
from twotower.mining import MiningConfig  # noqa: E402
from twotower.negatives import NegativesConfig  # noqa: E402
from twotower.task import TaskConfig  # noqa: E402
from twotower.towers.item import ItemConfig  # noqa: E402
from twotower.towers.query import QueryConfig  # noqa: E402

OPTIMIZERS = ("adam", "adamw", "adagrad")
# Validation figures that can select an epoch.
BY_QUERY = ("recall", "recall_micro", "hit_rate", "precision", "ndcg")
SELECTING = {f"{name}@{k}" for name in BY_QUERY for k in KS} | {f"mrr@{MRR_AT}"}


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How long and how fast to train.

    Attributes:
        epochs: Passes over the training rows, at most.
        optimizer: `adam`, `adamw` or `adagrad`.
        learning_rate: Its peak.
        weight_decay: Of `adamw`, per step, times the learning rate.
        warmup_steps: Steps over which the learning rate rises from 0, with `cosine`.
        cosine: Whether it then falls along a half cosine, to a twentieth at the last epoch; else it
            is the same from the first step on.
        patience: Epochs without a better validation figure after which training stops; 0 never.
        metric: The validation figure that selects the epoch; where its k is most of a small
            catalogue, the same at the largest k that can tell models apart.
        keep_best: Whether the best validated epoch is kept; otherwise the last one, as tutorials
            without a validation do.
        validate_every: Epochs between validations.
        topk_every: Epochs between FactorizedTopK validations in `fit`'s log; 0 for none. They
            count seen items as candidates, so their figures stand in the log as `+seen`.
        seed: Weights, dropout and (through the examples) order.
        deterministic: Equal runs to the last bits, at a cost in speed
            (`tf.config.experimental.enable_op_determinism`).
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
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {OPTIMIZERS}; got {self.optimizer!r}.")
        if self.epochs < 1 or self.validate_every < 1 or not self.learning_rate > 0:
            raise ValueError(f"epochs, validate_every and learning_rate must be positive: {self}.")
        at_least(self, warmup_steps=0, patience=0, topk_every=0, weight_decay=0)
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(f"weight_decay is of adamw; {self.optimizer!r} would ignore it.")
        if self.metric not in SELECTING:
            raise ValueError(f"metric must be one of {sorted(SELECTING)}; got {self.metric!r}.")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All choices of a training run; a bundle's manifest holds it."""

    query: QueryConfig = QueryConfig()
    item: ItemConfig = ItemConfig()
    task: TaskConfig = TaskConfig()
    negatives: NegativesConfig = NegativesConfig()
    mining: MiningConfig = MiningConfig()
    examples: ExamplesConfig = ExamplesConfig()
    fit: FitConfig = FitConfig()

    def to_json(self) -> dict:
        """Plain dictionaries."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "Recipe":
        """The inverse of `to_json`; what is missing has its default, as in bundles of versions that
        did not know it, and an unknown part or field is a TypeError that names it."""
        parts = {}
        if unknown := values.keys() - {field.name for field in dataclasses.fields(cls)}:
            raise TypeError(f"a recipe has no parts {sorted(unknown)}.")
        for field in dataclasses.fields(cls):
            part = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values.get(field.name, {}).items()
            }
            parts[field.name] = type(field.default)(**part)
        return cls(**parts)
