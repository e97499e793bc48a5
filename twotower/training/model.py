"""TwoTowerModel: two towers and a retrieval task under one `tfrs.Model`."""

from collections.abc import Mapping

import numpy as np

from twotower.objective.negatives import Columns, NegativesConfig, Pools, merged, scaled_gradient
from twotower.objective.task import MatrixRetrieval, TaskConfig, plain_retrieval
from twotower.tf import tf, tfrs
from twotower.towers.dense import Tower
from twotower.towers.features import require_float32
from twotower.towers.item import TIMED


class TwoTowerModel(tfrs.Model):
    """Query tower, item tower and their retrieval task.

    Trains on batches of `TrainingBatches` (twotower/training/trainer.py):

        query    encoded inputs of the query tower, `[num_queries, ...]`
        row      query of each example, `[num_examples]`
        item     key of each example's item, `[num_examples]`
        weight   `[num_examples]`
        own      keys of each query's user's positives, `[num_queries, n]`, padded with -1
        timed    inputs of the item tower that depend on the example's time, `[num_examples]`
        probability  p_c of each example's item, `[num_examples]`
        place    where queries share sequences: `[num_queries, 2]`, each one's sequence and place in
                 it (data/sequences.py); absent otherwise
        block    keys of negatives of each query's own, `[num_queries, width]`, padded with -1

    Args:
        query_tower: Encoded inputs -> `[num_queries, dim]`.
        item_tower: Encoded inputs -> `[num_items, dim]`.
        items: Encoded inputs of all items of the catalogue, row = key.
        probability: `[num_items]`, p_c of each item (`negatives.py`); 0 for one without a training
            example.
        config: The task.
        columns: Which candidates are columns.
        metrics: `tfrs.metrics.FactorizedTopK` for validation, or None.

    Raises:
        ValueError: Towers of different lengths, or negatives that the task's correction,
            `tfrs.tasks.Retrieval` or an item's features of the moment cannot go with.
    """

    def __init__(
        self,
        query_tower: Tower,
        item_tower: Tower,
        items: Mapping[str, tf.Tensor],
        probability: np.ndarray,
        config: TaskConfig,
        columns: NegativesConfig | None = None,
        metrics: tfrs.metrics.FactorizedTopK | None = None,
    ) -> None:
        require_float32()
        super().__init__()
        self._loss_mean = tf.keras.metrics.Mean("loss")
        if query_tower.dim != item_tower.dim:
            raise ValueError(
                f"both towers must end in vectors of one length; the query tower's is "
                f"{query_tower.dim}, the item tower's {item_tower.dim}."
            )
        self.query_tower, self.item_tower = query_tower, item_tower
        # A tuple, not a dict attribute: Keras would track these tables as saved state.
        self._items = tuple((name, tf.constant(values)) for name, values in items.items())
        self.num_items = len(probability)
        self.config, columns = config, columns or NegativesConfig()
        timed = [feature.name for feature in item_tower.features if feature.name in TIMED]
        if timed and (columns.has_block or set(columns.negatives) - {"batch", "memory"}):
            raise ValueError(
                f"item features {timed} are told as of an example's time, which columns of the "
                "batch have and others have not: as of the end of training, they would be known "
                "for negatives by that alone. Leave them out, or take negatives=('batch',); got "
                f"{columns}."
            )
        self.pools = Pools(columns, probability, query_tower.dim)
        task = MatrixRetrieval if config.unique else plain_retrieval
        self.task = task(config, len(self.pools.keys), columns, metrics)

    def item_vectors(
        self, keys: tf.Tensor, training: bool = False, timed: Mapping[str, tf.Tensor] | None = None
    ) -> tf.Tensor:
        """Vectors of items by key, `[num_keys, dim]`; `timed` inputs stand for those of the end of
        training."""
        encoded = {name: tf.gather(values, keys) for name, values in self._items}
        return self.item_tower(encoded | (timed or {}), training=training)

    def train_step(self, inputs: dict) -> dict:
        """One step. Without data it does nothing: Keras starts a step to learn that an epoch has
        ended, and what needs no gradient (the count of steps, weight decay) would run or not."""
        with tf.control_dependencies(tf.nest.flatten(inputs)):
            logs = super().train_step(inputs)
            logs["loss"] = self._mean_loss(logs["loss"], inputs)
            # The sum shows a weight that is not finite. The loss may not: that of this step came
            # before the update, and that of a later step need not read the weight.
            total = tf.add_n([tf.reduce_sum(weight) for weight in self.trainable_variables])
            logs["loss"] = tf.where(tf.math.is_finite(total), logs["loss"], np.nan)
            return logs

    def test_step(self, inputs: dict) -> dict:
        """One batch of validation."""
        logs = super().test_step(inputs)
        return logs | {"loss": self._mean_loss(logs["loss"], inputs)}

    def _mean_loss(self, loss: tf.Tensor, inputs: dict) -> tf.Tensor:
        """Mean loss over the epoch's examples so far, each of which counts once, also in a short
        last batch. `loss` is that of one batch, a mean or (with `sum_loss`) a sum."""
        num_examples = tf.cast(tf.size(inputs["item"]), tf.float32)
        self._loss_mean.update_state(
            loss / num_examples if self.config.sum_loss else loss, num_examples
        )
        return self._loss_mean.result()

    def compute_loss(self, inputs: dict, training: bool = False) -> tf.Tensor:
        """Mean loss of a batch; in validation also updates FactorizedTopK."""
        queries = self.query_tower(
            self.query_tower.encode(inputs["query"]), training=training, place=inputs.get("place")
        )
        if not training and self.task.factorized_metrics:
            self._update_topk(queries, inputs)
        if not self.config.unique:
            return self._plain_loss(queries, inputs, training)
        item, probability = inputs["item"], inputs["probability"]
        columns, positives, block = self._columns(inputs, probability, training)
        if self.pools.memory is not None and training:
            self.pools.memory.put(item, positives, probability)
        return self.task(
            queries,
            positives,
            row=None if "place" in inputs else inputs["row"],
            item=item,
            columns=columns,
            sample_weight=inputs["weight"],
            log_probability=tf.math.log(probability),
            own=self._own(inputs, columns.keys) if self.config.mask_own else None,
            block=block,
            step=self._step,
        )

    @property
    def _step(self) -> tf.Tensor:
        """Steps that were done."""
        return tf.convert_to_tensor(self.optimizer.iterations if self.optimizer else 0)

    def _columns(self, inputs: dict, probability: tf.Tensor, training: bool):
        """The columns of the matrix, the vector of each example's item, and how often each query
        has a column in a block of its own (None where no query has)."""
        item, timed = inputs["item"], inputs.get("timed")
        pools = self.pools(item, probability, self.config.correction, distinct=not timed)
        if self.pools.snapshot is not None and training:
            return self._columns_as_they_were(inputs, probability, pools["catalogue"])
        ready = [pools.pop("memory")] if "memory" in pools else []
        positives, num_examples = None, tf.size(item)
        if timed:
            # Equal items differ by their examples' times, so each example is a column.
            batch, positives = pools.pop("batch"), self.item_vectors(item, training, timed)
            vectors = self.pools.as_columns(positives, num_examples)
            ready.append(Columns(batch.keys, batch.log_weight, vectors))
        elif not {"batch", "catalogue"} & pools.keys():
            # For their vectors, which are needed in any case.
            pools["positives"] = Columns.closed(tf.unique(item).y)
        block_keys = inputs["block"] if self.pools.config.has_block else None
        if block_keys is not None:
            flat = tf.reshape(block_keys, [-1])
            pools["block"] = Columns.closed(tf.unique(tf.boolean_mask(flat, flat >= 0)).y)
        block = None
        if pools:
            fresh = merged(list(pools.values()))
            # The one call of the item tower, for each distinct item once.
            fresh.vectors = self.item_vectors(fresh.keys, training)
            num = tf.size(fresh.keys)
            place = tf.scatter_nd(fresh.keys[:, None], tf.range(num), [self.num_items])
            positives = tf.gather(fresh.vectors, tf.gather(place, item))
            if block_keys is not None:
                block = self._counted(block_keys, place, num)
                for others in ready:
                    block = tf.pad(block, [[0, 0], [tf.size(others.keys), 0]])
            elif "positives" in pools:
                fresh = fresh.open()
            fresh.vectors = self.pools.as_columns(fresh.vectors, num_examples)
            ready.append(fresh)
        return Columns.concat(ready), positives, block

    def _columns_as_they_were(self, inputs: dict, probability: tf.Tensor, columns: Columns):
        """The same for the whole catalogue, of which the batch's items alone are computed.

        As columns they are the only ones to learn. Item c is among the b - 1 others of a batch with
        probability 1 - (1 - p_c) ** (b - 1), so its gradient is divided by that: the expected
        gradient is then the whole softmax', in which a positive is no column. Else an item that is
        rare in batches would hardly ever be pushed away, and pulled as often as before.
        """
        item, config, old = inputs["item"], self.pools.config, self.pools.snapshot
        is_due = self._step % config.catalogue_refresh == 0
        tf.cond(is_due, lambda: old.assign(self.item_vectors(columns.keys)), old.read_value)
        keys, place = tf.unique(item)
        fresh = self.item_vectors(keys, training=True)
        others = tf.maximum(tf.cast(tf.size(item), tf.float32) - 1, 1)
        drawn = tf.math.unsorted_segment_max(probability, place, tf.size(keys))
        present = -tf.math.expm1(others * tf.math.log1p(-drawn))
        scored = scaled_gradient(fresh, 1 / present[:, None])
        at = tf.searchsorted(columns.keys, keys)[:, None]  # a catalogue's keys ascend
        columns.vectors = tf.tensor_scatter_nd_update(old.read_value(), at, scored)
        return columns, tf.gather(fresh, place), None

    @staticmethod
    def _counted(block_keys: tf.Tensor, place: tf.Tensor, num: tf.Tensor) -> tf.Tensor:
        """How often each of `num` columns stands in each row of `block_keys`, `[num_queries,
        width]`, from which `place` `[num_items]` leads to columns; `[num_queries, num]` float32."""
        at = tf.gather(place, tf.maximum(block_keys, 0))
        there = tf.cast(block_keys >= 0, tf.float32)
        return tf.math.bincount(at, there, minlength=num, maxlength=num, axis=-1)

    def _plain_loss(self, queries, inputs, training):
        """Every example is a row and a column, by `tfrs.tasks.Retrieval` as it is."""
        keys = inputs["item"]  # [num_examples]
        own = None
        if self.config.mask_own:
            own = tf.gather(self._own(inputs, keys), inputs["row"])
        diagonal = tf.eye(tf.shape(keys)[0], dtype=tf.bool)
        return self.task(
            tf.gather(queries, inputs["row"]),
            self.item_vectors(keys, training, inputs.get("timed")),
            sample_weight=inputs["weight"],
            candidate_sampling_probability=(
                inputs["probability"] if self.config.correction == "log_q" else None
            ),
            score_mask=None if own is None else ~own | diagonal,
            compute_metrics=False,
        )

    def _own(self, inputs: dict, columns: tf.Tensor) -> tf.Tensor:
        """Which columns are a query's own, as `_own_columns`: positives of its user.

        Of a sequence's prefix, whose later items are negatives as others are, the user's events
        before the target, where each item is a column. Among the items of a batch all events of
        its window's user: later ones stand there for certain, and log-Q would take them for draws
        and weigh them as many. Over the catalogue this holds an int32 for each target and item,
        .8 GB for 3,200 targets of 50,000 items: larger catalogues take the batch's columns.
        """
        if "place" not in inputs:
            return self._own_columns(inputs["own"], columns)
        own = inputs["own"]  # [num_windows, n]
        if self.pools.config.negatives != ("catalogue",):
            return tf.gather(self._own_columns(own, columns), inputs["place"][:, 0])
        there = tf.where(own >= 0)
        index = tf.stack([there[:, 0], tf.cast(tf.gather_nd(own, there), tf.int64)], 1)
        # The number of each item among its user's events.
        never = tf.fill([tf.shape(own)[0], self.num_items], tf.int32.max)
        number = tf.tensor_scatter_nd_min(never, index, tf.cast(there[:, 1], tf.int32))
        number = tf.gather(number, columns, axis=1)  # [num_windows, num_columns]
        return tf.gather(number, inputs["place"][:, 0]) < inputs["num_own"][:, None]

    def _own_columns(self, own: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        """Which columns are positives of each query's user, `[num_queries, num_columns]` bool.

        Args:
            own: `[num_queries, n]` keys, padded with -1.
            columns: `[num_columns]` keys; duplicates are allowed.
        """
        items, item_of_column = tf.unique(columns)
        num_places = tf.size(items) + 1
        # Place of each key among the batch's items; 0 for padding and for items not in the batch.
        place = tf.scatter_nd(
            items[:, None] + 1, tf.range(1, num_places), [self.num_items + 1]
        )  # [num_items + 1]
        at = tf.gather(place, own + 1)  # [num_queries, n]
        there = tf.where(at > 0)
        index = tf.stack([there[:, 0], tf.cast(tf.gather_nd(at, there), tf.int64)], 1)
        none = tf.zeros([tf.shape(own)[0], num_places], tf.bool)
        present = tf.tensor_scatter_nd_update(none, index, tf.ones(tf.shape(index)[:1], tf.bool))
        return tf.gather(present, item_of_column + 1, axis=1)

    def _update_topk(self, queries: tf.Tensor, inputs: dict) -> None:
        """Counts the hits of a batch's examples in FactorizedTopK."""
        queries = tf.gather(queries, inputs["row"])  # [num_examples, dim]
        vectors = self.item_vectors(inputs["item"])
        for metric in self.task.factorized_metrics:
            metric.update_state(
                queries, vectors, true_candidate_ids=inputs["item"], sample_weight=inputs["weight"]
            )
