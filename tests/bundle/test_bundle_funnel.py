"""A funnel and a map in a bundle: kept with it, replaced with it, refused in another one."""

import collections
import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
import tiny

from twotower.bundle.bundle import Bundle
from twotower.bundle.export import export
from twotower.bundle.item_map import ItemMap
from twotower.bundle.manifest import BundleError
from twotower.data.requests import Requests
from twotower.data.splits import make_split
from twotower.evaluation.evaluate import evaluate
from twotower.funnel import report
from twotower.funnel.exploration import explored
from twotower.funnel.filters import fractions
from twotower.funnel.funnel import Funnel, Inlet
from twotower.funnel.making import FunnelConfig, fitted, make_funnel, parse_sources
from twotower.funnel.merge import ReciprocalRank, WeightedSum
from twotower.funnel.sources.fresh import Fresh
from twotower.funnel.stage import Source
from twotower.ranking.columns import CandidateColumns
from twotower.retrieval.candidates import Candidates
from twotower.training.training import Training

CONFIG = FunnelConfig(parse_sources(["two_tower:50", "ease:40", "context:30", "popularity:60"]))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Of a model that has learned nothing, which is as good here; with a funnel whose weights are
    fitted."""
    folder = tmp_path_factory.mktemp("funnel") / "bundle"
    made = export(Training(tiny.dataset(), tiny.split(), tiny.recipe()), folder, scann=False)
    made.encode = made.encoder(tiny.dataset())
    funnel = make_funnel(CONFIG, made, tiny.dataset(), tiny.split())
    funnel.merge = fitted(funnel, tiny.split().cases, bounds=(0, 20))
    made.add_funnel(funnel)
    made.add_map(ItemMap(made.keys[:2], np.float32([[0, 0], [1, 1]]), 1.0))
    return Bundle(folder)


def test_vectors_of_requests_are_those_of_the_query_tower(bundle):
    cases = tiny.split().cases.take(np.arange(5))
    np.testing.assert_allclose(
        Bundle(bundle.directory).encode(cases), bundle.encoder(tiny.dataset())(cases), atol=1e-6
    )
    assert bundle.encode(cases.take([])).shape == (0, 8)
    # Batches are made by length, and answers stand in the order of the requests.
    rows = [cases.take(np.array([row])) for row in range(5)]
    assert len({*cases.history.lengths}) > 1
    np.testing.assert_allclose(
        bundle.encode(cases), np.concatenate([bundle.encode(row) for row in rows]), atol=1e-6
    )


def test_data_in_which_keys_are_other_items_is_refused(bundle):
    """A newer file may list its items in another order, or new ones in between."""
    data = tiny.dataset()
    first = data.items.iloc[[1, 0, *range(2, len(data.items))]]
    other = dataclasses.replace(data, items=first)
    message = "key 0 is item 'i00001' here and 'i00002' in the other data"
    for give in (
        lambda: bundle.encoder(other),
        lambda: make_funnel(CONFIG, bundle, other, make_split(other, "random")),
        lambda: CandidateColumns.fit(other, np.arange(9), bundle, ["two_tower"]),
    ):
        with pytest.raises(ValueError, match=message):
            give()


def test_data_that_lack_the_last_items_or_have_more_keep_the_keys(bundle):
    data, last = tiny.dataset(), len(tiny.dataset().items) - 1
    rows = data.interactions[data.interactions["item_id"] != data.items["item_id"][last]]
    fewer = dataclasses.replace(data, interactions=rows, items=data.items[:last])
    more = data.items.iloc[[0]].assign(item_id="new")
    more = dataclasses.replace(data, items=pd.concat([data.items, more]))
    asked = Requests.of(bundle.catalogue, [bundle.catalogue.ids_of([last, 3])])
    wanted = bundle.encode(asked)
    for other in (fewer, more):
        np.testing.assert_array_equal(bundle.encoder(other)(asked), wanted)


def test_it_answers_from_ids_to_titles(bundle):
    history = ["i00003", "i00007"]
    requests = Requests.of(bundle.catalogue, [history, []], user_id=["u1", ""])
    answer = bundle.funnel().recommend(requests, k=10)
    ids = bundle.catalogue.ids_of(answer.candidates.keys)
    assert (answer.candidates.counts == 10).all() and not {*history} & {*ids[0]}
    assert bundle.funnels == ["default"] and answer.missing == {}
    # EASE knows nothing of a request without a history.
    assert answer.candidates.columns["ease_rank"][0].any()
    assert not answer.candidates.columns["ease_rank"][1].any()


def test_the_report_says_who_found_what(bundle):
    split, funnel = tiny.split(), bundle.funnel()
    rows = {row.name: row for row in report.report(funnel, split.cases, ks=(10, 50))}
    assert [*rows] == ["two_tower", "ease", "context", "popularity", "union", "merge", "filters"]
    by_hand = evaluate(funnel.sources["ease"].source, split, ks=(10,)).metrics["recall@10"]["mean"]
    assert rows["ease"].recall[10]["mean"] == pytest.approx(by_hand)
    assert rows["ease"].candidates == 40 and rows["merge"].candidates <= 180
    alone = [rows[name].found for name in [*rows][:4]]
    only = alone[0] & ~alone[1] & ~alone[2] & ~alone[3]
    assert rows["two_tower"].only == pytest.approx(only.mean()) and only.any()
    # The pool has all that any source found, for it is longer than all of them together.
    assert (rows["merge"].found == np.any(alone, axis=0)).all()
    assert (rows["union"].found == rows["merge"].found).all()
    assert rows["two_tower"].without == pytest.approx(
        recall_of(np.any(alone[1:], axis=0), split.cases)
    )
    assert rows["filters"].lost == {"available": 0, "seen": 0}
    # The weights that make targets likely find more than the first source.
    assert rows["filters"].recall[10]["mean"] > rows["two_tower"].recall[10]["mean"]
    text = report.table([*rows.values()], "title")
    assert text.splitlines()[0] == "title" and "seen took 0.0 candidates" in text
    gains = report.gains(*[[row.to_json() for row in rows.values()]] * 2)
    assert "+0.0000" in gains and gains.count("\n") == 7


def test_the_union_is_all_that_the_sources_found_each_item_once(bundle):
    given, cases = bundle.funnel(), tiny.split().cases
    funnel = Funnel(given.sources, given.merge, given.stages, 60, given.fallback)
    rows = {row.name: row for row in report.report(funnel, cases, ks=(10, 60))}
    sources = [rows[name].found for name in funnel.sources]
    union, pool = rows["union"], rows["merge"]
    assert (union.found == np.any(sources, axis=0)).all()
    assert union.found.sum() > pool.found.sum() and pool.candidates == 60
    assert union.recall == pool.recall  # the pool is its first 60
    keys = [step.candidates.keys for step in funnel.find(cases)]
    distinct = [len({*np.concatenate(of_case)} - {-1}) for of_case in zip(*keys)]
    assert union.candidates == pytest.approx(np.mean(distinct))


class Counted(Source):
    """Another source, which counts how often it is asked for each user."""

    kind = "counted"

    def __init__(self, source: Source) -> None:
        self.source, self.asked = source, collections.Counter()

    def __call__(self, requests: Requests, k: int) -> Candidates:
        self.asked.update(requests.user_id)
        return self.source(requests, k)


def test_a_recording_asks_each_source_once_and_gives_the_same_figures(bundle):
    split, given = tiny.split(), bundle.funnel()
    sources = {
        name: dataclasses.replace(inlet, source=Counted(inlet.source))
        for name, inlet in given.sources.items()
    }
    funnel = Funnel(sources, given.merge, given.stages, 120, given.fallback)
    recording = report.Recording(funnel)
    size = len(split.cases) // 2  # batches, so that their answers are put together
    reports = {"": evaluate(recording, split, batch_size=size)}
    reports |= {n: evaluate(recording.alone(n), split, batch_size=size) for n in sources}
    rows = recording.report()
    for inlet in sources.values():
        assert set(inlet.source.asked.values()) == {1}
        assert len(inlet.source.asked) == len(split.cases)
    # As when everything is asked anew.
    assert reports[""].metrics == evaluate(funnel, split).metrics
    for name, inlet in given.sources.items():
        single = Funnel({name: inlet}, ReciprocalRank(), given.stages, 120)
        assert reports[name].metrics == evaluate(single, split).metrics
    assert (recording.first_ten == funnel(split.cases, 10).keys).all()

    def without_ease(requests, k):
        found = {
            name: inlet.source(requests, inlet.k)
            for name, inlet in given.sources.items()
            if name != "ease"
        }
        return funnel.merge(requests, found, 120)

    at_120 = evaluate(without_ease, split, ks=(120,)).metrics["recall@120"]["mean"]
    assert rows[1].without == pytest.approx(at_120)
    again = report.report(funnel, split.cases)
    for row, other in zip(rows, again, strict=True):
        assert {**row.to_json(), "seconds": 0} == {**other.to_json(), "seconds": 0}
    for step, other in zip(recording.found, funnel.find(split.cases), strict=True):
        assert step.name == other.name
        assert (step.candidates.keys == other.candidates.keys).all()


def recall_of(found: np.ndarray, cases) -> float:
    hits = np.bincount(cases.targets.row_index, found, len(cases))
    return float((hits / cases.targets.lengths).mean())


def test_new_users_keep_their_newest_events():
    cases = tiny.split().cases
    new = cases.as_new_users(3)
    assert new.history.lengths.max() == 3 and (new.exclude.lengths == cases.exclude.lengths).all()
    assert new.history[0].tolist() == cases.history[0][-3:].tolist()
    assert len({*new.user_id}) == len({*cases.user_id}) and not {*new.user_id} & {*cases.user_id}


def test_a_copy_of_another_training_is_refused(bundle, tmp_path):
    other = export(
        Training(tiny.dataset(), tiny.split(), tiny.recipe(fit={"seed": 3})),
        tmp_path / "other",
        scann=False,
    )
    with pytest.raises(BundleError, match="has no map"):
        other.item_map()
    for part in ("funnels", "map"):
        shutil.copytree(bundle.directory / part, other.directory / part)
    with pytest.raises(BundleError, match="funnel was made for model"):
        other.funnel()
    with pytest.raises(BundleError, match="map was made for model"):
        other.item_map()
    bundle.add_map(ItemMap(np.array([10**6]), np.float32([[0, 1]]), 1.0))
    with pytest.raises(BundleError, match="items that the bundle does not have"):
        bundle.item_map()
    with pytest.raises(BundleError, match=r"no funnel 'small'; it has \['default'\]"):
        bundle.funnel("small")
    with pytest.raises(ValueError, match=r"one plain name.*got 'a/b'"):
        bundle.add_funnel(bundle.funnel(), "a/b")
    # What a killed writer of a map left is not an obstacle.
    (other.directory / ".map.partial-aaaaaaaa" / "new").mkdir(parents=True)
    # A new export takes the place of bundle, indexes, funnels and map alike.
    export(Training(tiny.dataset(), tiny.split(), tiny.recipe()), other.directory, scann=False)
    new = Bundle(other.directory)
    assert new.funnels == [] and not new.has_map


@pytest.mark.parametrize(
    "entries, message",
    [
        (["eese"], "sources are some of"),
        ([], "sources are some of"),
        (["ease:many"], "got 'ease:many'"),
        (["ease", "ease:3"], "each once"),
    ],
)
def test_mistakes_in_choices_are_named(entries, message):
    with pytest.raises(ValueError, match=message):
        FunnelConfig(parse_sources(entries))


def test_kept_candidates_are_in_the_pool_whatever_their_score(bundle):
    sources = parse_sources(["two_tower:50", "fresh:300", "popularity:60"])
    merge, cases = WeightedSum([*sources], np.float32([[1, 0, 1]])), tiny.split().cases
    found = {}
    for keep in ({}, {"fresh": 4}):
        config = FunnelConfig(sources, pool=20, fresh_below=9, keep=keep)
        funnel = make_funnel(config, bundle, tiny.dataset(), tiny.split(), merge)
        steps = {step.name: step.candidates for step in funnel.recommend(cases, 20, False).steps}
        merged, first = steps["merge"], steps["fresh"].keys[:, :4]
        found["fresh" in keep] = np.array([len({*a} & {*b}) for a, b in zip(first, merged.keys)])
    assert (found[True] == 4).all() and (found[False] < 4).any()
    bundle.add_funnel(funnel, "keeping")
    assert bundle.funnel("keeping").sources["fresh"].keep == 4


def test_rules_of_the_settings_are_filters(bundle):
    data, sources = tiny.dataset(), {"popularity": 300}
    config = FunnelConfig(sources, "quotas", minimum_age={"War": 18}, hold_out={"new": 0.3})
    funnel = make_funnel(config, bundle, data, tiny.split())
    age = dict(zip(data.users["user_id"], data.users["age"]))
    adult = next(user for user in age if age[user] == "25-34")
    requests = Requests.of(bundle.catalogue, [[], []], user_id=[adult, ""])
    shown = [{*row} - {-1} for row in funnel.recommend(requests, 300).candidates.keys.tolist()]
    held = {*np.flatnonzero(fractions(data.items["item_id"], "new") < 0.3).tolist()}
    war = {*bundle.catalogue.where(genres=["War"]).tolist()}
    plain = make_funnel(FunnelConfig(sources, "quotas"), bundle, data, tiny.split())
    every = {*plain.recommend(requests, 300).candidates.keys[0].tolist()} - {-1}
    # Nobody knows the age of the second, who counts as a child.
    assert shown == [every - held, every - held - war] and every & war and every & held
    with pytest.raises(ValueError, match="no item has the genre 'Wax'"):
        make_funnel(FunnelConfig(sources, minimum_age={"Wax": 1}), bundle, data, tiny.split())
    with pytest.raises(ValueError, match="share must lie within 0 and 1; got 2"):
        make_funnel(FunnelConfig(sources, hold_out={"new": 2}), bundle, data, tiny.split())


def test_the_attributes_of_context_popularity_can_be_named(bundle):
    sources = {"context": 30, "popularity": 30}
    for context, expected in (
        ((), ["age", "gender", "device", "country"]),
        (("hour", "age"), ["hour", "age"]),
    ):
        config = FunnelConfig(sources, "quotas", context=context)
        made = make_funnel(config, bundle, tiny.dataset(), tiny.split())
        assert made.sources["context"].source.names == expected
    config = FunnelConfig(sources, "quotas", context=("zodiac",))
    with pytest.raises(ValueError, match="no training row has a value of 'zodiac'"):
        make_funnel(config, bundle, tiny.dataset(), tiny.split())
    with pytest.raises(ValueError, match=r"context=\('age',\) has no effect without the source"):
        FunnelConfig({"popularity": 30}, context=("age",))


def test_slots_leave_others_their_places_in_the_pool():
    sources = {"popularity": 300, "fresh": 300}
    for pool, keep, expected in (
        (500, {}, {"fresh": 50}),
        (500, {"fresh": 0}, {"fresh": 0}),
        (20, {}, {"fresh": 10}),
        (300, {"popularity": 280}, {"popularity": 280, "fresh": 20}),
    ):
        config = FunnelConfig(sources, pool=pool, slots=(3,), keep=keep)
        assert config.kept == expected, (pool, keep)
    assert FunnelConfig(sources).kept == {}


def test_fresh_items_are_shown_until_they_were_shown_enough(bundle):
    sources = parse_sources(["two_tower:50", "fresh:300", "popularity:60"])
    config = FunnelConfig(sources, "quotas", fresh_below=9, slots=(3, 5), shown_until=2)
    funnel = make_funnel(config, bundle, tiny.dataset(), tiny.split())
    fresh = funnel.sources["fresh"].source.arrays()["keys"]
    assert 10 < len(fresh) < 100  # twice each is less than the slots that there are
    cases = tiny.split().cases
    found = explored(funnel, cases, funnel.find(cases), top=5, batch=5)
    assert found["fresh_items"] == len(fresh) and found["shown_in_5"] > 0.9
    assert not funnel.stages[1].counts.any()  # as it was
    funnel.sources = {"fresh": Inlet(Fresh(bundle, np.array([], np.int64)))}
    funnel.merge = ReciprocalRank()
    few = cases.take(np.arange(3))
    assert explored(funnel, few, funnel.find(few), top=5) == {
        "fresh_items": 0, "shown_in_5": 0, "shown_in_5 fully": 0,
    }  # fmt: skip
    plain = make_funnel(
        FunnelConfig(sources, "quotas", fresh_below=9), bundle, tiny.dataset(), tiny.split()
    )
    with pytest.raises(ValueError, match="one stage of exploration slots; there are 0"):
        explored(plain, cases, plain.find(cases))
    with pytest.raises(ValueError, match="add it to the sources"):
        FunnelConfig(parse_sources(["ease"]), slots=(3,))
