"""What a funnel does with input that nobody meant: keys out of range, broken answers, and requests
that are too large."""

import dataclasses
import gc
import threading
import tracemalloc
import weakref

import numpy as np
import pandas as pd
import pytest
from made_up_parts import Always, Broken, ask, popular

from twotower.data.catalogue import Catalogue
from twotower.data.requests import Requests, once
from twotower.funnel.cold_start import ExplorationSlots
from twotower.funnel.filters import Available, Blocked, Filters, Seen, Shown, is_among
from twotower.funnel.funnel import Funnel, Inlet
from twotower.funnel.making import (
    FunnelConfig,
    parse_hold_out,
    parse_keep,
    parse_minimum_age,
    parse_sources,
)
from twotower.funnel.merge import ReciprocalRank, WeightedSum
from twotower.funnel.sources.collaborative import Ease, IAls, ItemKnn
from twotower.funnel.sources.search import Search
from twotower.ragged import Ragged
from twotower.retrieval.candidates import Candidates

FAR = 2**40


def answer(keys, scores, counts=None) -> Candidates:
    keys, scores = np.array([keys]), np.array([scores])
    return Candidates(keys, scores, np.array([keys.shape[1]] if counts is None else counts))


def test_membership_needs_no_table_as_long_as_the_largest_key():
    keys = np.array([[4, FAR, 9, -1], [FAR, 4, FAR + 1, -1]])
    rows = Ragged.from_rows([[FAR, 4], [FAR + 1]])
    assert is_among(keys, rows).tolist() == [[1, 1, 0, 0], [0, 0, 1, 0]]
    assert is_among(keys, Ragged.empty(2)).any() == False  # noqa: E712
    kept = Available(np.array([FAR, 9])).keep(ask([], []), answer(keys[0], [4, 3, 2, 1.0]))
    assert kept.tolist() == [[0, 1, 1, 0]]
    # Negative numbers in rows are not keys, and none of the last columns of a table.
    assert not is_among(np.array([[7, 8, -1]]), Ragged.from_rows([[-1, -2, -3]])).any()


@pytest.mark.parametrize(
    "bad, message",
    [
        (answer([1.5], [1.0]), "keys .*integers"),
        (answer([2**62], [1.0]), "key"),
        (answer([1, 2], [np.inf, 1.0]), "finite"),
        (answer([1, 2], [1.0, -np.inf]), "finite"),
        (answer([1, 2], [1e300, 1.0]), "finite"),
        (answer([1, 2], [2.0, 1.0], [3]), "counts"),
        (answer([1, 2], [2.0, 1.0], [-1]), "counts"),
        (answer([1, 2], [2.0, 1.0], [1.5]), "counts"),
    ],
)
def test_an_answer_that_would_break_the_merge_is_left_out(bad, message):
    sources = {"bad": Inlet(Broken(lambda r, k: bad)), "good": Inlet(Always(4))}
    merge = WeightedSum(["bad", "good"], [[0.0, 1.0]])
    found = Funnel(sources, merge, [Filters([Seen()])]).recommend(ask([]), k=1)
    assert found.candidates.keys.tolist() == [[4]]
    assert pytest.approx(found.candidates.scores[0]) == [1]
    assert list(found.missing) == ["bad"] and message.split()[0] in found.missing["bad"]


def test_float64_scores_and_int32_keys_are_taken():
    found = Candidates(np.int32([[3, 1]]), np.array([[2.0, 1.0]]), np.array([2]))
    funnel = Funnel({"a": Inlet(Broken(lambda r, k: found))}, ReciprocalRank())
    kept = funnel.recommend(ask([]), np.int64(2)).steps[0].candidates
    assert kept.keys.dtype == np.int64 and kept.scores.dtype == np.float32


