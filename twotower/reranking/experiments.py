"""Experiments: A/B tests, from the assignment of users to the difference and checks of validity.

    experiment = Experiment("new-ranker", {"control": 0.5, "treatment": 0.5})
    variants = experiment.assign(requests.user_id)
    log += exposures(requests, candidates, experiment, variants, catalogue, k=10)
    ...
    sample_ratio([num_control, num_treatment], [0.5, 0.5])    # below 0.001: something is broken
    difference(values[treated], values[~treated])             # values: one a user

The unit is the user, since the requests of a user are not independent. So compare one value for
each user, such as the clicks during the whole test. Leave out users who were never exposed, in all
variants. power.py computes how many users a test needs.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import chdtrc

from twotower.data.catalogue import Catalogue
from twotower.data.requests import Requests
from twotower.evaluation.intervals import Z95
from twotower.funnel.filters import fractions
from twotower.limits import whole_number
from twotower.retrieval.candidates import Candidates


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Assigns users to variants by a hash of user and experiment, so nothing is stored.

    A user sees the same variant on every machine and at every request. Two experiments are
    independent, since the name is part of the hash. Do not change the shares of a running
    experiment, since users would move between variants. Give it a new name instead.

    Attributes:
        name: Name of the experiment.
        variants: Name -> share of the users. If the shares sum to less than 1, the other users are
            in none.

    Raises:
        ValueError: No name, no variants, or shares that are not above 0 or are more than 1.

    >>> experiment = Experiment("colour", {"red": 0.5, "blue": 0.3})
    >>> experiment.assign(["a", "b", "", "d"]).tolist()
    ['red', 'blue', '', '']
    """

    name: str
    variants: Mapping[str, float]

    def __post_init__(self) -> None:
        shares = [*self.variants.values()]
        named = self.name and all(self.variants)
        if not (named and shares and all(s > 0 for s in shares) and sum(shares) <= 1 + 1e-9):
            raise ValueError(
                "an experiment needs a name, and variants with names and shares above 0 that are "
                f"1 at most together; got {self.name!r} with {dict(self.variants)}."
            )

    def assign(self, user_ids: Sequence[str] | np.ndarray) -> np.ndarray:
        """The variant of each user, `[n]` strings; "" for a user who is in none. The unknown user
        "" is in none, since many people share this id.

        Raises:
            ValueError: A single string in place of a list, or an id that is no string.
        """
        wrong = [user for user in user_ids if not isinstance(user, str)]
        if isinstance(user_ids, str) or wrong:
            got = wrong[0] if wrong else user_ids
            raise ValueError(f"user_ids are strings, '' for an unknown user; got {got!r}.")
        names = np.array([*self.variants, ""], object)
        ends = np.cumsum([*self.variants.values()])
        if ends[-1] > 1 - 1e-9:
            ends[-1] = 1.0
        found = names[np.searchsorted(ends, fractions(user_ids, self.name), side="right")]
        found[np.asarray(user_ids, object) == ""] = ""
        return found


def exposures(
    requests: Requests,
    candidates: Candidates,
    experiment: Experiment,
    variants: np.ndarray,
    catalogue: Catalogue,
    k: int,
) -> list[dict[str, Any]]:
    """Log rows of what was shown to users of an experiment, one for each item, as JSON values.

    Write them when a list is shown, not when it is made: a list that nobody saw is not an exposure.
    `propensity` is None if no bandit made the list.

    Args:
        requests: The requests.
        candidates: The lists that were shown.
        experiment: The experiment.
        variants: `[num_requests]`, from `assign`. A request with "" has no rows.
        catalogue: Has the ids of the items.
        k: Length of the list that was shown.

    Raises:
        ValueError: Requests, candidates and variants of different lengths, or a variant that the
            experiment does not have.
    """
    if not len(requests) == len(candidates) == len(variants):
        raise ValueError(
            f"got {len(requests)} requests, {len(candidates)} lists and {len(variants)} variants."
        )
    variants = np.asarray(variants, object)
    if unknown := {*variants} - {*experiment.variants, ""}:
        raise ValueError(f"{experiment.name} has no variants {sorted(unknown)}.")
    shown = candidates.head(whole_number(k, "k", 1))
    propensities = shown.columns.get("propensity", np.full(shown.keys.shape, np.nan))
    ids = catalogue.ids_of(shown.keys)
    rows = []
    for row, column in np.argwhere(shown.valid & (variants != "")[:, None]).tolist():
        propensity = float(propensities[row, column])
        rows.append(
            {
                "experiment": experiment.name,
                "variant": str(variants[row]),
                "user_id": requests.user_id[row],
                "time": int(requests.time[row]),
                "position": column + 1,
                "item_id": ids[row, column],
                "score": float(shown.scores[row, column]),
                "propensity": None if math.isnan(propensity) else propensity,
            }
        )
    return rows


