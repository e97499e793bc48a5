# PLACEHOLDER by the lead until the owner of this file writes it: overwrite freely.
import dataclasses
import numpy as np
from twotower.ragged import Ragged
from twotower.data.cases import EvalCases

PROTOCOLS = ("loo-5core", "loo", "temporal", "random", "random-100k+seen")


@dataclasses.dataclass(frozen=True)
class Split:
    protocol: str
    part: str
    seed: int
    train: np.ndarray
    candidates: np.ndarray
    history: str
    seen_excluded: bool
    cases: EvalCases


def make_split(dataset, protocol, part="validation", seed=42):
    n = len(dataset.interactions)
    perm = np.random.default_rng(seed).permutation(n)
    ntrain = round(0.8 * n)
    train, test = perm[:ntrain], perm[ntrain:]
    if part == "validation":
        nv = round(0.05 * ntrain)
        test, train = train[-nv:], train[:-nv]
    train = np.sort(train); test = np.sort(test)
    U = len(dataset.users)
    o = train[np.lexsort((dataset.timestamps[train], dataset.user_rows[train]))]
    h = Ragged.group(o, dataset.user_rows[o], U)
    t = Ragged.group(test, dataset.user_rows[test], U)
    who = np.flatnonzero(t.lengths)
    h, t = h.take(who), t.take(who)
    K = dataset.item_keys
    hist = Ragged(K[h.values], h.offsets)
    r = dataset.interactions["rating"].to_numpy(np.float32)
    cases = EvalCases(dataset.users["user_id"].to_numpy(object)[who], hist, Ragged(dataset.timestamps[h.values], h.offsets), Ragged(r[h.values], h.offsets), hist, Ragged(K[t.values], t.offsets), np.full(len(who), -1), {})
    return Split(protocol, part, seed, train, np.unique(K), "others", True, cases)
