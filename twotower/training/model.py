"""TwoTowerModel: two towers and a retrieval task under one `tfrs.Model`."""

import dataclasses
from collections.abc import Mapping

import numpy as np

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
from twotower.tf import tf, tfrs
from twotower.towers.config import TIMED
from twotower.towers.dense import Tower
from twotower.towers.features import require_float32
from twotower.training.batches import Batch


@tf.keras.saving.register_keras_serializable("twotower")
class TwoTowerModel(tfrs.Model):
    """Query tower, item tower and their retrieval task. Trains on `Batch`es (`batches.py`).

    Args:
        query_tower: Encoded inputs -> `[num_queries, dim]`.
        item_tower: Encoded inputs -> `[num_items, dim]`.
        items: Encoded inputs of all items of the catalogue, row = key.
        probability: `[num_items]`, p_c of each item (`negatives.py`); 0 for one without a training
            example.
        config: The task.
        negatives: Which candidates are columns.
        metrics: `tfrs.metrics.FactorizedTopK` for validation, or None.

    Raises:
        ValueError: Towers of different lengths, or negatives that the task's correction or
            time-dependent features of items cannot go with.
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
        self.distribute_reduction_method = "first"  # each replica's log is that of all already
        if query_tower.dim != item_tower.dim:
            raise ValueError(
                f"both towers must end in vectors of one length; the query tower's is "
                f"{query_tower.dim}, the item tower's {item_tower.dim}."
            )
        self.query_tower, self.item_tower = query_tower, item_tower
        # A tuple, not a dict attribute: Keras would track these tables as saved state.
        self._items = tuple((name, tf.constant(values)) for name, values in items.items())
        self._probability = np.asarray(probability, np.float32)
        self.num_items, self.config = len(probability), config
        columns = negatives or NegativesConfig()
        kind = Negatives
        if any(feature.name in TIMED for feature in item_tower.features):
            kind = TimeDependentNegatives
        elif columns.has_hard_negatives:
            kind = HardNegatives
        elif "memory" in columns.negatives:
            kind = MemoryNegatives
        self.negatives = kind(columns, probability, query_tower.dim)
        is_whole = columns.negatives == ("catalogue",) and not columns.num_hardest
        is_full = config.loss == "softmax" and is_whole and kind is Negatives
        task = FullSoftmax if is_full else RetrievalTask
        self.task = task(config, len(self.negatives.keys), columns, metrics)

    def query_vectors(self, batch: Batch, training: bool = False) -> tf.Tensor:
        """Vectors of a batch's queries, `[num_rows, dim]`; of sequences, `[num_examples, dim]`."""
        if not batch.is_sequences:
            return self.query_tower(self.query_tower.encode(batch.query), training=training)
        of_sequence = self.query_tower.sequence_inputs
        query = {
            name: values if name in of_sequence else batch.of_targets(values)
            for name, values in batch.query.items()
        }
        at = tf.where(batch.item >= 0)  # [num_examples, 2]
        place = tf.stack([tf.cast(at[:, 0], tf.int32), tf.gather_nd(batch.position, at)], 1)
        return self.query_tower(self.query_tower.encode(query), training=training, place=place)

    def item_vectors(
        self, keys: tf.Tensor, training: bool = False, inputs: Mapping[str, tf.Tensor] | None = None
    ) -> tf.Tensor:
        """Vectors of items by key, `[num_keys, dim]`; `inputs` stand for those of the end of
        training."""
        encoded = {name: tf.gather(values, keys) for name, values in self._items}
        return self.item_tower(encoded | (inputs or {}), training=training)

    def call(self, batch: Batch, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """The vectors of each example's query and item, `[num_examples, dim]` both; the score of an
        example is their dot product."""
        targets, queries = batch.targets(), self.query_vectors(batch, training)
        if not batch.is_sequences:
            queries = tf.gather(queries, targets.row)
        return queries, self.item_vectors(targets.item, training, targets.inputs)

    def compute_loss(self, batch: Batch, training: bool = False) -> tf.Tensor:
        """Mean loss of a batch's examples, each times its weight; in validation also updates
        FactorizedTopK. Under a strategy, a replica's share of that of all replicas."""
        targets = batch.targets()
        queries = self.query_vectors(batch, training)  # [num_queries, dim]

        def encode(keys: tf.Tensor, inputs: Mapping[str, tf.Tensor] | None = None) -> tf.Tensor:
            return self.item_vectors(keys, training, inputs)

        columns, positives = self.negatives(targets, encode, self.config.correction, training)
        if not training:
            self._update_topk(queries, positives, batch, targets)
        if batch.is_sequences and columns.log_weight.shape.rank == 2:
            columns.log_weight = tf.gather(columns.log_weight, targets.row)
        total = self.task(
            queries,
            positives,
            row=None if batch.is_sequences else targets.row,
            item=targets.item,
            columns=columns,
            sample_weight=targets.weight,
            log_probability=tf.math.log(targets.probability),
            known=self._known(batch, targets, columns),
        )
        return total / self._num_examples(batch)

    @staticmethod
    def _num_examples(batch: Batch) -> tf.Tensor:
        """Examples of the batch on all replicas, float32."""
        num = tf.math.count_nonzero(batch.item >= 0, dtype=tf.float32)
        return tf.reduce_sum(of_all_replicas(num[None]))

    def _known(self, batch: Batch, targets: Targets, columns: Columns) -> tf.Tensor | None:
        """Which columns are known positives of each query, `[num_queries, num_columns]` bool; None
        where they are not masked.

        Of a prefix of a sequence, whose later items are negatives as others are, these are the
        user's events before the target, where each item is a column. Among the items of a batch
        they are all events of the sequence's user: later ones stand there for certain, and log-Q
        would take them for draws and weigh them as many.
        """
        if not self.config.mask_known_positives:
            return None
        known = batch.known_positives
        if batch.is_sequences and self.negatives.config.negatives == ("catalogue",):
            num_earlier = batch.of_targets(batch.num_earlier)
            return earlier_columns(known, targets.row, num_earlier, columns.keys, self.num_items)
        found = known_columns(known, columns.keys, self.num_items)
        return tf.gather(found, targets.row) if batch.is_sequences else found

    def train_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """One step. Without data it does nothing: Keras starts a step to learn that an epoch has
        ended, and what needs no gradient (the count of steps, weight decay) would run or not."""
        with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
            logs = super().train_step(batch)
            logs["loss"] = self._mean_loss(logs["loss"], batch)
            # The sum shows a weight that is not finite. The loss may not: that of this step came
            # before the update, and that of a later step need not read the weight.
            total = tf.add_n([tf.reduce_sum(weight) for weight in self.trainable_variables])
            logs["loss"] = tf.where(tf.math.is_finite(total), logs["loss"], np.nan)
            return logs

    def test_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """One batch of validation."""
        logs = super().test_step(batch)
        return logs | {"loss": self._mean_loss(logs["loss"], batch)}

    def _mean_loss(self, loss: tf.Tensor, batch: Batch) -> tf.Tensor:
        """Mean loss over the epoch's examples so far, each of which counts once, also in a short
        last batch. Each replica brings its share of the loss, and its share of the count."""
        replicas = self.distribute_strategy.num_replicas_in_sync
        self._loss_mean.update_state(replicas * loss, self._num_examples(batch) / replicas)
        return self._loss_mean.result()

    def predict_step(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """As `call`; Keras would take the fields of a batch for inputs, targets and weights."""
        return self(batch, training=False)

    def get_config(self) -> dict:
        """For `from_config` and Keras saving. FactorizedTopK is not in it: its index holds vectors
        of the moment.

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
        negatives = {
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
        """Nothing: towers know their inputs."""
        return {}

    def build_from_config(self, config: dict) -> None:
        """Makes the weights, so that saved ones can be loaded."""
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
