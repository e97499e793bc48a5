"""Baselines: small hand-made data, published figures on MovieLens 1M, implicit's absence."""

import dataclasses
import pathlib
import subprocess
import sys
import textwrap
import tracemalloc

import numpy as np
import pandas as pd
import pytest

from twotower.data import movielens, synthetic
from twotower.data.cases import EvalCases
from twotower.data.dataset import Dataset
from twotower.data.splits import make_split
from twotower.evaluation import baselines
from twotower.evaluation.evaluate import evaluate
from twotower.ragged import Ragged

# Two camps that never mix: users 0-9 watch some of items 0-4, users 10-19 some of items 5-9. Items
# 10 and 11 have no row. Item 0 is the most popular, by one row.
NUM_ITEMS = 12


def camps() -> Dataset:
    rows = [(user, 5 * (user // 10) + (user + step) % 5) for user in range(20) for step in range(3)]
    users, items = zip(*rows, (9, 0))
    interactions = pd.DataFrame(
        {
            "user_id": [str(user) for user in users],
            "item_id": [str(item) for item in items],
            "timestamp": range(len(users)),
        }
    )
    return Dataset(
        "camps",
        interactions,
        pd.DataFrame({"item_id": [str(item) for item in range(NUM_ITEMS)]}),
        pd.DataFrame({"user_id": [str(user) for user in range(20)]}),
    )


def cases_of(*histories, exclude=True) -> EvalCases:
    history = Ragged.from_rows(histories)
    return EvalCases(
        user_id=np.full(len(histories), "nobody", object),
        history=history,
        history_time=history,
        history_rating=history,
        exclude=history if exclude else Ragged.empty(len(histories)),
        targets=Ragged.empty(len(histories)),
        time=np.full(len(histories), -1),
    )


def fitted(name: str, **parameters) -> baselines.Baseline:
    dataset = camps()
    return baselines.make(name, **parameters).fit(dataset, np.arange(len(dataset.interactions)))


# Penalties for twenty users: EASE with a weak one gives a camp's further items negative weights,
# iALS with a strong one gives everything 0.
SMALL = {
    "popularity": {},
    "ease": {"l2": 100.0},
    "item_knn": {},
    "ials": {"factors": 2, "regularization": 0.1},
}
PERSONAL = ("ease", "item_knn", "ials")


@pytest.mark.parametrize("name", PERSONAL)
def test_a_history_is_answered_from_its_own_camp(name):
    found = fitted(name, **SMALL[name]).recommend(cases_of([1, 2], [6, 8]), 3)
    assert sorted(found.keys[0]) == [0, 3, 4]
    assert sorted(found.keys[1]) == [5, 7, 9]


@pytest.mark.parametrize("name", SMALL)
def test_users_without_history_get_what_is_popular(name):
    found = fitted(name, **SMALL[name]).recommend(cases_of([], [10], [0]), 10)
    # Item 0 has 7 rows, the others 6 each; ties go by key. Item 10 was never trained.
    assert found.keys[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert found.keys[1].tolist() == found.keys[0].tolist()
    assert 0 not in found.keys[2]


@pytest.mark.parametrize("name", SMALL)
def test_what_is_popular_goes_by_rows_and_not_by_key(name):
    # User 0's rows and the second camp's: items 5 to 9 have 6 rows each, items 0 to 2 one.
    rows = np.append(np.arange(3), np.arange(30, 60))
    model = baselines.make(name, **SMALL[name]).fit(camps(), rows)
    found = model.recommend(cases_of([], [10]), 10)
    assert found.keys.tolist() == [[5, 6, 7, 8, 9, 0, 1, 2, -1, -1]] * 2


@pytest.mark.parametrize("name", SMALL)
def test_answers_stay_inside_the_candidates(name):
    baseline = fitted(name, **SMALL[name])
    # Ten items have rows, two of them are excluded: eight are all there are.
    found = baseline.recommend(cases_of([0, 5]), 50)
    assert found.counts.tolist() == [8] and not {0, 5, 10, 11} & set(found.keys[0].tolist())
    dataset = camps()
    rows = np.arange(len(dataset.interactions))
    chosen = baselines.make(name, **SMALL[name]).fit(dataset, rows, np.array([0, 7, 11]))
    assert sorted(chosen.recommend(cases_of([1]), 50).keys[0, :3]) == [0, 7, 11]


@pytest.mark.parametrize("name", SMALL)
def test_only_the_training_rows_count(name):
    dataset = camps()
    half = np.arange(30)  # the first camp only
    whole = dataset.interactions
    cut = Dataset("cut", whole.iloc[:30], dataset.items, dataset.users)
    queries = cases_of([1, 2], [], [6])
    one = baselines.make(name, **SMALL[name]).fit(dataset, half).recommend(queries, 10)
    two = baselines.make(name, **SMALL[name]).fit(cut, half).recommend(queries, 10)
    np.testing.assert_array_equal(one.keys, two.keys)
    np.testing.assert_allclose(one.scores, two.scores, rtol=1e-5)
    assert one.keys.max() < 5


@pytest.mark.parametrize("name", PERSONAL)
def test_a_repeated_rating_counts_once(name):
    baseline = fitted(name, **SMALL[name])
    once, twice = (baseline.scores(cases_of(row)) for row in ([1, 2], [1, 2, 2, 1]))
    np.testing.assert_allclose(once, twice, rtol=1e-5)


def test_ease_by_hand():
    # Three users, two items: a has both, b has item 0, c has item 1. X'X = [[2, 1], [1, 2]], with
    # l2 = 1 G = [[3, 1], [1, 3]] and P = [[3, -1], [-1, 3]] / 8. B_01 = -P_01 / P_11 = 1/3.
    dataset = Dataset(
        "two items",
        pd.DataFrame({"user_id": list("aabc"), "item_id": list("0101"), "timestamp": range(4)}),
        pd.DataFrame({"item_id": list("012")}),
        pd.DataFrame({"user_id": list("abc")}),
    )
    ease = baselines.Ease(l2=1.0).fit(dataset, np.arange(4))
    scores = ease.scores(cases_of([0], [0, 1], exclude=False))
    np.testing.assert_allclose(scores, [[0, 1 / 3, 0], [1 / 3, 1 / 3, 0]], atol=1e-6)


def test_ease_solves_its_least_squares_problem():
    # EASE minimises |X - XB|^2 + l2 |B|^2 over B with a zero diagonal: column j is the ridge
    # regression of item j on all others.
    rng = np.random.default_rng(0)
    dense = rng.random((30, 6)) < 0.4
    users, items = np.nonzero(dense)
    dataset = Dataset(
        "ridge",
        pd.DataFrame({"user_id": users.astype(str), "item_id": items.astype(str), "timestamp": 0}),
        pd.DataFrame({"item_id": [str(item) for item in range(6)]}),
        pd.DataFrame({"user_id": [str(user) for user in range(30)]}),
    )
    ease = baselines.Ease(l2=2.0).fit(dataset, np.arange(len(users)))
    weights = ease.scores(cases_of(*[[item] for item in range(6)], exclude=False))
    for item in range(6):
        others = np.delete(np.arange(6), item)
        x, y = dense[:, others].astype(float), dense[:, item].astype(float)
        ridge = np.linalg.solve(x.T @ x + 2.0 * np.eye(5), x.T @ y)
        np.testing.assert_allclose(weights[others, item], ridge, atol=1e-5)


def test_ials_is_the_same_for_the_same_seed():
    one, two = (
        fitted("ials", factors=2, regularization=0.1).scores(cases_of([1, 2])) for _ in range(2)
    )
    np.testing.assert_allclose(one, two, atol=1e-4)


@pytest.mark.parametrize("weighting", ["cosine", "tfidf", "bm25"])
def test_item_knn_keeps_as_many_neighbours_as_asked(weighting):
    knn = fitted("item_knn", neighbours=2, weighting=weighting)
    # A history of one item scores at most two items, itself included.
    scores = knn.scores(cases_of(*[[item] for item in range(10)], exclude=False))
    assert ((scores > 0).sum(1) <= 2).all() and (scores > 0).any()


def test_item_knn_by_hand():
    # a has items 0 and 1, b has 0, c has 1 and 2. Cosines: 0 and 1 share one user of two each,
    # 1 / (sqrt 2 sqrt 2) = 1/2; 1 and 2 share c, 1 / (sqrt 2 sqrt 1) = .70711; 0 and 2 nobody.
    dataset = Dataset(
        "three items",
        pd.DataFrame({"user_id": list("aabcc"), "item_id": list("01012"), "timestamp": range(5)}),
        pd.DataFrame({"item_id": list("0123")}),
        pd.DataFrame({"user_id": list("abc")}),
    )
    knn = baselines.ItemKnn(weighting="cosine").fit(dataset, np.arange(5))
    scores = knn.scores(cases_of([0], [1], [0, 2], exclude=False))
    expected = [[1, 0.5, 0, 0], [0.5, 1, 0.70711, 0], [1, 1.20711, 1, 0]]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    # One neighbour each is the item itself.
    knn = baselines.ItemKnn(neighbours=1, weighting="cosine").fit(dataset, np.arange(5))
    scores = knn.scores(cases_of([0], [1], [0, 2], exclude=False))
    np.testing.assert_allclose(scores, [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0]], atol=1e-5)


def content_camps() -> Dataset:
    """The camps with content: items 0 to 4 are comedies of the nineties, 5 to 9 westerns of the
    fifties; 10 is a comedy and 11 a western that nobody has seen."""
    dataset = camps()
    camp = [0] * 5 + [1] * 5 + [0, 1]
    items = dataset.items.assign(
        genres=[("Comedy", "Western")[one : one + 1] for one in camp],
        year=[(1994, 1955)[one] for one in camp],
        title=[f"The {('Laugh', 'Gun')[one]} {row}" for row, one in enumerate(camp)],
    )
    return dataclasses.replace(dataset, items=items)


def test_content_ials_finds_new_items_by_their_content():
    dataset = content_camps()
    rows = np.arange(len(dataset.interactions))
    for without in ([], ["genres"], ["year", "title"]):
        cut = dataclasses.replace(dataset, items=dataset.items.drop(columns=without))
        model = baselines.make("content_ials", l2=1.0, **SMALL["ials"])
        scores = model.fit(cut, rows, np.arange(NUM_ITEMS)).scores(cases_of([1, 2], [6, 8]))
        assert (scores[0, 10] > scores[0, 11]) and (scores[1, 11] > scores[1, 10])
    # Items that have rows keep the vectors that iALS gives them.
    plain = baselines.make("ials", **SMALL["ials"]).fit(dataset, rows, np.arange(NUM_ITEMS))
    expected = plain.scores(cases_of([1, 2], [6, 8]))
    np.testing.assert_allclose(scores[:, :10], expected[:, :10], atol=1e-4)
    bare = dataclasses.replace(dataset, items=dataset.items[["item_id"]])
    with pytest.raises(ValueError, match="needs genres, year or title"):
        baselines.make("content_ials").fit(bare, rows)


def test_content_ials_solves_its_ridge_regression():
    # Ridge regression with an unpenalised intercept, by least squares with rows of sqrt(l2) I.
    dataset = content_camps()
    rows = np.arange(len(dataset.interactions))
    model = baselines.make("content_ials", l2=2.0, **SMALL["ials"]).fit(dataset, rows)
    content = baselines.content_indicators(dataset.items).toarray()
    # Comedy, Western, the decades 199 and 195, the, laugh, gun: what two known items have.
    kept = content[:, content[:10].sum(0) >= 2]
    assert kept.shape == (12, 7) and content.shape == (12, 7 + 12)
    penalised = np.hstack([np.zeros((7, 1)), np.sqrt(2.0) * np.eye(7)])
    system = np.vstack([np.hstack([np.ones((10, 1)), kept[:10]]), penalised])
    targets = np.vstack([model.item_vectors[:10], np.zeros((7, 2))])
    solution = np.linalg.lstsq(system, targets)[0]
    expected = np.hstack([np.ones((2, 1)), kept[10:]]) @ solution
    np.testing.assert_allclose(model._vectors[10:], expected, atol=1e-5)


def test_content_of_items():
    items = pd.DataFrame(
        {
            "title": ["Moon, The", "(moon)", "", "आधुनिक"],
            "year": [1999.0, float("nan"), -1, 1990],
            "genres": [("A",), (), ("A", "B"), ()],
        }
    )
    found = baselines.content_indicators(items).toarray()
    # By name: genres A, B; title moon, the, आधुनिक; the decade 199.
    assert found.tolist() == [
        [1, 0, 1, 1, 0, 1],
        [0, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1],
    ]


def test_popularity_by_hand():
    # Rows 0..5 of the first two users: items 0 1 2 and 1 2 3, once or twice each.
    popular = baselines.make("popularity").fit(camps(), np.arange(6))
    scores = popular.scores(cases_of([1], []))
    assert scores.tolist() == [[1, 2, 2, 1] + [0] * 8] * 2
    found = popular.recommend(cases_of([1]), 5)
    assert found.keys.tolist() == [[2, 0, 3, -1, -1]] and found.counts.tolist() == [3]


@pytest.mark.parametrize("name", PERSONAL)
def test_histories_tell_more_than_popularity(name):
    # 400 users with tastes: on the same questions the difference is more than chance.
    config = synthetic.SyntheticConfig(num_users=400, num_items=300, num_interactions=24_000)
    dataset = synthetic.generate(config).dataset
    split = make_split(dataset, "random", "test")
    # The default pull towards zero is that for a million rows.
    weaker = {"regularization": 20.0} if name.endswith("ials") else {}
    reports = [
        evaluate(model.fit(dataset, split.train, split.candidates).recommend, split, ks=(20,))
        for model in (baselines.make(name, **weaker), baselines.make("popularity"))
    ]
    assert reports[0].compare(reports[1], "recall_micro@20")["low"] > 0


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="unknown baseline 'bpr'; there are popularity, ease"):
        baselines.make("bpr")
    with pytest.raises(ValueError, match=r"not fitted; call fit\(dataset, train\)"):
        baselines.make("ease").recommend(cases_of([1]), 3)
    with pytest.raises(ValueError, match="needs training rows"):
        baselines.make("popularity").fit(camps(), np.arange(0))
    with pytest.raises(ValueError, match="l2 must be positive"):
        baselines.make("ease", l2=0)
    with pytest.raises(ValueError, match="weighting must be one of"):
        baselines.make("item_knn", weighting="pearson")


@pytest.mark.parametrize("name", ["ease", "item_knn", "ials", "content_ials"])
def test_what_takes_more_memory_than_is_allowed_is_refused(name):
    dataset, rows = content_camps(), np.arange(20)
    parameters = SMALL.get(name, SMALL["ials"])
    with pytest.raises(ValueError, match=r"GiB for \d+ items, more than the 1e-09 .* --max_gib"):
        baselines.make(name, **parameters).fit(dataset, rows, max_gib=1e-9)
    baselines.make("popularity").fit(dataset, rows, max_gib=1e-9)


def test_ease_takes_what_it_says():
    # 700 items: 12 bytes a pair are 5.9 MB. A plain inverse of the same takes four times that.
    rng = np.random.default_rng(0)
    users, items = np.repeat(np.arange(200), 20), rng.integers(0, 700, 4000)
    ids = [str(row) for row in range(700)]
    dataset = Dataset(
        "wide",
        pd.DataFrame({"user_id": users.astype(str), "item_id": items.astype(str), "timestamp": 0}),
        pd.DataFrame({"item_id": ids}),
        pd.DataFrame({"user_id": ids[:200]}),
    )
    ease = baselines.Ease()
    counts = np.bincount(items, minlength=700).astype(np.float32)
    matrix = ease_matrix(ease, dataset, counts)
    tracemalloc.start()
    ease._fit(matrix)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    said = ease._fit_bytes(matrix)
    assert said == 12 * (counts > 0).sum() ** 2
    assert 0.9 * said < peak < 1.5 * said  # and some blocks, which do not grow


def ease_matrix(ease, dataset, counts):
    """What `fit` hands to `_fit`."""
    ease._counts = counts
    return ease._matrix(Ragged.group(dataset.item_keys, dataset.user_rows, len(dataset.users)))


def test_the_size_of_a_batch_of_scores_is_bounded(monkeypatch):
    found = []
    monkeypatch.setattr(baselines, "from_scores", lambda *arguments: found.append(arguments[2]))
    fitted("popularity")
    wide = camps()
    more = pd.DataFrame({"item_id": [f"x{row}" for row in range(2**17)]})
    wide = dataclasses.replace(wide, items=pd.concat([wide.items, more], ignore_index=True))
    baselines.make("popularity").fit(wide, np.arange(10))
    assert found[0] == 1024 and found[1] == 255


def test_without_implicit_there_is_one_clear_error_and_the_rest_works():
    program = """
        import sys
        sys.modules["implicit"] = None  # what an import of an absent package runs into
        import numpy as np
        from test_baselines import camps
        from twotower.evaluation import baselines
        baselines.make("ease").fit(camps(), np.arange(60))
        for name in ("item_knn", "ials"):
            try:
                baselines.make(name).fit(camps(), np.arange(60))
            except ImportError as error:
                print(error)
        print("tensorflow" in sys.modules)
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parent,
    )
    line = 'item_knn and ials need the package implicit: pip install "twotower[funnel]"\n'
    assert found.stdout == 2 * line + "False\n", found.stderr


# Test figures of earlier work on the same splits: recall_micro@100, recall@500, hit_rate@50,
# ndcg@10, mrr@500.
NAMES = ("recall_micro@100", "recall@500", "hit_rate@50", "ndcg@10", "mrr@500")
PUBLISHED = [
    ("random", "popularity", {}, (0.265, 0.646, 0.894, 0.203, 0.389)),
    ("random", "ease", {}, (0.486, 0.856, 0.985, 0.435, 0.669)),
    ("random", "ials", {"alpha": 10, "regularization": 10}, (0.464, 0.859, 0.986, 0.370, 0.605)),
    ("random-100k+seen", "popularity", {}, (0.184,)),
    ("random-100k+seen", "ease", {}, (0.151,)),
]


@pytest.fixture(scope="module")
def ml_1m(ml_1m_dir):
    return movielens.load("movielens/1m", data_dir=str(ml_1m_dir))


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("protocol, name, parameters, expected", PUBLISHED)
def test_published_figures(ml_1m, protocol, name, parameters, expected):
    split = make_split(ml_1m, protocol, "test")
    baseline = baselines.make(name, **parameters).fit(ml_1m, split.train, split.candidates)
    report = evaluate(baseline.recommend, split)
    found = [report.metrics[metric]["mean"] for metric in NAMES]
    np.testing.assert_allclose(found[: len(expected)], expected, atol=0.01)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(
    "name, parameters, low, high",
    [
        ("popularity", {}, 0.2588, 0.2708),
        ("ease", {"l2": 500.0}, 0.476, 0.488),
        ("ials", {}, 0.46, 0.52),
    ],
)
def test_recall_on_random(ml_1m, name, parameters, low, high):
    # Measured here: popularity .2648, EASE .4819; earlier work has iALS at .464.
    split = make_split(ml_1m, "random", "test")
    baseline = baselines.make(name, **parameters).fit(ml_1m, split.train, split.candidates)
    recall = evaluate(baseline.recommend, split, ks=(100,)).metrics["recall_micro@100"]["mean"]
    assert low <= recall <= high
