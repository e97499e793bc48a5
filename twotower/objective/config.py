"""TaskConfig, NegativesConfig and MiningConfig: the choices behind a loss; without TensorFlow."""

import dataclasses
import math

from twotower.limits import at_least, refuse, unread
from twotower.retrieval import build

LOSSES = ("softmax", "bce", "gbce", "triplet", "cosine_contrastive")
CORRECTIONS = ("none", "log_q", "log_q_masked")
MININGS = ("all", "semi_hard", "hardest")  # of a triplet's negative
# Losses with a margin between scores, and those that weigh the negatives' mean by a ratio.
MARGINS, WEIGHING = ("triplet", "cosine_contrastive"), ("bce", "gbce", "cosine_contrastive")
LEARNED = (0.01, 1.0)  # bounds of a learned temperature
POOLS = ("batch", "uniform", "popularity", "memory", "catalogue")


@dataclasses.dataclass(frozen=True)
class NegativesConfig:
    """Which candidates are columns.

    Attributes:
        negatives: The pools, one or more of `POOLS`. `catalogue` goes with no other.
        num_sampled: Draws per batch of `uniform`, and of `popularity`.
        sampled_power: The power of `popularity`. p_c is how often examples of item c are drawn, so
            if stratified sampling draws all items equally often, `popularity` is uniform.
        memory_size: Examples whose item vectors `memory` keeps.
        num_hardest: Columns that a row keeps, those with the highest scores; 0 for all.
        hard_negative_share: Share of a row's negatives that are mined for it (`mining.py`).
        num_impressions: Further negatives of a row: items that its user was shown and did not take.
        untrained_items: Whether `uniform`, `popularity`, `catalogue` and mined negatives also draw
            items without a training example. The model then learns never to answer them.
    """

    negatives: tuple[str, ...] = ("batch",)
    num_sampled: int = 1024
    sampled_power: float = 0.75
    memory_size: int = 8192
    num_hardest: int = 0
    hard_negative_share: float = 0.0
    num_impressions: int = 0
    untrained_items: bool = False

    def __post_init__(self) -> None:
        pools = self.negatives
        if not pools or set(pools) - set(POOLS) or len(set(pools)) < len(pools):
            raise ValueError(f"negatives must be one or more of {POOLS}; got {pools}.")
        if "catalogue" in pools and len(pools) > 1:
            raise ValueError(f"the catalogue holds every item already; got {pools}.")
        if "memory" in pools and ("batch" not in pools or self.has_hard_negatives):
            raise ValueError(
                "a memory's vectors push queries and learn nothing, which the batch's columns make "
                "up for: it goes with 'batch', and without mined negatives or impressions; got "
                f"{pools}, hard_negative_share {self.hard_negative_share} and num_impressions "
                f"{self.num_impressions}."
            )
        least = {"num_sampled": 1, "memory_size": 1}
        at_least(self, **least, num_hardest=0, num_impressions=0, sampled_power=0)
        if not 0 <= self.hard_negative_share < 1:
            raise ValueError(
                f"hard_negative_share must lie in [0, 1); got {self.hard_negative_share}."
            )
        is_drawn = bool({"uniform", "popularity"} & set(pools))
        refuse(
            [
                *unread(self, is_drawn, "negatives=uniform or popularity", "num_sampled"),
                *unread(self, "popularity" in pools, "negatives=popularity", "sampled_power"),
                *unread(self, "memory" in pools, "negatives=memory", "memory_size"),
            ]
        )

    def num_shared(self, num_examples: int, num_items: int) -> int:
        """Draws of all pools together, besides a row's positive, of `num_items` drawable items."""
        size = {"batch": num_examples - 1, "catalogue": num_items - 1, "memory": self.memory_size}
        return sum(size.get(name, self.num_sampled) for name in self.negatives)

    def num_mined(self, num_shared: int) -> int:
        """Mined negatives of a row beside `num_shared` draws, so that their share is as asked."""
        return round(num_shared * self.hard_negative_share / (1 - self.hard_negative_share))

    @property
    def has_hard_negatives(self) -> bool:
        """Whether a query has negatives that others do not have."""
        return self.hard_negative_share > 0 or self.num_impressions > 0


