"""TaskConfig, NegativesConfig and MiningConfig: the choices behind a loss. Needs no TensorFlow."""

import dataclasses
import math

from twotower.limits import at_least, refuse, typed, unread
from twotower.retrieval import build

LOSSES = ("softmax", "bce", "gbce", "triplet", "cosine_contrastive")
CORRECTIONS = ("none", "log_q", "log_q_masked")
MININGS = ("all", "semi_hard", "hardest")  # which negatives of a triplet count
# Losses that have a margin, and losses that multiply the mean over negatives by `negative_ratio`.
MARGINS, WEIGHING = ("triplet", "cosine_contrastive"), ("bce", "gbce", "cosine_contrastive")
LEARNED = (0.01, 1.0)  # bounds of a learned temperature
POOLS = ("batch", "uniform", "popularity", "memory", "catalogue")


@dataclasses.dataclass(frozen=True)
class NegativesConfig:
    """Which candidates are the columns of the score matrix (`negatives.py` describes the pools).

    Attributes:
        negatives: One or more of `POOLS`, from which the columns come. `catalogue` is used alone.
        num_sampled: Items that `uniform` draws for a batch, and as many that `popularity` draws.
        sampled_power: `popularity` draws an item in proportion to p_c to this power. p_c is the
            item's share of the training examples as they are drawn: with stratified sampling that
            draws all items equally often, `popularity` is uniform.
        memory_size: Number of past examples whose item vectors `memory` keeps.
        num_hardest: How many columns a row keeps, those with the highest scores; 0 for all.
        hard_negative_share: Share of a row's negatives that are mined for its user (`mining.py`).
        num_impressions: Number of further negatives of a row: items that its user was shown and did
            not take. Items without a training example are left out.
        untrained_items: Also draw items without a training example as negatives, and as
            impressions. The model then learns to rank them last, so it never recommends a new item.

    >>> NegativesConfig(("batch", "uniform"), num_sampled=100).num_shared(256, num_items=3000)
    355
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
        typed(self)
        pools = self.negatives
        if not pools or set(pools) - set(POOLS) or len(set(pools)) < len(pools):
            raise ValueError(f"negatives must be one or more of {POOLS}; got {pools}.")
        if "catalogue" in pools and len(pools) > 1:
            raise ValueError(f"the catalogue holds every item already; got {pools}.")
        if "memory" in pools and ("batch" not in pools or self.has_hard_negatives):
            raise ValueError(
                "the memory's vectors get no gradient, and only the columns of the batch are "
                "rescaled to make up for it: take 'batch' beside 'memory', and no mined negatives "
                f"or impressions; got {pools}, hard_negative_share {self.hard_negative_share} and "
                f"num_impressions {self.num_impressions}."
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
                *unread(
                    self,
                    is_drawn or "catalogue" in pools or self.has_hard_negatives,
                    "negatives=uniform, popularity or catalogue, num_impressions or "
                    "hard_negative_share",
                    "untrained_items",
                ),
            ]
        )

    def num_shared(self, num_examples: int, num_items: int) -> int:
        """How many negatives all pools together give a row.

        Args:
            num_examples: Examples of the batch.
            num_items: Items that may be drawn.
        """
        size = {"batch": num_examples - 1, "catalogue": num_items - 1, "memory": self.memory_size}
        return sum(size.get(name, self.num_sampled) for name in self.negatives)

    def num_mined(self, num_shared: int) -> int:
        """How many mined negatives a row needs beside `num_shared` others, for their share of all
        to be `hard_negative_share`."""
        return round(num_shared * self.hard_negative_share / (1 - self.hard_negative_share))

    @property
    def has_hard_negatives(self) -> bool:
        """Whether a row has negatives that other rows do not have."""
        return self.hard_negative_share > 0 or self.num_impressions > 0


@dataclasses.dataclass(frozen=True)
class MiningConfig:
    """When and how hard negatives are mined; `--hard_negative_share` says how many are used.

    Attributes:
        every: Steps from one mining to the next.
        warmup: Steps before the first mining, at most `WARMUP_SHARE` of all steps (fitting.py).
            Until then there are no hard negatives.
        depth: Number of items in a user's list; more if a row uses more.
        skip: How many of the best found items are left out of the list, since the user may like
            some of them.
        distinct: How many distinct items the hard negatives may add to a batch. At least a quarter
            of these are random items, which fill rows whose list is too short. Without a limit the
            item tower would encode nearly the whole catalogue at every step.
        index: Backend that searches, such as `exact` or `hnsw`.

    >>> [step for step in range(1000) if MiningConfig(every=200, warmup=400).is_due(step)]
    [400, 600, 800]
    """

    every: int = 200
    warmup: int = 400
    depth: int = 200
    skip: int = 0
    distinct: int = 512
    index: str = "exact"

    def __post_init__(self) -> None:
        typed(self)
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
        temperature: Scores are divided by it in training. Serving does not need it.
        learned_temperature: Learn the temperature as a weight, which starts at `temperature`.
        correction: `none`, `log_q` or `log_q_masked`: how columns that are drawn more often are
            made to count less.
        frequency: Where log-Q takes p_c from: `counts` of the training examples, or the `streaming`
            estimate (`frequency.py`).
        mask_known_positives: Do not use a user's other known positives as negatives. In next-item
            training over the whole catalogue this masks the items before the target; over the items
            of a batch it also masks those after the target, up to the end of the window.
        margin: Of `triplet`, by how much s+ should exceed s_c; of `cosine_contrastive`, the cosine
            below which a negative costs nothing. Both are in units of the cosine, so these losses
            need temperature 1.
        triplet_mining: Which negatives of a row enter `triplet`: `all`, `semi_hard` or `hardest`.
            The last two take one negative of each row, so a correction would have no effect.
        negative_ratio: Factor of the mean over negatives in `bce`, `gbce` and
            `cosine_contrastive`: the number of negatives for each positive.
        calibration: t of `gbce`, in [0, 1]: 0 is plain cross-entropy, 1 gives calibrated
            probabilities.

    >>> TaskConfig(loss="triplet", temperature=1.0).margin
    0.2
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
        typed(self)
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
        self._check_together()
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
        """A sentence if the field is set and the loss does not read it; none otherwise."""
        return unread(self, self.loss in read_by, f"loss={' or '.join(read_by)}", field)

    def _check_together(self) -> None:
        """Raises ValueError for choices that exclude one another."""
        has_margin = self.loss in MARGINS
        takes_one_negative = self.loss == "triplet" and self.triplet_mining != "all"
        for is_wrong, sentence in (
            (
                self.correction == "log_q" and self.mask_known_positives,
                "log_q corrects every column, hits among them, so it goes with "
                "mask_known_positives=False; to mask the user's known positives take "
                "correction='log_q_masked' or 'none'.",
            ),
            (
                self.correction == "log_q" and self.loss != "softmax",
                "log_q also changes the positive's score, which only softmax allows; take "
                f"log_q_masked or none for {self.loss}.",
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
                takes_one_negative and self.mask_known_positives and self.correction != "none",
                f"triplet_mining={self.triplet_mining!r} takes one negative of a row, by its score "
                f"alone, so {self.correction} has no effect: take correction='none'.",
            ),
        ):
            if is_wrong:
                raise ValueError(sentence)


def check_columns(config: TaskConfig, negatives: NegativesConfig) -> None:
    """Checks that the correction fits the pools.

    Raises:
        ValueError: `log_q` with another pool than `batch`; or a correction with `catalogue`, whose
            items are not drawn.
    """
    if "catalogue" in negatives.negatives and config.correction != "none":
        raise ValueError(
            f"correction={config.correction!r} has no effect over the catalogue, where every item "
            "is a column and none is drawn: take correction='none'."
        )
    if config.correction == "log_q" and negatives.negatives != ("batch",):
        raise ValueError(
            "log_q also changes the positive's score, which is right only over the columns of the "
            f"batch; take log_q_masked or none over {negatives.negatives}."
        )
