"""Synthetic: the users of a made-up service and what they did, drawn by the truth in `planted`."""

import dataclasses
import itertools

import numpy as np
import pandas as pd

from twotower.data.dataset import Dataset
from twotower.data.planted import (
    DAY,
    DEVICES,
    EVENT_SHARES,
    PROFILE_DIM,
    START,
    Synthetic,
    SyntheticConfig,
    invent_words,
    make_items,
    normal,
)
from twotower.data.title_words import title_words

__all__ = ["SMALL", "Synthetic", "SyntheticConfig", "generate"]
# Trains in seconds: for tests and first tries.
SMALL = SyntheticConfig(num_users=200, num_items=300, num_interactions=12_000)
COUNTRIES = ("br", "de", "in", "jp", "us")
GENDERS = ("F", "M")
AGES = ("under 18", "18-24", "25-34", "35-44", "45-54", "55+")
OCCUPATIONS = ("artist", "clerk", "doctor", "driver", "engineer", "farmer", "student", "teacher")
TASTE_SHARES = {"demographic": 0.35, "personal": 0.40, "drift": 0.25}
HOUR_WEIGHTS = np.array([2, 1, 1, 1, 1, 2, 3, 4, 4, 3, 3, 4, 5, 4, 4, 4, 5, 6, 8, 10, 11, 10, 7, 4])


def generate(config: SyntheticConfig | None = None) -> Synthetic:
    """Makes the service and what its users did; equal configs give equal data.

    >>> made = generate(SyntheticConfig(num_users=20, num_items=100, num_interactions=300))
    >>> len(made.dataset.interactions), int(made.dataset.positive.sum())
    (300, 180)
    """
    config = SyntheticConfig() if config is None else config
    rng = np.random.default_rng(config.seed)
    made, words = _plant(config, rng)
    watches = _watches(made, rng)
    interactions = _interactions(made, rng, watches, words)
    return dataclasses.replace(
        made, dataset=Dataset(config.name, interactions, made.dataset.items, made.dataset.users)
    )


def _plant(config: SyntheticConfig, rng) -> tuple[Synthetic, np.ndarray]:
    """The service before anything has happened: no interactions. Returns it and its words."""
    words = invent_words(rng, (2 * config.num_clusters + 2) * config.words_per_cluster)
    words = words.reshape(2, config.num_clusters + 1, config.words_per_cluster)
    words[0] = title_words(words[0])
    items, truth = make_items(config, rng, words)
    users, tastes = _users(config, rng)
    empty = pd.DataFrame({"user_id": [], "item_id": [], "timestamp": np.empty(0, np.int64)})
    made = Synthetic(
        config=config,
        dataset=Dataset("synthetic", empty, items, users),
        context={
            name: normal(rng, rows, config.num_clusters) * np.float32(config.context_scale)
            for name, rows in (("device", 3), ("hour", 6), ("weekday", 7))
        },
        word_clusters={
            word: cluster for cluster in range(config.num_clusters) for word in words[0, cluster]
        },
        **truth,
        **tastes,
    )
    return made, words[0]


def _users(config: SyntheticConfig, rng) -> tuple[pd.DataFrame, dict]:
    num = config.num_users
    columns = {"gender": GENDERS, "age": AGES, "occupation": OCCUPATIONS, "country": COUNTRIES}
    drawn = {name: rng.integers(len(values), size=num) for name, values in columns.items()}
    # The country says nothing: a column that a model must learn to leave alone.
    known = ("gender", "age", "occupation")
    mean = sum(normal(rng, len(columns[n]), PROFILE_DIM)[drawn[n]] for n in known) / np.sqrt(3)
    still = np.sqrt(TASTE_SHARES["demographic"]) * mean
    still = still + np.sqrt(TASTE_SHARES["personal"]) * normal(rng, num, PROFILE_DIM)
    scale = config.taste_scale / np.sqrt(PROFILE_DIM)
    tastes = {
        name: (scale * (still + np.sqrt(TASTE_SHARES["drift"]) * normal(rng, num, PROFILE_DIM)))
        for name in ("taste_start", "taste_end")
    }
    users = {"user_id": [f"u{n:05d}" for n in range(1, num + 1)]}
    for name, values in columns.items():
        users[name] = np.array(values, object)[drawn[name]]
    return pd.DataFrame(users), {name: t.astype(np.float32) for name, t in tastes.items()}


