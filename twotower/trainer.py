"""Trainer: from data, a split and a recipe to a bundle, in three calls."""

import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from twotower.bundle import export as exporting
from twotower.bundle.bundle import Bundle
from twotower.bundle.manifest import MANIFEST
from twotower.bundle.weights import warm_start
from twotower.data.dataset import Dataset
from twotower.data.inputs import require_features
from twotower.data.splits import Split, with_validation_rows
from twotower.evaluation.baselines.popularity import Popularity
from twotower.evaluation.comparison import Comparison, heading
from twotower.evaluation.evaluate import Report, evaluate
from twotower.retrieval.build import IndexConfig, make
from twotower.storage import paths, replacing
from twotower.training.checkpoints import FitResult
from twotower.training.defaults import recipe_for
from twotower.training.fitting import fit
from twotower.training.recipe import Recipe
from twotower.training.training import Training


class Trainer:
    """Trains a recipe: `fit` selects the epoch on validation, `evaluate` judges, `export` writes.

        trainer = Trainer(data, make_split(data, "random"), Recipe(epochs=4))
        trainer.fit("W")
        print(trainer.evaluate())
        bundle = trainer.export("W/bundle", indexes=["hnsw"])

    Args:
        dataset: The data.
        split: Its training rows and validation queries (`make_split`).
        recipe: All choices; those that fit the data (`recipe_for`) if left out.
        refit: Whether `fit` trains a second time, on training and validation rows, for the number
            of epochs that validation selected. That second model is exported. The figures are
            those of the first one.
        warm_start: Folder of a bundle whose weights the training starts from.
        allow_seen: Accept a bundle that was trained on validation rows; the figures are then too
            good.

    Attributes:
        training: The model that `export` writes, with its data.
        selection: What the first training did (`FitResult`), with its log.
        refit_seconds: Seconds of the second training; None if there was none.
        seen: Share of the validation rows that the bundle of a warm start, or one before it, was
            trained on; None if unknown.

    Raises:
        ValueError: A split whose queries are the test part, or of another dataset; or a recipe with
            a feature that the data do not have.
        TypeError: A dataset, split or recipe of another type.
    """

    training: Training
    selection: FitResult

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        recipe: Recipe | None = None,
        *,
        refit: bool = True,
        warm_start: str | pathlib.Path | None = None,
        allow_seen: bool = False,
    ) -> None:
        if not isinstance(dataset, Dataset) or not isinstance(split, Split):
            raise TypeError(
                "Trainer takes a dataset and its split, as in Trainer(data, make_split(data, "
                f"'random')); got a {type(dataset).__name__} and a {type(split).__name__}."
            )
        if not isinstance(recipe, Recipe | None):
            raise TypeError(f"recipe must be a Recipe, such as Recipe(epochs=4); got {recipe!r}.")
        if split.part != "validation":
            raise ValueError(
                f"a training selects its epoch on validation, never on {split.part}: give "
                f"make_split(dataset, {split.protocol!r})."
            )
        split.require_of(dataset)
        self.dataset, self.split, self.recipe = dataset, split, recipe or recipe_for(dataset, split)
        require_features(dataset, self.recipe.query.features, self.recipe.item.features)
        self.refit, self.warm_start, self.allow_seen = refit, warm_start, allow_seen
        self.refit_seconds: float | None = None
        self.seen: float | None = None
        self._report: Report | None = None

    def fit(self, workdir: str | pathlib.Path, *, tensorboard: bool = False) -> FitResult:
        """Trains and leaves the model to export in `training`.

        Called again with the same folder, it goes on after the last finished epoch. With a second
        training the first one's bundle stays in `<workdir>/bundle_validation`: it can be judged on
        validation, which the second has learned from.

        Args:
            workdir: Folder for checkpoints.
            tensorboard: Whether to log for TensorBoard, below the workdir.

        Returns:
            What the first training did.
        """
        workdir = paths.literal(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        # Both here, since what they refuse would otherwise end the call after the first training.
        whole = with_validation_rows(self.dataset, self.split) if self.refit else self.split
        replacing.require_replaceable(workdir / "bundle_validation", MANIFEST)
        self.selection = self._train(self.split, workdir / "selection", tensorboard)
        self._report = evaluate(self.training.recommender(), self.split, self.dataset)
        self.seen = self.training.lineage().share_seen(self.dataset, self.split)
        if self.training.ancestor and (self.seen is None or self.seen > 0):
            logging.warning(
                "warm start: the earlier bundle was trained on %s of the validation rows",
                "an unknown share" if self.seen is None else f"{self.seen:.2%}",
            )
        if self.refit and np.array_equal(whole.train, self.split.train):
            logging.info("no refit: with %s there are no further rows", self.split.protocol)
        elif self.refit:
            self.export(workdir / "bundle_validation")
            epochs = self.selection.best_epoch
            result = self._train(
                whole, workdir / "refit", tensorboard, select=False, stop_after=epochs
            )
            self.refit_seconds = result.seconds
        return self.selection

    def _train(self, split: Split, workdir: pathlib.Path, tensorboard: bool, **kwargs) -> FitResult:
        self.training = Training(self.dataset, split, self.recipe)
        if self.warm_start:
            counts = warm_start(self.training, Bundle(self.warm_start), self.allow_seen)
            logging.info("warm start: %s", counts)
        return fit(self.training, workdir, tensorboard=tensorboard, **kwargs)

    @property
    def report(self) -> Report:
        """The selected model's validation figures, also by segment of users and items.

        Raises:
            ValueError: `fit` was not called before.
        """
        if self._report is None:
            raise ValueError("nothing is trained yet: call fit(workdir) first.")
        return self._report

    def evaluate(self) -> Comparison:
        """Validation metrics of the selected model and of popularity; `print` shows a table.

        Test figures come from `twotower evaluate --part=test`.
        """
        split = self.split
        popular = Popularity().fit(self.dataset, split.train, split.candidates)
        rows = {
            "two towers": self.report.metrics,
            "popularity": evaluate(popular.recommend, split, self.dataset).metrics,
        }
        return Comparison(heading(split), rows)

    def export(self, path: str | pathlib.Path, indexes: str | Sequence[str] = ()) -> Bundle:
        """Writes the bundle: SavedModels, item vectors, manifest, and indexes.

        Args:
            path: The bundle's folder; a bundle that is there is replaced.
            indexes: Backends of the indexes to build, such as `["hnsw"]`; `"hnsw"` is the same.
                With `scann` the SavedModel `retrieve_scann` is written, too.

        Raises:
            ValueError: An unknown backend, or a folder that holds anything else than a bundle.
            ImportError: A backend whose library is not installed.
        """
        indexes = [indexes] if isinstance(indexes, str) else indexes
        for name in indexes:
            make(IndexConfig(name))  # what cannot be made is refused before anything is written
        split, report = self.split, self.report
        extra: dict[str, object] = {
            "validation": {"protocol": split.protocol, "metrics": report.metrics}
        }
        if split.hidden is not None:
            extra["hidden_items"] = len(split.hidden) / len(split.candidates)
        bundle = exporting.export(self.training, path, extra, scann="scann" in indexes)
        for name in indexes:
            exporting.add_index(bundle, name, IndexConfig(name))
        return bundle
