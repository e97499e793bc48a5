"""The synthetic service: its tables keep their promises and the planted effects can be measured."""

import dataclasses
import tracemalloc

import numpy as np
import pandas as pd
import pytest

from twotower.data.dataset import Dataset
from twotower.data.synthetic import SyntheticConfig, generate
from twotower.data.title_words import WORDS, genre_names, title_words

CONFIG = SyntheticConfig(num_users=400, num_items=500, num_interactions=20_000, seed=3)


@pytest.fixture(scope="module")
def made():
    return generate(CONFIG)


@pytest.fixture(scope="module")
def watches(made):
    """The positive rows with the cluster, key and user row of each."""
    dataset = made.dataset
    frame = dataset.interactions.assign(key=dataset.item_keys, user=dataset.user_rows)
    frame["cluster"] = made.clusters[dataset.item_keys]
    return frame[dataset.positive].reset_index(drop=True)


def test_equal_configs_give_equal_data(made):
    assert generate(CONFIG).dataset.fingerprint() == made.dataset.fingerprint()
    other = generate(dataclasses.replace(CONFIG, seed=4))
    assert other.dataset.fingerprint() != made.dataset.fingerprint()


def test_number_of_rows_and_events(made):
    # 60, 8, 8 and 2 % of 20,000; the rest are impressions.
    expected = {"watch": 12_000, "skip": 1600, "like": 1600, "share": 400, "impression": 4400}
    assert made.dataset.interactions["event"].value_counts().to_dict() == expected


def test_time_ascends_and_nothing_happens_before_release(made):
    released = made.dataset.items["released"].to_numpy()[made.dataset.item_keys]
    assert (np.diff(made.dataset.timestamps) >= 0).all()
    assert (made.dataset.timestamps >= released).all()


def test_nobody_watches_an_item_twice(watches):
    assert not watches.duplicated(["user_id", "item_id"]).any()


def test_likes_and_shares_follow_a_watch_of_the_item(made, watches):
    events = made.dataset.interactions
    followed = events[events["event"].isin(["like", "share"])]
    both = followed.merge(watches, on=["user_id", "item_id"], suffixes=("", "_watch"))
    assert len(both) == len(followed)
    assert (both["timestamp"] > both["timestamp_watch"]).all()
    assert both["value_watch"].mean() > 1.2 * watches["value"].mean()
    assert {*watches["event"]} == {"watch"}  # none of them is a second positive


def test_positive_is_watch_click_or_nothing_and_no_later_like_of_it():
    events = ["", "click", "watch", "impression", "skip", "like", "share", None]
    frame = pd.DataFrame({"user_id": "u", "item_id": "a", "timestamp": range(8), "event": events})
    tables = (pd.DataFrame({"item_id": ["a"]}), pd.DataFrame({"user_id": ["u"]}))
    positive = Dataset("d", frame[:7], *tables).positive
    assert positive.tolist() == [True, True, True, False, False, False, False]
    assert Dataset("d", frame.drop(columns="event"), *tables).positive.all()


def _recall_at_20(scores, watches, last):
    """Share of the last watches among the best 20 after the user's earlier ones are taken out."""
    scores = scores.copy()
    for row, (user, key) in enumerate(zip(last["user"], last["key"], strict=True)):
        earlier = watches["key"][(watches["user"] == user) & (watches["key"] != key)]
        scores[row, earlier] = -np.inf
    own = scores[np.arange(len(last)), last["key"]]
    return ((scores > own[:, None]).sum(1) < 20).mean()


def test_oracle_beats_popularity_and_context_helps_it(made, watches):
    last = watches.groupby("user").tail(1)
    before = watches.drop(last.index)
    popularity = np.bincount(before["key"], minlength=CONFIG.num_items).astype(float)
    popular = _recall_at_20(np.tile(popularity, (len(last), 1)), watches, last)
    asked = (last["user"], last["timestamp"])
    blind = _recall_at_20(made.scores_of(*asked), watches, last)
    full = made.scores_of(*asked, last["device"], last["search_text"])
    full = _recall_at_20(full, watches, last)
    assert blind > 1.5 * popular
    assert full > 1.1 * blind


def test_watches_are_drawn_from_the_oracle(made, watches):
    # Calibration: the softmax's own mean log-probability equals that of what was drawn.
    # Only first watches: nothing is taken out of the softmax yet.
    first = watches.groupby("user").head(1)
    scores = made.scores_of(
        first["user"], first["timestamp"], first["device"], first["search_text"]
    ).astype(np.float64)
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    probability = np.exp(log_p)
    expected = np.where(probability > 0, probability * np.where(probability > 0, log_p, 0), 0)
    drawn = log_p[np.arange(len(first)), first["key"]]
    error = drawn.std() / np.sqrt(len(first))
    assert abs(drawn.mean() - expected.sum(1).mean()) < 4 * error


def test_unreleased_items_score_minus_infinity(made, watches):
    time = int(watches["timestamp"].median())
    scores = made.scores_of([0], [time])
    assert scores.shape == (1, CONFIG.num_items) and scores.dtype == np.float32
    unreleased = made.dataset.items["released"].to_numpy() > time
    np.testing.assert_array_equal(np.isneginf(scores[0]), unreleased)