def _requests(config: SyntheticConfig, rng) -> dict[str, np.ndarray]:
    """User, time and device of each request, a row for each watch, by user and then by time."""
    num, most = round(config.num_interactions * EVENT_SHARES["watch"]), config.num_items // 2
    weight = rng.lognormal(0, 0.8, config.num_users)
    count = np.minimum(rng.multinomial(num, weight / weight.sum()), most)
    while count.sum() < num:  # what was cut off goes to users with room
        extra = rng.multinomial(num - count.sum(), (count < most) / (count < most).sum())
        count = np.minimum(count + extra, most)
    user = np.repeat(np.arange(config.num_users), count)
    # Sessions of about 3 watches, evenings more often; half of the users join later.
    joined = np.maximum(rng.uniform(-0.6, 0.6, config.num_users), 0) * config.span_days
    rank = np.arange(num) - np.repeat(np.cumsum(count) - count, count)
    session = np.cumsum((rank == 0) | (rng.random(num) < 1 / 3)) - 1
    begins = np.flatnonzero(np.diff(session, prepend=-1))
    day = rng.uniform(joined[user[begins]], config.span_days).astype(np.int64)
    hour = rng.choice(24, size=len(begins), p=HOUR_WEIGHTS / HOUR_WEIGHTS.sum())
    start = START + day * DAY + hour * 3600 + rng.integers(3600, size=len(begins))
    time = start[session] + (np.arange(num) - begins[session]) * 2400 + rng.integers(1200, size=num)
    favourite = rng.integers(3, size=config.num_users)[user[begins]]
    device = np.where(rng.random(len(begins)) < 0.5, favourite, rng.integers(3, size=len(begins)))
    order = np.lexsort((time, user))
    return {"user": user, "time": time[order], "device": device[session][order], "rank": rank}


