"""Committed figures from TensorFlow, numpy, a bundle and ratings.dat: recompute.py BUNDLE FILE."""

import json
import sys

import numpy as np
import tensorflow as tf

bundle, ratings = sys.argv[1:]
with open(ratings) as file:
    table = np.array([line.split("::") for line in file], dtype=np.int64)
user, item, time = table[:, 0], table[:, 1], table[:, 3]
order = np.random.default_rng(42).permutation(len(table))
train, test = np.sort(order[:800_167]), order[800_167:]
train = train[np.lexsort((time[train], user[train]))]
test = test[np.argsort(user[test])]
of_user = [np.split(item[part], np.cumsum(np.bincount(user[part]))) for part in (train, test)]
model = tf.saved_model.load(f"{bundle}/query_tower")
vectors = np.load(f"{bundle}/items/vectors.npy")
known = np.unique(item)  # ids ascend, and so do the bundle's keys
hits, hit50, recall500, ndcg, rr = [], [], [], [], []
for u in np.unique(user[test]):
    seen, wanted = of_user[0][u], of_user[1][u]
    query = model.signatures["serving_default"](
        history=tf.constant([seen.astype(str).tolist()], tf.string)
    )["embedding"].numpy()[0]
    scores = vectors @ query
    scores[np.searchsorted(known, seen)] = -np.inf
    hit = np.isin(known[np.argsort(-scores, kind="stable")[:500]], wanted)
    hits.append(hit[:100].sum())
    hit50.append(hit[:50].any())
    recall500.append(hit.sum() / len(wanted))
    gain = 1 / np.log2(np.arange(2, 12))
    ndcg.append(hit[:10] @ gain / gain[: len(wanted)].sum())
    rr.append(1 / (hit.argmax() + 1) if hit.any() else 0)
figures = {"recall_micro@100": sum(hits) / len(test), "recall@500": np.mean(recall500)}
figures |= {"hit_rate@50": np.mean(hit50), "ndcg@10": np.mean(ndcg), "mrr@500": np.mean(rr)}
print(json.dumps(figures))
