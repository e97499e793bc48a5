"""Gradient-boosted trees (LightGBM) on the features that a network reads.

Listwise trees are LambdaMART (Burges, 2010), to order the top of a list. Pointwise trees
learn the probability of each candidate, and keep more of the targets of a long list.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from twotower.ranking.examples import WATCH, Examples
from twotower.ranking.inputs import NUMBERS, RankerInputs

if TYPE_CHECKING:
    import lightgbm

# Found on validation requests of MovieLens 1M. Few leaves and many rows in each, because the
# targets are few.
SETTINGS = {
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 500,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 10.0,
    "verbose": -1,
}
# Loss -> LightGBM's objective, and the metric that selects the number of trees.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "listwise": {
        "objective": "lambdarank",
        "lambdarank_truncation_level": 30,
        "metric": "ndcg",
        "eval_at": [10],
    },
    "pointwise": {"objective": "binary", "metric": "binary_logloss"},
}


def table(columns: Mapping[str, np.ndarray], inputs: RankerInputs) -> np.ndarray:
    """Columns as one matrix, `[..., num_columns]` float32: codes as numbers, a set as a column for
    each of its values, 0 or 1."""
    parts = []
    for field in inputs.fields:
        codes = columns[field.name]
        if field.shape:
            parts += [(codes == value).any(-1) for value in range(1, field.size + 1)]
        else:
            parts.append(codes)
    codes = [part[..., None].astype(np.float32) for part in parts]
    return np.concatenate([*codes, *([columns[NUMBERS]] if inputs.numbers else [])], -1)


def fit(
    examples: Examples,
    held: Examples,
    inputs: RankerInputs,
    loss: str = "listwise",
    residual: bool = True,
    seed: int = 0,
    rounds: int = 600,
    patience: int = 40,
) -> "lightgbm.Booster":
    """Trees for one fold; a metric on `held` selects their number.

    Args:
        examples: Training examples.
        held: Examples of other users, which select the number of trees.
        inputs: Features of both.
        loss: `listwise`: LambdaMART, and NDCG@10 is the metric; `pointwise`: logistic regression,
            and its loss is the metric.
        residual: Whether trees are added to the score that a candidate had before.
        seed: Seed of the samples for each tree.
        rounds: Largest number of trees.
        patience: Training ends after this many trees without a better metric.
    """
    import lightgbm

    def data(part: Examples, reference: "lightgbm.Dataset | None" = None) -> "lightgbm.Dataset":
        valid = part.valid
        return lightgbm.Dataset(
            table({name: values[valid] for name, values in part.columns.items()}, inputs),
            part.labels[WATCH][valid],
            group=valid.sum(1),
            init_score=part.scores[valid] if residual else None,
            reference=reference,
        )

    learned = data(examples)
    return lightgbm.train(
        {**SETTINGS, **OBJECTIVES[loss], "seed": seed},
        learned,
        rounds,
        valid_sets=[data(held, learned)],
        callbacks=[lightgbm.early_stopping(patience, verbose=False)],
    )


def scores(
    booster: "lightgbm.Booster", examples: Examples, inputs: RankerInputs, residual: bool
) -> np.ndarray:
    """`[num_requests, k]`, -inf past the end of a row."""
    valid = examples.valid
    found = np.full(valid.shape, -np.inf, np.float32)
    columns = {name: values[valid] for name, values in examples.columns.items()}
    found[valid] = booster.predict(table(columns, inputs), raw_score=True)
    if residual:
        found[valid] += examples.scores[valid]
    return found
