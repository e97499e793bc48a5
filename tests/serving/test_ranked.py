"""A pipeline whose funnel ranks: weights of requests, stages that fail, items that came later."""

import pytest

from twotower.funnel.stage import Stage
from twotower.serving.asks import Ask, FieldError
from twotower.serving.journal import ADD, Change

GOOD = Ask(history=["i00003", "i00007"], k=5)


@pytest.fixture(scope="module")
def pipeline(ranked_pipeline):
    return ranked_pipeline


def ids(answer) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


@pytest.mark.parametrize("weight", [0.0, 1e300, -1e-60, float("nan")])
def test_weights_that_make_no_order_are_named_and_cost_the_others_nothing(pipeline, weight):
    (alone,) = pipeline.recommend([GOOD])
    found, bad = pipeline.recommend([GOOD, Ask(k=5, objective_weights={"like": weight})])
    assert isinstance(bad, FieldError) and bad.field == "objective_weights"
    assert found == alone
    (turned,) = pipeline.recommend([Ask(history=GOOD.history, objective_weights={"like": 1.0})])
    assert ids(turned)[:5] != ids(alone) and turned["missing"] == {}


def test_the_exported_weights_are_among_the_choices(pipeline):
    chosen = pipeline.choices()["funnels"]["default"]
    assert chosen["objectives"] == ["like", "relevance"]
    assert chosen["objective_weights"] == {"like": 0.0, "relevance": 1.0}
    assert pipeline.choices()["funnels"]["two_tower"]["objective_weights"] == {}
    # A request with these weights gets what a request without weights gets.
    named = Ask(history=GOOD.history, k=5, objective_weights=chosen["objective_weights"])
    alone, same = pipeline.recommend([GOOD, named])
    assert same == alone


def test_a_stage_that_fails_is_named_and_fails_for_one_request(pipeline, monkeypatch):
    class Picky(Stage):
        kind = "picky"

        def __call__(self, requests, candidates):
            if "bad" in requests.user_id:
                raise ValueError("no such user: /a/path")
            return candidates

    funnel = pipeline.funnels["default"]
    monkeypatch.setattr(funnel, "stages", [*funnel.stages, Picky()])
    (alone,) = pipeline.recommend([GOOD])
    found, bad = pipeline.recommend([GOOD, Ask(user_id="bad", k=5)])
    assert found == alone and found["missing"] == {}
    assert bad["missing"] == {"picky": "ValueError"} and len(ids(bad)) == 5


def test_an_item_that_came_after_the_ranker_is_ranked_with_the_others(pipeline):
    (before,) = pipeline.recommend([GOOD])
    pipeline.apply([Change(1, ADD, "new", {"item_id": "new", "title": "Tin Moon"})])
    others = [*{*pipeline.catalogue.items["item_id"]} - {*ids(before), "new"}]
    (found,) = pipeline.recommend([Ask(history=GOOD.history, exclude=others, k=9)])
    assert found["missing"] == {} and ids(found) == [*ids(before), "new"]
    # It has no training row: log(1 + 0).
    scores = [item["score"] for item in found["items"]]
    assert scores == [*(item["score"] for item in before["items"]), 0]
