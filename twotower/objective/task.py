"""The retrieval task: a score matrix with its three choices, as one layer.

`RetrievalTask` stands where `tfrs.tasks.Retrieval` does in a `tfrs.Model` and gives the same loss
wherever that can express it (`tfrs_task.py` has the plain model, and its test the equality). It
scores each distinct query and item of a batch once.
"""

import dataclasses
import math

from twotower.limits import at_least, refuse, unread
from twotower.objective import corrections, losses
from twotower.objective.negatives import Columns, NegativesConfig, of_all_replicas
from twotower.tf import tf, tfrs

LEARNED = (0.01, 1.0)  # bounds of a learned temperature
# Losses with a margin between scores, and those that weigh the negatives' mean by a ratio.
MARGINS, WEIGHING = ("triplet", "cosine_contrastive"), ("bce", "gbce", "cosine_contrastive")


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
            ("loss", tuple(losses.LOSSES)),
            ("correction", corrections.CORRECTIONS),
            ("frequency", ("counts", "streaming")),
            ("triplet_mining", losses.MININGS),
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

    def parameters(self, num_items: int) -> dict:
        """Of the loss function, for a catalogue of this size."""
        ratio = self.negative_ratio
        if self.loss == "triplet":
            return {"margin": self.margin, "mining": self.triplet_mining}
        if self.loss == "cosine_contrastive":
            return {"margin": self.margin, "ratio": ratio}
        if self.loss == "gbce":
            rate = min(1.0, ratio / max(1, num_items - 1))
            return {"ratio": ratio, "beta": losses.gbce_beta(rate, self.calibration)}
        return {"ratio": ratio} if self.loss == "bce" else {}


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


class RetrievalTask(tf.keras.layers.Layer, tfrs.tasks.Task):
    """From the vectors of a batch to its loss.

    Args:
        config: The loss, the temperature and the correction.
        num_items: Items that may be drawn as negatives.
        negatives: Which candidates are columns.
        metrics: `tfrs.metrics.FactorizedTopK` for validation, or None.

    Raises:
        ValueError: As `check_columns`.
    """

    def __init__(
        self,
        config: TaskConfig,
        num_items: int,
        negatives: NegativesConfig,
        metrics: tfrs.metrics.FactorizedTopK | None = None,
    ) -> None:
        super().__init__(name="task")
        check_columns(config, negatives)
        self.config, self.negatives = config, negatives
        self.factorized_metrics = [] if metrics is None else [metrics]
        self._parameters = config.parameters(num_items)
        if config.learned_temperature:
            self.log_temperature = self.add_weight(
                name="log_temperature",
                shape=[],
                initializer=tf.keras.initializers.Constant(math.log(config.temperature)),
                # Not in the forward pass: clipped there, it would get no gradient past a bound.
                constraint=lambda value: tf.clip_by_value(value, *map(math.log, LEARNED)),
            )

    @property
    def temperature(self) -> tf.Tensor:
        """What scores are divided by, a scalar; a learned one lies in [.01, 1]."""
        if self.config.learned_temperature:
            return tf.exp(self.log_temperature)
        return tf.constant(self.config.temperature)

    def pairs(self, queries: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        """Score of each row with the other's row, `[n, dim]` both -> `[n]`: a dot product, by which
        an index can find the best items."""
        return tf.reduce_sum(queries * items, 1)

    def matrix(self, queries: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        """Score of every query with every item, `[num_queries, num_items]`, as in `pairs`."""
        return tf.linalg.matmul(queries, items, transpose_b=True)

    def call(
        self,
        query_embeddings: tf.Tensor,
        positive_embeddings: tf.Tensor,
        row: tf.Tensor | None,
        item: tf.Tensor,
        columns: Columns,
        sample_weight: tf.Tensor,
        log_probability: tf.Tensor | None = None,
        known: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Sum of the losses of a batch's examples, each times its weight.

        Args:
            query_embeddings: `[num_queries, dim]`, distinct queries.
            positive_embeddings: `[num_examples, dim]`, the vector of each example's item.
            row: `[num_examples]`, the query of each example; None where each is a query.
            item: `[num_examples]`, its item's key.
            columns: The negatives' candidates.
            sample_weight: `[num_examples]`.
            log_probability: `[num_examples]`, log p of each item, for `log_q`.
            known: `[num_queries, num_columns]` bool, known positives of each query's user, the
                example's item among them (or not, without `row`); None to mask no more than that.

        Returns:
            Scalar float32.
        """
        queries = query_embeddings
        of_example = queries if row is None else tf.gather(queries, row)  # [num_examples, dim]
        positive = self.pairs(of_example, positive_embeddings) / self.temperature  # [num_examples]
        if self.config.correction == "log_q":
            positive -= log_probability
        scores = self.matrix(queries, columns.vectors) / self.temperature  # [num_queries, columns]
        log_weight = columns.log_weight
        if known is None:  # An example differs from others of its query by its hits.
            hit = columns.keys == item[:, None]  # [num_examples, num_columns]
            if row is not None:
                scores = tf.gather(scores, row)
                log_weight = (
                    tf.gather(log_weight, row) if log_weight.shape.rank == 2 else log_weight
                )
                row = None
            of_hits = self._log_weight_of_hits(columns.keys, log_weight, item)
            log_weight = tf.where(hit, of_hits, log_weight)
        else:
            if row is None:
                known |= columns.keys == item[:, None]
            log_weight = tf.where(known, corrections.MASKED, log_weight)
        if self.negatives.num_hardest:
            scores, log_weight = corrections.hardest(scores, log_weight, self.negatives.num_hardest)
        loss = losses.LOSSES[self.config.loss](
            positive, scores, log_weight, row, **self._parameters
        )  # [num_examples]
        return tf.tensordot(loss, sample_weight, 1)

    def _log_weight_of_hits(
        self, keys: tf.Tensor, log_weight: tf.Tensor, item: tf.Tensor
    ) -> tf.Tensor:
        """That of the columns `keys` where they are the example's item again.

        As in `tfrs.tasks.Retrieval`, further copies in the batch are negatives unless hits are
        masked. (Of time-dependent items, a column for each example, all n copies weigh (n - 1) / n
        in the place of the others alone: the same but for the difference of their ages.)
        """
        hits_are_negatives = self.negatives.negatives == ("batch",)
        if self.config.correction == "log_q_masked" or not hits_are_negatives:
            return tf.fill(tf.shape(log_weight), corrections.MASKED)
        size = tf.reduce_max(keys) + 1
        count = tf.math.bincount(of_all_replicas(item), minlength=size, maxlength=size)
        count = tf.gather(tf.cast(count, tf.float32), keys)  # [num_columns]
        less = tf.math.log(tf.maximum(count - 1, 1e-30)) - tf.math.log(tf.maximum(count, 1))
        return tf.where(count > 1, log_weight + less, corrections.MASKED)
