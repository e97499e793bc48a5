"""CandidateColumns: the features that a ranker reads for each request and candidate. Numpy only.

    of the order so far    score, its distance from the best one, rank
    of each source         rank, score, and the score standardised within the request
    of the item            training rows, mean rating, year, genres
    of the user            length of the history, mean rating, how popular the films in it are
    of both                affinity to the genres and their ratings, years between, similarity to
                           the history and to its end, rating of similar films

The last group needs the history and the item together. A two-tower model encodes them apart, so it
cannot have these inputs.
"""

from collections.abc import Sequence

import numpy as np

from twotower.data.dataset import Dataset
from twotower.data.requests import Requests
from twotower.data.tags import tag_table
from twotower.funnel.attributes import Attribute
from twotower.funnel.stage import Model, Part
from twotower.ragged import Ragged
from twotower.ranking.inputs import NUMBERS, Field, RankerInputs
from twotower.retrieval.candidates import Candidates

# Attributes of users that become fields, as far as the data has them.
ATTRIBUTES = ("age", "gender", "occupation", "device", "country")
# Components of the item vectors that similarity is computed from, and events it is computed to.
COMPONENTS, EVENTS, LAST = 64, 100, 5
# Shrinkage. An item's mean rating counts the mean of all ratings like RATING_PRIOR further rows. A
# user's rating of a genre counts 0 like GENRE_PRIOR further events.
RATING_PRIOR, GENRE_PRIOR = 5.0, 3.0
# Similar films are weighted by exp(similarity / TEMPERATURE).
TEMPERATURE = 0.2
# Requests whose similarities are computed at once.
ROWS = 32
GENRES = "genres"
PAIRS = (
    "genre_affinity", "genre_rating", "year_gap", "popularity_gap", "similarity",
    "similarity_to_last", "similar_rating",
)  # fmt: skip
ITEM, USER = ("rows", "mean_rating", "year"), ("events", "user_rating", "user_popularity")
ORDER = ("score", "behind_best", "log_rank")


