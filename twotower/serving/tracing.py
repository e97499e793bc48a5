"""Tracing: a span for each request and for each step of its funnel, for OpenTelemetry.

Imported only where traces are asked for.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

try:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanProcessor
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:  # pragma: no cover
    raise ImportError(f'{error}: --trace needs pip install "twotower[tracing]"') from error

from twotower.funnel.answer import Answer
from twotower.serving.asks import Ask

# Headers of W3C Trace Context by which a caller's trace goes on here.
HEADERS = ("traceparent", "tracestate")


class Tracing:
    """Makes spans, and hands them to a processor when they end.

        tracing = Tracing.to("http://127.0.0.1:4318", "twotower")

    Which traces are kept is the caller's decision where there is one, and otherwise that of
    OTEL_TRACES_SAMPLER in the environment.

    Args:
        processor: Takes the spans.
        service: Name of the service in them.
    """

    def __init__(self, processor: SpanProcessor, service: str) -> None:
        self._provider = TracerProvider(resource=Resource.create({"service.name": service}))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("twotower")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, address: str, service: str) -> "Tracing":
        """Spans for a collector that takes OTLP over HTTP, sent by a thread.

        Args:
            address: Such as http://127.0.0.1:4318.
            service: Name of the service in them.
        """
        exporter = OTLPSpanExporter(f"{address.rstrip('/')}/v1/traces", timeout=5)
        return cls(BatchSpanProcessor(exporter), service)

    @contextlib.contextmanager
    def request(
        self, headers: Mapping[bytes, bytes], method: str, request_id: str
    ) -> Iterator[trace.Span]:
        """A span around a request, in the trace of its caller if the headers name one.

        Args:
            headers: Of the request.
            method: Of the request.
            request_id: As the log has it.
        """
        named = {name: headers.get(name.encode(), b"").decode("latin-1") for name in HEADERS}
        context = self._propagator.extract({n: value for n, value in named.items() if value})
        attributes = {"http.request.method": method, "request_id": request_id}
        with self._tracer.start_as_current_span(
            method, context, trace.SpanKind.SERVER, attributes
        ) as span:
            yield span

    @staticmethod
    def answered(span: trace.Span, method: str, route: str, status: int) -> None:
        """Notes on a request's span what it was answered.

        Args:
            span: Of `request`.
            method: Of the request.
            route: Path of the route.
            status: Of the answer.
        """
        span.update_name(f"{method} {route}")
        span.set_attributes({"http.route": route, "http.response.status_code": status})
        if status >= 500:
            span.set_status(trace.StatusCode.ERROR)

    @staticmethod
    def current() -> trace.Span | None:
        """The span of the request that runs here; None where its trace is not kept."""
        span = trace.get_current_span()
        return span if span.is_recording() else None

    def steps(
        self, asks: Sequence[Ask], answer: Answer, encoded: tuple[float, float] | None
    ) -> None:
        """Makes the spans of a funnel's steps, in the span of each request of the batch.

        Sources are `source NAME`, and run in parallel; the query tower's `encode` is a part of the
        first source that asks for vectors.

        Args:
            asks: The requests of a batch.
            answer: The funnel's answer to them.
            encoded: When the query tower began and ended, by `time.perf_counter`.
        """
        zero = time.time() - time.perf_counter()
        names = [step.name for step in answer.steps]
        num_sources = names.index("merge")
        for row, ask in enumerate(asks):
            if ask.span is None:
                continue
            context = trace.set_span_in_context(ask.span)

            def add(name: str, begun: float, ended: float, context=context, **more: Any) -> None:
                start, end = (round(1e9 * (zero + moment)) for moment in (begun, ended))
                attributes = {"batch": len(asks), **more}
                span = self._tracer.start_span(
                    name, context, attributes=attributes, start_time=start
                )
                span.end(end)

            if encoded is not None:
                add("encode", *encoded)
            for number, step in enumerate(answer.steps):
                name = f"source {step.name}" if number < num_sources else step.name
                found = int(step.candidates.counts[row])
                add(name, step.begun, step.begun + step.seconds, candidates=found)

    def close(self) -> None:
        """Hands on the spans that wait, and ends the thread."""
        self._provider.shutdown()
