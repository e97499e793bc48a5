"""What a request chooses of a funnel: its sources, their index, the weight of diversity."""

import asyncio
import pathlib
import shutil
import threading

import numpy as np
import pytest
import tiny

from twotower.data import words
from twotower.evaluation.metrics import tag_distance
from twotower.funnel.filters import Filters, MinimumAge
from twotower.funnel.funnel import Inlet
from twotower.funnel.making import FunnelConfig, make_funnel, parse_sources
from twotower.funnel.sources.similar import Similar
from twotower.funnel.stage import Source
from twotower.ranking import making
from twotower.ranking.candidate_ranker import CandidateRanker
from twotower.ranking.columns import CandidateColumns
from twotower.ranking.stage import Rank
from twotower.reranking.bandits import EpsilonGreedy
from twotower.reranking.diversity import Mmr
from twotower.reranking.making import RerankingConfig, with_reranking
from twotower.reranking.similarity import genre_table
from twotower.serving import schemas
from twotower.serving.asks import Ask, FieldError
from twotower.serving.index_client import IndexCallError
from twotower.serving.journal import ADD, Change
from twotower.serving.live import Live
from twotower.serving.pipeline import Pipeline
from twotower.serving.service import Options, Service

HISTORY = ["i00003", "i00007"]


@pytest.fixture
def pipeline(bundle_folder):
    return Pipeline(bundle_folder, source_deadline=60)


def answer_of(pipeline, **chosen):
    (found,) = pipeline.recommend([Ask(history=HISTORY, explain=True, **chosen)], is_trial=True)
    if isinstance(found, Exception):
        raise found
    return found


def ids(found) -> list[str]:
    return [item["item_id"] for item in found["items"]]


def test_only_the_named_sources_are_asked(pipeline):
    for names in (["ease"], ["popularity", "two_tower"]):
        found = answer_of(pipeline, sources=names)
        assert {name for item in found["items"] for name in item["sources"]} <= {*names}
        stages = [stage["name"] for stage in found["stages"]]
        assert {*stages} & {"two_tower", "ease", "popularity"} == {*names}
        assert len(ids(found)) == 10 and found["missing"] == {}
    assert ids(answer_of(pipeline, sources=["two_tower"])) == ids(
        answer_of(pipeline, funnel="two_tower")
    )


def test_requests_of_one_batch_keep_their_own_choices(pipeline):
    chosen = [
        {}, {"sources": ["ease"]}, {"index": "exact"}, {"diversity": 1.0},
        {"sources": ["popularity", "ease"]}, {"sources": ["ease", "popularity"], "k": 3},
    ]  # fmt: skip
    alone = [answer_of(pipeline, **choice) for choice in chosen]
    together = pipeline.recommend([Ask(history=HISTORY, **choice) for choice in chosen], False)
    assert [ids(found) for found in together] == [ids(found) for found in alone]
    assert ids(together[5]) == ids(together[4])[:3]
    assert len({tuple(ids(found)) for found in together}) >= 4


def test_the_fallback_answers_where_a_named_source_finds_nothing(pipeline):
    class Silent(Source):
        kind = "silent"

        def __call__(self, requests, k):
            return pipeline.bundle.retriever().search(
                np.ones((len(requests), 8), np.float32), 1, allow=np.empty(0, np.int64)
            )

    funnel = pipeline.funnels["default"]
    funnel.sources["ease"] = Inlet(Silent())
    found = answer_of(pipeline, sources=["ease"])
    assert (
        found["fallback"] is True
        and answer_of(pipeline, sources=["two_tower"])["fallback"] is False
    )
    assert {name for item in found["items"] for name in item["sources"]} == {"popularity"}


def test_the_index_is_searched_by_all_sources_of_vectors(pipeline):
    asked = []
    for name in ("exact", "hnsw"):
        retriever = pipeline.bundle.retriever(name)

        def search(*given, name=name, search=retriever.search, **named):
            asked.append(name)
            return search(*given, **named)

        retriever.search = search
    funnel = pipeline.funnels["default"]
    funnel.sources["ease"] = Inlet(Similar(pipeline.bundle, "hnsw", events=2), 40)
    answer_of(pipeline)
    assert sorted(asked) == ["exact", "hnsw"]
    for index in ("hnsw", "exact"):
        asked.clear()
        answer_of(pipeline, index=index)
        assert asked == [index, index]
    described = pipeline.choices()["funnels"]
    assert described["default"]["searches"] == ["two_tower", "ease"]
    assert pipeline.funnels.variant("default", "exact").sources["ease"].source.events == 2


