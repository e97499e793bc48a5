"""Reports what each step of a funnel gains and loses.

It has the recall of every source and of the pool, the targets that only one source found, the
number of candidates that filters removed, and the time of each step.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from twotower.data.cases import EvalCases
from twotower.data.dataset import Dataset
from twotower.data.splits import Split
from twotower.evaluation import metrics
from twotower.funnel.cold_start import ExplorationSlots
from twotower.funnel.funnel import Funnel, Step
from twotower.retrieval.candidates import Candidates

KS = (100, 500, 2000)
# Metrics of `variety`.
VARIETY = ("novelty@10", "genre_distance@10")
BATCH = 1024


@dataclasses.dataclass(frozen=True)
class StepReport:
    """The quality of the candidates after one step of a funnel.

    Attributes:
        name: Name of a source, `merge`, or kind of a stage.
        recall: k -> mean over cases of the share of the targets among the first k candidates, with
            its 95% interval. If a step has fewer than k candidates, all count.
        found: `[num_targets]` whether the target is among the candidates.
        only: Share of the targets that only this source found; None for later steps.
        without: Mean recall of the pool, at its length, when this source is left out; None for
            later steps.
        candidates: Mean number of candidates a case.
        seconds: Time of the step for all cases.
        lost: Kind of a filter -> mean number of candidates that it removed for a case, if the step
            is filters.
    """

    name: str
    recall: dict[int, dict]
    found: np.ndarray
    only: float | None
    without: float | None
    candidates: float
    seconds: float
    lost: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """All but `found`."""
        entries = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del entries["found"]
        return entries


def report(funnel: Funnel, cases: EvalCases, ks: Sequence[int] = KS) -> list[StepReport]:
    """Runs a funnel on all cases, and reports on the targets after every step.

    Args:
        funnel: The funnel; every source is waited for.
        cases: Requests with known targets.
        ks: Lengths at which recall is measured.
    """
    steps: list[list[Step]] = []
    ranks: list[list[np.ndarray]] = []  # of the targets, after each step of each batch
    left_out: list[list[np.ndarray]] = []  # the same in the pool, without each source
    for part in cases.batches(BATCH):
        answer = funnel.recommend(part, k=1, deadlines=False)
        if answer.missing:
            raise RuntimeError(f"sources failed: {answer.missing}")
        if answer.failed:
            raise RuntimeError(f"stages failed: {answer.failed}")
        steps.append(answer.steps)
        ranks.append([_ranks(part, step.candidates) for step in answer.steps])
        found = {step.name: step.candidates for step in answer.steps[: len(funnel.sources)]}
        others = [{n: c for n, c in found.items() if n != name} for name in found]
        left_out.append(
            [_ranks(part, funnel.merge(part, rest, funnel.pool)) for rest in others if rest]
        )
    targets = np.concatenate(ranks, axis=1)  # [num_steps, num_targets]
    without = np.concatenate(left_out, axis=1) if len(funnel.sources) > 1 else None
    of_sources = targets[: len(funnel.sources)] < metrics.NOT_FOUND

    def recall(ranks: np.ndarray, k: int) -> np.ndarray:
        return metrics.recall(metrics.TargetRanks(ranks, cases.targets.offsets), k)

    rows = []
    for index, first in enumerate(steps[0]):
        is_source = index < len(funnel.sources)
        found_alone = of_sources[index] & (of_sources.sum(0) == 1) if is_source else None
        lacking = without[index] if is_source and without is not None else None
        rows.append(
            StepReport(
                first.name,
                {k: metrics.share_interval(recall(targets[index], k)) for k in ks},
                targets[index] < metrics.NOT_FOUND,
                None if found_alone is None else float(found_alone.mean()),
                None if lacking is None else float(recall(lacking, funnel.pool).mean()),
                float(np.concatenate([part[index].candidates.counts for part in steps]).mean()),
                sum(part[index].seconds for part in steps),
                {
                    kind: sum(part[index].lost[kind] for part in steps) / len(cases)
                    for kind in first.lost
                },
            )
        )
    return rows


def _ranks(cases: EvalCases, candidates: Candidates) -> np.ndarray:
    """Rank of each target among the candidates, `[num_targets]`."""
    return metrics.target_ranks(
        candidates.keys,
        candidates.scores,
        candidates.counts,
        cases.targets.values,
        cases.targets.offsets,
        candidates.keys.shape[1] + 1,
    ).ranks


def exploration(
    funnel: Funnel, cases: EvalCases, top: int = 20, seed: int = 0, batch: int = 50
) -> dict[str, float]:
    """How many fresh items are shown to any user, if requests come in a random order.

    The counts of the funnel's `ExplorationSlots` increase as items are shown, as in a service. At
    the end they are reset to their first values.

    Args:
        funnel: With the stage and its source.
        cases: The requests.
        top: Number of first items of a list that count as shown.
        seed: Of the order.
        batch: Number of requests between two updates of the counts.

    Returns:
        The number of fresh items, and which share of them was shown; 0 where there are none.

    Raises:
        ValueError: A funnel without the stage.
    """
    slots = [stage for stage in funnel.stages if isinstance(stage, ExplorationSlots)]
    if len(slots) != 1:
        raise ValueError(f"expected one stage of exploration slots; there are {len(slots)}.")
    source, before = funnel.sources[slots[0].source].source, slots[0].counts.copy()
    fresh: np.ndarray = source.arrays()["keys"]
    order = np.random.default_rng(seed).permutation(len(cases))
    shown = np.zeros(len(before), np.int64)
    for start in range(0, len(cases), batch):
        keys = funnel(cases.take(order[start : start + batch]), top).keys
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


def table(rows: Sequence[StepReport], title: str) -> str:
    """The report as text: a table with a line for each step."""
    ks = [*rows[0].recall]
    head = f"{'':16s}" + "".join(f"{f'recall@{k}':>12s}" for k in ks)
    lines = [title, head + f"{'alone':>9s}{'without':>9s}{'candidates':>12s}{'seconds':>9s}"]
    for row in rows:
        cells = "".join(f"{row.recall[k]['mean']:12.4f}" for k in ks)
        alone = f"{'':9s}" if row.only is None else f"{row.only:9.4f}"
        without = f"{'':9s}" if row.without is None else f"{row.without:9.4f}"
        line = f"{row.name:16s}{cells}{alone}{without}{row.candidates:12.1f}{row.seconds:9.1f}"
        lines.append(line)
        lines += [f"  {kind} took {lost:.1f} candidates a case" for kind, lost in row.lost.items()]
    return "\n".join(lines)


def variety(keys: np.ndarray, dataset: Dataset, split: Split) -> dict[str, dict]:
    """Novelty and diversity of the first ten items, with intervals.

    Args:
        keys: `[num_cases, 10]` the recommended items, best first, -1 behind the end.
        dataset: The data; without genres there is no distance.
        split: Its training rows give the popularity of an item.

    Returns:
        `novelty@10`: mean over items of -log2 of the share of users who have the item (Zhou et al.,
        PNAS 2010). `genre_distance@10`: mean over pairs of 1 - |common genres| / |genres of either|
        (intra-list distance: Ziegler et al., WWW 2005, with Jaccard's distance).
    """
    users = len(np.unique(dataset.user_rows[split.train]))
    counts = np.bincount(dataset.item_keys[split.train], minlength=len(dataset.items))
    found = {"novelty@10": metrics.novelty(keys, counts / users, 10)}
    if "genres" in dataset.items:
        tags = tag_table(dataset.items["genres"])
        found["genre_distance@10"] = metrics.tag_distance(keys, tags, 10)
    return {name: metrics.interval(values) for name, values in found.items()}


def tag_table(tags: Iterable[Sequence[str]]) -> np.ndarray:
    """Which tags each item has, `[num_items, num_tags]` bool; the tags in alphabetical order.

    >>> tag_table([("b", "a"), (), ("b",)]).astype(int).tolist()
    [[1, 1], [0, 0], [0, 1]]
    """
    tags = [*tags]
    names = {name: column for column, name in enumerate(sorted({t for row in tags for t in row}))}
    table = np.zeros((len(tags), len(names)), bool)
    for row, some in enumerate(tags):
        table[row, [names[name] for name in some]] = True
    return table


def gains(first: Sequence[Mapping], second: Sequence[Mapping]) -> str:
    """The first funnel's recall minus the second's after each stage: shows which stage loses a
    gain.

    Args:
        first: `StepReport.to_json()` of the steps of one funnel.
        second: Of another one with steps of the same names, on the same cases.
    """
    others = {row["name"]: row["recall"] for row in second}
    lines = ["the first minus the second, after each stage"]
    for row in first:
        if row["name"] in others:
            cells = "".join(
                f"{value['mean'] - others[row['name']][k]['mean']:+12.4f}"
                for k, value in row["recall"].items()
            )
            lines.append(f"{row['name']:16s}{cells}")
    return "\n".join(lines)