class CandidateColumns(Part):
    """Computes the features of a ranker for candidates, with statistics of the training rows.

        columns = CandidateColumns.fit(dataset, split.train, bundle, ["two_tower", "ease"])
        ranker(columns(requests, candidates))

    An unknown number is NaN, such as the mean rating of a user without ratings, or the rank at a
    source that did not find the item. An item that came into the catalogue after these columns were
    fitted has no training rows, rating, year or genres, and a vector of zeros.

    Args:
        sources: Sources whose ranks and scores are read.
        fields: Categorical features: `genres`, and attributes of the user in the order of `values`.
        rows: `[num_items]` number of training rows of each item.
        mean_rating: `[num_items]`, shrunk towards the mean of all ratings; NaN in data without
            ratings.
        year: `[num_items]`, NaN where it is not known.
        tags: `[num_items, num_tags]` 1 where the item has the genre.
        common: `[num_tags]` share of the training rows whose item has the genre.
        vectors: `[num_items, components]` item vectors of length 1; zeros for items without one.
        user_id: `[num_users]` users whose attributes are known.
        values: `[num_users, num_attributes]` their values.
    """

    kind = "candidate_columns"
    SETTINGS = ("sources", "fields")
    ARRAYS = (
        "rows int [num_items]",
        "mean_rating float [num_items]",
        "year float [num_items]",
        "tags int [num_items, num_tags]",
        "common float [num_tags]",
        "vectors float [num_items, components]",
        "user_id text [num_users]",
        "values text [num_users, num_attributes]",
    )

    def __init__(
        self,
        sources: Sequence[str],
        fields: Sequence[str],
        rows: np.ndarray,
        mean_rating: np.ndarray,
        year: np.ndarray,
        tags: np.ndarray,
        common: np.ndarray,
        vectors: np.ndarray,
        user_id: np.ndarray,
        values: np.ndarray,
    ) -> None:
        self.sources, self.fields = list(sources), list(fields)
        self.attributes = [name for name in fields if name != GENRES]
        self.rows, self.mean_rating, self.year = rows, mean_rating, year
        self.tags, self.common, self.vectors = tags, common, vectors
        self.user_id, self.values = user_id, values
        # The last row is for all items that came later.
        self._popularity = np.append(np.log1p(rows), 0).astype(np.float32)
        self._mean_rating = np.append(mean_rating, np.float32(np.nan))
        self._year = np.append(year, np.float32(np.nan))
        self._vectors = np.pad(vectors, ((0, 1), (0, 0)))
        known = mean_rating[np.isfinite(mean_rating)]
        self._neutral = float(known.mean()) if len(known) else 0.0
        self._codes = {
            name: {value: code for code, value in enumerate(sorted({*column} - {""}), 1)}
            for name, column in zip(self.attributes, values.T.tolist())
        }
        self._attributes = {
            name: Attribute(name, user_id, values[:, column])
            for column, name in enumerate(self.attributes)
        }
        tags = np.pad(tags, ((0, 1), (0, 0)))
        width = int(tags.sum(1).max(initial=0))
        # [num_items, width], codes of each item's genres, 0 past their end.
        order = np.argsort(1 - tags, axis=1, kind="stable")[:, :width]
        self._genres = np.where(np.take_along_axis(tags, order, 1) > 0, order + 1, 0)
        self._genres = self._genres.astype(np.int32)
        self._share = (tags / np.maximum(tags.sum(1, keepdims=True), 1)).astype(np.float32)

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        train: np.ndarray,
        model: Model,
        sources: Sequence[str],
        fields: Sequence[str] = (),
    ) -> "CandidateColumns":
        """Fits the statistics to training rows, and takes a model's item vectors for similarities.

        Args:
            dataset: The data.
            train: `[num_train]` rows of the interactions that may be learned from.
            model: Its item vectors are reduced to their first `COMPONENTS` principal components.
            sources: Names of the funnel's sources.
            fields: Categorical features, some of `ATTRIBUTES` and `genres`. The ranker learns an
                embedding for each value; a few thousand requests are too few for that.

        Raises:
            ValueError: A field that the data does not have, or a model of another dataset.
        """
        model.catalogue.require_same_keys(dataset.items)
        known = [*(name for name in ATTRIBUTES if name in dataset.users)]
        known += [GENRES] if GENRES in dataset.items else []
        if unknown := [name for name in fields if name not in known]:
            raise ValueError(f"the data has the fields {known}; unknown {unknown}.")
        items, keys = dataset.items, dataset.item_keys[train]
        rows = np.bincount(keys, minlength=len(items))
        mean = np.full(len(items), np.nan, np.float32)
        if "rating" in dataset.interactions:
            ratings = dataset.interactions["rating"].to_numpy(np.float64)[train]
            known = np.isfinite(ratings)
            if known.any():
                sums = np.bincount(keys[known], ratings[known], len(items))
                counts = np.bincount(keys[known], minlength=len(items))
                prior = RATING_PRIOR * ratings[known].mean()
                mean = ((sums + prior) / (counts + RATING_PRIOR)).astype(np.float32)
        year = np.full(len(items), np.nan, np.float32)
        if "year" in items:
            year = items["year"].to_numpy(np.float32, copy=True)
            year[year <= 0] = np.nan
        tags = tag_table(items[GENRES]) if GENRES in items else np.zeros((len(items), 0), bool)
        attributes = [name for name in fields if name != GENRES]
        values = dataset.users[attributes].astype(str).to_numpy(str)
        values = values.reshape(len(dataset.users), len(attributes))
        return cls(
            sources,
            fields,
            rows,
            mean,
            year,
            tags.astype(np.int8),
            tags[keys].mean(0, dtype=np.float32) if len(keys) else np.zeros(tags.shape[1], "f4"),
            _principal(model, len(items)),
            dataset.users["user_id"].to_numpy(str),
            values,
        )

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the numeric features, in their order."""
        found = [f"{name}_{what}" for name in self.sources for what in ("log_rank", "score", "z")]
        return (*ORDER, *found, *ITEM, *USER, *PAIRS)

    @property
    def inputs(self) -> RankerInputs:
        """The inputs of a network that reads these features."""
        fields = [Field(name, max(len(self._codes[name]), 1)) for name in self.attributes]
        if GENRES in self.fields:
            fields.append(Field(GENRES, max(self.tags.shape[1], 1), max(self._genres.shape[1], 2)))
        return RankerInputs(tuple(fields), self.numbers)

    def __call__(self, requests: Requests, candidates: Candidates) -> dict[str, np.ndarray]:
        """The columns by the names of `inputs`, `[num_requests, k, ...]`.

        Raises:
            ValueError: Candidates without a column of one of the sources.
        """
        missing = [
            f"{source}_{what}"
            for source in self.sources
            for what in ("rank", "score")
            if f"{source}_{what}" not in candidates.columns
        ]
        if missing:
            raise ValueError(
                f"the ranker reads the columns {missing}, which the candidates do not have; they "
                f"have {[*candidates.columns]}. Use the funnel that it was trained behind, or "
                "train it behind this one."
            )
        keys = np.minimum(np.where(candidates.valid, candidates.keys, 0), len(self.rows))
        shape = keys.shape
        columns = {
            name: np.broadcast_to(self._coded(name, requests)[:, None], shape)
            for name in self.attributes
        }
        if GENRES in self.fields:
            missing_width = max(self._genres.shape[1], 2) - self._genres.shape[1]
            columns[GENRES] = np.pad(self._genres, ((0, 0), (0, missing_width)))[keys]
        found = {
            **_order(candidates),
            **_sources(self.sources, candidates),
            "rows": self._popularity[keys],
            "mean_rating": self._mean_rating[keys],
            "year": self._year[keys],
            **self._of_history(requests, keys),
        }
        numbers = np.empty((*shape, len(self.numbers)), np.float32)
        for column, name in enumerate(self.numbers):
            values = found[name]
            numbers[..., column] = values if values.ndim == 2 else values[:, None]
        return {**columns, NUMBERS: numbers}

    def _coded(self, name: str, requests: Requests) -> np.ndarray:
        codes = self._codes[name]
        found = [codes.get(value, 0) for value in self._attributes[name](requests)]
        return np.array(found, np.int32).reshape(len(requests))

    def _of_history(self, requests: Requests, keys: np.ndarray) -> dict[str, np.ndarray]:
        """Numbers of the user `[num_requests]` and of user and item `[num_requests, k]`."""
        # An item that came into the catalogue later is unknown here.
        requests = requests.with_events(requests.history.values < len(self.rows))
        history, count = requests.history, len(requests)
        row, events = history.row_index, history.values
        length = history.lengths

        def mean(values: np.ndarray) -> np.ndarray:
            known = np.isfinite(values)
            total = np.bincount(row[known], values[known], count)
            number = np.bincount(row[known], minlength=count)
            return np.where(number > 0, total / np.maximum(number, 1), np.nan)

        user_rating = mean(requests.history_rating.values)
        popularity = mean(self._popularity[events])
        # How much better than usual the user found each event; 0 where that is not known.
        better = requests.history_rating.values - user_rating[row]
        better = np.where(np.isfinite(better), better, 0)
        shares = _sums(self._share[events], history)
        affinity = shares / np.maximum(length, 1)[:, None] / (self.common + 0.01)
        tags = self.tags[events].astype(np.float32)
        rated = _sums(tags * better[:, None], history) / (_sums(tags, history) + GENRE_PRIOR)
        candidate = self._share[keys]  # [num_requests, k, num_tags]
        similarity = self._similarities(requests, better, keys)
        return {
            "events": np.log1p(length),
            "user_rating": user_rating,
            "user_popularity": popularity,
            "genre_affinity": np.matmul(candidate, affinity[:, :, None].astype(np.float32))[..., 0],
            "genre_rating": np.matmul(candidate, rated[:, :, None].astype(np.float32))[..., 0],
            "year_gap": self._year[keys] - mean(self._year[events])[:, None],
            "popularity_gap": self._popularity[keys] - popularity[:, None],
            **similarity,
        }

    def _similarities(
        self, requests: Requests, better: np.ndarray, keys: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Cosine with the newest `EVENTS` of the history, `[num_requests, k]` each."""
        newest = requests.history.last(EVENTS)
        ratings = Ragged(better, requests.history.offsets).last(EVENTS).values
        found = {name: np.full(keys.shape, np.nan, np.float32) for name in PAIRS[-3:]}
        for start in range(0, len(keys), ROWS):
            block = slice(start, start + ROWS)
            rows = np.arange(start, min(start + ROWS, len(keys)))
            lengths = newest.lengths[rows]
            width = int(lengths.max(initial=0))
            if not width:
                continue
            place = newest.offsets[rows][:, None] + np.arange(width)
            real = np.arange(width) < lengths[:, None]  # [rows, width]
            place = np.where(real, place, 0)
            events = self._vectors[newest.values[place]]
            cosine = self._vectors[keys[block]] @ events.transpose(0, 2, 1)  # [rows, k, width]
            cosine = np.where(real[:, None], cosine, -np.inf)
            any_event = (lengths > 0)[:, None]
            found["similarity"][block] = np.where(any_event, cosine.max(2), np.nan)
            is_last = real & (np.arange(width) >= (lengths - LAST)[:, None])
            weights = is_last / np.maximum(is_last.sum(1, keepdims=True), 1)
            last = np.where(real[:, None], cosine, 0) @ weights[:, :, None].astype(np.float32)
            found["similarity_to_last"][block] = np.where(any_event, last[..., 0], np.nan)
            weights = np.exp(cosine / np.float32(TEMPERATURE))
            rated = weights @ np.where(real, ratings[place], 0)[:, :, None].astype(np.float32)
            total = np.maximum(weights.sum(2), 1e-20)
            found["similar_rating"][block] = np.where(any_event, rated[..., 0] / total, np.nan)
        return found