def variety(pipeline, found) -> float:
    """Mean distance of the genres of two items of an answer."""
    keys = pipeline.catalogue.keys_of(ids(found))
    return float(tag_distance(keys[None], genre_table(pipeline.catalogue) > 0, len(keys))[0])


def test_diversity_is_added_where_a_funnel_has_nanswer_of(pipeline):
    plain, none, some, full = (answer_of(pipeline, diversity=w) for w in (None, 0.0, 0.3, 1.0))
    assert ids(plain) == ids(none) and ids(plain)[0] == ids(some)[0] == ids(full)[0]
    assert variety(pipeline, plain) + 0.01 < variety(pipeline, some)
    assert variety(pipeline, some) < variety(pipeline, full) + 1e-6
    assert "mmr" in [stage["name"] for stage in full["stages"]]
    # By hand: the funnel of the bundle with the stage of the library.
    mmr = Mmr.of_tags(genre_table(pipeline.catalogue), 0.3)
    pipeline.funnels["default"].stages.append(mmr)
    assert ids(answer_of(pipeline)) == ids(some)


def test_an_answer_does_not_depend_on_the_others_of_its_batch(pipeline):
    """The funnel two_tower asks its source for as many as the list has."""
    chosen = [{"k": 20, "diversity": 1.0}, {"k": 50, "diversity": 1.0}, {"k": 20}, {"k": 50}]
    asks = [Ask(history=HISTORY, funnel="two_tower", **choice) for choice in chosen]
    together = pipeline.recommend(asks, False)
    alone = [pipeline.recommend([ask], False)[0] for ask in asks]
    assert [ids(found) for found in together] == [ids(found) for found in alone]
    assert ids(together[0]) == ids(together[1])[:20]
    assert {*ids(together[0])} != {*ids(together[2])}  # it had room to choose
    # A stage of the funnel itself sees as many candidates in a batch as alone, too.
    mmr = Mmr.of_tags(genre_table(pipeline.catalogue), 0.9)
    pipeline.funnels["two_tower"].stages.append(mmr)
    asks = [Ask(history=HISTORY, funnel="two_tower", k=k) for k in (20, 50)]
    together = pipeline.recommend(asks, False)
    alone = [pipeline.recommend([ask], False)[0] for ask in asks]
    assert [ids(found) for found in together] == [ids(found) for found in alone]


def test_added_items_have_their_genres(pipeline):
    table = genre_table(pipeline.catalogue)
    answer_of(pipeline, diversity=0.5)  # makes the table, which has to be made anew
    names = [{"item_id": f"new{n}", "genres": ["Crime"], "title": "Crime"} for n in range(3)]
    pipeline.apply([Change(n + 1, ADD, f"new{n}", item) for n, item in enumerate(names)])
    assert pipeline.funnels.lacks_items("") and pipeline.funnels.lacks_items("default")
    answer_of(pipeline, diversity=0.5)
    assert not pipeline.funnels.lacks_items("")
    (mmr,) = [
        stage
        for stage in pipeline.funnels.variant("default", is_diverse=True).stages
        if isinstance(stage, Mmr)
    ]
    assert len(mmr.tags) == len(table) + 3 and mmr.tags[-1].sum() == 1


@pytest.mark.parametrize("fault", ["files", "library"])
def test_an_index_that_cannot_be_opened_costs_only_those_who_ask_for_it(
    bundle_folder, tmp_path, monkeypatch, fault
):
    folder = pathlib.Path(shutil.copytree(bundle_folder, tmp_path / "secret"))
    damaged = Pipeline(folder, source_deadline=60, index="exact")
    if fault == "files":
        for path in (folder / "index" / "hnsw").iterdir():
            path.write_bytes(b"0")
    else:
        monkeypatch.setattr(damaged.bundle, "_open_index", lambda name, uris: __import__("scan_"))
    good, bad = damaged.recommend([Ask(history=HISTORY), Ask(history=HISTORY, index="hnsw")], False)
    assert len(ids(good)) == 10
    assert isinstance(bad, IndexCallError) and "secret" not in str(bad) and "hnsw" in str(bad)
    # It is not tried again at once: nobody waits for its checksums.
    monkeypatch.setattr(damaged.bundle, "_open_index", lambda name, uris: pytest.fail("opened"))
    (bad,) = damaged.recommend([Ask(history=HISTORY, index="hnsw")], False)
    assert isinstance(bad, IndexCallError)