def test_items_that_the_catalogue_got_later():
    requests = ask([], [3])
    far = Ragged.from_rows([[FAR], [3, FAR + 7, FAR + 7]])
    nothing = Ragged(np.full(4, -1), far.offsets)
    requests = dataclasses.replace(
        requests, history=far, exclude=far, history_time=nothing, history_rating=nothing
    )
    rules = [Seen(), Blocked.of({"": [FAR + 3, 4]}), Available(np.array([0, 5, FAR + 9]))]
    sources = {"a": Inlet(Always(FAR, 4, FAR + 9, 5, 3)), "b": Inlet(popular(6))}
    found = Funnel(sources, ReciprocalRank(), [Filters(rules)]).recommend(requests, 3)
    assert found.missing == {}
    assert [set(row) for row in found.candidates.keys] == [{FAR + 9, 5, 0}] * 2


@pytest.mark.parametrize("field", ["history", "exclude"])
def test_negative_keys_in_requests_are_refused(field):
    requests = ask([3])
    with pytest.raises(ValueError, match=f"{field}.*0 or more.*-5"):
        dataclasses.replace(requests, **{field: Ragged.from_rows([[-5]])})


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"context": {"age": [None]}}, "age.*strings.*None"),
        ({"context": {"age": [25]}}, "age.*strings.*25"),
        ({"user_id": [7]}, "user_id.*strings.*7"),
        ({"time": [np.nan]}, "time must be integers"),
    ],
)
def test_columns_that_no_source_would_understand(columns, message):
    with pytest.raises(ValueError, match=message):
        ask([3], **columns)


def test_when_everything_is_filtered_the_fallback_is_asked_for_a_few_requests_at_once():
    asked = []

    def answer_all(requests, k):
        asked.append((len(requests), k))
        return popular(9)(requests, k)

    # A list of all items for each of 150 requests at once would not fit a large catalogue.
    sources = {"few": Inlet(Always(1)), "all": Inlet(Broken(answer_all), k=5)}
    last = Filters([Available(np.array([8]))])
    funnel = Funnel(sources, ReciprocalRank(), [last], fallback="all")
    found = funnel.recommend(ask(*[[]] * 150), k=3)
    assert (found.candidates.keys == [8, -1, -1]).all() and found.fallback == 150
    assert [count for count, _ in asked] == [150, 64, 64, 22] and asked[0][1] == 5


def test_two_filters_of_one_kind_are_counted_together():
    rules = Filters([Blocked.of({"u": [1]}), Blocked.of({"u": [2, 3]})])
    funnel = Funnel({"a": Inlet(Always(1, 2, 3, 4))}, ReciprocalRank(), [rules])
    assert funnel.recommend(ask([], user_id=["u"]), k=4).steps[-1].lost == {"blocked": 3}


