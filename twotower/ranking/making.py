"""Trains a ranker by a few settings, and adds it to a funnel."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from twotower.data.dataset import Dataset
from twotower.data.splits import Split
from twotower.funnel.filters import Filters
from twotower.funnel.funnel import Funnel
from twotower.funnel.stage import Model
from twotower.limits import at_least, typed
from twotower.ranking import examples as making_examples
from twotower.ranking import trees
from twotower.ranking.candidate_ranker import CandidateRanker, Outputs
from twotower.ranking.columns import CandidateColumns
from twotower.ranking.config import INTERACTIONS, RankerConfig
from twotower.ranking.examples import WATCH, Examples
from twotower.ranking.objectives import check_weights
from twotower.ranking.probability import Probability
from twotower.ranking.stage import Rank

TREES = "trees"
NEGATIVES = ("funnel", "random")


@dataclasses.dataclass(frozen=True)
class RankingConfig:
    """Settings of a ranker behind a funnel. Those of a network have no effect on `trees`.

    To order the ten items that are shown, take the loss `listwise`. To keep 500 of a longer list,
    take pointwise trees without `residual`: they kept the most targets on MovieLens 1M.

    Attributes:
        model: `mlp`, `dcn`, `deepfm`, `dlrm` or `trees`.
        negatives: `funnel`: the other candidates that the funnel found for the request; `random`:
            random items, for comparison.
        loss: `listwise`, `pairwise` or `pointwise`; trees take no `pairwise`.
        heads: Further heads, `like` and `rating`.
        weights: Head -> its weight in the score, unless a request has weights of its own.
        residual: Whether the output is added to the score that a candidate had before.
        fields: Categorical features that are read beside the numbers, such as `genres` and `age`.
        dim: Length of the embedding of a categorical value.
        hidden: Widths of the dense layers.
        dropout: Share of activations dropped in training.
        learning_rate: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        candidates: Number of candidates of a request in a training step.
        epochs: Largest number of epochs.
        folds: Number of folds, by user. One model is trained for each fold, on the others, and
            stopped by its NDCG@10 on this fold. The ranker is the mean of the models.
        seed: Seed of the weights, the order and the folds.
        shuffle_labels: Whether labels are shuffled within each request, so that nothing can be
            learned: a test.
    """

    model: str = "mlp"
    negatives: str = "funnel"
    loss: str = "listwise"
    heads: tuple[str, ...] = ()
    weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {WATCH: 1.0})
    residual: bool = True
    fields: tuple[str, ...] = ()
    dim: int = 8
    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.1
    learning_rate: float = 0.001
    weight_decay: float = 0.1
    candidates: int = 300
    epochs: int = 20
    folds: int = 4
    seed: int = 0
    shuffle_labels: bool = False

    def __post_init__(self) -> None:
        typed(self)
        models = (*INTERACTIONS, TREES)
        if self.model not in models:
            raise ValueError(f"model must be one of {', '.join(models)}; got {self.model!r}.")
        if self.negatives not in NEGATIVES:
            raise ValueError(f"negatives must be one of {NEGATIVES}; got {self.negatives!r}.")
        if self.model == TREES and self.heads:
            raise ValueError(f"trees have no further heads; got {list(self.heads)}.")
        if self.model == TREES and self.loss not in trees.OBJECTIVES:
            losses = (*trees.OBJECTIVES,)
            raise ValueError(f"the loss of trees is one of {losses}; got {self.loss!r}.")
        if len({*self.fields}) < len(self.fields):
            raise ValueError(f"fields stand once each; got {list(self.fields)}.")
        at_least(self, dim=1, epochs=1, folds=2)
        check_weights(self.weights, (WATCH, *self.heads))
        if self.model != TREES:
            # Both refuse wrong settings here, before candidates are made.
            _ = self.network, self.fitting

    @property
    def network(self) -> RankerConfig:
        """The network's part of the settings."""
        return RankerConfig(self.model, self.dim, self.hidden, dropout=self.dropout)

    @property
    def fitting(self) -> Any:
        """The training's part of the settings."""
        from twotower.ranking.fitting import FitConfig  # loads TensorFlow

        return FitConfig(
            self.loss,
            self.heads,
            self.residual,
            self.learning_rate,
            self.weight_decay,
            candidates=self.candidates,
            epochs=self.epochs,
            seed=self.seed,
        )


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained ranker that is not yet part of a bundle. Bundles with the same funnel can share it.

    Attributes:
        models: A network or trees for each fold; their outputs are averaged.
        make: Makes the ranker from fitted features.
        sources: Names of the sources whose ranks and scores it reads.
        held_out: NDCG@10 on held-out requests: `given` before ranking, `ranked` after it.
        about: Settings and figures of the training, as JSON values.
    """

    models: list[Any]
    make: Callable[[CandidateColumns], CandidateRanker]
    sources: tuple[str, ...]
    held_out: dict[str, float]
    about: dict[str, Any]

    def on(self, bundle: Model, dataset: Dataset, split: Split) -> CandidateRanker:
        """The ranker with the statistics of a split's training rows.

        Raises:
            ValueError: A split of another dataset.
        """
        split.require_of(dataset)
        fields = self.about["choices"]["fields"]
        columns = CandidateColumns.fit(dataset, split.train, bundle, self.sources, fields)
        return self.make(columns)


def train(
    config: RankingConfig, funnel: Funnel, bundle: Model, dataset: Dataset, split: Split
) -> Trained:
    """Trains a ranker on the funnel's candidates for the validation cases.

    Args:
        config: The settings.
        funnel: Fitted on the split's training rows, without a ranker.
        bundle: The bundle of the funnel.
        dataset: The data.
        split: Its cases are the training requests.

    Raises:
        ValueError: A split of another dataset or without cases, or no target is among the
            candidates.
    """
    split.require_of(dataset)
    if not len(split.cases):
        raise ValueError("the split has no requests to learn from. Take one with validation rows.")
    sources = tuple(funnel.sources)
    columns = CandidateColumns.fit(dataset, split.train, bundle, sources, config.fields)
    if config.negatives == "funnel":
        found = making_examples.make_examples(funnel, columns, split.cases, dataset)
    else:
        found = making_examples.random_examples(
            funnel, columns, split.cases, dataset, split.candidates, seed=config.seed
        )
    if config.shuffle_labels:
        found = found.shuffled(config.seed)
    models, outputs, scores = _cross_fitted(config, found, columns)
    able, valid = found.able, found.valid
    held_out = {
        "given": float(found.ndcg(found.scores)[able].mean()),
        "ranked": float(found.ndcg(scores)[able].mean()),
    }
    probability = Probability.fit(scores[valid], found.labels[WATCH][valid])
    about = {
        "choices": dataclasses.asdict(config),
        "held_out": held_out,
        "protocol": split.protocol,
        "requests": len(found),
    }

    def make(columns: CandidateColumns) -> CandidateRanker:
        heads = (WATCH, *config.heads)
        return CandidateRanker(
            columns, outputs, heads, config.residual, probability, dict(config.weights)
        )

    return Trained(models, make, sources, held_out, about)


def _cross_fitted(
    config: RankingConfig, found: Examples, columns: CandidateColumns
) -> tuple[list[Any], Outputs, np.ndarray]:
    """A model for each fold, trained on the others and stopped by it; their mean outputs; and the
    scores that each gives to the requests of its fold, `[num_requests, k]`."""
    from twotower.ranking import files

    able, fold = found.able, found.folds(config.folds, config.seed)
    if len(np.unique(fold[able])) < config.folds:
        raise ValueError(
            f"a ranker learns from requests whose candidates hold a target, of {config.folds} "
            f"users at least; {len(able)} of {len(found)} requests do. Ask the sources for more "
            "candidates, or take more requests or fewer folds."
        )
    inputs, models = columns.inputs, []
    scores = np.full(found.scores.shape, -np.inf, np.float32)
    for number in range(config.folds):
        logging.info("fold %d of %d", number + 1, config.folds)
        train, held = found.take(able[fold[able] != number]), np.flatnonzero(fold == number)
        judge = found.take(np.intersect1d(held, able))
        if config.model == TREES:
            seed = config.seed + number
            model = trees.fit(train, judge, inputs, config.loss, config.residual, seed)
            scores[held] = trees.scores(model, found.take(held), inputs, config.residual)
        else:
            from twotower.ranking import fitting

            fit = dataclasses.replace(config.fitting, seed=config.seed + number)
            model = fitting.fit(train, judge, inputs, config.network, fit)
            scores[held] = fitting.scores(model, found.take(held), config.residual)
        models.append(model)
    if config.model == TREES:
        return models, files.of_trees(models, inputs), scores
    return models, files.of_networks(models), scores


def unranked(funnel: Funnel) -> Funnel:
    """The funnel with only its filters as stages: a ranker orders its lists."""
    filters = [stage for stage in funnel.stages if isinstance(stage, Filters)][:1]
    parts = funnel.sources, funnel.merge, filters
    return Funnel(*parts, funnel.pool, funnel.fallback, funnel.onboarding)


def place(funnel: Funnel, ranker: CandidateRanker, name: str) -> None:
    """Puts a ranker behind the first filters of a funnel, in place of one that it already has.

    Raises:
        ValueError: The ranker reads a source that the funnel does not have.
    """
    if missing := [name for name in ranker.columns.sources if name not in funnel.sources]:
        raise ValueError(
            f"the ranker reads the sources {missing}, and the funnel has {[*funnel.sources]}. Use "
            "the funnel that it was trained behind, or train it behind this one."
        )
    stages = [stage for stage in funnel.stages if not isinstance(stage, Rank)]
    filters = [number for number, stage in enumerate(stages) if isinstance(stage, Filters)]
    behind = filters[0] + 1 if filters else 0
    funnel.stages = [*stages[:behind], Rank(ranker, name), *stages[behind:]]


def parse_weights(entries: Sequence[str]) -> dict[str, float]:
    """`["relevance=1", "like=-0.5"]` as head -> weight.

    Raises:
        ValueError: An entry without a number.
    """
    found = {}
    for entry in entries:
        head, _, weight = entry.partition("=")
        try:
            found[head] = float(weight)
        except ValueError:
            found[head] = math.nan
        if not math.isfinite(found[head]):
            raise ValueError(f"weights are a list such as relevance=1,like=0.5; got {entry!r}.")
    return found


def parse_widths(entries: Sequence[str]) -> tuple[int, ...]:
    """`["64", "32"]` as numbers.

    Raises:
        ValueError: An entry that is not an integer.
    """
    if wrong := [entry for entry in entries if not entry.isdecimal()]:
        raise ValueError(f"hidden is a list of widths such as 64,32; got {wrong[0]!r}.")
    return tuple(int(entry) for entry in entries)