def test_opening_an_index_keeps_nobody_else_waiting(bundle_folder, tmp_path, monkeypatch):
    pipeline, opened = Pipeline(bundle_folder, index="exact"), threading.Event()
    open_index = pipeline.bundle._open_index

    def slow(name, uris):
        assert opened.wait(30)
        return open_index(name, uris)

    monkeypatch.setattr(pipeline.bundle, "_open_index", slow)
    service = Service(Live((pipeline,)), tmp_path, options=Options(deadline=60))

    def asked(**more):
        return service.recommend(schemas.Recommend(history=HISTORY, **more))

    async def play():
        try:
            waiting = [asyncio.ensure_future(asked(index="hnsw")) for _ in range(3)]
            await asyncio.sleep(0.1)
            others = [asked(), asked(index="exact", k=3), service.titles("", [], 3)]
            added = schemas.Items.model_validate({"remove": ["i00009"]})
            found = [await asyncio.wait_for(call, 20) for call in others]
            await asyncio.wait_for(service.change_items(added), 20)
            assert not any(call.done() for call in waiting)
            opened.set()
            return found, [await call for call in waiting]
        finally:
            opened.set()
            await service.stop()

    found, late = asyncio.run(play())
    assert len(found[1]["items"]) == 3 and all(len(answer["items"]) == 10 for answer in late)


def test_what_diversity_compares_is_made_beside_the_batches(bundle_folder, tmp_path, monkeypatch):
    pipeline, made = Pipeline(bundle_folder), threading.Event()
    diversity = pipeline.funnels.diversity
    monkeypatch.setattr(pipeline.funnels, "diversity", lambda: made.wait(30) and diversity())
    service = Service(Live((pipeline,)), tmp_path, options=Options(deadline=60))

    async def play():
        try:
            asked = schemas.Recommend(history=HISTORY, diversity=0.5)
            waiting = asyncio.ensure_future(service.recommend(asked))
            await asyncio.sleep(0.1)
            plain = schemas.Recommend(history=HISTORY)
            await asyncio.wait_for(service.recommend(plain), 20)
            assert not waiting.done()
            made.set()
            return await waiting
        finally:
            made.set()
            await service.stop()

    assert len(asyncio.run(play())["items"]) == 10


def test_diversity_replaces_the_weight_of_a_funnel_that_has_answer_of(pipeline):
    config = RerankingConfig((("dpp", 0.4), ("calibration", 0.1)))
    pipeline.funnels["varied"] = with_reranking(
        pipeline.funnels["default"], config, pipeline.bundle
    )
    assert pipeline.choices()["funnels"]["varied"]["diversity"] == 0.4
    assert pipeline.choices()["funnels"]["default"]["diversity"] == 0.0
    own, same, more = (answer_of(pipeline, funnel="varied", diversity=w) for w in (None, 0.4, 0.9))
    assert ids(own) == ids(same) != ids(more)
    stages = pipeline.funnels.variant("varied", is_diverse=True).stages
    assert [stage.kind for stage in stages] == ["filters", "dpp", "calibration"]
    assert stages == pipeline.funnels["varied"].stages


def test_diversity_comes_behind_the_ranker(pipeline):
    funnel = pipeline.funnels["default"]
    columns = CandidateColumns.fit(
        tiny.dataset(), tiny.split().train, pipeline.bundle, [*funnel.sources]
    )
    making.place(funnel, CandidateRanker(columns, dict, ("relevance",), residual=False), "hand")
    stages = pipeline.funnels.variant("default", is_diverse=True).stages
    kinds = [stage.kind for stage in stages]
    assert kinds.index("mmr") == kinds.index(Rank.kind) + 1


