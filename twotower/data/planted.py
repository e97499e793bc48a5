"""The planted truth of the synthetic service: its items and the best possible scores.

The planted model, for user u, item i, time t, context c (all terms are logits of one softmax):

    score(u, i, t, c) = taste(u, t) . profile(i)                taste drifts from start to end
                      + popularity(i)                           Zipf by rank
                      + freshness * exp(-(t - released(i)) / freshness_days)
                      + context(device, part of day, weekday)[cluster(i)]
                      + search_strength * [cluster(i) is the one searched for]

A watch is a draw from softmax(score) over the released items that the user has not watched yet.
`profile` is a sum of independent parts (`PROFILE_SHARES`). Each part shows in one column, so every
column adds information. The part `item_id` shows in no column: it must be learned for each item.
"""

import dataclasses
import functools

import numpy as np
import pandas as pd

from twotower.data import title_words
from twotower.data.dataset import Dataset

DAY = 86_400
START = 1_640_995_200  # 2022-01-01, a Saturday
DEVICES = ("phone", "tv", "web")
PROFILE_DIM = 16
# Share of the profile's variance that each column shows. `cluster` shows, noisily, in all texts.
PROFILE_SHARES = {
    "cluster": 0.30,
    "title": 0.12,
    "description": 0.12,
    "genres": 0.10,
    "maker": 0.12,
    "audio": 0.12,
    "year": 0.04,
    "item_id": 0.08,
}
POPULARITY_SHARES = {"quality": 0.40, "maker": 0.25, "item_id": 0.35}
# Share of the rows by event; the rest are impressions.
EVENT_SHARES = {"watch": 0.60, "skip": 0.08, "like": 0.08, "share": 0.02}


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """What to make.

    Attributes:
        num_users: Users; each watches at least once where the rows suffice.
        num_items: Items.
        num_interactions: Rows of all events together, exactly; 60 % of them are watches.
        seed: Seed of everything.
        num_clusters: Clusters of items.
        span_days: Days from the first to the last request.
        taste_scale: Standard deviation of the logit taste . profile.
        popularity_exponent: Logit -exponent * log(rank + 10).
        freshness: Logit of an item in the second of its release.
        freshness_days: Days after which 1/e of that is left.
        context_scale: Standard deviation of each of the device, hour and weekday logits.
        search_share: Share of the watches that follow a search.
        search_strength: Logit that a search adds to the items of its cluster.
        words_per_cluster: Words of a cluster's title and description vocabulary, each.
        audio_noise: Standard deviation of the noise on `audio`, whose signal has 1.

    >>> SyntheticConfig(num_users=500, num_items=300, num_interactions=20_000).name
    'synthetic/500x300-seed0'
    """

    num_users: int = 2000
    num_items: int = 1500
    num_interactions: int = 150_000
    seed: int = 0
    num_clusters: int = 12
    span_days: int = 365
    taste_scale: float = 2.0
    popularity_exponent: float = 0.8
    freshness: float = 1.5
    freshness_days: float = 30.0
    context_scale: float = 0.6
    search_share: float = 0.3
    search_strength: float = 4.0
    words_per_cluster: int = 40
    audio_noise: float = 0.4

    def __post_init__(self) -> None:
        watches = round(self.num_interactions * EVENT_SHARES["watch"])
        if watches > self.num_users * (self.num_items // 4):
            raise ValueError(
                f"{watches} watches of {self.num_users} users are more than a quarter of "
                f"{self.num_items} items each; take more users or items."
            )
        if self.num_clusters < 2 or self.num_items < 40 or self.num_users < 1:
            raise ValueError(f"needs 2 clusters, 40 items and a user at least: {self}.")
        if self.span_days > 80 * self.freshness_days:
            raise ValueError(f"span_days above 80 freshness_days leave float32's range: {self}.")

    @property
    def name(self) -> str:
        """Name of the dataset, made of the numbers of users and items and the seed alone."""
        return f"synthetic/{self.num_users}x{self.num_items}-seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """A dataset with the parameters that generated it.

    Attributes:
        config: The sizes and strengths that it was made with.
        dataset: The tables.
        clusters: Cluster of each item, `[num_items]`.
        profiles: `[num_items, 16]`.
        popularity: Logit of each item, `[num_items]`.
        taste_start: Taste of each user at the start, `[num_users, 16]`.
        taste_end: Taste of each user at the end, `[num_users, 16]`.
        context: Logits of clusters by `device` `[3, num_clusters]`, `hour` (parts of the day of 4
            hours) `[6, num_clusters]`, `weekday` (Monday first) `[7, num_clusters]`.
        word_clusters: Cluster of each word that a search can hold.

        made = synthetic.generate(SyntheticConfig(seed=1))
        best = made.scores_of(user_rows, times)  # no model can rank better than this
    """

    config: SyntheticConfig
    dataset: Dataset
    clusters: np.ndarray
    profiles: np.ndarray
    popularity: np.ndarray
    taste_start: np.ndarray
    taste_end: np.ndarray
    context: dict[str, np.ndarray]
    word_clusters: dict[str, int]

    def scores_of(
        self,
        user_rows: np.ndarray,
        times: np.ndarray,
        devices: np.ndarray | None = None,
        search_texts: np.ndarray | None = None,
    ) -> np.ndarray:
        """The best possible scores: log-probabilities of a watch up to a constant per row.

        What the user has watched already is not taken out: exclude it as for any other model.

        Args:
            user_rows: Rows in `dataset.users`, `[n]`.
            times: Times of the requests in seconds, `[n]`.
            devices: `[n]` strings; a device that is '' or unknown adds no logit. None: none does.
            search_texts: `[n]` strings; '' and unknown words add no logit. None: none does.

        Returns:
            `[n, num_items]` float32, larger is better; -inf where the item is not yet released.
        """
        user_rows = np.asarray(user_rows, np.int64)
        device = np.full(len(user_rows), -1)
        search = np.full(len(user_rows), -1)
        if devices is not None:
            device = pd.Index(DEVICES).get_indexer(np.asarray(devices, object))
        if search_texts is not None:
            search = np.array([self._searched(text) for text in search_texts], np.int64)
        return self.draw_scores(user_rows, np.asarray(times, np.int64), device, search)

    def _searched(self, text: str) -> int:
        found = [self.word_clusters[word] for word in text.split() if word in self.word_clusters]
        return max(found, key=found.count) if found else -1

    def tastes(self, user_rows: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Tastes of users at times, `[n, 16]`; before the start and after the end they rest."""
        passed = np.clip((times - START) / (self.config.span_days * DAY), 0, 1)
        passed = passed.astype(np.float32)[:, None]
        return (1 - passed) * self.taste_start[user_rows] + passed * self.taste_end[user_rows]

    @functools.cached_property
    def _released(self) -> np.ndarray:
        """Seconds from `START`, `[num_items]` int32: half the memory to compare with."""
        return (self.dataset.items["released"].to_numpy() - START).astype(np.int32)

    def _decay(self, seconds: np.ndarray) -> np.ndarray:
        """exp(seconds / freshness_days), counted from the middle of the span to stay in float32."""
        days = np.asarray(seconds) / DAY - self.config.span_days / 2
        return np.exp(np.clip(days / self.config.freshness_days, -80, 80)).astype(np.float32)

    @functools.cached_property
    def _candidates(self) -> np.ndarray:
        """The item side of the score as one vector, `[16 + num_clusters + 2, num_items]`."""
        one_hot = np.eye(self.config.num_clusters, dtype=np.float32)[self.clusters]
        fresh = np.float32(self.config.freshness) * self._decay(self._released)
        columns = [self.profiles, one_hot, fresh[:, None], self.popularity[:, None]]
        return np.ascontiguousarray(np.concatenate(columns, axis=1).T)

    def draw_scores(
        self, user_rows: np.ndarray, times: np.ndarray, device: np.ndarray, search: np.ndarray
    ) -> np.ndarray:
        """`scores_of` `[n, num_items]`, with `[n]` rows of `DEVICES` and `[n]` clusters that are
        searched for, -1 for none."""
        passed = (times - START).astype(np.int32)[:, None]
        cluster_logits = (
            self.context["hour"][times // (4 * 3600) % 6]
            + self.context["weekday"][(times // DAY + 3) % 7]  # 1970-01-01 was a Thursday
            + self.context["device"][device] * (device >= 0)[:, None]
        )  # [n, num_clusters]
        is_search = np.flatnonzero(search >= 0)
        cluster_logits[is_search, search[is_search]] += np.float32(self.config.search_strength)
        # exp(-(t - released)) = exp(released) * exp(-t): freshness is one more dimension.
        columns = [
            self.tastes(user_rows, times),
            cluster_logits,
            1 / self._decay(passed),
            np.ones_like(passed, np.float32),
        ]
        scores = np.concatenate(columns, axis=1) @ self._candidates  # [n, num_items]
        # np.where and not copyto: a quarter of the time at masks without a pattern.
        return np.where(self._released > passed, np.float32(-np.inf), scores)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Standard normal numbers `[*shape]`, float32."""
    return rng.standard_normal(shape, np.float32)


def invent_words(rng: np.random.Generator, count: int) -> np.ndarray:
    """`count` different words of two to three syllables, `[count]`.

    Raises:
        ValueError: There are not as many such words.
    """
    syllables = np.array([c + v for c in "bdfgklmnprstvz" for v in "aeiou"], object)
    drawn = syllables[rng.integers(len(syllables), size=(4 * count + 100, 3))]
    drawn[::3, 2] = ""
    found = pd.unique(drawn.sum(axis=1))
    if len(found) < count:
        raise ValueError(f"cannot invent {count} words; take fewer words_per_cluster.")
    return found[:count]


def _near(rng, clusters: np.ndarray, shape, fidelity: float, num_others: int) -> np.ndarray:
    """The clusters with probability `fidelity`, else one of `num_others` at random."""
    others = rng.integers(num_others, size=shape)
    return np.where(rng.random(shape) < fidelity, clusters.reshape(-1, *[1] * (len(shape) - 1)),
                    others)  # fmt: skip


def _mean_vectors(vectors: np.ndarray, chosen: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Sum of the chosen vectors / sqrt(their number): variance 1 again. `chosen`, `used` [n, k]."""
    return (vectors[chosen] * used[..., None]).sum(1) / np.sqrt(used.sum(1, keepdims=True))


def make_items(
    config: SyntheticConfig, rng: np.random.Generator, words: np.ndarray
) -> tuple[pd.DataFrame, dict]:
    """The table of items, and the true values behind it, name -> `[num_items, ...]`.

    `words` are `[2, num_clusters + 1, words_per_cluster]`: those of titles and of descriptions, for
    each cluster; the last row belongs to no cluster.
    """
    num, num_clusters = config.num_items, config.num_clusters
    clusters = rng.integers(num_clusters, size=num)
    parts = {"cluster": normal(rng, num_clusters, PROFILE_DIM)[clusters]}
    texts = {}
    for row, (column, low, high) in enumerate((("title", 2, 3), ("description", 6, 10))):
        used = np.arange(high) < rng.integers(low, high + 1, size=(num, 1))
        # The vocabulary after that of the last cluster belongs to none.
        vocabulary = _near(rng, clusters, (num, high), 0.75, num_clusters + 1)
        chosen = vocabulary * config.words_per_cluster
        chosen += rng.integers(config.words_per_cluster, size=(num, high))
        vectors = normal(rng, (num_clusters + 1) * config.words_per_cluster, PROFILE_DIM)
        parts[column] = _mean_vectors(vectors, chosen, used)
        if column == "title":  # in the order of the vocabulary, which is that of English
            slot = np.where(used, chosen % config.words_per_cluster, config.words_per_cluster)
            chosen = np.take_along_axis(chosen, np.argsort(slot, axis=1, kind="stable"), axis=1)
        shown = words[row].ravel()[chosen]
        texts[column] = [" ".join(w[:n]) for w, n in zip(shown, used.sum(1), strict=True)]
    texts["title"] = [title.title() for title in texts["title"]]
    genre_names = np.array([name.title() for name in title_words.genre_names(num_clusters)], object)
    first = _near(rng, clusters, (num,), 0.8, num_clusters)
    second = (first + rng.integers(1, num_clusters, size=num)) % num_clusters
    chosen = np.stack([first, second], axis=1)
    used = np.stack([np.ones(num, bool), rng.random(num) < 0.5], axis=1)
    parts["genres"] = _mean_vectors(normal(rng, num_clusters, PROFILE_DIM), chosen, used)
    genres = [tuple(genre_names[c[:n]]) for c, n in zip(chosen, used.sum(1), strict=True)]
    per_cluster = max(1, num // (15 * num_clusters))  # about 15 items a maker
    maker = _near(rng, clusters, (num,), 0.85, num_clusters) * per_cluster
    maker += rng.integers(per_cluster, size=num)
    parts["maker"] = normal(rng, num_clusters * per_cluster, PROFILE_DIM)[maker]
    parts["audio"] = normal(rng, num, PROFILE_DIM)
    rotation = np.linalg.qr(normal(rng, PROFILE_DIM, PROFILE_DIM))[0]
    audio = parts["audio"] @ rotation + config.audio_noise * normal(rng, num, PROFILE_DIM)
    released = _release_times(config, rng)
    years_before = np.minimum(rng.exponential(8, num), 40)
    year = (1970 + released / (365.25 * DAY) - years_before).astype(np.int64)
    old = ((years_before - years_before.mean()) / years_before.std()).astype(np.float32)
    parts["year"] = old[:, None] * normal(rng, PROFILE_DIM)
    parts["item_id"] = normal(rng, num, PROFILE_DIM)
    profiles = sum(np.sqrt(share) * parts[name] for name, share in PROFILE_SHARES.items())
    quality = normal(rng, num)
    appeal = {
        "quality": quality,
        "maker": normal(rng, num_clusters * per_cluster)[maker],
        "item_id": normal(rng, num),
    }
    appeal = sum(np.sqrt(share) * appeal[name] for name, share in POPULARITY_SHARES.items())
    rank = np.empty(num)
    rank[np.argsort(-appeal)] = np.arange(num)
    popularity = -config.popularity_exponent * np.log(rank + 10)
    items = pd.DataFrame(
        {
            "item_id": [f"i{n:05d}" for n in range(1, num + 1)],
            **texts,
            "genres": genres,
            "maker": np.array([f"maker {n:03d}" for n in range(maker.max() + 1)], object)[maker],
            "year": year,
            "released": released,
            "quality": quality,
            "audio": list(audio.astype(np.float32)),
        }
    )
    return items, {
        "clusters": clusters,
        "profiles": profiles.astype(np.float32),
        "popularity": popularity.astype(np.float32),
    }


def _release_times(config: SyntheticConfig, rng) -> np.ndarray:
    """5 % of the items in the last tenth, 20 % in the rest of the span, 75 % in 3 years before."""
    num, span = config.num_items, config.span_days * DAY
    num_cold, num_new = max(1, num // 20), num // 5
    released = START - 1 - rng.integers(3 * 365 * DAY, size=num)
    order = rng.permutation(num)
    released[order[:num_cold]] = START + rng.integers(int(0.9 * span), int(0.99 * span), num_cold)
    released[order[num_cold:][:num_new]] = START + rng.integers(int(0.9 * span), size=num_new)
    return released