def test_a_filter_that_the_fallback_relaxes_is_named():
    rules = Filters([Available(np.array([7])), Shown.of({"u": [7]})])
    sources = {"few": Inlet(Always(1)), "all": Inlet(Always(1, 7), k=1)}
    funnel = Funnel(sources, ReciprocalRank(), [rules], fallback="all")
    found = funnel.recommend(ask([], user_id=["u"]), k=1)
    assert found.candidates.keys.tolist() == [[7]] and found.relaxed == {"shown": 1}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Inlet(Always(1), k=0), "k must be"),
        (lambda: Inlet(Always(1), k="5"), "k must be"),
        (lambda: Inlet(Always(1), deadline=float("nan")), "deadline"),
        (lambda: Inlet(Always(1), deadline=0), "deadline"),
        (lambda: Inlet(Always(1), deadline=float("inf")), "deadline"),
        (lambda: WeightedSum(["a"], [[np.nan]]), "0 or more"),
        (lambda: WeightedSum(["a"], [[-1]]), "0 or more"),
        (lambda: WeightedSum(["a"], np.zeros((0, 1)), []), "ascend from 0"),
        (lambda: ReciprocalRank(60, {"a": float("nan")}), "0 or more"),
        (lambda: FunnelConfig({"ease": 5}), "fallback 'popularity' is none of the sources"),
        (lambda: FunnelConfig({"popularity": 5}, bounds=(5,)), "bounds must ascend from 0"),
        (lambda: FunnelConfig({"popularity": 5}, bounds=()), "bounds must ascend from 0"),
        (lambda: FunnelConfig({"popularity": 5, "fresh": 5}, slots=(3, 2)), "slots must ascend"),
        (lambda: FunnelConfig({"popularity": 5}, half_life=0), "half_life"),
        (lambda: FunnelConfig({"popularity": 5}, ials_alpha=0), "ials_alpha must be positive"),
        (lambda: FunnelConfig({"popularity": 5}, ials_regularization=np.nan), "ials_regular"),
        (lambda: FunnelConfig({"popularity": 5}, keep={"fresh": 5}), "none of the sources"),
        (lambda: FunnelConfig({"popularity": 5}, pool=4, keep={"popularity": 5}), "pool of 4"),
        (lambda: FunnelConfig({"popularity": 0}), "candidates of popularity must be an integer"),
        (lambda: FunnelConfig({"popularity": 2.5}), "candidates of popularity must be an integer"),
        (lambda: FunnelConfig(["popularity"]), "sources are some of"),
        (lambda: WeightedSum(["a", "a"], [[1, 2]]), r"names .* none twice; got \['a', 'a'\]"),
        (lambda: WeightedSum(["a"], [[1], [1]], [0, np.nan]), "ascend from 0"),
        (lambda: ExplorationSlots(np.zeros(2, int), until=-1), "until must be an integer of 0"),
        (lambda: FunnelConfig({"popularity": 5}, keep={"popularity": -1}), "integer of 0 or more"),
        (lambda: FunnelConfig({"popularity": 5}, keep={"popularity": 1.5}), "integer of 0 or more"),
        (
            lambda: FunnelConfig({"popularity": 5}, keep={"popularity": 6}),
            "keep of popularity is 6, and popularity is asked for 5 candidates",
        ),
        (lambda: parse_keep(["fresh"]), "keep is a list such as fresh:50,trending:20, each once"),
        (lambda: parse_keep(["fresh:5", "fresh:6"]), "each once; got 'fresh:6'"),
        (lambda: parse_minimum_age(["War"]), "minimum_age is a list such as Horror:18"),
        (lambda: parse_hold_out(["new:much"]), "hold_out is a list such as new:0.05"),
        (lambda: parse_hold_out(["new:.1", "new:.2"]), "each once; got 'new:.2'"),
        (lambda: FunnelConfig({"popularity": 5}, minimum_age={"War": -1}), "minimum age of War"),
        (lambda: parse_sources(["ease:0"]), "got 'ease:0'"),
        (lambda: parse_sources(["ease:²"]), "got 'ease:²'"),
    ],
)
def test_settings_out_of_bounds_are_named_when_they_are_given(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_failing_query_tower_keeps_no_requests_alive():
    def fail(requests):
        raise OSError("no tower")

    encode, requests = once(fail), ask([])
    for _ in range(2):
        with pytest.raises(OSError):
            encode(requests)
    alive = weakref.ref(requests)
    del requests
    gc.collect()
    assert alive() is None


def test_a_source_that_hangs_does_not_keep_the_process_alive():
    gate, others = threading.Event(), {*threading.enumerate()}
    hangs = Inlet(Broken(lambda requests, k: gate.wait(60)), deadline=0.01)
    funnel = Funnel({"hangs": hangs, "good": Inlet(Always(1))}, ReciprocalRank())
    assert funnel.recommend(ask([]), 1).candidates.keys.tolist() == [[1]]
    started = {*threading.enumerate()} - others
    threads = [some for some in started if "source" in some.name]
    assert threads and all(some.daemon for some in threads)  # the interpreter waits for others
    funnel.close()  # returns at once
    gate.set()
    for some in threads:
        some.join(20)
        assert not some.is_alive()


def test_a_closed_funnel_says_so():
    funnel = Funnel({"a": Inlet(Always(1))}, ReciprocalRank())
    funnel.close()
    funnel.close()
    with pytest.raises(RuntimeError, match="closed"):
        funnel.recommend(ask([]), 1)


def test_many_threads_ask_one_funnel():
    sources = {"a": Inlet(popular(9)), "b": Inlet(Always(5, 3, 1))}
    funnel = Funnel(sources, ReciprocalRank(), [Filters([Seen()])], fallback="a")
    found: dict[int, list] = {}

    def recommend(number: int) -> None:
        requests = ask([number % 9], [5, number % 5])
        found[number] = funnel.recommend(requests, 4).candidates.keys.tolist()

    threads = [threading.Thread(target=recommend, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(40):
        alone = funnel.recommend(ask([number % 9], [5, number % 5]), 4).candidates.keys.tolist()
        assert found[number] == alone
    funnel.close()


def test_weights_with_a_source_that_found_nothing():
    from twotower.data.cases import EvalCases

    requests = ask([], [1])
    fields = {f.name: getattr(requests, f.name) for f in dataclasses.fields(requests)}
    cases = EvalCases(**fields, targets=Ragged.from_rows([[5], [3]]))
    found = {"none": Candidates.empty(2), "a": Always(5, 3, 2)(requests, 3)}
    merge = WeightedSum.fit(found, cases, (0, 1))
    assert np.isfinite(merge.weights).all() and (merge.weights >= 0).all()
    assert merge(requests, found, 3).keys[0].tolist() == [5, 3, 2]


FILMS = Catalogue(
    pd.DataFrame({"item_id": ["a", "b", "c"], "title": ["Brass Moon", "月の光", "x" * 10_000]})
)


def test_search_texts_of_any_kind():
    pytest.importorskip("bm25s")
    search = Search.bm25(FILMS)
    texts = [
        "the of and", "🎬🎬", "лунный свет", "moon " * 2_000, "m" * 10_000, "\0", "bra\0ss",
        "MOON\0", "\ud800", "x" * 10_000, "月の光",
    ]  # fmt: skip
    requests = Requests.of(FILMS, [[]] * len(texts), context={"search_text": texts})
    found = search(requests, 3)
    assert found.keys[:, 0].tolist() == [-1, -1, -1, 0, -1, -1, -1, 0, -1, 2, 1]
    # A text without spaces is one word, and all words are kept as wide as the longest.
    assert search.words.nbytes < 10_000


def test_a_user_with_a_million_events():
    count, num_items = 1_000_000, 500
    rng = np.random.default_rng(0)
    events = Ragged.from_lengths(rng.integers(0, 2 * num_items, count), [count, 0])
    requests = dataclasses.replace(
        ask([], []),
        history=events,
        history_time=Ragged(np.full(count, -1), events.offsets),
        history_rating=Ragged(np.full(count, np.nan, np.float32), events.offsets),
        exclude=Ragged.from_lengths(np.repeat(np.arange(20), count // 20), [count, 0]),
    )
    items = np.arange(num_items)
    vectors = rng.normal(size=(num_items, 8)).astype(np.float32)
    sources = {
        "ease": Inlet(Ease(items, vectors @ vectors.T)),
        "ials": Inlet(IAls(items, vectors, 8.0, 10.0)),
        "popular": Inlet(popular(num_items)),
    }
    funnel = Funnel(sources, ReciprocalRank(), [Filters([Seen()])], fallback="popular")
    tracemalloc.start()
    found = funnel.recommend(requests, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.missing == {} and (found.candidates.counts == 10).all()
    assert found.candidates.keys[0].min() >= 20 and peak < 400 * 2**20


@pytest.mark.parametrize(
    "make",
    [
        lambda far: ItemKnn(
            np.arange(2), np.float32([1, 1]), np.array([1, far]), np.array([0, 1, 2])
        ),
        lambda far: Search(
            np.array(["a", "b"]), np.float32([1, 1]), np.array([0, far]), np.array([0, 1, 2]),
            np.float32([1, 1]), 2, False,
        ),
    ],
)  # fmt: skip
def test_columns_beyond_a_sparse_matrix_are_refused(make):
    make(1)
    with pytest.raises(ValueError, match="< 2"):
        make(2**30)
