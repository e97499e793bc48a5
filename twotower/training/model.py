"""TwoTowerModel: two towers and a retrieval task as one `tfrs.Model`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from twotower.data.config import TIME_DEPENDENT
from twotower.objective.corrections import earlier_columns, known_columns
from twotower.objective.full_softmax import FullSoftmax
from twotower.objective.hard_negatives import HardNegatives
from twotower.objective.memory import MemoryNegatives
from twotower.objective.negatives import (
    Columns,
    Negatives,
    NegativesConfig,
    Targets,
    of_all_replicas,
)
from twotower.objective.task import RetrievalTask, TaskConfig
from twotower.objective.time_dependent import TimeDependentNegatives
from twotower.tf import require_one_replica, tf, tfrs
from twotower.towers.dense import Tower
from twotower.towers.features import require_float32
from twotower.training.batch import Batch


def _kind_of_negatives(config: NegativesConfig, item_tower: Tower) -> type[Negatives]:
    """The class that draws the columns which a config and the items' features ask for."""
    if any(feature.name in TIME_DEPENDENT for feature in item_tower.features):
        return TimeDependentNegatives
    if config.has_hard_negatives:
        return HardNegatives
    return MemoryNegatives if "memory" in config.negatives else Negatives


@tf.keras.saving.register_keras_serializable("twotower")
class TwoTowerModel(tfrs.Model):
    """Query tower, item tower and their retrieval task. `fit` takes `Batch`es (`batch.py`).

    Args:
        query_tower: Encoded inputs -> `[num_queries, dim]`.
        item_tower: Encoded inputs -> `[num_items, dim]`.
        items: Encoded inputs of all items of the catalogue, name -> `[num_items, ...]`; row i is
            the item with key i.
        probability: `[num_items]`, p_c of each item (`sampling.py`); 0 for an item without a
            training example.
        config: The task.
        negatives: Which candidates are columns.
        metrics: `tfrs.metrics.FactorizedTopK` for validation, or None.

    Raises:
        ValueError: Towers whose vectors have different lengths; negatives that do not fit the
            correction or time-dependent features of items; or `batch_norm` under a distribution
            strategy with several replicas, each of which would normalise its own part of the batch.

    `Training` makes the towers from a dataset, and this model of them. By hand:

    >>> from twotower.towers.dense import DenseHead
    >>> from twotower.towers.features import Id
    >>> queries = Tower([Id("user_id", ["u"], dim=4)], DenseHead((), dim=2), "query_tower")
    >>> items = Tower([Id("item_id", ["a", "b"], dim=4)], DenseHead((), dim=2), "item_tower")
    >>> encoded = items.encode({"item_id": tf.constant(["a", "b"])})
    >>> model = TwoTowerModel(queries, items, encoded, np.array([0.5, 0.5]), TaskConfig())
    >>> model.item_vectors(tf.constant([0, 1])).shape.as_list()
    [2, 2]
    """

    def __init__(
        self,
        query_tower: Tower,
        item_tower: Tower,
        items: Mapping[str, tf.Tensor],
        probability: np.ndarray,
        config: TaskConfig,
        negatives: NegativesConfig | None = None,
        metrics: tfrs.metrics.FactorizedTopK | None = None,
    ) -> None:
        require_float32()
        super().__init__()
        self._loss_mean = tf.keras.metrics.Mean("loss")
        # The logs of each replica are already those of all replicas.
        self.distribute_reduction_method = "first"
        if query_tower.dim != item_tower.dim:
            raise ValueError(
                f"both towers must end in vectors of one length; the query tower's is "
                f"{query_tower.dim}, the item tower's {item_tower.dim}."
            )
        if query_tower.head.batch_norm or item_tower.head.batch_norm:
            require_one_replica("batch_norm")
        self.query_tower, self.item_tower = query_tower, item_tower
        # A tuple, not a dict attribute: Keras would track these tables as saved state.
        self._items = tuple((name, tf.constant(values)) for name, values in items.items())
        self._probability = np.asarray(probability, np.float32)
        self.num_items, self.config = len(probability), config
        columns = negatives or NegativesConfig()
        kind = _kind_of_negatives(columns, item_tower)
        self.negatives = kind(columns, probability, query_tower.dim)
        is_whole = columns.negatives == ("catalogue",) and not columns.num_hardest
        is_full = config.loss == "softmax" and is_whole and kind is Negatives
        task = FullSoftmax if is_full else RetrievalTask
        self.task = task(config, len(self.negatives.keys), columns, metrics)

    def compile(
        self, optimizer: Any = "rmsprop", loss: Any = None, metrics: Any = None, **kwargs: Any
    ) -> None:
        """As in Keras, but for loss and metrics, which would have no effect.

        Raises:
            ValueError: A loss or metrics: the loss is the model's `config`, and `metrics` is an
                argument of the model.
        """
        if loss is not None or metrics is not None:
            raise ValueError(
                f"loss={loss!r} and metrics={metrics!r} would have no effect: the loss is that of "
                "TaskConfig (Recipe(loss=...)), and validation has metrics (topk_every). Leave "
                "them out."
            )
        super().compile(optimizer=optimizer, **kwargs)

    def query_vectors(self, batch: Batch, training: bool = False) -> tf.Tensor:
        """Vectors of a batch's queries: `[num_rows, dim]` if each row is a query, and
        `[num_examples, dim]` if rows are sequences."""
        if not batch.is_sequences:
            return self.query_tower(self.query_tower.encode(batch.query), training=training)
        of_sequence = self.query_tower.sequence_inputs
        query = {
            name: values if name in of_sequence else batch.of_targets(values)
            for name, values in batch.query.items()
        }
        cells = tf.where(batch.item >= 0)  # [num_examples, 2]
        position = tf.stack(
            [tf.cast(cells[:, 0], tf.int32), tf.gather_nd(batch.position, cells)], 1
        )
        return self.query_tower(
            self.query_tower.encode(query), training=training, position=position
        )

    def item_vectors(
        self, keys: tf.Tensor, training: bool = False, inputs: Mapping[str, tf.Tensor] | None = None
    ) -> tf.Tensor:
        """Vectors of items by key, `[num_keys, dim]`.

        Args:
            keys: `[num_keys]` int32.
            training: Whether this is a training step.
            inputs: Time-dependent inputs, name -> `[num_keys]`; by default those as of the end of
                training.
        """
        encoded = {name: tf.gather(values, keys) for name, values in self._items}
        return self.item_tower({**encoded, **(inputs or {})}, training=training)

    def call(self, batch: Batch, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """(vectors of the examples' queries, vectors of their items), both `[num_examples, dim]`.
        The score of an example is the dot product of its two vectors."""
        targets, queries = batch.targets(), self.query_vectors(batch, training)
        if not batch.is_sequences:
            queries = tf.gather(queries, targets.row)
        return queries, self.item_vectors(targets.item, training, targets.inputs)

    def compute_loss(self, batch: Batch, training: bool = False) -> tf.Tensor:
        """The mean over a batch's examples of their loss times their weight, a scalar.

        In validation it also updates FactorizedTopK. With several replicas it is the replica's part
        of the mean over the examples of all replicas.
        """
        targets = batch.targets()
        queries = self.query_vectors(batch, training)  # [num_queries, dim]

        def encode(keys: tf.Tensor, inputs: Mapping[str, tf.Tensor] | None = None) -> tf.Tensor:
            return self.item_vectors(keys, training, inputs)

        columns, positives = self.negatives(targets, encode, self.config.correction, training)
        if not training:
            self._update_topk(queries, positives, batch, targets)
        if batch.is_sequences and columns.log_weight.shape.rank == 2:
            columns.log_weight = tf.gather(columns.log_weight, targets.row)
        known = self._known(batch, targets, columns)
        if batch.is_sequences:  # in which each example has its own query
            targets = targets._replace(row=None)
        total = self.task(queries, positives, targets, columns, known)
        return total / self._num_examples(batch)

    @staticmethod
    def _num_examples(batch: Batch) -> tf.Tensor:
        """Number of the batch's examples on all replicas, scalar float32."""
        num = tf.math.count_nonzero(batch.item >= 0, dtype=tf.float32)
        return tf.reduce_sum(of_all_replicas(num[None]))

    def _known(self, batch: Batch, targets: Targets, columns: Columns) -> tf.Tensor | None:
        """Which columns are known positives of each query, `[num_queries, num_columns]` bool; None
        if they are not masked.

        For sequences over the whole catalogue these are the items of the user's events before the
        target; later items are negatives like any other. For sequences over the items of a batch
        they are the items of all the user's events up to the end of the window. Those after the
        target are certain to be in the batch, since they are targets of the same sequence, but
        log-Q would weigh them as random draws.
        """
        if not self.config.mask_known_positives:
            return None
        known = batch.known_positives
        if batch.is_sequences and self.negatives.config.negatives == ("catalogue",):
            num_earlier = batch.of_targets(batch.num_earlier)
            return earlier_columns(known, targets.row, num_earlier, columns.keys, self.num_items)
        found = known_columns(known, columns.keys, self.num_items, columns.are_distinct)
        return tf.gather(found, targets.row) if batch.is_sequences else found

    def train_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """One training step; returns the logs, name -> scalar.

        Keras learns that an epoch has ended by starting one more step. The control dependencies
        keep that empty step from changing any state, such as the count of steps.
        """
        with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
            logs = super().train_step(batch)
            logs["loss"] = self._mean_loss(logs["loss"], batch)
            # The sum shows whether a weight is not finite. The loss may not show it: it was
            # computed before the update, and a later step may not read that weight.
            total = tf.add_n([tf.reduce_sum(weight) for weight in self.trainable_variables])
            logs["loss"] = tf.where(tf.math.is_finite(total), logs["loss"], np.nan)
            return logs

    def test_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """One batch of validation; returns the logs, name -> scalar."""
        logs = super().test_step(batch)
        return logs | {"loss": self._mean_loss(logs["loss"], batch)}

    def _mean_loss(self, loss: tf.Tensor, batch: Batch) -> tf.Tensor:
        """Mean loss over the examples of the epoch so far. Each example counts once, also in a
        short last batch. Each replica adds its part of the loss, and its part of the count."""
        replicas = self.distribute_strategy.num_replicas_in_sync
        self._loss_mean.update_state(replicas * loss, self._num_examples(batch) / replicas)
        return self._loss_mean.result()

    def predict_step(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """As `call`: two tensors `[num_examples, dim]`. Keras' own version would read the tuple
        `Batch` as inputs, targets and weights."""
        return self(batch, training=False)

    def get_config(self) -> dict:
        """Arguments for `from_config` and Keras saving, without FactorizedTopK, whose index holds
        the current item vectors.

        Raises:
            NotImplementedError: As `Tower.get_config`.
        """
        towers = {"query_tower": self.query_tower, "item_tower": self.item_tower}
        return {
            name: tf.keras.saving.serialize_keras_object(tower) for name, tower in towers.items()
        } | {
            "items": {name: values.numpy().tolist() for name, values in self._items},
            "dtypes": {name: values.dtype.name for name, values in self._items},
            "probability": self._probability.tolist(),
            "config": dataclasses.asdict(self.config),
            "negatives": dataclasses.asdict(self.negatives.config),
        }

    @classmethod
    def from_config(cls, config: dict) -> "TwoTowerModel":
        """A model of the same towers, items and task, with new weights."""
        made = tf.keras.saving.deserialize_keras_object
        negatives: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in config["negatives"].items()
        }
        model = cls(
            made(config["query_tower"]),
            made(config["item_tower"]),
            {
                name: tf.constant(values, config["dtypes"][name])
                for name, values in config["items"].items()
            },
            np.array(config["probability"], np.float32),
            TaskConfig(**config["config"]),
            NegativesConfig(**negatives),
        )
        model.build_from_config({})
        return model

    def get_build_config(self) -> dict:
        """An empty dictionary, since towers know their inputs."""
        return {}

    def build_from_config(self, config: dict) -> None:
        """Creates the weights, so that saved ones can be loaded."""
        for tower in (self.query_tower, self.item_tower):
            tower.build_weights()
        self.built = True

    def _update_topk(
        self, queries: tf.Tensor, positives: tf.Tensor, batch: Batch, targets: Targets
    ) -> None:
        """Counts the hits of a batch's examples in FactorizedTopK."""
        if not batch.is_sequences:
            queries = tf.gather(queries, targets.row)  # [num_examples, dim]
        for metric in self.task.factorized_metrics:
            metric.update_state(
                queries, positives, true_candidate_ids=targets.item, sample_weight=targets.weight
            )
