# PLACEHOLDER by the lead until the owner of this file writes it: overwrite freely.
import numpy as np
from twotower.retrieval.candidates import Candidates


class BruteForceIndex:
    def build(self, keys, vectors):
        self.keys, self.vectors = keys, vectors
        self.place = np.full(keys.max() + 2, len(keys)); self.place[keys] = np.arange(len(keys))
        return self

    def search(self, queries, k, exclude=None):
        out = []
        for s in range(0, len(queries), 1000):
            S = queries[s:s + 1000] @ self.vectors.T
            e = exclude.take(np.arange(s, min(s + 1000, len(queries))))
            p = self.place[e.values]; ok = p < len(self.keys)
            S[e.row_index[ok], p[ok]] = -np.inf
            top = np.argpartition(-S, min(k, S.shape[1] - 1), axis=1)[:, :k]
            out.append(Candidates.rank(self.keys[top], np.take_along_axis(S, top, 1), k))
        return Candidates.concat(out)
