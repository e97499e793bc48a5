"""The retrieval task: a score matrix with its three choices, as one `tfrs.tasks.Retrieval`."""

import dataclasses
import math

from twotower.limits import at_least, refuse, unread
from twotower.objective import losses
from twotower.objective.negatives import Columns, NegativesConfig
from twotower.tf import tf, tfrs

TEMPERATURES = ("fixed", "learned", "annealed")
LEARNED = (0.01, 1.0)  # bounds of a learned one
# Losses with a margin between scores, and those that weigh the negatives' mean by a ratio.
MARGINS, WEIGHING = ("triplet", "cosine_contrastive"), ("bce", "gbce", "cosine_contrastive")


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """How the score matrix becomes a loss; the tables in `losses.py` say what each choice means.

    Attributes:
        loss: `softmax`, `bce`, `gbce`, `triplet` or `cosine_contrastive`.
        temperature: Scores are divided by it, in training only.
        temperature_kind: `fixed`; `learned`, from `temperature` on; or `annealed`, to
            `temperature_last` along a straight line over `temperature_steps`.
        temperature_last: Where annealing ends.
        temperature_steps: Steps that annealing takes.
        correction: `none`, `log_q` or `log_q_masked`.
        frequency: p_c of log-Q: `counts` of the training examples, or the `streaming` estimate.
        mask_own: Whether the user's other positives are no negatives of the user's examples; where
            prefixes of a sequence ask for what comes next, those that came before, which are no
            answers either (among the items of a batch those that come later, too).
        margin: Of `triplet`, by how much s+ should exceed s_c; of `cosine_contrastive`, the cosine
            under which a negative costs nothing. Both are in units of unscaled scores, so these
            losses need temperature 1.
        triplet_mining: Which negatives of a triplet: `all`, `semi_hard` or `hardest`. The last two
            take one negative a row, which no correction weighs.
        negative_ratio: Negatives a positive, by which `bce`, `gbce` and `cosine_contrastive` weigh
            their mean over the columns.
        calibration: t of `gbce`.
        sum_loss: Whether a batch's losses are summed, as TFRS does by default, instead of averaged:
            then the right learning rate depends on the batch size. For reproducing tutorials.
        unique: Whether each distinct query and item of a batch is scored once (fast), or each
            example is a row and a column for `tfrs.tasks.Retrieval` as it is.
    """

    loss: str = "softmax"
    temperature: float = 0.1
    temperature_kind: str = "fixed"
    temperature_last: float = 0.05
    temperature_steps: int = 1000
    correction: str = "log_q_masked"
    frequency: str = "counts"
    mask_own: bool = True
    margin: float = 0.2
    triplet_mining: str = "all"
    negative_ratio: float = 1.0
    calibration: float = 0.75
    sum_loss: bool = False
    unique: bool = True

    def __post_init__(self) -> None:
        for name in ("temperature", "temperature_last", "temperature_steps", "negative_ratio"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite; got {getattr(self, name)}.")
        at_least(self, margin=0)
        if not 0 <= self.calibration <= 1:
            raise ValueError(f"calibration must lie in [0, 1]; got {self.calibration}.")
        for name, known in (
            ("loss", tuple(losses.LOSSES)),
            ("temperature_kind", TEMPERATURES),
            ("correction", losses.CORRECTIONS),
            ("frequency", ("counts", "streaming")),
            ("triplet_mining", losses.MININGS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}; got {getattr(self, name)!r}.")
        if self.correction == "log_q" and self.mask_own:
            raise ValueError(
                "log_q corrects every column, hits among them, so it goes with mask_own=False; "
                "to mask the user's own positives take correction='log_q_masked' or 'none'."
            )
        if self.correction == "log_q_masked" and not self.unique:
            raise ValueError(
                "tfrs.tasks.Retrieval corrects the positive's column too, so log_q_masked needs "
                "unique=True."
            )
        if self.correction == "log_q" and self.loss != "softmax":
            raise ValueError(
                f"log_q corrects the positive, too, as only softmax can have it; take log_q_masked "
                f"or none for {self.loss}."
            )
        if self.temperature_kind == "learned" and not LEARNED[0] <= self.temperature <= LEARNED[1]:
            raise ValueError(
                f"a learned temperature starts within {LEARNED}; got {self.temperature}."
            )
        has_margin = self.loss in MARGINS
        if self.temperature_kind != "fixed" and has_margin:
            raise ValueError(
                f"{self.loss} is not bounded below over temperatures, and a lower one would always "
                "be better: take temperature_kind='fixed'."
            )
        if self.temperature_kind != "fixed" and not self.unique:
            raise ValueError("tfrs.tasks.Retrieval has a fixed temperature; take unique=True.")
        if has_margin and self.temperature != 1:
            raise ValueError(
                f"the margin of {self.loss} is measured in the scores themselves; a temperature of "
                f"{self.temperature} would divide the scores: take temperature=1."
            )
        if self.loss == "cosine_contrastive" and self.margin >= 1:
            raise ValueError(
                f"margin {self.margin}: no cosine exceeds 1, so no negative would cost anything."
            )
        takes_one = self.loss == "triplet" and self.triplet_mining != "all"
        if takes_one and self.mask_own and self.correction != "none":
            raise ValueError(
                f"triplet_mining={self.triplet_mining!r} takes one negative of a row, by its score "
                f"alone, so that {self.correction} weighs nothing: take correction='none'."
            )
        is_annealed, is_corrected = self.temperature_kind == "annealed", self.correction != "none"
        refuse(
            [
                *unread(
                    self,
                    is_annealed,
                    "temperature_kind='annealed'",
                    "temperature_last",
                    "temperature_steps",
                ),
                *unread(self, is_corrected, "a correction", "frequency"),
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
        ValueError: `log_q` over other columns than the batch's; a correction over the catalogue,
            whose items are not drawn; or `hard_as_draws` without a correction.
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
    refuse(unread(negatives, config.correction != "none", "a correction", "hard_as_draws"))


class MatrixRetrieval(tfrs.tasks.Retrieval):
    """`tfrs.tasks.Retrieval` over distinct queries and columns, with every loss and negative.

    The same place in a `tfrs.Model`, and where `tfrs.tasks.Retrieval` can express a combination the
    same loss; see the table in `losses.py`.

    Args:
        config: The task.
        num_items: Items that may be drawn as negatives.
        negatives: Which candidates are columns.
        metrics: As in `tfrs.tasks.Retrieval`.

    Raises:
        ValueError: As `check_columns`.
    """

    # Whether `pairs` and `matrix` are products of vectors, for what needs to know more than scores.
    is_dot_product = True

    def __init__(
        self, config: TaskConfig, num_items: int, negatives: NegativesConfig, metrics=None
    ) -> None:
        super().__init__(metrics=metrics, temperature=config.temperature)
        self.config, self.negatives, self.num_items = config, negatives, num_items
        # Whether a column is a negative of an example of its own item.
        self.hits_are_negatives = negatives.negatives == ("batch",)
        check_columns(config, negatives)
        self._parameters = config.parameters(num_items)
        self._is_full_softmax = (
            self.is_dot_product
            and config.loss == "softmax"
            and negatives.negatives == ("catalogue",)
            # Vectors that are kept learn as columns more than they weigh; a positive must not.
            and negatives.catalogue_refresh == 1
            and not negatives.num_hardest
        )
        if config.temperature_kind == "learned":
            self.log_temperature = self.add_weight(
                name="log_temperature",
                shape=[],
                initializer=tf.keras.initializers.Constant(math.log(config.temperature)),
                # Not in the forward pass: clipped there, it would get no gradient past a bound.
                constraint=lambda value: tf.clip_by_value(value, *map(math.log, LEARNED)),
            )

    def temperature_at(self, step: tf.Tensor) -> tf.Tensor:
        """The temperature at a step of the optimiser; a learned one lies in [.01, 1]."""
        config = self.config
        if config.temperature_kind == "learned":
            return tf.exp(self.log_temperature)
        if config.temperature_kind == "annealed":
            done = tf.minimum(tf.cast(step, tf.float32) / config.temperature_steps, 1.0)
            return config.temperature + done * (config.temperature_last - config.temperature)
        return tf.constant(config.temperature)

    def pairs(self, queries: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        """Score of each row with the other's row, `[n, dim]` both -> `[n]`: a dot product, by which
        an index can find the best items. `experiments/cross_encoder.py` has the other choice."""
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
        own: tf.Tensor | None = None,
        block: tf.Tensor | None = None,
        step: tf.Tensor | int = 0,
    ) -> tf.Tensor:
        """Mean loss of a batch, or its sum.

        Args:
            query_embeddings: `[num_queries, dim]`, distinct queries.
            positive_embeddings: `[num_examples, dim]`, the vector of each example's item.
            row: `[num_examples]`, the query of each example; None where each has its own.
            item: `[num_examples]`, its item's key.
            columns: What all rows share.
            sample_weight: `[num_examples]`.
            log_probability: `[num_examples]`, log p of each item, for `log_q`.
            own: `[num_queries, num_columns]` bool, positives of each query's user, the example's
                own among them (or not, without `row`); None for masking no more than that.
            block: `[num_queries, num_columns]`, how often each query has the column in its own
                block of negatives, whether the others have it or not; None for no blocks.
            step: Of the optimiser, for annealing.
        """
        temperature = self.temperature_at(step)
        queries = query_embeddings
        of_examples = queries if row is None else tf.gather(queries, row)
        positive = self.pairs(of_examples, positive_embeddings) / temperature
        is_whole = own is None or row is None  # Z is a query's, whatever example asks
        if self._is_full_softmax and is_whole and block is None:
            queries /= temperature
            total = self._full_softmax(queries, positive, row, item, columns, sample_weight, own)
            num_examples = tf.cast(tf.size(item), tf.float32)
            return total if self.config.sum_loss else total / num_examples
        if self.config.correction == "log_q":
            positive -= log_probability
        scores = self.matrix(queries, columns.vectors) / temperature
        log_weight, rows = columns.log_weight, row
        if own is not None:
            if row is None:
                own |= columns.keys == item[:, None]
            log_weight = tf.where(own, losses.MASKED, log_weight)
        else:
            # An example's own column is told from the others, so that rows are examples.
            hit = columns.keys == item[:, None]  # [num_examples, num_columns]
            log_weight = tf.where(hit, self._log_weight_of_hits(columns, item), log_weight)
            scores = scores if row is None else tf.gather(scores, row)
            rows = None
        if block is not None:
            more = block if rows is not None or row is None else tf.gather(block, row)
            more *= losses.block_weight(
                self.num_items,
                self.negatives.num_shared(tf.size(item), self.num_items),
                self.config.correction,
                self.negatives.hard_as_draws,
            )
            log_weight = tf.maximum(tf.math.log(tf.exp(log_weight) + more), losses.MASKED)
        if self.negatives.num_hardest:
            scores, log_weight = losses.hardest(scores, log_weight, self.negatives.num_hardest)
        loss = losses.LOSSES[self.config.loss](
            positive, scores, log_weight, rows, **self._parameters
        )
        reduce = tf.reduce_sum if self.config.sum_loss else tf.reduce_mean
        return reduce(loss * sample_weight)

    def _full_softmax(self, queries, positive, row, item, columns, sample_weight, own) -> tf.Tensor:
        """Sum of the losses where column c is item c, once, the positive's own among them."""
        weight = sample_weight
        if row is not None:
            weight = tf.math.unsorted_segment_sum(weight, row, tf.shape(queries)[0])
        if own is not None:  # the positive stays, even if it came before
            column = tf.searchsorted(columns.keys, item)  # a catalogue's keys ascend
            at = tf.stack([tf.range(tf.size(item)), column], 1)
            own = tf.tensor_scatter_nd_update(own, at, tf.zeros_like(item, tf.bool))
        log_z = losses.log_normaliser(queries, columns.vectors, weight, own)
        return log_z - tf.tensordot(positive, sample_weight, 1)

    def _log_weight_of_hits(self, columns: Columns, item: tf.Tensor) -> tf.Tensor:
        """That of a column where it is the example's own item, `[num_columns]`.

        As in `tfrs.tasks.Retrieval`, further copies in the batch are negatives unless hits are
        masked. (Of items of the moment, a column for each example, all n copies weigh (n - 1) / n
        in the place of the others alone: the same but for the difference of their ages.)
        """
        if self.config.correction == "log_q_masked" or not self.hits_are_negatives:
            return tf.fill(tf.shape(columns.keys), losses.MASKED)
        size = tf.reduce_max(columns.keys) + 1
        count = tf.cast(tf.math.bincount(item, minlength=size, maxlength=size), tf.float32)
        count = tf.gather(count, columns.keys)
        less = tf.math.log(tf.maximum(count - 1, 1e-30)) - tf.math.log(count)
        return tf.where(count > 1, columns.log_weight + less, losses.MASKED)


def plain_retrieval(
    config: TaskConfig, num_items: int, negatives: NegativesConfig, metrics=None
) -> tfrs.tasks.Retrieval:
    """`tfrs.tasks.Retrieval` as it is, for what it can express.

    Args:
        config: The task.
        num_items: Size of the catalogue.
        negatives: Which candidates are columns.
        metrics: As in `tfrs.tasks.Retrieval`.

    Raises:
        ValueError: Negatives other than the batch's.
    """
    if negatives.negatives != ("batch",) or negatives.has_block:
        raise ValueError(
            "tfrs.tasks.Retrieval has the batch's negatives alone; take unique=True for "
            f"{negatives}."
        )
    # Its own loss is a sum, which would tie the learning rate to the batch size.
    reductions = tf.keras.losses.Reduction
    loss = losses.RetrievalLoss(
        config.loss,
        reductions.SUM if config.sum_loss else reductions.SUM_OVER_BATCH_SIZE,
        **config.parameters(num_items),
    )
    return tfrs.tasks.Retrieval(
        loss=loss,
        metrics=metrics,
        temperature=config.temperature,
        num_hard_negatives=negatives.num_hardest or None,
    )