def test_a_warm_pipeline_has_searched_already(pipeline):
    sources = parse_sources(["popularity:50", "search:20"])
    config = FunnelConfig(sources, merge="reciprocal_rank")
    made = make_funnel(config, pipeline.bundle, tiny.dataset(), tiny.split())
    # The first text of a process waits a tenth of a second for the tables that split words.
    for part in (words._replacements, words._classes):
        part.cache_clear()
    pipeline.warm()
    assert words._classes.cache_info().currsize == 0  # no funnel searches
    pipeline.funnels["searching"] = made
    pipeline.warm()
    assert words._replacements.cache_info().currsize == 1


def test_context_that_nothing_reads_is_named(pipeline):
    sources = parse_sources(["popularity:50", "search:20", "context:20"])
    config = FunnelConfig(sources, merge="reciprocal_rank")
    made = make_funnel(config, pipeline.bundle, tiny.dataset(), tiny.split())
    pipeline.funnels["told"] = made
    told = pipeline.choices()["funnels"]["told"]["reads"]
    assert {"age", "gender", "search_text"} < {*told} and told == sorted(told)
    assert pipeline.choices()["funnels"]["default"]["reads"] == ["history", "user_id"]
    asked = {"search_text": "war", "gender": "F", "devise": "phone"}
    assert answer_of(pipeline, funnel="told", context=asked)["unread"] == ["devise"]
    assert answer_of(pipeline, context=asked)["unread"] == ["devise", "gender", "search_text"]
    some = answer_of(pipeline, funnel="told", context=asked, sources=["search"])
    assert some["unread"] == ["devise", "gender"]
    made.fallback = "context"  # it may answer in place of the search, and reads what it reads
    some = answer_of(pipeline, funnel="told", context=asked, sources=["search"])
    assert some["unread"] == ["devise"]
    # Without a source that asks the query tower nothing reads what the tower reads.
    assert pipeline.funnels.reads("default", ["ease"]) == set()
    assert answer_of(pipeline, sources=["ease"], index="hnsw")["unread"] == ["index"]
    # What a request has a field for is read from there.
    beside = {"user_id": "7", "history": "i00003"}
    assert answer_of(pipeline, context=beside)["unread"] == ["history", "user_id"]
    assert answer_of(pipeline, sources=["ease", "two_tower"], index="hnsw")["unread"] == []


def test_stages_read_the_context_too(pipeline):
    funnel = pipeline.funnels["default"]
    columns = CandidateColumns.fit(
        tiny.dataset(), tiny.split().train, pipeline.bundle, [*funnel.sources], ["genres", "gender"]
    )
    making.place(funnel, CandidateRanker(columns, dict, ("relevance",), residual=False), "hand")
    funnel.stages[0].filters.append(MinimumAge.rule(pipeline.catalogue, [(18, {"year": 2001})]))
    funnel.stages[0] = Filters(funnel.stages[0].filters)
    funnel.stages.append(EpsilonGreedy(np.zeros(9), np.zeros(9), slots=3, among=10))
    asked = dict.fromkeys(["age", "gender", "genres", "request_id", "devise"], "7")
    assert answer_of(pipeline, context=asked)["unread"] == ["devise", "genres"]


@pytest.mark.parametrize(
    ("chosen", "field"),
    [
        ({"sources": ["ease", "trending"]}, "sources"),
        ({"sources": [""]}, "sources"),
        ({"index": "scann"}, "index"),
        ({"index": "../hnsw"}, "index"),
        ({"diversity": float("nan")}, "diversity"),
        ({"diversity": 1.5}, "diversity"),
    ],
)
def test_choices_of_another_bundle_are_named(pipeline, chosen, field):
    with pytest.raises(FieldError) as error:
        answer_of(pipeline, **chosen)
    assert error.value.field == field


def test_items_that_came_and_went_do_so_in_every_index(pipeline):
    last = ids(answer_of(pipeline, index="exact"))
    pipeline.bundle.remove_items(pipeline.catalogue.keys_of(last[:2]))
    for index in ("exact", "hnsw"):
        assert not {*last[:2]} & {*ids(answer_of(pipeline, index=index, diversity=0.5))}