def difference(treatment: np.ndarray, control: np.ndarray) -> dict:
    """Mean of the treatment minus mean of the control, with its 95% interval.

    The variances may differ (Welch). The interval assumes normal means, so take some hundred users.

    Args:
        treatment: `[n]`, a value for each user.
        control: `[m]`, a value for each user.

    Returns:
        `mean`, `low`, `high`.

    Raises:
        ValueError: Fewer than two users on a side, or NaN.
    """
    treatment, control = _per_user(treatment, "treatment"), _per_user(control, "control")
    mean = float(treatment.mean() - control.mean())
    error = math.sqrt(treatment.var(ddof=1) / len(treatment) + control.var(ddof=1) / len(control))
    return {"mean": mean, "low": mean - Z95 * error, "high": mean + Z95 * error}


def cuped(values: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Adjusts values by what was known of the users before the experiment (Deng et al., WSDM 2013).

        adjusted = value - theta * (before - mean(before))
        theta    = cov(value, before) / var(before)

    The expected difference between variants stays the same. The variance is multiplied by one minus
    the squared correlation of value and before. Call this once for all variants together, then
    compare the variants.

    Args:
        values: `[n]`, a value for each user of all variants.
        before: `[n]`, a value of the same users from before their first exposure, such as the same
            metric. Give new users the mean of the others.

    Returns:
        `[n]` with the mean of `values`; `values` themselves where `before` is constant.

    Raises:
        ValueError: Fewer than two users, different lengths, or NaN.
    """
    values, before = _per_user(values, "values"), _per_user(before, "before")
    if len(values) != len(before):
        raise ValueError(f"got values of {len(values)} users and before of {len(before)}.")
    centred = before - before.mean()
    variance = (centred**2).sum()
    return values - (values @ centred / variance if variance > 0 else 0.0) * centred


def sample_ratio(counts: Sequence[int], shares: Sequence[float]) -> float:
    """The p-value of a sample-ratio mismatch: a chi-square test of the numbers of users.

    Below 0.001, take it as a mismatch: which users are counted depends on the variant, through
    crashes, redirects or a filter. No difference in such a test can be trusted (Fabijan et al., KDD
    2019).

    Args:
        counts: Number of exposed users in each variant.
        shares: Intended share of each variant; only their ratios matter.

    Raises:
        ValueError: Fewer than two variants, shares that are not above 0, or no users.

    >>> round(sample_ratio([5000, 5200], [0.5, 0.5]), 4)
    0.0477
    """
    found, meant = np.asarray(counts, np.float64), np.asarray(shares, np.float64)
    fits = found.ndim == 1 and found.shape == meant.shape and len(found) > 1
    if fits:
        bounded = (found >= 0) & (meant > 0) & np.isfinite(found) & np.isfinite(meant)
        fits = bounded.all() and found.sum() > 0
    if not fits:
        raise ValueError(
            "expected counts of 0 or more, one above 0, and shares above 0 of two variants or "
            f"more; got {counts} and {shares}."
        )
    expected = meant / meant.sum() * found.sum()
    return float(chdtrc(len(found) - 1, ((found - expected) ** 2 / expected).sum()))


def _per_user(values: np.ndarray, name: str) -> np.ndarray:
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or len(found) < 2 or not np.isfinite(found).all():
        raise ValueError(
            f"{name} must be a finite value for each of two users or more, [n]; got "
            f"{[*found.shape]} with {int((~np.isfinite(found)).sum())} NaN or infinite."
        )
    return found
