"""Trains a ranker's network on examples, and stops where it orders held-out users best."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from absl import logging

from twotower.limits import at_least, typed
from twotower.ranking.config import RankerConfig
from twotower.ranking.examples import WATCH, Examples
from twotower.ranking.inputs import NUMBERS, RankerInputs
from twotower.ranking.losses import LOSSES
from twotower.ranking.multi_task import masked_loss
from twotower.ranking.ranker import Ranker, make_ranker
from twotower.tf import tf

# Further heads, and what their labels are.
KINDS = {"like": "logit", "rating": "number"}


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How a ranker is trained.

    Attributes:
        loss: Loss of the head `relevance`: `listwise`, `pairwise` or `pointwise`.
        heads: Further heads: `like`, `rating`. They are trained only on targets, so `like` is the
            probability that somebody who watches the item likes it.
        residual: Whether the network's output is added to the score that a candidate had before, so
            that training begins with the order of these scores.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW (Loshchilov and Hutter, ICLR 2019).
        batch_size: Requests in a step.
        candidates: Number of candidates of a request in a step: its targets, and others that are
            drawn again in each epoch.
        epochs: Largest number of epochs.
        patience: Training ends after this many epochs without a better NDCG@10 on the held-out
            requests.
        seed: Seed of the weights and of the order of requests.
    """

    loss: str = "listwise"
    heads: tuple[str, ...] = ()
    residual: bool = True
    learning_rate: float = 0.001
    weight_decay: float = 0.1
    batch_size: int = 32
    candidates: int = 300
    epochs: int = 30
    patience: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        typed(self)
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {self.loss!r}.")
        if unknown := [head for head in self.heads if head not in KINDS]:
            raise ValueError(f"heads are some of {', '.join(KINDS)}; got {unknown}.")
        if len({*self.heads}) < len(self.heads):
            raise ValueError(f"heads stand once each; got {list(self.heads)}.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0; got {self.learning_rate}.")
        at_least(self, weight_decay=0, batch_size=1, candidates=2, epochs=1, patience=1)


def fit(
    examples: Examples,
    held: Examples,
    inputs: RankerInputs,
    config: RankerConfig,
    fitting: FitConfig,
) -> Ranker:
    """A network trained on examples, with the weights of the epoch whose NDCG@10 on `held` is best.

    Args:
        examples: Training examples.
        held: Examples of other users, which select the epoch.
        inputs: Features of both. Their means and deviations are computed from `examples`.
        config: Architecture and sizes of the network.
        fitting: How it is trained.

    Raises:
        ValueError: A loss that is not finite.
    """
    tf.keras.utils.set_random_seed(fitting.seed)
    rng = np.random.default_rng(fitting.seed)
    if inputs.numbers:
        inputs = inputs.fitted(examples.columns[NUMBERS][examples.valid])
    ranker = make_ranker(inputs, config, (WATCH, *fitting.heads))
    step, call = _step(ranker, _optimizer(fitting), fitting), _call(ranker)
    steps = -(-len(examples) // fitting.batch_size)
    best, best_weights, since = -1.0, ranker.get_weights(), 0
    for epoch in range(1, fitting.epochs + 1):
        losses = [
            float(step(*_tensors(_drawn(examples.take(rows), fitting.candidates, rng))))
            for rows in np.array_split(rng.permutation(len(examples)), steps)
        ]
        if not np.isfinite(losses).all():
            raise ValueError(
                f"the loss is no finite number in epoch {epoch}. Take a smaller learning_rate than "
                f"{fitting.learning_rate:g}."
            )
        found = float(held.ndcg(_scores(call, held, fitting.residual)).mean())
        logging.info("ranker, epoch %d: loss %.4f, ndcg@10 %.4f", epoch, np.mean(losses), found)
        if found > best:
            best, best_weights, since = found, ranker.get_weights(), 0
        else:
            since += 1
            if since == fitting.patience:
                break
    ranker.set_weights(best_weights)
    return ranker


def scores(ranker: Ranker, examples: Examples, residual: bool) -> np.ndarray:
    """Scores by the head `relevance`, `[num_requests, k]`. With `residual`, the candidates' scores
    from before are added to its logits."""
    return _scores(_call(ranker), examples, residual)


def _call(ranker: Ranker) -> Callable[[dict], dict]:
    """A ranker as a graph, which is traced once however its weights change."""
    return tf.function(lambda columns: ranker(columns), reduce_retracing=True)


def _scores(call: Callable, examples: Examples, residual: bool, batch: int = 64) -> np.ndarray:
    parts = []
    for start in range(0, len(examples), batch):
        rows = np.arange(start, min(start + batch, len(examples)))
        columns, given, _ = _tensors(examples.take(rows))
        logits = call(columns)[WATCH].numpy()
        parts.append(logits + given.numpy() if residual else logits)
    found = np.concatenate(parts) if parts else np.zeros(examples.scores.shape, np.float32)
    return np.where(examples.valid, found, -np.inf)


def _drawn(examples: Examples, count: int, rng: np.random.Generator) -> Examples:
    """The targets of each request and random others, `count` in all."""
    draw = rng.random(examples.scores.shape, np.float32)
    draw += 2 * (examples.labels[WATCH] > 0) - 2 * ~examples.valid
    count = min(count, draw.shape[1])
    kept = np.argpartition(-draw, count - 1, axis=1)[:, :count]

    def take(values: np.ndarray) -> np.ndarray:
        return values[np.arange(len(kept))[:, None], kept]

    return dataclasses.replace(
        examples,
        columns={name: take(values) for name, values in examples.columns.items()},
        scores=take(examples.scores),
        labels={name: take(values) for name, values in examples.labels.items()},
    )


def _tensors(examples: Examples) -> tuple[dict, tf.Tensor, dict]:
    columns = {name: tf.constant(values) for name, values in examples.columns.items()}
    labels = {name: tf.constant(values) for name, values in examples.labels.items()}
    return columns, tf.constant(examples.scores), labels


def _optimizer(fitting: FitConfig) -> tf.keras.optimizers.Optimizer:
    return tf.keras.optimizers.AdamW(fitting.learning_rate, fitting.weight_decay)


def _step(ranker: Ranker, optimizer: tf.keras.optimizers.Optimizer, fitting: FitConfig):
    loss_of = LOSSES[fitting.loss]
    others = {head: masked_loss(KINDS[head]) for head in fitting.heads}

    @tf.function(reduce_retracing=True)
    def step(columns, given, labels):
        valid = given > -np.inf
        with tf.GradientTape() as tape:
            outputs = ranker(columns, training=True)
            logits = outputs[WATCH]
            if fitting.residual:
                logits += tf.where(valid, given, tf.zeros_like(given))
            loss = tf.reduce_mean(loss_of(logits, labels[WATCH], valid))
            for head, loss_of_head in others.items():
                known = tf.reduce_sum(tf.cast(tf.math.is_finite(labels[head]), tf.float32))
                errors = tf.reduce_sum(loss_of_head(labels[head], outputs[head]))
                loss += tf.math.divide_no_nan(errors, known)
            total = loss + tf.add_n(ranker.losses) if ranker.losses else loss
        variables = ranker.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(total, variables), variables))
        return loss

    return step
