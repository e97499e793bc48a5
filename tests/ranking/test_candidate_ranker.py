"""A ranker behind a funnel: what it is trained on, its order, its files, and what it refuses."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tiny

from twotower.bundle.bundle import Bundle
from twotower.bundle.export import export
from twotower.bundle.manifest import BundleError
from twotower.data.dataset import Dataset
from twotower.data.requests import Requests
from twotower.evaluation.evaluate import evaluate
from twotower.funnel.making import FunnelConfig, make_funnel, parse_sources
from twotower.ranking import making, report, trees
from twotower.ranking.candidate_ranker import CandidateRanker
from twotower.ranking.examples import (
    LIKE,
    RATING,
    WATCH,
    make_examples,
    random_examples,
)
from twotower.ranking.stage import Rank
from twotower.reranking.making import RerankingConfig, with_reranking
from twotower.training.training import Training

CONFIG = FunnelConfig(parse_sources(["two_tower:60", "ease:40", "popularity:30"]))
SMALL = {"epochs": 2, "folds": 2, "hidden": (8,), "candidates": 40}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranking") / "bundle"
    made = export(Training(tiny.dataset(), tiny.split(), tiny.recipe()), folder, scann=False)
    made.encode = made.encoder(tiny.dataset())
    made.add_funnel(make_funnel(CONFIG, made, tiny.dataset(), tiny.split()))
    return made


@pytest.fixture(scope="module")
def trained(bundle):
    """With a head for likes and one for ratings."""
    config = making.RankingConfig(heads=(LIKE, RATING), **SMALL)
    made = making.train(config, bundle.funnel(), bundle, tiny.dataset(), tiny.split())
    ranker = made.on(bundle, tiny.dataset(), tiny.split())
    bundle.add_ranker(ranker, made.models, "small", made.about)
    return ranker


@pytest.fixture(scope="module")
def examples(bundle, trained):
    return make_examples(bundle.funnel(), trained.columns, tiny.split().cases, tiny.dataset())


def some(count: int = 5):
    return tiny.split().cases.take(np.arange(count))


def test_labels_are_the_rows_that_nobody_has_learned_from(bundle, trained):
    cases, plain = tiny.split().cases, tiny.dataset()
    rng = np.random.default_rng(0)
    rated = plain.interactions.assign(rating=rng.integers(1, 6, len(plain.interactions)))
    dataset = Dataset("rated", rated, plain.items, plain.users)
    examples = make_examples(bundle.funnel(), trained.columns, cases, dataset)
    found = bundle.funnel()(cases, 500)
    ratings = dataset.interactions.groupby(["user_id", "item_id"])["rating"].last()
    for row in range(0, len(cases), 37):
        targets = {*cases.take(np.array([row])).targets.values}
        for column in range(found.counts[row]):
            key = found.keys[row, column]
            assert examples.labels[WATCH][row, column] == (key in targets)
            rating = examples.labels[RATING][row, column]
            if key in targets:
                item = dataset.catalogue.ids_of(np.array([key]))[0]
                assert rating == ratings[cases.user_id[row], item]
                assert examples.labels[LIKE][row, column] == (rating >= 4)
            else:
                assert np.isnan(rating)


def test_ndcg_of_examples_is_that_of_an_evaluation(bundle, examples):
    expected = evaluate(bundle.funnel(), tiny.split(), tiny.dataset()).values["ndcg@10"]
    np.testing.assert_allclose(examples.ndcg(examples.scores), expected, atol=1e-6)


def test_random_negatives_are_no_items_of_the_user(bundle, trained):
    split = tiny.split()
    found = random_examples(
        bundle.funnel(), trained.columns, split.cases, tiny.dataset(), split.candidates, 20
    )
    targets = found.labels[WATCH].sum(1)
    np.testing.assert_array_equal(targets, split.cases.targets.lengths)
    # Most were found by no source, which gives them away.
    number = trained.columns.numbers.index("two_tower_score")
    score = found.columns["numbers"][..., number][found.valid & (found.labels[WATCH] == 0)]
    assert np.isnan(score).mean() > 0.2


def test_folds_keep_a_user_together(examples):
    users = np.arange(len(examples)) // 3
    fold = dataclasses.replace(examples, users=users).folds(4, seed=0)
    assert {*fold} == {0, 1, 2, 3}
    assert all(len({*fold[users == user]}) == 1 for user in users)


def test_it_orders_the_same_items_and_keeps_their_columns(bundle, trained):
    cases = some()
    given = bundle.funnel()(cases, 100)
    ranked = Rank(trained)(cases, given)
    assert (ranked.counts == given.counts).all()
    for row in range(len(cases)):
        assert (np.diff(ranked.scores[row, : ranked.counts[row]]) <= 0).all()
        assert {*ranked.keys[row]} == {*given.keys[row]}
        place = {key: column for column, key in enumerate(given.keys[row])}
        order = [place[key] for key in ranked.keys[row, : ranked.counts[row]]]
        for name, values in given.columns.items():
            found = ranked.columns[name][row, : len(order)]
            np.testing.assert_array_equal(found, values[row, order])
        found = ranked.columns["ranker_given"][row, : len(order)]
        np.testing.assert_array_equal(found, given.scores[row, order])
    assert ((ranked.columns["ranker_like"] >= 0) & (ranked.columns["ranker_like"] <= 1)).all()


def test_requests_choose_what_counts(bundle, trained):
    """Each request has the order of its own weights; a negative weight turns an order round."""
    cases, heads = some(3), (1.0, -1.0, np.nan)
    given = bundle.funnel()(cases, 30)
    asked = dataclasses.replace(cases, objectives={RATING: np.array(heads)})
    values = trained(cases, given)[RATING]
    ranked = trained.rank(asked, given)
    for row, sign in ((0, -1), (1, 1)):
        order = np.lexsort((given.keys[row], sign * values[row]))
        assert ranked.keys[row].tolist() == given.keys[row, order].tolist()
    alone = trained.rank(cases, given)
    assert ranked.keys[2].tolist() == alone.keys[2].tolist()  # it said nothing


@pytest.mark.parametrize(
    "objectives, message",
    [
        ({"fame": [1.0]}, "no head is called"),
        ({WATCH: [0.0]}, "must not all be 0"),
        ({WATCH: [1.0], RATING: [np.nan]}, "finite"),
        ({WATCH: [np.inf]}, "finite"),
        ({WATCH: [[1.0, 2.0]]}, "a number a request"),
        ({WATCH: [1e-60]}, "from 1e-09 to 1e\\+09 in size"),
    ],
)
def test_weights_that_make_no_order(bundle, trained, objectives, message):
    cases = some(1)
    arrays = {name: np.array(weights) for name, weights in objectives.items()}
    asked = dataclasses.replace(cases, objectives=arrays)
    with pytest.raises(ValueError, match=message):
        trained.rank(asked, bundle.funnel()(cases, 30))


def test_short_lists(bundle, trained):
    cases = some(2)
    given = bundle.funnel()(cases, 30)
    one = given.head(1)
    assert trained.rank(cases, one).keys.tolist() == one.keys.tolist()
    nothing = given.mask(np.zeros(given.keys.shape, bool))
    assert trained.rank(cases, nothing).counts.tolist() == [0, 0]
    assert Rank(trained)(cases.take(np.arange(0)), given.take(np.arange(0))).keys.shape == (0, 30)


def test_it_comes_back_from_its_files_and_from_a_funnel(bundle, trained):
    cases = some()
    given = bundle.funnel()(cases, 100)
    loaded = Bundle(bundle.directory).ranker("small")
    expected = trained.rank(cases, given)
    np.testing.assert_allclose(loaded.rank(cases, given).scores, expected.scores, atol=1e-5)
    funnel = bundle.funnel()
    making.place(funnel, trained, "small")
    bundle.add_funnel(funnel, "ranked")
    again = Bundle(bundle.directory).funnel("ranked")
    assert [stage.kind for stage in again.stages] == ["filters", "rank"]
    again_found = again(cases, 100)
    np.testing.assert_allclose(again_found.scores, expected.scores, atol=1e-4)
    making.place(again, trained, "small")  # in place of the other
    assert [stage.kind for stage in again.stages] == ["filters", "rank"]


def test_a_ranker_goes_behind_funnels_with_its_sources_alone(bundle, trained):
    config = FunnelConfig(parse_sources(["two_tower:60", "popularity:30"]))
    funnel = make_funnel(config, bundle, tiny.dataset(), tiny.split())
    with pytest.raises(ValueError, match=r"reads the sources \['ease'\], and the funnel has"):
        making.place(funnel, trained, "small")


def test_re_ranking_keeps_the_ranker(bundle, trained):
    funnel = bundle.funnel()
    making.place(funnel, trained, "small")
    again = with_reranking(funnel, RerankingConfig(rerank=(("mmr", 0.5),)), bundle)
    assert [stage.kind for stage in again.stages] == ["filters", "rank", "mmr"]


@pytest.mark.parametrize("loss", trees.OBJECTIVES)
def test_trees(bundle, loss):
    config = making.RankingConfig(model="trees", loss=loss, folds=2)
    made = making.train(config, bundle.funnel(), bundle, tiny.dataset(), tiny.split())
    ranker = made.on(bundle, tiny.dataset(), tiny.split())
    bundle.add_ranker(ranker, made.models, "trees", made.about)
    cases = some()
    given = bundle.funnel()(cases, 50)
    loaded = Bundle(bundle.directory).ranker("trees")
    np.testing.assert_array_equal(loaded.rank(cases, given).keys, ranker.rank(cases, given).keys)


def test_another_training_and_mixed_parts_are_refused(bundle, trained):
    path = bundle.directory / "rankers" / "small" / "ranker.json"
    good = path.read_text()
    try:
        described = json.loads(good)
        described["heads"] = [WATCH]
        path.write_text(json.dumps(described, indent=1))
        with pytest.raises(BundleError, match="truncated or changed"):
            bundle.ranker("small")
    finally:
        path.write_text(good)
    with pytest.raises(BundleError, match=r"no ranker 'large'; it has \['small'"):
        bundle.ranker("large")
    with pytest.raises(ValueError, match="one plain name"):
        bundle.add_ranker(trained, [], "a/b")
    with pytest.raises(ValueError, match="Rankers or LightGBM Boosters"):
        bundle.add_ranker(trained, [object()], "small")


@pytest.mark.parametrize("curve", [[], 1.5, [[0.0], None], [["x"], [0.5]]])
def test_a_hand_edited_curve_is_refused(bundle, trained, tmp_path, curve):
    from twotower.ranking import files
    from twotower.storage import description

    copy = shutil.copytree(bundle.directory / "rankers" / "small", tmp_path / "small")
    described = json.loads((copy / "ranker.json").read_text())
    described["probability"] = curve
    description.write(copy / "ranker.json", described)
    with pytest.raises(ValueError, match=r"ranker\.json: its parts do not fit together"):
        files.load(copy, bundle.model_version)


def test_another_bundle_is_refused(bundle, trained, tmp_path):
    from twotower.ranking import files

    with pytest.raises(ValueError, match="Make one for this bundle"):
        files.load(bundle.directory / "rankers" / "small", "0" * 16)
    with pytest.raises(ValueError, match="holds no ranker"):
        files.load(tmp_path, bundle.model_version)


def test_outputs_that_are_no_numbers(bundle, trained):
    broken = dataclasses.replace(
        trained, outputs=lambda columns: {WATCH: np.full(columns["numbers"].shape[:2], np.nan)}
    )
    with pytest.raises(ValueError, match=r"no finite numbers for \['relevance'\]"):
        broken.rank(some(), bundle.funnel()(some(), 20))


def test_shuffled_labels_teach_nothing(examples):
    """The labels of a list are as many as before, and elsewhere by chance."""
    shuffled = examples.shuffled(seed=1)
    np.testing.assert_array_equal(shuffled.labels[WATCH].sum(1), examples.labels[WATCH].sum(1))
    assert not shuffled.labels[WATCH][~examples.valid].any()
    same = (shuffled.labels[WATCH] * examples.labels[WATCH]).sum() / examples.labels[WATCH].sum()
    assert same < 0.3


def test_orders_are_paired_with_their_cases(bundle, trained):
    """The evaluation of a stored order is that of the funnel that made it."""
    split, funnel = tiny.split(), bundle.funnel()
    found = report.orders(funnel, {"small": trained}, split.cases)
    assert [*found] == ["given", "two_tower", "ease", "popularity", "small"]
    making.place(funnel, trained, "small")
    for name, recommend in (("given", bundle.funnel()), ("small", funnel)):
        stored = evaluate(found[name].recommend(), split, tiny.dataset())
        expected = evaluate(recommend, split, tiny.dataset())
        np.testing.assert_allclose(stored.values["ndcg@10"], expected.values["ndcg@10"])


@pytest.mark.parametrize(
    "choices, message",
    [
        ({"model": "forest"}, "model must be one of"),
        ({"negatives": "hard"}, "negatives must be one of"),
        ({"loss": "hinge"}, "loss must be one of"),
        ({"heads": ("share",)}, "heads are some of like, rating"),
        ({"model": "trees", "heads": (LIKE,)}, "trees have no further heads"),
        ({"model": "trees", "loss": "pairwise"}, "the loss of trees is one of"),
        ({"weights": {LIKE: 1.0}}, "no head is called"),
        ({"weights": {WATCH: 0.0}}, "must not all be 0"),
        ({"folds": 1}, "folds"),
        ({"hidden": (0,)}, "hidden"),
        ({"learning_rate": np.nan}, "learning_rate must be above 0; got nan"),
        ({"heads": (LIKE, LIKE)}, "heads stand once each"),
        ({"fields": ("age", "age")}, "fields stand once each"),
    ],
)
def test_choices_that_make_no_ranker(choices, message):
    with pytest.raises(ValueError, match=message):
        making.RankingConfig(**choices)


def test_a_funnel_that_finds_no_target(bundle):
    split = tiny.split()
    nothing = dataclasses.replace(split, cases=split.cases.take(np.arange(1)))
    with pytest.raises(ValueError, match="of 4 users at least"):
        making.train(making.RankingConfig(), bundle.funnel(), bundle, tiny.dataset(), nothing)


def test_a_part_without_cases(bundle):
    split = tiny.split()
    nothing = dataclasses.replace(split, cases=split.cases.take(np.arange(0)))
    with pytest.raises(ValueError, match="no requests to learn from"):
        making.train(making.RankingConfig(), bundle.funnel(), bundle, tiny.dataset(), nothing)


def test_a_training_that_diverges_says_so(bundle):
    config = making.RankingConfig(learning_rate=1e30, **SMALL)
    with pytest.raises(ValueError, match=r"epoch 1\. .* smaller learning_rate than 1e"):
        making.train(config, bundle.funnel(), bundle, tiny.dataset(), tiny.split())


def test_unknown_users_and_new_items(bundle, trained):
    requests = Requests.of(bundle.catalogue, [["i00003"], []], user_id=["nobody", ""])
    given = bundle.funnel()(requests, 20)
    assert np.isfinite(trained.rank(requests, given).scores).all()


def test_a_ranker_needs_a_weight_for_a_head_that_it_has(trained):
    with pytest.raises(ValueError, match="no head is called"):
        CandidateRanker(trained.columns, trained.outputs, (WATCH,), weights={LIKE: 1.0})
