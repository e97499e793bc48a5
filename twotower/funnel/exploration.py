"""Exploration: how many fresh items a funnel shows to anyone, measured on cases."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from twotower.data.cases import EvalCases
from twotower.funnel.answer import Step
from twotower.funnel.cold_start import ExplorationSlots
from twotower.funnel.funnel import Funnel


def explored(
    funnel: Funnel,
    cases: EvalCases,
    found: Sequence[Step],
    top: int = 20,
    seed: int = 0,
    batch: int = 50,
) -> dict[str, float]:
    """How many fresh items are shown to any user, if requests come in a random order.

    The counts of the funnel's `ExplorationSlots` increase as items are shown, as in a service. At
    the end they are reset to their first values.

    Args:
        funnel: It has one stage `ExplorationSlots`, and the source of fresh items.
        cases: The requests.
        found: What its sources found for them, `Recording.found` or from `Funnel.find`.
        top: Number of first items of a list that count as shown.
        seed: Seed of the order.
        batch: Number of requests between two updates of the counts.

    Returns:
        `fresh_items`: number of fresh items. `shown_in_20`, for a `top` of 20: share of them that
        was shown at all. `shown_in_20 fully`: share that was shown as often as the slots ask.
        Shares are 0 where there are no fresh items.

    Raises:
        ValueError: A funnel without the stage.
        RuntimeError: A stage fails.
    """
    slots = [stage for stage in funnel.stages if isinstance(stage, ExplorationSlots)]
    if len(slots) != 1:
        raise ValueError(f"expected one stage of exploration slots; there are {len(slots)}.")
    source, before = funnel.sources[slots[0].source].source, slots[0].counts.copy()
    fresh: np.ndarray = source.arrays()["keys"]
    order = np.random.default_rng(seed).permutation(len(cases))
    shown = np.zeros(len(before), np.int64)
    for start in range(0, len(cases), batch):
        rows = order[start : start + batch]
        steps = [dataclasses.replace(step, candidates=step.candidates.take(rows)) for step in found]
        answer = funnel.answer(cases.take(rows), steps, top)
        if answer.failed:
            raise RuntimeError(f"stages failed: {answer.failed}")
        keys = answer.candidates.keys
        shown += np.bincount(keys[keys >= 0], minlength=len(shown))
        slots[0].counts[:] = before + shown
    slots[0].counts[:] = before
    num_fresh = max(len(fresh), 1)
    return {
        "fresh_items": float(len(fresh)),
        f"shown_in_{top}": float(np.count_nonzero(shown[fresh]) / num_fresh),
        f"shown_in_{top} fully": float(
            np.count_nonzero(shown[fresh] >= slots[0].until) / num_fresh
        ),
    }