@dataclasses.dataclass(frozen=True)
class MiningConfig:
    """When and where hard negatives are mined; `--hard_negative_share` says how many are used.

    Attributes:
        every: Steps between two minings.
        warmup: Steps before the first mining, at most `WARMUP_SHARE` of all (fitting.py); rows have
            no block until then.
        depth: Items that a user's list holds; more where a row uses more.
        skip: Best finds left out of it: some of them the user would like.
        distinct: Items that the blocks of a batch bring at most beside the batch's own, a quarter
            of them random ones where rows need topping up. Many rows with many negatives each would
            have the item tower encode nearly the whole catalogue at every step.
        index: Backend to find them with, such as `exact` or `hnsw`.
    """

    every: int = 200
    warmup: int = 400
    depth: int = 200
    skip: int = 0
    distinct: int = 512
    index: str = "exact"

    def __post_init__(self) -> None:
        at_least(self, every=1, warmup=0, depth=1, skip=0, distinct=4)
        if self.index not in build.BACKENDS:
            raise ValueError(f"index must be one of {build.BACKENDS}; got {self.index!r}.")

    def is_due(self, step: int) -> bool:
        """Whether lists are mined before this step, counted from 0."""
        return step >= self.warmup and (step - self.warmup) % self.every == 0


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """How the score matrix becomes a loss; `losses.py` and `corrections.py` have the equations.

    Attributes:
        loss: `softmax`, `bce`, `gbce`, `triplet` or `cosine_contrastive`.
        temperature: Scores are divided by it, in training only.
        learned_temperature: Whether it is a weight, which starts at `temperature`.
        correction: `none`, `log_q` or `log_q_masked`.
        frequency: p_c of log-Q: `counts` of the training examples, or the `streaming` estimate.
        mask_known_positives: Whether the user's other positives are no negatives of the user's
            examples. Where prefixes of a sequence ask for what comes next, these are the events
            that came before, and among the items of a batch those that come later, too.
        margin: Of `triplet`, by how much s+ should exceed s_c; of `cosine_contrastive`, the cosine
            under which a negative costs nothing. Both are in units of unscaled scores, so these
            losses need temperature 1.
        triplet_mining: Which negatives of a triplet: `all`, `semi_hard` or `hardest`. The last two
            take one negative a row, which no correction weighs.
        negative_ratio: Negatives a positive, by which `bce`, `gbce` and `cosine_contrastive` weigh
            their mean over the columns.
        calibration: t of `gbce`.
    """

    loss: str = "softmax"
    temperature: float = 0.1
    learned_temperature: bool = False
    correction: str = "log_q_masked"
    frequency: str = "counts"
    mask_known_positives: bool = True
    margin: float = 0.2
    triplet_mining: str = "all"
    negative_ratio: float = 1.0
    calibration: float = 0.75

    def __post_init__(self) -> None:
        for name in ("temperature", "negative_ratio"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite; got {getattr(self, name)}.")
        at_least(self, margin=0)
        if not 0 <= self.calibration <= 1:
            raise ValueError(f"calibration must lie in [0, 1]; got {self.calibration}.")
        for name, known in (
            ("loss", LOSSES),
            ("correction", CORRECTIONS),
            ("frequency", ("counts", "streaming")),
            ("triplet_mining", MININGS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}; got {getattr(self, name)!r}.")
        has_margin = self.loss in MARGINS
        takes_one = self.loss == "triplet" and self.triplet_mining != "all"
        for is_wrong, sentence in (
            (
                self.correction == "log_q" and self.mask_known_positives,
                "log_q corrects every column, hits among them, so it goes with "
                "mask_known_positives=False; to mask the user's known positives take "
                "correction='log_q_masked' or 'none'.",
            ),
            (
                self.correction == "log_q" and self.loss != "softmax",
                "log_q corrects the positive, too, as only softmax can have it; take log_q_masked "
                f"or none for {self.loss}.",
            ),
            (
                self.learned_temperature and not LEARNED[0] <= self.temperature <= LEARNED[1],
                f"a learned temperature starts within {LEARNED}; got {self.temperature}.",
            ),
            (
                self.learned_temperature and has_margin,
                f"{self.loss} is not bounded below over temperatures, and a lower one would always "
                "be better: take learned_temperature=False.",
            ),
            (
                has_margin and self.temperature != 1,
                f"the margin of {self.loss} is measured in the scores themselves; a temperature of "
                f"{self.temperature} would divide the scores: take temperature=1.",
            ),
            (
                self.loss == "cosine_contrastive" and self.margin >= 1,
                f"margin {self.margin}: no cosine exceeds 1, so no negative would cost anything.",
            ),
            (
                takes_one and self.mask_known_positives and self.correction != "none",
                f"triplet_mining={self.triplet_mining!r} takes one negative of a row, by its score "
                f"alone, so that {self.correction} weighs nothing: take correction='none'.",
            ),
        ):
            if is_wrong:
                raise ValueError(sentence)
        refuse(
            [
                *unread(self, self.correction != "none", "a correction", "frequency"),
                *self._of_losses(MARGINS, "margin"),
                *self._of_losses(("triplet",), "triplet_mining"),
                *self._of_losses(WEIGHING, "negative_ratio"),
                *self._of_losses(("gbce",), "calibration"),
            ]
        )

    def _of_losses(self, read_by: tuple[str, ...], field: str) -> list[str]:
        return unread(self, self.loss in read_by, f"loss={' or '.join(read_by)}", field)


def check_columns(config: TaskConfig, negatives: NegativesConfig) -> None:
    """Checks that the correction can weigh the columns.

    Raises:
        ValueError: `log_q` over other columns than the batch's, or a correction over the catalogue,
            whose items are not drawn.
    """
    if "catalogue" in negatives.negatives and config.correction != "none":
        raise ValueError(
            f"correction={config.correction!r} has no effect over the catalogue, where every item "
            "is a column and none is drawn: take correction='none'."
        )
    if config.correction == "log_q" and negatives.negatives != ("batch",):
        raise ValueError(
            f"log_q corrects the positive, too, as only softmax over the batch can have it; "
            f"take log_q_masked or none over {negatives.negatives}."
        )