def _watches(made: Synthetic, rng) -> dict[str, np.ndarray]:
    """Draws the watches: all users' first ones, then all users' second ones and so on.

    Users do not influence one another, so this is the same as going through time, and a user's
    watched items are out of the softmax of all later ones (sampling without replacement).
    """
    watches = _requests(made.config, rng)
    user, time, device, rank = (watches[name] for name in ("user", "time", "device", "rank"))
    search = np.full(len(user), -1)
    item = np.empty(len(user), np.int64)
    share = np.bincount(made.clusters, minlength=made.config.num_clusters)
    centres = np.zeros((made.config.num_clusters, PROFILE_DIM), np.float32)
    np.add.at(centres, made.clusters, made.profiles)
    centres /= np.maximum(share, 1)[:, None]
    wish = made.tastes(user, time) @ centres.T + rng.gumbel(size=(len(user), len(centres)))
    wish[:, share == 0] = -np.inf
    searches = rng.random(len(user)) < made.config.search_share
    search[searches] = wish[searches].argmax(1)
    rounds = np.argsort(rank, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(rank))])
    chunk = max(1, 2**20 // made.config.num_items)  # 4 MB of scores: stays in the cache
    for earlier, (begin, end) in enumerate(itertools.pairwise(bounds)):
        for at in range(begin, end, chunk):
            rows = rounds[at : min(at + chunk, end)]
            scores = made.draw_scores(user[rows], time[rows], device[rows], search[rows])
            # The user's earlier watches stand right before this one.
            seen = item[rows[:, None] - np.arange(1, earlier + 1)]  # [num_rows, earlier]
            np.put_along_axis(scores, seen, -np.inf, axis=1)
            scores -= scores.max(1, keepdims=True)
            item[rows] = _draw(np.exp(scores, out=scores), rng)
    return {**watches, "search": search, "item": item}


def _draw(weights: np.ndarray, rng, width: int = 64) -> np.ndarray:
    """A column for each row, with probability in proportion to its weight, `[n]`.

    First a block of columns, then one in it: a cumulative sum over all of them costs ten times
    the plain sums of the blocks.
    """
    row = np.arange(len(weights))
    sums = np.add.reduceat(weights, np.arange(0, weights.shape[1], width), axis=1)
    block = _first_reaching(sums, rng)
    columns = block[:, None] * width + np.arange(width)  # [n, width]
    inside = weights[row[:, None], np.minimum(columns, weights.shape[1] - 1)]
    inside *= columns < weights.shape[1]
    return columns[row, _first_reaching(inside, rng)]


def _first_reaching(weights: np.ndarray, rng) -> np.ndarray:
    total = np.cumsum(weights, axis=1)
    # u in (0, 1]: the first column whose total reaches it has a weight above 0.
    drawn = (1 - rng.random((len(total), 1), np.float32)) * total[:, -1:]
    return (total >= drawn).argmax(1)


def _passed_over(made: Synthetic, rng, watches: dict, num: int) -> dict[str, np.ndarray]:
    """`num` rows shown shortly before watches: the less fitting of two popular released items."""
    near = rng.integers(len(watches["user"]), size=num)
    rows = {name: values[near] for name, values in watches.items()}
    rows["time"] = rows["time"] - rng.integers(1, 300, size=num)
    released = made.dataset.items["released"].to_numpy()
    order = np.argsort(released, kind="stable")
    total = np.concatenate([[0], np.cumsum(np.exp(made.popularity[order].astype(np.float64)))])
    reach = total[np.searchsorted(released[order], rows["time"], side="right")]
    draws = rng.random((3, num)) * reach
    candidates = order[np.searchsorted(total, draws, side="right") - 1]  # [3, num]
    tastes = made.tastes(rows["user"], rows["time"])
    fits = [np.einsum("nd,nd->n", tastes, made.profiles[c]) for c in candidates]
    fits = np.where(candidates == rows["item"], np.inf, fits)  # the chosen one was not passed over
    return {**rows, "item": candidates[fits.argmin(0), np.arange(num)]}


def _interactions(made: Synthetic, rng, watches: dict, words: np.ndarray) -> pd.DataFrame:
    """The watches with what happened around them, sorted by time."""
    num = made.config.num_interactions
    counts = {name: round(num * share) for name, share in EVENT_SHARES.items()}
    tastes = made.tastes(watches["user"], watches["time"])
    fit = np.einsum("nd,nd->n", tastes, made.profiles[watches["item"]])
    fit = (fit - fit.mean()) / max(fit.std(), 1e-6)
    searches = watches["search"] >= 0
    drawn = words[watches["search"][searches, None], rng.integers(words.shape[1],
                  size=(searches.sum(), 3))]  # fmt: skip
    text = np.full(len(fit), "", object)
    third = np.where(rng.random(len(drawn)) < 0.5, " " + drawn[:, 2], "")
    text[searches] = drawn[:, 0] + " " + drawn[:, 1] + third
    watches = {**watches, "text": text, "event": np.full(len(fit), "watch", object)}
    watches["value"] = np.exp(np.log(900) + 0.5 * fit + 0.3 * rng.standard_normal(len(fit)))
    # Gumbel top-k: likes and shares follow watches with probability rising with the fit.
    eager = np.argsort(-(2 * fit + rng.gumbel(size=len(fit))), kind="stable")
    tables = [watches]
    num_followed = counts["like"] + counts["share"]
    followed = {name: values[eager[:num_followed]] for name, values in watches.items()}
    followed["event"] = np.repeat(np.array(["like", "share"], object),
                                  [counts["like"], counts["share"]])  # fmt: skip
    followed["time"] = followed["time"] + rng.integers(5, 600, size=num_followed)
    followed["value"] = np.zeros(num_followed)
    passed = _passed_over(made, rng, watches, num - len(fit) - num_followed)
    skipped = np.arange(len(passed["user"])) < counts["skip"]
    passed["event"] = np.where(skipped, "skip", "impression").astype(object)
    passed["value"] = np.where(skipped, rng.uniform(1, 30, len(skipped)), 0)
    tables += [followed, passed]
    rows = {name: np.concatenate([table[name] for table in tables]) for name in watches}
    order = np.argsort(rows["time"], kind="stable")
    rows = {name: values[order] for name, values in rows.items()}
    users, items = made.dataset.users, made.dataset.items
    return pd.DataFrame(
        {
            "user_id": users["user_id"].to_numpy(object)[rows["user"]],
            "item_id": items["item_id"].to_numpy(object)[rows["item"]],
            "timestamp": rows["time"].astype(np.int64),
            "event": rows["event"],
            "value": rows["value"].astype(np.float32),
            "search_text": rows["text"],
            "device": np.array(DEVICES, object)[rows["device"]],
            "country": users["country"].to_numpy(object)[rows["user"]],
        }
    )