def _principal(model: Model, num_items: int) -> np.ndarray:
    """`[num_items, components]`, the item vectors' directions of most variance, of length 1."""
    keys, vectors = np.asarray(model.keys), np.asarray(model.vectors, np.float32)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.where(length > 0, length, 1)
    vectors = vectors - vectors.mean(0)
    # Directions from the covariance, whose size does not grow with the catalogue.
    directions = np.linalg.eigh(vectors.T @ vectors)[1][:, ::-1][:, :COMPONENTS]
    kept = vectors @ directions
    kept = kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-9)
    found = np.zeros((num_items, kept.shape[1]), np.float32)
    found[keys] = kept
    return found


def _order(candidates: Candidates) -> dict[str, np.ndarray]:
    scores = np.where(candidates.valid, candidates.scores, np.nan)
    width = scores.shape[1]
    return {
        "score": scores,
        "behind_best": scores - scores[:, :1],
        "log_rank": np.broadcast_to(np.log1p(np.arange(width)), scores.shape),
    }


def _sources(names: Sequence[str], candidates: Candidates) -> dict[str, np.ndarray]:
    """Rank, score and standardised score at each source, NaN where it did not find the item."""
    found, valid = {}, candidates.valid
    for name in names:
        rank = np.where(valid, candidates.columns[f"{name}_rank"], 0)
        score = np.where(rank > 0, candidates.columns[f"{name}_score"], np.nan)
        known = np.maximum((rank > 0).sum(1, keepdims=True), 1)
        mean = np.nansum(score, 1, keepdims=True) / known
        spread = np.sqrt(np.nansum((score - mean) ** 2, 1, keepdims=True) / known)
        found[f"{name}_log_rank"] = np.log(np.where(rank > 0, rank, np.nan))
        found[f"{name}_score"] = score
        found[f"{name}_z"] = (score - mean) / np.where(spread > 0, spread, 1)
    return found


def _sums(values: np.ndarray, rows: Ragged) -> np.ndarray:
    """Sum of `values` `[num_events, size]` over each row, `[num_rows, size]`."""
    total = np.zeros((len(rows), values.shape[1]), np.float64)
    if len(values):
        filled = np.flatnonzero(rows.lengths)
        total[filled] = np.add.reduceat(values, rows.offsets[:-1][filled], axis=0)
    return total.astype(np.float32)
