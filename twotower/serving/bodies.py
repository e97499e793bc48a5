"""What a body asks, with what the service knows of its user."""

import dataclasses
import math
import operator
import time
from typing import Any

from twotower.serving import schemas
from twotower.serving.asks import Ask
from twotower.serving.histories import Histories
from twotower.serving.sessions import Session


def ask_of(
    body: schemas.Request, session: Session, histories: Histories | None, span: Any = None
) -> Ask:
    """A body as the pipeline takes it.

    The history is the body's, or else what the data knows of the user. Items that the user liked in
    this session join it in the order of time, or follow it if one of its events has no time.
    Items that the user refused or has seen too often are excluded.

    Args:
        body: The request.
        session: What the user did lately.
        histories: The histories of known users; None if the service has none.
        span: Of a recommendation, where it is traced.
    """
    if body.history is None and histories is not None:
        events = [*zip(*histories.of(body.user_id))]
    else:
        items = body.history or ()
        times = body.times or [-1] * len(items)
        events = [*zip(items, times, body.ratings or [math.nan] * len(items))]
    # What the session says of an item replaces its earlier events.
    lately = {deed.item_id for deed in session.liked} | {*session.refused}
    events = [event for event in events if event[0] not in lately]
    events += [(deed.item_id, deed.timestamp, deed.rating) for deed in session.liked]
    if session.liked and all(when >= 0 for _, when, _ in events):
        events.sort(key=operator.itemgetter(1))  # an event may be sent later than it happened
    context = dict(body.context)
    if body.search_text:
        context["search_text"] = body.search_text
    ask = Ask(
        user_id=body.user_id,
        history=[item for item, _, _ in events],
        times=[when for _, when, _ in events],
        ratings=[rating for _, _, rating in events],
        context=context,
        time=int(time.time()) if body.time is None else body.time,
    )
    if not isinstance(body, schemas.Recommend):
        return ask
    hidden = [item for item, n in session.shown.items() if body.hide_shown and n >= body.hide_shown]
    return dataclasses.replace(
        ask,
        k=body.k,
        exclude=[*body.exclude, *session.refused, *hidden],
        where=body.filters,
        funnel=body.funnel,
        sources=body.sources,
        index=body.index,
        diversity=body.diversity,
        objective_weights=body.objective_weights,
        explain=body.explain,
        span=span,
    )
