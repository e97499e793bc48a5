"""Training: a model with the data that it trains and validates on."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from absl import logging

from twotower.data.config import TIME_DEPENDENT
from twotower.data.dataset import Dataset
from twotower.data.examples import Examples
from twotower.data.inputs import ItemInputs, QueryInputs, require_features
from twotower.data.lineage import Lineage
from twotower.data.requests import Requests, encoded
from twotower.data.sequences import Sequences
from twotower.data.splits import Split
from twotower.evaluation.evaluate import evaluate
from twotower.limits import unread
from twotower.objective.config import MARGINS
from twotower.objective.frequency import StreamingFrequency
from twotower.objective.mining import Miner, drawn
from twotower.objective.sampling import in_batch_probability
from twotower.ragged import Ragged
from twotower.retrieval.backends.brute_force import BruteForceIndex
from twotower.retrieval.candidates import Candidates
from twotower.tf import tf, tfrs
from twotower.towers.dense import Tower
from twotower.towers.features import require_float32
from twotower.towers.history.bag import History
from twotower.towers.history.sequence import SequenceHistory
from twotower.towers.item import item_tower
from twotower.towers.query import query_tower
from twotower.training.batch import tensors
from twotower.training.batches import TrainingBatches
from twotower.training.case_batches import case_batches
from twotower.training.model import TwoTowerModel
from twotower.training.recipe import Recipe


class Training:
    """A model with the data that it trains on.

    Args:
        dataset: The data.
        split: Its training rows and validation cases.
        recipe: All choices.

    Attributes:
        model: The `TwoTowerModel`.
        raw_query_inputs: Cases -> raw inputs of the query tower.
        query_inputs: Cases -> encoded inputs of the query tower.
        item_inputs: Keys -> raw inputs of the item tower.
        examples: The training rows, and the queries and items of each epoch.
        sequences: The training rows as windows for next-item training; None if the recipe does not
            ask for it.
        frequency: The streaming estimate of p_c; None if the recipe does not ask for it.
        miner: The mined hard negatives of the users; None if the recipe does not ask for them.
        passed_over: Keys of the items that each user was shown and did not take, a row for each
            user. Only items that may be drawn as negatives. None if the recipe does not ask for
            impressions.
        topk: The layer by which FactorizedTopK searches; None if the recipe does not ask for it.
        ancestor: Lineage of the weights that a warm start took over; None without one.

    Example:
        training = Training(dataset, make_split(dataset, "random"), Recipe())
        training.model.compile(optimizer="adam")
        training.model.fit(training.batches(), epochs=1)
    """

    def __init__(self, dataset: Dataset, split: Split, recipe: Recipe) -> None:
        require_float32()
        split.require_of(dataset)
        tf.keras.utils.set_random_seed(recipe.fit.seed)
        if recipe.fit.deterministic:
            tf.config.experimental.enable_op_determinism()
        self.dataset, self.split, self.recipe = dataset, split, recipe
        self.ancestor: Lineage | None = None
        self.examples = Examples(dataset, split, recipe.examples)
        self._check()
        self.item_inputs = ItemInputs(dataset, split.train, recipe.item.features)
        queries, items = self._towers()
        self.sequences = self._sequences(queries)
        self.raw_query_inputs = QueryInputs(dataset, [spec.name for spec in queries.inputs])
        self.query_inputs = self.raw_query_inputs.encoded(queries.index)
        self._probability = in_batch_probability(
            self.examples.items, len(dataset.items), self.examples.draws
        )
        self.topk = topk = None
        if recipe.fit.topk_every:
            self.topk = tfrs.layers.factorized_top_k.BruteForce(k=100)
            topk = tfrs.metrics.FactorizedTopK(self.topk, ks=(1, 5, 10, 50, 100))
        self.model = TwoTowerModel(
            queries,
            items,
            items.encode(tensors(self.item_inputs(dataset.catalogue.keys))),
            self._probability,
            recipe.task,
            recipe.negatives,
            topk,
        )
        self.frequency = None
        if recipe.task.frequency == "streaming":
            self.frequency = StreamingFrequency(4 * len(dataset.items))
        self.miner = self._miner() if recipe.negatives.hard_negative_share else None
        self.passed_over = None
        if recipe.negatives.num_impressions:
            self.passed_over = self._passed_over()
        # Builds all weights, so that they can be counted, loaded and saved before the first step.
        self.model.query_tower(self._encoded(split.cases.take(np.arange(0))))
        vectors = self.item_vectors(split.candidates)
        if self.topk is not None:
            self.topk.index(tf.constant(vectors), tf.constant(split.candidates, tf.int32))

    def _towers(self) -> tuple[Tower, Tower]:
        """The query tower and the item tower, with the vocabularies of the training rows."""
        items = item_tower(self._item_columns(), self.recipe.item)

        def encode(ids: Sequence[str]) -> dict[str, tf.Tensor]:
            return items.encode(tensors(self.item_inputs(self.dataset.catalogue.keys_of(ids))))

        queries = query_tower(self._query_columns(), self.recipe.query, items, encode)
        for feature in queries.features:
            if isinstance(feature, SequenceHistory):
                of_users = Ragged(self.examples.times, self.examples.by_user.offsets)
                feature.adapt(of_users, self.examples.ratings)
        return queries, items

    def _check(self) -> None:
        """Raises ValueError if parts of the recipe do not go together, or do not fit the data."""
        query, examples, protocol = self.recipe.query, self.examples, self.split.protocol
        require_features(self.dataset, query.features, self.recipe.item.features)
        of_groups = ("targets_per_query", "targets_share", "targets_share_spread")
        groups = f"queries of several items, which {protocol} has not"
        for sentence in [
            *self.recipe.unread(),
            *unread(examples.config, examples.shared, groups, *of_groups),
        ]:
            logging.info("%s", sentence)
        context = set(query.features) & {"time", *examples.context}
        if context and not examples.alone:
            raise ValueError(
                f"query features {sorted(context)} belong to one example, so queries cannot be "
                "shared: set targets_per_query=1."
            )
        if "time" in query.features and not examples.knows_request_time:
            raise ValueError(
                f"the feature 'time' needs a protocol with request times: {protocol}+time."
            )
        if getattr(query.history, "request_time", False) and not examples.knows_request_time:
            raise ValueError(
                f"history_request_time needs a protocol with request times: {protocol}+time."
            )
        normalised = query.l2_normalise and self.recipe.item.l2_normalise
        if self.recipe.task.loss in MARGINS and not normalised:
            raise ValueError(
                f"{self.recipe.task.loss} needs cosines: set l2_normalise of both towers."
            )
        if self.recipe.negatives.untrained_items and not self.recipe.item.unknown_rate:
            raise ValueError(
                "untrained_items draws items without an id vector: with unknown_rate 0 the vector "
                "of unknown ids would only ever be pushed away. Set unknown_rate."
            )
        if query.history.ratings and np.isnan(examples.ratings).all():
            raise ValueError("history_ratings: no training row has a rating.")

    def _miner(self) -> Miner:
        """A miner whose lists are deep enough for the rows of a whole batch."""
        negatives = self.recipe.negatives
        candidates = np.intersect1d(self.split.candidates, self.model.negatives.keys)
        batch_size, mining = self.recipe.examples.batch_size, self.recipe.mining
        width = self._num_mined(batch_size)
        if not width or mining.skip >= len(candidates):
            raise ValueError(
                f"nothing would be mined: hard_negative_share={negatives.hard_negative_share} of "
                f"batch_size={batch_size} is {width} negatives a row, from {len(candidates)} items "
                f"of which mining.skip={mining.skip} are skipped. Raise the share or skip fewer."
            )
        if width >= len(candidates):
            logging.warning(
                "hard_negative_share %g of batch_size %d asks for %d negatives of each row's "
                "own; there are only %d items, so most of them occur more than once in a row.",
                negatives.hard_negative_share,
                batch_size,
                width,
                len(candidates),
            )
        known_positives = Ragged(self.examples.items, self.examples.by_user.offsets)
        deep = dataclasses.replace(mining, depth=max(mining.depth, width))
        return Miner(deep, known_positives, candidates)

    def _passed_over(self) -> Ragged:
        """Impressions of the items that may be drawn. An item without a training example would only
        ever be a negative. So would new items, which have the same id vector."""
        shown = self.examples.passed_over()
        drawable = shown.where(np.isin(shown.values, self.model.negatives.keys))
        if not len(drawable.values):
            raise ValueError(
                "num_impressions needs events of impressions or skips, of items that have a "
                f"training row; there are {len(shown.values)} impressions, none of such an item. "
                "Leave it out."
            )
        return drawable

    def _sequences(self, queries: Tower) -> Sequences | None:
        """The training rows as windows, if the recipe asks for next-item training."""
        recipe = self.recipe
        encoders = [feature for feature in queries.features if isinstance(feature, History)]
        if not recipe.examples.sequence_length:
            in_order = [encoder for encoder in encoders if isinstance(encoder, SequenceHistory)]
            if in_order and not self.examples.shared:
                logging.warning(
                    "every query encodes its history separately: sequence_length=%d would encode "
                    "all prefixes of a user's events at once.",
                    in_order[0].config.length,
                )
            return None
        if not encoders:
            raise ValueError("sequence_length needs the query feature 'history'.")
        length, most = recipe.examples.sequence_length, getattr(encoders[0].config, "length", None)
        tables = ("position_table", "distance_bias")
        has_positions = any(getattr(encoders[0], name, None) is not None for name in tables)
        if most is not None and (length > most or (length < most and has_positions)):
            raise ValueError(
                f"sequence_length {length} and history_length {most} differ: an encoder cannot "
                "read more events than its window has, and positions and distances past "
                "sequence_length never learn. Set both alike."
            )
        return Sequences(
            self.examples,
            encoders[0].is_causal,
            is_cut=most is not None,
            reads_request_time=getattr(encoders[0].config, "request_time", False),
        )

    def _query_columns(self) -> dict[str, np.ndarray]:
        """Name of a query feature -> its values in the training rows."""
        rows, frame = self.examples.rows, self.dataset.interactions
        users = self.dataset.users.iloc[np.unique(self.examples.users)]
        ids = self.dataset.items["item_id"].to_numpy(object)[np.unique(self.examples.items)]
        context = {name: frame[name].iloc[rows].to_numpy(object) for name in self.examples.context}
        of_users = {name: users[name].to_numpy(object) for name in users}
        return {"history": ids, "time": self.examples.times} | context | of_users

    def _item_columns(self) -> pd.DataFrame:
        """The items of the training rows, with time-dependent features as of one example each."""
        keys = np.unique(self.examples.items)
        columns = self.dataset.items.iloc[keys].copy()
        names = [name for name in TIME_DEPENDENT if name in self.recipe.item.features]
        if names:
            # One example of each item, at random, so that quantiles are those met in training.
            rng = np.random.default_rng(self.recipe.fit.seed)
            order = rng.permutation(len(self.examples))
            _, first = np.unique(self.examples.items[order], return_index=True)
            times = self.examples.times[order[first]]
            for name, values in self.item_inputs.as_of(keys, times).items():
                columns[name] = values
        return columns

    def _encoded(self, requests: Requests) -> dict:
        return self.model.query_tower.encode(tensors(self.query_inputs(requests)))

    def query_vectors(self, requests: Requests) -> np.ndarray:
        """Vectors of requests from the current weights, `[num_requests, dim]` float32."""
        tower = self.model.query_tower
        return encoded(requests, lambda part: tower(self._encoded(part)).numpy(), tower.dim)

    def item_vectors(self, keys: np.ndarray, batch_size: int = 8192) -> np.ndarray:
        """Vectors of items from the current weights, `[num_keys, dim]` float32."""
        return np.concatenate(
            [
                self.model.item_vectors(tf.constant(keys[start : start + batch_size])).numpy()
                for start in range(0, len(keys), batch_size)
            ]
        )

    def lineage(self) -> Lineage:
        """The rows that the weights learn from: those of this training and of its ancestors."""
        return Lineage.of(self.dataset, self.split, self.ancestor)

    def fingerprint(self) -> str:
        """sha256 over the data, the protocol and its part, the training rows, and the ancestors."""
        split = self.split
        parts = [self.dataset.fingerprint(), split.protocol, split.part]
        text = json.dumps([*parts, *(self.ancestor.ancestors if self.ancestor else ())])
        return hashlib.sha256(
            text.encode() + np.asarray(split.train, np.int64).tobytes()
        ).hexdigest()

    def recommender(self) -> Callable[[Requests, int], Candidates]:
        """`recommend(requests, k)` by exact search, from the current weights."""
        keys = self.split.candidates
        index = BruteForceIndex().build(keys, self.item_vectors(keys))

        def recommend(requests: Requests, k: int) -> Candidates:
            return index.search(self.query_vectors(requests), k, exclude=requests.exclude)

        return recommend

    def validate(self) -> dict:
        """All metrics on the split's cases, from the current weights."""
        return evaluate(self.recommender(), self.split, self.dataset).metrics

    def mine(self) -> None:
        """New hard negatives for all users, from the current weights.

        Raises:
            ValueError: The recipe has no mined negatives.
        """
        if self.miner is None:
            raise ValueError("nothing is mined with hard_negative_share 0; set it above 0.")
        queries = self.query_vectors(self.examples.whole_histories())
        self.miner.mine(queries, self.item_vectors(self.miner.keys))

    def _num_mined(self, num_examples: int) -> int:
        """Number of mined negatives of each row, in a batch of `num_examples`."""
        config = self.recipe.negatives
        return config.num_mined(config.num_shared(num_examples, len(self.model.negatives.keys)))

    def hard_negatives(
        self, users: np.ndarray, items: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Keys of each row's hard negatives: mined ones, then impressions.

        Args:
            users: `[num_rows]`, user of each row, as a row of `dataset.users`.
            items: `[num_examples]`, keys of the batch's items.
            rng: Source of the random numbers.

        Returns:
            `[num_rows, h]`, -1 for none.
        """
        config, chosen = self.recipe.negatives, [np.empty((len(users), 0), np.int32)]
        if self.miner is not None:
            chosen.append(self.miner.hard_negatives(users, self._num_mined(len(items)), rng, items))
        if self.passed_over is not None:
            shown = self.passed_over.take(users).to_dense(-1)
            chosen.append(drawn(shown, config.num_impressions, rng))
        return np.concatenate(chosen, axis=1)

    def batches(self, first_epoch: int = 0, num_replicas: int = 1) -> tf.data.Dataset:
        """Training batches; each iteration over them is the next epoch (`TrainingBatches`)."""
        sequences, estimate = self.sequences, None
        if self.frequency is not None:
            estimate = functools.partial(_estimated, self.frequency)
        make = TrainingBatches(
            self.examples,
            (sequences or self.examples).epoch,
            self.query_inputs,
            self.model.query_tower.sequence_inputs if sequences is not None else frozenset(),
            self.item_inputs,
            self._probability,
            estimate,
            self.hard_negatives if self.recipe.negatives.has_hard_negatives else None,
        )
        return make(first_epoch, num_replicas)

    def num_batches(self, epoch: int) -> int:
        """Number of batches in the epoch with this number."""
        return len((self.sequences or self.examples).epoch(epoch).batches) - 1

    def topk_batches(self, batch_size: int = 256) -> tf.data.Dataset:
        """Batches of the split's cases, for the validation loss and FactorizedTopK, which also
        ranks seen items (`case_batches`)."""
        return case_batches(self.split.cases, self.query_inputs, self._probability, batch_size)

    def refresh_topk(self) -> None:
        """Gives FactorizedTopK the current vectors of the items. It keeps a copy of them.

        Raises:
            ValueError: The recipe has no FactorizedTopK.
        """
        if self.topk is None:
            raise ValueError("there is no FactorizedTopK with topk_every 0; set it above 0.")
        keys = self.split.candidates
        self.topk.set_weights([keys.astype(np.int32), self.item_vectors(keys)])


def _estimated(frequency: StreamingFrequency, items: np.ndarray) -> np.ndarray:
    """p_c of a batch's items as estimated from the batches so far, `[num_examples]`."""
    frequency.update(items)
    return frequency.probability(items)