def test_scores_are_the_documented_sum(made):
    # Term by term in float64 for one user and item; 1641168000 is Monday 2022-01-03, 00:00.
    time, user = 1_641_168_000 + 9 * 3600, 5
    item = int(np.flatnonzero(made.dataset.items["released"] < time)[17])
    released = made.dataset.items["released"][item]
    cluster = made.clusters[item]
    passed = (time - 1_640_995_200) / (365 * 86_400)
    taste = (1 - passed) * made.taste_start[user] + passed * made.taste_end[user]
    expected = (
        taste @ made.profiles[item]
        + made.popularity[item]
        + 1.5 * np.exp(-(time - released) / (30 * 86_400))
        + made.context["device"][1][cluster]  # tv
        + made.context["hour"][2][cluster]  # 9 o'clock lies in the third four hours
        + made.context["weekday"][0][cluster]
    )
    word = next(word for word, of in made.word_clusters.items() if of == cluster)
    assert made.scores_of([user], [time], ["tv"])[0, item] == pytest.approx(expected, abs=1e-4)
    searched = made.scores_of([user], [time], ["tv"], [f"{word} unheard"])[0, item]
    assert searched == pytest.approx(expected + 4, abs=1e-4)
    assert made.scores_of([user], [time], ["tv"], [""])[0, item] == pytest.approx(
        expected, abs=1e-4
    )


def test_phone_changes_the_clusters_watched(made, watches):
    plain = watches[watches["search_text"] == ""]
    shares = pd.crosstab(plain["device"], plain["cluster"], normalize="index")
    lift = np.log(shares.loc["phone"] / shares.loc["tv"])
    planted = (made.context["device"][0] - made.context["device"][1])[lift.index]
    assert np.corrcoef(lift, planted)[0, 1] > 0.6
    assert np.abs(lift).max() > 0.3


def test_search_words_shift_the_cluster_watched(made, watches):
    searched = watches[watches["search_text"] != ""]
    assert 0.27 < len(searched) / len(watches) < 0.33
    wanted = searched["search_text"].map(lambda text: made.word_clusters[text.split()[0]])
    hits = (wanted == searched["cluster"]).mean()
    by_chance = (wanted.sample(frac=1, random_state=0).to_numpy() == searched["cluster"]).mean()
    assert hits > 3 * by_chance


def test_cold_items_exist_and_are_watched(made, watches):
    begin = 1_640_995_200 + int(0.9 * 365 * 86_400)
    cold = made.dataset.items["released"].to_numpy() >= begin
    assert 0.04 < cold.mean() < 0.06
    assert cold[watches["key"]].any()
    assert not cold[watches["key"][watches["timestamp"] < begin]].any()


def test_each_column_shows_a_part_of_its_own(made):
    # Audio explains a part of the profile that the cluster does not: R2 of a linear fit.
    audio = np.stack(made.dataset.items["audio"])
    assert audio.shape == (CONFIG.num_items, 16) and audio.dtype == np.float32
    cluster = pd.get_dummies(made.clusters).to_numpy(float)
    target = made.profiles.astype(float)

    def left(features):
        return (target - features @ np.linalg.lstsq(features, target, rcond=None)[0]).var()

    assert left(np.concatenate([cluster, audio], axis=1)) < 0.93 * left(cluster)
    assert left(cluster) < 0.85 * target.var()


def test_a_service_too_small_is_refused():
    with pytest.raises(ValueError, match="quarter"):
        SyntheticConfig(num_users=10, num_items=100, num_interactions=10_000)


def test_titles_are_words_of_their_genres(made):
    """A person sees from a title what an item is; the words say as much as invented ones would."""
    first, last = (text.split() for text in WORDS["space"])
    assert len(set(first + last)) == 40
    space = {word.title() for word in first + last}
    cluster = genre_names(CONFIG.num_clusters).index("space")
    shares = {}
    for is_in in (True, False):
        titles = made.dataset.items["title"][(made.clusters == cluster) == is_in]
        titles = [word for title in titles for word in title.split()]
        shares[is_in] = np.mean([word in space for word in titles])
    # 3/4 of an item's words are its cluster's, and of the others one in 13 is of any.
    assert abs(shares[True] - (0.75 + 0.25 / 13)) < 0.1
    assert abs(shares[False] - 0.25 / 13) < 0.02


def test_words_that_come_first_in_english_do_in_titles():
    invented = np.array([[f"w{row}{n}" for n in range(6)] for row in range(3)], object)
    words = title_words(invented)
    # Two of the three rows have genres; the last one is of no genre.
    assert words[0].tolist() == ["silent", "orbital", "stellar", "dust", "station", "signal"]
    assert words[2].tolist() == ["last", "first", "little", "day", "house", "road"]
    many = title_words(np.array([[f"w{row}_{n}" for n in range(50)] for row in range(15)], object))
    assert many[0, 24] == "w0_24"  # 20 words there are, and then invented ones
    assert many[13, 0] == "w13_0"  # of a 14th genre
    assert len(set(many.ravel())) == many.size
    assert genre_names(14)[11:] == ["animals", "genre 12", "genre 13"]


def test_memory_grows_with_the_rows_and_not_with_users_times_items():
    config = SyntheticConfig(num_users=40_000, num_items=40_000, num_interactions=1_000)
    tracemalloc.start()
    try:
        generate(config)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 400 * 2**20  # a flag for each pair would take 1,526 MiB
