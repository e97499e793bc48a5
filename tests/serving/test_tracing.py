"""Spans of requests, as an exporter gets them."""

import pytest
import tiny
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from twotower.serving.live import Live
from twotower.serving.pipeline import Pipeline
from twotower.serving.service import LateError, Options, Service
from twotower.serving.tracing import Tracing

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def exporter():
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def service(bundle_folder, state, exporter):
    tracing = Tracing(SimpleSpanProcessor(exporter), "twotower")
    live = Live((Pipeline(bundle_folder, source_deadline=60),))
    return Service(live, state, options=Options(deadline=60), tracing=tracing)


@pytest.fixture
def asked(client, exporter):
    """Posts a body; returns the request's span and the others."""

    def ask(body, **headers):
        exporter.clear()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        client.post("/recommend", json=body, headers=named)
        client.get("/readyz")  # which has no span
        *others, span = exporter.get_finished_spans()
        return span, others

    return ask


def test_a_request_has_a_span_with_the_steps_of_its_funnel(asked):
    span, steps = asked({"history": ["i00003"], "k": 5}, x_request_id="abc-1")
    assert span.name == "POST /recommend" and span.parent is None
    assert span.resource.attributes["service.name"] == "twotower"
    expected = {"http.route": "/recommend", "http.response.status_code": 200}
    assert {**span.attributes} == {**expected, "http.request.method": "POST", "request_id": "abc-1"}
    sources = ["source two_tower", "source ease", "source popularity"]
    assert [step.name for step in steps] == ["encode", *sources, "merge", "filters"]
    assert {step.parent.span_id for step in steps} == {span.context.span_id}
    encode, *sources, merge, filters = steps
    # Sources begin before the merge, which begins when they have ended; all within the request.
    assert all(source.end_time <= merge.start_time + 1e6 for source in sources)
    assert merge.end_time <= filters.start_time + 1e6 and encode.start_time < merge.start_time
    assert all(step.start_time < step.end_time for step in steps)
    assert span.start_time - 1e6 < min(step.start_time for step in steps)
    assert filters.attributes["candidates"] >= 5 and filters.attributes["batch"] == 1


@pytest.mark.parametrize(
    "header, trace, parent, is_kept",
    [
        (f"00-{TRACE}-{CALLER}-01", TRACE, CALLER, True),
        (f"00-{TRACE}-{CALLER}-00", None, None, False),
        ("00-zzz", None, None, True),
    ],
)
def test_the_callers_trace_goes_on(client, exporter, header, trace, parent, is_kept):
    exporter.clear()
    client.post("/recommend", json={"k": 1}, headers={"traceparent": header})
    spans = exporter.get_finished_spans()
    assert bool(spans) == is_kept
    for span in spans if trace else ():
        assert format(span.context.trace_id, "032x") == trace
    if is_kept:
        assert (format(spans[-1].parent.span_id, "016x") if spans[-1].parent else None) == parent


def test_what_fails_is_marked_and_what_is_refused_is_not(asked, service, monkeypatch):
    wrong, steps = asked({"k": -1})
    assert wrong.attributes["http.response.status_code"] == 422 and not steps
    assert wrong.status.is_unset

    async def late(_):
        raise LateError

    monkeypatch.setattr(service, "recommend", late)
    failed, _ = asked({})
    assert failed.attributes["http.response.status_code"] == 503 and not failed.status.is_ok
    assert not failed.status.is_unset


WITHOUT = """
import sys, twotower.serving.process
print("opentelemetry.sdk" in sys.modules)
sys.modules["opentelemetry.sdk"] = None  # as where it is not installed
try:
    import twotower.serving.tracing
except ImportError as error:
    print(error)
"""


def test_without_the_option_the_extra_is_not_needed_and_with_it_an_error_names_it():
    code = f"import sys; sys.path.insert(0, {str(tiny.ROOT)!r})\n{WITHOUT}"
    is_imported, error = tiny.python("-c", code).stdout.splitlines()
    assert is_imported == "False" and error.endswith('pip install "twotower[tracing]"')
