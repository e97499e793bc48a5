"""Training on a tiny made-up service: it learns, resumes, stops, repeats and starts warm.

Each training traces its step anew, which takes seconds. So what happens around the steps is tested
with a step that costs nothing (`tiny.without_learning`), and what `fit` says before it begins by
the functions that say it. Slow are a time that is measured, two processes that must agree to the
bit, the dropout after a resume, permuted items, what a warm start gains, and kills.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pandas as pd
import pytest
import tiny

from twotower.bundle.bundle import Bundle
from twotower.bundle.manifest import BundleError
from twotower.bundle.weights import save_weights, warm_start
from twotower.data.dataset import Dataset
from twotower.data.splits import make_split
from twotower.evaluation import baselines
from twotower.evaluation.evaluate import evaluate
from twotower.objective.negatives import NegativesConfig
from twotower.ragged import Ragged
from twotower.tf import tf
from twotower.towers.dense import DenseHead
from twotower.towers.history.config import CONFIGS, GRUConfig, HSTUConfig, MeanConfig
from twotower.towers.item import ItemConfig
from twotower.towers.numbers import Clock
from twotower.towers.query import QueryConfig
from twotower.training import checkpoints, fitting
from twotower.training import training as training_module
from twotower.training.checkpoints import FitResult
from twotower.training.fitting import fit, make_optimizer
from twotower.training.model import TwoTowerModel
from twotower.training.recipe import FitConfig, Recipe
from twotower.training.training import Training

# Recipe without any drawn number but the first weights and the order of examples.
QUIET = tiny.recipe(query={"unknown_rate": 0.0, "history_dropout": 0.0}, item={"unknown_rate": 0.0})


def popularity(split, dataset=None) -> float:
    fitted = baselines.Popularity().fit(dataset or tiny.dataset(), split.train, split.candidates)
    return evaluate(fitted.recommend, split).metrics["recall_micro@20"]["mean"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """(training, result) after six epochs on `random`, with FactorizedTopK in the log."""
    training = Training(
        tiny.dataset(), tiny.split(), tiny.recipe(fit={"epochs": 6, "topk_every": 1})
    )
    return training, fit(training, tmp_path_factory.mktemp("learned"))


def test_loss_falls_and_recall_beats_popularity(learned):
    training, result = learned
    assert [entry["epoch"] for entry in result.log] == [1, 2, 3, 4, 5, 6]
    assert all(entry["val_loss"] > 0 for entry in result.log)
    losses = [entry["loss"] for entry in result.log]
    assert losses[-1] < losses[0] - 0.1
    # Popularity stands at .24, the model at .32 on 288 targets.
    best = max(entry["recall_micro@20"] for entry in result.log)
    assert best > 1.15 * popularity(training.split)


def test_result_is_json_and_counts_examples(learned):
    training, result = learned
    assert json.loads(json.dumps(dataclasses.asdict(result)))["epoch"] == 6
    assert result.examples_per_second == pytest.approx(
        6 * len(training.examples) / result.seconds, rel=1e-6
    )
    assert result.validation["recall_micro@100"]["mean"] == result.best


def test_factorized_topk_equals_this_projects_evaluation(learned):
    """TFRS' metric in the log of the best epoch, whose weights `fit` left in the model."""
    training, result = learned
    cases = training.split.cases
    # FactorizedTopK cannot exclude: seen items are candidates.
    with_seen = dataclasses.replace(cases, exclude=Ragged.empty(len(cases)))
    split = dataclasses.replace(training.split, cases=with_seen)
    found = evaluate(training.recommender(), split, ks=(1, 5, 10, 50, 100)).metrics
    entry = result.log[result.best_epoch - 1]
    for k in (1, 5, 10, 50, 100):
        name = f"val_factorized_top_k/top_{k}_categorical_accuracy+seen"
        assert entry[name] == pytest.approx(found[f"recall_micro@{k}"]["mean"], abs=1e-6), k
    assert 0 < found["recall_micro@10"]["mean"] < found["recall_micro@100"]["mean"] < 1


def test_the_loss_of_validation_by_hand():
    """Of all targets in one batch, as columns: those that the user likes are no negatives."""
    recipe = tiny.recipe(task={"correction": "none"})
    training = Training(tiny.dataset(), tiny.split(), recipe)
    training.model.compile()
    found = training.model.evaluate(training.topk_batches(), verbose=0, return_dict=True)["loss"]
    cases = training.split.cases
    targets = cases.targets
    of_targets = training.query_vectors(cases)[targets.row_index]
    scores = of_targets @ training.item_vectors(targets.values).T / recipe.task.temperature
    losses = []
    for number, case in enumerate(targets.row_index):
        liked = [*cases.history[case], *targets[case]]
        others = scores[number, ~np.isin(targets.values, liked)]
        losses.append(np.log1p(np.exp(others - scores[number, number]).sum()))
    assert found == pytest.approx(np.mean(losses), rel=1e-4) and len(losses) > 200
    training.split = dataclasses.replace(training.split, cases=cases.take(np.arange(0)))
    assert list(training.topk_batches()) == []


def test_a_last_batch_of_one_example_counts_as_one_example(tmp_path):
    num = len(tiny.split().train)
    recipe = tiny.recipe(
        QUIET,
        examples={"batch_size": num - 1, "targets_per_query": 1},
        fit={"epochs": 1, "learning_rate": 1e-12},
    )
    training = Training(tiny.dataset(), tiny.split(), recipe)
    each = [
        (len(b.targets().item), training.model.compute_loss(b, training=True))
        for b in training.batches()
    ]
    assert [size for size, _ in each] == [num - 1, 1]
    # One example has no negatives: its loss is 0, and the mean over batches would be half.
    first = float(each[0][1])
    assert float(each[1][1]) == 0 and first > 3
    found = fit(training, tmp_path).log[0]["loss"]
    assert found == pytest.approx(first * (num - 1) / num, rel=1e-4)


def test_factorized_topk_is_not_computed_in_training(learned):
    training, _ = learned
    (metric,) = training.model.task.factorized_metrics
    for part in metric.metrics:
        part.reset_state()
    batch = next(iter(training.batches()))
    training.model.compute_loss(batch, training=True)
    assert [float(part.count) for part in metric.metrics] == [0.0] * 5
    training.model.compute_loss(batch, training=False)
    assert [float(part.count) for part in metric.metrics] == [float(len(batch.targets().item))] * 5
    for part in metric.metrics:
        part.reset_state()


@pytest.mark.slow
def test_an_epoch_ends_at_once_on_one_core():
    # tf.data's tuner looks at a pipeline after 10, 20, 40 ms and so on, and on one core the end of
    # an iterator waited for its next look: a second and a half here.
    script = """
import os, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import tiny
from twotower.training.training import Training
batches = Training(tiny.dataset(), tiny.split(), tiny.recipe()).batches()
for epoch in range(2):
    iterator = iter(batches)
    for turn in range(36):
        next(iterator, None)
        time.sleep(0.1)
    begun = time.perf_counter()
    del iterator
    print(time.perf_counter() - begun)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tiny.ROOT / "tests", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert max(map(float, done.stdout.split())) < 0.7


def test_resume_continues_as_if_nothing_had_happened(tmp_path):
    """Also with what is no weight: the stream's counts, the memory and a learned temperature."""

    def training(epochs):
        recipe = tiny.recipe(
            QUIET,
            task={"frequency": "streaming", "learned_temperature": True},
            negatives={"negatives": ("batch", "memory"), "memory_size": 300},
            fit={"validate_every": 2, "epochs": epochs},
        )
        return Training(tiny.dataset(), tiny.split(), recipe)

    expected = fit(training(3), tmp_path / "whole").log

    # Without a schedule, more epochs train on as if there had been as many from the start.
    first = training(1)
    assert fit(first, tmp_path / "parts").epoch == 1
    steps = int(first.model.optimizer.iterations)
    assert steps == -(-len(first.examples) // QUIET.examples.batch_size)

    second = training(3)
    result = fit(second, tmp_path / "parts")
    assert [entry["epoch"] for entry in result.log] == [1, 2, 3]
    assert int(second.model.optimizer.iterations) == 3 * steps
    # Order of examples, optimiser and weights all go on: the losses are those of one piece.
    losses = [[entry["loss"] for entry in log] for log in (result.log, expected)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert result.seconds > sum(entry["seconds"] for entry in result.log) - 0.1
    assert second.frequency.time == 3 * len(second.examples)
    assert (second.model.negatives.memory.keys.numpy() >= 0).all()

    # Called once more, it has nothing to do and gives the best weights.
    third = training(3)
    again = fit(third, tmp_path / "parts")
    assert again.log == result.log
    keys = third.split.candidates
    np.testing.assert_array_equal(third.item_vectors(keys), second.item_vectors(keys))


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    """Before any weight is touched: those of another recipe would not fit."""
    first = tiny.without_learning(Training(tiny.dataset(), tiny.split(), QUIET))
    fit(first, tmp_path, stop_after=1)
    other = tiny.recipe(QUIET, item={"id_dim": 12})
    with pytest.raises(ValueError, match=r"of another recipe \(item.id_dim: 16 there, 12 here\)"):
        fit(Training(tiny.dataset(), tiny.split(), other), tmp_path)
    # Other data with equal sizes: weights of something else.
    items = tiny.dataset().items
    renamed = items.assign(title=items.title.to_numpy()[::-1])
    data = dataclasses.replace(tiny.dataset(), items=renamed)
    with pytest.raises(ValueError, match="checkpoint of other training rows"):
        fit(Training(data, make_split(data, "random"), QUIET), tmp_path)
    # Another protocol, or other rows of it.
    of = [(data, tiny.split()), (tiny.dataset(), tiny.split("loo")), (tiny.dataset(), tiny.split())]
    prints = []
    for dataset, split in of:
        stand_in = types.SimpleNamespace(dataset=dataset, split=split, ancestor=None)
        prints.append(Training.fingerprint(stand_in))
    assert len({*prints}) == 3 and prints[-1] == first.fingerprint()


def saved_by(recipe: Recipe) -> dict:
    """What a checkpoint holds of its recipe."""
    return {"recipe": json.dumps(recipe.to_json()), "data": "the same"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"fit": {"seed": 1}}, r"\(fit.seed: 0 there, 1 here\)"),  # with weights that would fit
        ({"fit": {"epochs": 2}}, r"\(fit.epochs: 3 there, 2 here\)"),
    ],
)
def test_another_recipe_is_named_by_what_differs(changes, named, tmp_path):
    here = tiny.recipe(QUIET, **changes)
    with pytest.raises(ValueError, match=f"checkpoint of another recipe {named}"):
        checkpoints._check_same(tmp_path, saved_by(QUIET), here, "the same")
    # More epochs are no other recipe.
    more = tiny.recipe(QUIET, fit={"epochs": 4})
    checkpoints._check_same(tmp_path, saved_by(QUIET), more, "the same")


def test_a_checkpoint_of_before_a_field_was_known_goes_on(tmp_path, monkeypatch):
    """What it does not name has its default, as in bundles."""
    values = QUIET.to_json()
    del values["negatives"]["num_hardest"]
    saved = {"recipe": json.dumps(values), "data": "the same"}
    checkpoints._check_same(tmp_path, saved, QUIET, "the same")
    catalogue = {"negatives": ("catalogue",), "num_hardest": 7}
    other = tiny.recipe(QUIET, negatives=catalogue, task={"correction": "none"})
    with pytest.raises(ValueError, match="another recipe"):
        checkpoints._check_same(tmp_path, saved, other, "the same")
    # One that is refused by now is another, too.
    monkeypatch.setattr(Recipe, "from_json", lambda values: FitConfig(patience=-1))
    with pytest.raises(ValueError, match="another recipe"):
        checkpoints._check_same(tmp_path, saved, QUIET, "the same")


def test_more_epochs_of_a_schedule_are_told(said):
    schedule = FitConfig(epochs=3, cosine=True, warmup_steps=0)
    for before, expected in ((1, 1), (3, 0)):
        said.clear()
        checkpoints._log_more_epochs({"fit": {"epochs": before}}, schedule, FitResult(epoch=before))
        assert len(said) == expected
        assert all(line.startswith("epochs grow from 1 to 3: the learning rate") for line in said)
    said.clear()
    without = FitConfig(epochs=3, cosine=False, warmup_steps=0)
    checkpoints._log_more_epochs({"fit": {"epochs": 1}}, without, FitResult(epoch=1))
    assert not said
    stopped = FitResult(epoch=1, stopped=True)
    checkpoints._log_more_epochs({"fit": {"epochs": 1}}, schedule, stopped)
    assert "early stopping ended" in said[0]


def test_an_interrupt_says_how_to_go_on(tmp_path, monkeypatch):
    training, _ = planted(monkeypatch, [0.1, KeyboardInterrupt()], epochs=3)
    validate = training.validate

    def interrupted():
        found = validate()
        if isinstance(found["recall_micro@100"]["mean"], KeyboardInterrupt):
            raise found["recall_micro@100"]["mean"]
        return found

    monkeypatch.setattr(training, "validate", interrupted)
    with pytest.raises(
        KeyboardInterrupt, match=r"in epoch 2 of 3\. The same command goes on after"
    ):
        fit(training, tmp_path)
    assert interrupted_in(3, tmp_path / "W", monkeypatch) == "after the last epoch"


def interrupted_in(epoch, workdir, monkeypatch):
    """What is said of an interrupt once the log has this many of 3 epochs."""
    training, _ = planted(monkeypatch, [0.1] * epoch, epochs=3)
    model_fit = training.model.fit

    def fit_and_interrupt(*args, **kwargs):
        model_fit(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(training.model, "fit", fit_and_interrupt)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        fit(training, workdir)
    return str(interrupt.value).partition(".")[0].removeprefix("interrupted ")


def test_a_workdir_that_cannot_be_written_is_found_before_an_epoch(tmp_path):
    (tmp_path / "W").write_text("a file")
    training = tiny.without_learning(Training(tiny.dataset(), tiny.split(), tiny.recipe()))
    with pytest.raises(OSError, match="W"):
        fit(training, tmp_path / "W")
    assert training.model.optimizer is None


def planted(monkeypatch, figures, **fit_fields):
    """A training that is told `figures`, one an epoch; and its item vectors then, by epoch."""
    training = Training(tiny.dataset(), tiny.split(), tiny.recipe(fit=fit_fields))
    tiny.without_learning(training)
    figures, weights = iter(figures), {}

    def validate():
        weights[len(weights) + 1] = training.item_vectors(training.split.candidates)
        return {"recall_micro@100": {"mean": next(figures), "low": 0.0, "high": 1.0}}

    monkeypatch.setattr(training, "validate", validate)
    return training, weights


def test_early_stopping_restores_the_best_weights(tmp_path, monkeypatch):
    # The second epoch is best, then two worse ones.
    figures = [0.1, 0.3, 0.2, 0.25, 0.9]
    training, weights = planted(monkeypatch, figures, epochs=5, patience=2)
    keys = training.split.candidates
    result = fit(training, tmp_path)
    assert (result.epoch, result.best_epoch, result.best, result.stopped) == (4, 2, 0.3, True)
    assert result.validation["recall_micro@100"]["mean"] == 0.3
    np.testing.assert_array_equal(training.item_vectors(keys), weights[2])
    assert np.abs(weights[4] - weights[2]).max() > 1e-3
    # A stopped run stays stopped.
    assert fit(training, tmp_path).epoch == 4


def test_in_a_small_catalogue_a_figure_selects_that_can_tell(tmp_path, monkeypatch):
    # Of 297 candidates any model finds all among the first 500; among the first 100 it does not.
    fields = {"epochs": 3, "patience": 0, "metric": "recall_micro@500"}
    training, _ = planted(monkeypatch, [0.1, 0.3, 0.2], **fields)
    result = fit(training, tmp_path)
    assert (result.metric, result.best_epoch, result.best) == ("recall_micro@100", 2, 0.3)


def test_the_last_epoch_is_kept_where_the_recipe_says_so(tmp_path, monkeypatch):
    training, weights = planted(monkeypatch, [0.3, 0.1, 0.2], epochs=3, keep_best=False)
    result = fit(training, tmp_path)
    assert (result.epoch, result.best_epoch, result.best, result.stopped) == (3, 3, 0.2, False)
    vectors = training.item_vectors(training.split.candidates)
    np.testing.assert_array_equal(vectors, weights[3])
    assert np.abs(weights[3] - weights[1]).max() > 1e-3


def test_the_last_epoch_is_judged_between_two_validations(tmp_path, monkeypatch):
    for keep_best, kept in ((True, 2), (False, 3)):
        figures = {"epochs": 3, "validate_every": 2, "keep_best": keep_best}
        training, _ = planted(monkeypatch, [0.3, 0.1], **figures)
        result = fit(training, tmp_path / str(keep_best))
        assert result.best_epoch == kept
        assert ["recall_micro@100" in entry for entry in result.log] == [False, True, True]


@pytest.mark.slow
def test_a_resumed_epoch_drops_other_activations_than_the_first(tmp_path):
    recipe = tiny.recipe(
        query={"features": ("history",), "history": "gru", "history_dropout": 0.5},
        fit={"epochs": 3},
    )
    dropped = []
    for stop in (1, 2):
        training = Training(tiny.dataset(), tiny.split("loo"), recipe)
        (history,) = training.model.query_tower.features
        masks = []

        def ones(x, training=False, drop=history.drop.call, masks=masks):
            kept = drop(tf.ones([4, 100]), training=training)
            tf.py_function(lambda values: masks.append(values.numpy()), [kept], [])
            return drop(x, training=training)

        monkey = pytest.MonkeyPatch()
        monkey.setattr(history.drop, "call", ones)
        fit(training, tmp_path, stop_after=stop)
        monkey.undo()
        dropped.append(masks[0])
    assert dropped[0].shape == dropped[1].shape and set(np.unique(dropped[0])) == {0.0, 2.0}
    assert (dropped[0] != dropped[1]).mean() > 0.3


def test_tensorboard_gets_loss_and_validation(tmp_path):
    training = Training(tiny.dataset(), tiny.split(), tiny.recipe(fit={"epochs": 2}))
    result = fit(tiny.without_learning(training), tmp_path, tensorboard=True)
    logged = {}
    for path in (tmp_path / "tensorboard").rglob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    logged.setdefault(value.tag, []).append(float(tf.make_ndarray(value.tensor)))
    expected = {"epoch_loss": "loss", "epoch_recall_micro@100": "recall_micro@100"}
    for tag, name in expected.items():
        assert logged[tag] == pytest.approx([entry[name] for entry in result.log], rel=1e-6)


def test_without_selection_the_last_epoch_counts(tmp_path, monkeypatch):
    training = Training(tiny.dataset(), tiny.split(part="test"), tiny.DEFAULT)
    monkeypatch.setattr(training, "validate", lambda: pytest.fail("a refit has no validation"))
    result = fit(tiny.without_learning(training), tmp_path, select=False, stop_after=2)
    assert (result.epoch, result.best_epoch, result.validation) == (2, 0, {})
    assert [set(entry) for entry in result.log] == [{"epoch", "loss", "seconds"}] * 2


def shuffled(kind: str) -> Dataset:
    """The data with other items in the training rows; those that will be asked stay."""
    made, rng = tiny.dataset(), np.random.default_rng(0)
    train = make_split(made, "random", "test").train
    frame = made.interactions.copy()
    ids = frame["item_id"].to_numpy(object).copy()
    if kind == "permuted":
        ids[train] = rng.permutation(ids[train])
    else:
        ids[train] = rng.choice(made.items["item_id"].to_numpy(object), len(train))
    frame["item_id"] = ids
    return Dataset(f"synthetic/{kind}", frame, made.items, made.users)


def recall_after_training(dataset: Dataset, workdir) -> tuple[float, object]:
    split = make_split(dataset, "random", "test")
    training = Training(dataset, split, tiny.DEFAULT)
    fit(training, workdir, select=False)
    return training.validate()["recall_micro@20"]["mean"], split


def test_drawn_targets_fall_to_chance(tmp_path):
    """1,300 targets: two standard errors of a share of .08 are .015. On the true rows the model
    finds four times as much (`test_loss_falls_and_recall_beats_popularity`)."""
    # Items drawn evenly: nothing is left, so a hit is luck, 20 of the items that are not excluded.
    recall, split = recall_after_training(shuffled("uniform"), tmp_path)
    chance = np.mean(20 / (len(split.candidates) - split.cases.exclude.lengths))
    assert 0.07 < chance < 0.09
    assert recall < 1.5 * chance


@pytest.mark.slow
def test_permuted_targets_fall_to_popularity(tmp_path):
    """Who liked what is gone and popularity is left; no more than that is found."""
    permuted = shuffled("permuted")
    recall, split = recall_after_training(permuted, tmp_path / "permuted")
    assert recall < popularity(split, permuted) + 0.02
    # The same run on the true rows finds more, so the bound above means something.
    recall, split = recall_after_training(tiny.dataset(), tmp_path / "true")
    assert recall > popularity(split) + 0.02


class SavedWeights:
    """What `warm_start` reads of a bundle: the folder `training/`, and which rows are behind it."""

    def __init__(self, training: Training, directory) -> None:
        self.lineage = training.lineage()
        self.directory = directory
        directory.mkdir(exist_ok=True)
        save_weights(training, directory / "training")

    def read(self, part: str, load):
        return load(self.directory / part)


def grown_and_reversed() -> Dataset:
    """The tiny service with its items in reverse order, ids that sort first, and ten new items."""
    made = tiny.dataset()
    new = made.items.iloc[:10].assign(item_id=[f"a{n}" for n in range(10)])
    return Dataset("later", made.interactions, pd.concat([new, made.items.iloc[::-1]]), made.users)


def test_warm_start_follows_ids(learned, tmp_path):
    old, _ = learned
    saved = SavedWeights(old, tmp_path)
    data = grown_and_reversed()
    # The ten new items are watched once each by the first ten users, at the very start: training
    # rows of `random` by their place, as the last rows of the table are.
    rows = data.interactions.iloc[:10].assign(item_id=[f"a{n}" for n in range(10)], event="watch")
    data = dataclasses.replace(
        data, interactions=pd.concat([rows, data.interactions], ignore_index=True)
    )
    split = make_split(data, "random")
    new = Training(data, split, tiny.recipe(fit={"topk_every": 0}))
    fresh = {f.name: f.table.embeddings.numpy() for f in new.model.item_tower.features[:1]}
    # Of other rows `random` asks for what the old training has learned; no figure is taken here.
    counts = warm_start(new, saved, allow_seen=True)
    assert counts["fresh"] == 0 and counts["matched"] > 0 and counts["copied"] > 0

    before, after = old.model.item_tower.features[0], new.model.item_tower.features[0]
    assert before.name == after.name == "item_id"
    assert before.vocabulary != after.vocabulary
    old_table, new_table = before.table.embeddings.numpy(), after.table.embeddings.numpy()
    place = {item: row for row, item in enumerate(before.vocabulary, 1)}
    np.testing.assert_array_equal(new_table[0], old_table[0])  # the row of unknown ids
    known = 0
    for row, item in enumerate(after.vocabulary, 1):
        if item in place:
            np.testing.assert_array_equal(new_table[row], old_table[place[item]])
            known += 1
        else:
            np.testing.assert_array_equal(new_table[row], fresh["item_id"][row])
    assert 250 < known < len(after.vocabulary)

    # The history's table has rows for padding and unknown ids before those of the items.
    before, after = (
        next(f for f in t.model.query_tower.features if f.name == "history") for t in (old, new)
    )
    item = "i00001" if "i00001" in before.vocabulary else before.vocabulary[0]
    np.testing.assert_array_equal(
        after.table.embeddings.numpy()[2 + after.vocabulary.index(item)],
        before.table.embeddings.numpy()[2 + before.vocabulary.index(item)],
    )


@pytest.mark.parametrize("shared", ["nothing", "item_embedding"])
@pytest.mark.parametrize("history", ["recency", "transformer"])
def test_warm_start_of_a_sequential_tower(history, shared, tmp_path):
    recipe = tiny.recipe(
        query={
            "features": ("history",),
            "history": history,
            "history_content": True,
            "shared": shared,
        },
        item={"features": ("item_id", "title"), "l2_normalise": False},
    )
    old = Training(tiny.dataset(), tiny.split("loo"), recipe)
    # One word of titles is another now, which comes first by the alphabet: as many, moved by one.
    data = grown_and_reversed()
    last = next(f for f in old.model.item_tower.features if f.name == "title").vocabulary[-1]
    titles = data.items.title.str.replace(rf"(?i)\b{last}\b", "aaaa", regex=True)
    data = dataclasses.replace(data, items=data.items.assign(title=titles))
    new = Training(data, make_split(data, "loo"), recipe)
    assert warm_start(new, SavedWeights(old, tmp_path))["fresh"] == 0
    # Words of titles go by themselves, and not by the ids of the history around them.
    for towers in ("query_tower", "item_tower"):
        before, after = (
            next(f for f in features if f.name == "title")
            for features in (
                getattr(one.model, towers).features[0].content.features
                if towers == "query_tower"
                else one.model.item_tower.features
                for one in (old, new)
            )
        )
        assert before.vocabulary != after.vocabulary
        places = {word: row for row, word in enumerate(before.vocabulary)}
        tables = [one.table.embeddings.numpy() for one in (before, after)]
        special = [len(t) - len(f.vocabulary) for t, f in zip(tables, (before, after))]
        for row, word in enumerate(after.vocabulary):
            if word in places:
                np.testing.assert_array_equal(
                    tables[1][special[1] + row], tables[0][special[0] + places[word]]
                )


def test_warm_start_of_a_tower_that_is_told_more(tmp_path):
    """A table more among the weights moves no other one into a wrong place."""
    query = {"features": ("history",), "history": "transformer"}
    old = Training(tiny.dataset(), tiny.split("loo"), tiny.recipe(query=query))
    for weight in old.model.query_tower.weights:  # all differ, those of one shape, too
        weight.assign(tf.random.stateless_normal(weight.shape, [1, len(weight.name)]))
    told = tiny.recipe(query=query | {"history_gaps": True})
    new = Training(tiny.dataset(), tiny.split("loo"), told)
    assert warm_start(new, SavedWeights(old, tmp_path))["fresh"] == 1  # the gaps' own
    before, after = (one.model.query_tower.features[0] for one in (old, new))
    for block, same in zip(before.blocks, after.blocks, strict=True):
        for weight, copied in zip(block.weights, same.weights, strict=True):
            np.testing.assert_array_equal(copied, weight)
    np.testing.assert_array_equal(after.norm.gamma, before.norm.gamma)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "recall@100_micro"}, "metric must be one of"),
        ({"weight_decay": 0.1}, "'adam' would ignore it"),
        ({"patience": -1}, "patience must be 0"),
        ({"seed": -1}, "seed must be 0 or more; got -1"),
        ({"seed": 2**32}, r"seed must be below 2\*\*32; got 4294967296"),
        ({"learning_rate": np.inf}, "learning_rate must be positive and finite"),
        ({"cosine": False}, "warmup_steps=200 has no effect.*cosine.*warmup_steps=0"),
        ({"keep_best": False}, "patience=5 has no effect.*keep_best.*patience=0"),
    ],
)
def test_fits_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        FitConfig(**fields)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\); got 1.0"),  # nothing would be learned
        ({"dropout": np.nan}, "dropout must lie in"),
        ({"query_unknown_rate": 1.0}, "unknown_rate must lie in"),
        ({"item_unknown_rate": -0.1}, "unknown_rate must lie in"),
        ({"dim": 0}, "dim must be 1 or more; got 0"),
        ({"dim": 8.0}, "dim must be an integer; got 8.0"),
        ({"hidden": [16, 0]}, r"hidden layers must have a width of 1 or more; got \(16, 0\)"),
        ({"item_id_dim": 0}, "id_dim must be 1 or more"),
        ({"query_category_dim": -1}, "category_dim must be 1 or more"),
        ({"cosine": "False"}, "cosine must be True or False; got 'False'"),  # it would be true
        ({"l2_normalise": 0}, "l2_normalise must be True or False; got 0"),
        ({"temperature": "0.1"}, "temperature must be a number; got '0.1'"),
        ({"learning_rate": True}, "learning_rate must be a number; got True"),
        ({"hidden": "512,256"}, "hidden must be an integer; got '512,256'"),
        ({"hidden": [16.0]}, r"hidden must be an integer; got 16\.0"),
        ({"query_history_dim": 8.0}, "dim must be an integer; got 8.0"),
        ({"query_history": "gru", "query_history_length": 2.5}, "length must be an integer"),
    ],
)
def test_towers_that_make_no_sense(choices, message):
    """Named before the data is read."""
    with pytest.raises(ValueError, match=message):
        Recipe(**choices)


def test_numbers_of_numpy_are_saved_as_pythons():
    """A training must not end with a manifest that cannot be written, and a list is a tuple."""
    chosen = Recipe(
        epochs=np.int64(3),
        seed=np.int32(4),
        temperature=np.float64(0.5),
        learned_temperature=np.bool_(True),
        hidden=np.array([16, 8]),
        item=ItemConfig(features=["item_id"]),
        query_history_dim=np.int64(8),
    )
    plain = Recipe(
        epochs=3,
        seed=4,
        temperature=0.5,
        learned_temperature=True,
        hidden=(16, 8),
        item=ItemConfig(features=("item_id",)),
        query_history_dim=8,
    )
    assert chosen == plain
    assert json.dumps(chosen.to_json()) == json.dumps(plain.to_json())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"negatives": {"negatives": ("catalogue",)}},
            "log_q_masked.*take correction='none'",
        ),
        ({"mining": {"skip": 3}}, "skip=3 has no effect.*hard_negative_share"),
        ({"examples": {"hidden_share": 0.5}}, "hidden_share=0.5 has no effect.*sequence_length"),
        ({"item": {"hidden": (), "dropout": 0.5}}, "dropout=0.5 has no effect.*hidden layers"),
        ({"query": {"hidden": (), "batch_norm": True}}, "batch_norm=True has no effect"),
        (
            {
                "query": {"features": ("history",), "shared": "tower", "hidden": (4,)},
                "item": {"features": ("item_id",)},
            },
            r"hidden=\(4,\).*item tower's \(16,\)",
        ),
    ],
)
def test_parts_of_a_recipe_of_which_one_has_no_effect(parts, message):
    with pytest.raises(ValueError, match=message):
        tiny.recipe(**parts)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_sampled": 64}, "num_sampled=64 has no effect.*uniform or popularity"),
        ({"negatives": ("uniform",), "sampled_power": 0.5}, "sampled_power=0.5 has no effect"),
        ({"memory_size": 9}, "memory_size=9 has no effect.*memory"),
    ],
)
def test_negatives_of_which_nothing_is_drawn(fields, message):
    with pytest.raises(ValueError, match=message):
        NegativesConfig(**fields)


@pytest.fixture
def said(monkeypatch):
    """What is logged while a training is made and fitted."""
    lines = []
    for module in (training_module, fitting):
        for level in ("info", "warning"):
            monkeypatch.setattr(module.logging, level, lambda text, *v: lines.append(text % v))
    return lines


def test_a_warm_up_leaves_steps_to_learn_in(said):
    # 3 epochs of 8 steps: two fifths are 9. Of 600 steps 200 are less than that.
    for steps, peak in ((8, 9), (200, 200)):
        rate = make_optimizer(FitConfig(epochs=3, learning_rate=0.5), steps)._learning_rate
        rates = [float(rate(step)) for step in range(3 * steps)]
        assert np.argmax(rates) == peak and rates[peak] == pytest.approx(0.5)
        assert rates[peak // 2] == pytest.approx(0.5 * (peak // 2) / peak)
    assert said == ["warmup_steps=200 of 24 steps in all: the learning rate rises over 9 of them."]


def test_what_comes_too_late_to_happen_is_told(said):
    fields = {"epochs": 1, "validate_every": 3, "topk_every": 2, "patience": 4}
    recipe = tiny.recipe(negatives={"hard_negative_share": 0.1}, fit=fields)
    assert fitting.mining_of(recipe, 12).warmup == 4  # two fifths of 12 steps
    fitting._log_what_comes_too_late(recipe, select=True)
    assert said == [
        "mining.warmup=400 of 12 steps in all: the first mining is at step 4.",
        "patience=4 of 1 epochs: nothing stops early.",
        "validate_every=3 of 1 epochs: the last epoch alone is validated.",
        "topk_every=2 of 1 epochs: FactorizedTopK is never computed.",
    ]
    said.clear()
    fitting._log_what_comes_too_late(recipe, select=False)
    assert not said


def test_a_loss_that_is_no_number_ends_the_training_at_its_step(tmp_path):
    training = Training(tiny.dataset(), tiny.split(), tiny.recipe(fit={"learning_rate": 1e30}))
    with pytest.raises(ValueError, match=r"step 2 of epoch 1: the loss is .*learning_rate=1e\+30"):
        fit(training, tmp_path / "rate")
    # One weight before the first step; the message names it, and nothing was saved.
    training = Training(tiny.dataset(), tiny.split(), tiny.DEFAULT)
    table = training.model.item_tower.features[0].table.embeddings
    table.assign(tf.where(tf.range(table.shape[0])[:, None] == 5, np.nan, table))
    with pytest.raises(
        ValueError, match=r"step 1 of epoch 1: the loss is nan.*item_tower.*item_id"
    ):
        fit(training, tmp_path / "weight")
    assert not list((tmp_path / "weight").rglob("ckpt*"))


def test_a_weight_that_is_no_number_is_found_behind_a_loss_that_is(tmp_path, monkeypatch):
    training = Training(tiny.dataset(), tiny.split(), tiny.DEFAULT)
    model = training.model
    kernel, loss = model.query_tower.head.projection.kernel, model.compute_loss
    # A root at zero: 0, with a slope of infinity times 0.
    monkeypatch.setattr(
        model,
        "compute_loss",
        lambda inputs, training: loss(inputs, training) + tf.sqrt(0.0 * tf.reduce_sum(kernel)),
    )
    with pytest.raises(ValueError, match=r"step 1 of epoch 1: .*query_tower/head"):
        fit(training, tmp_path)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_other_precisions_are_refused_at_the_start(policy):
    model = Training(tiny.dataset(), tiny.split(), tiny.DEFAULT).model
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        for make in (
            lambda: Training(tiny.dataset(), tiny.split(), tiny.DEFAULT),
            lambda: TwoTowerModel(
                *(model.query_tower, model.item_tower, {}), np.ones(3) / 3, tiny.DEFAULT.task
            ),
            lambda: DenseHead((), 4),
            lambda: Clock("time"),
        ):
            with pytest.raises(ValueError, match=f"in float32.*{policy}.*set_global_policy"):
                make()
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")


def test_sizes_of_what_a_tower_does_not_read_are_told():
    recipe = Recipe(
        query=QueryConfig(user_dim=8, category_dim=3, unknown_rate=0.1),
        item=ItemConfig(("item_id", "year"), min_token_count=3),
    )
    said = recipe.unread()
    assert [sentence.split(" has no effect")[0] for sentence in said] == [
        "query.user_dim=8",
        "query.unknown_rate=0.1",
        "query.category_dim=3",
        "item.min_token_count=3",
    ]
    assert "user_id" in said[0] and not Recipe().unread()
    alone = Recipe(query=QueryConfig(("user_id",), history=GRUConfig(layers=1)))
    (text,) = alone.unread()
    assert text.startswith("query.history=GRUConfig(dim=256") and "feature history" in text


def test_a_recipe_of_unknown_parts_is_refused():
    with pytest.raises(TypeError, match=r"no parts \['tsk'\]"):
        Recipe.from_json({"tsk": {"temperature": 0.3}})
    with pytest.raises(TypeError, match=r"no history encoder reads 'depth'; there are .*'layers'"):
        Recipe.from_json({"query": {"history": {"encoder": "gru", "depth": 3}}})


@pytest.mark.parametrize("encoder", [*CONFIGS])
def test_a_recipe_comes_back_from_its_json(encoder):
    recipe = Recipe(query_history=encoder, query_history_dim=32, item_id_dim=8)
    written = json.loads(json.dumps(recipe.to_json()))
    assert written["query"]["history"]["encoder"] == encoder and recipe.query.history.dim == 32
    assert Recipe.from_json(written) == recipe


def test_a_recipe_of_version_0_1_0_has_the_fields_of_all_encoders_in_its_query():
    before = {"history": "hstu", "history_dim": 64, "history_positions": "", "history_layers": 1}
    before |= {"history_power": 0.5, "history_half_life": 20.0, "history_gaps": True, "dim": 32}
    expected = HSTUConfig(dim=64, layers=1, gaps=True)
    assert Recipe.from_json({"query": before}).query == QueryConfig(dim=32, history=expected)


def test_choices_of_a_history():
    # What the mean reads, too, stays as it is.
    base = Recipe(query_history="gru", query_history_dim=64, query_history_layers=1)
    mean = Recipe(query=base.query, query_history="mean")
    assert mean.query.history == MeanConfig(dim=64)
    # HSTU has another default, and a flag file may undo what it includes.
    hstu = Recipe(query_history="hstu", query_history_time_bias=False)
    assert hstu.query.history == HSTUConfig() and HSTUConfig().positions == "relative"
    absolute = Recipe(query_history="hstu", query_history_positions="absolute")
    assert absolute.query.history.positions == "absolute"
    for choices, message in (
        ({"query_history": "max"}, r"one of \['mean', 'recency', .*; got 'max'"),
        ({"query_history_gaps": True}, "'mean' does not read gaps=True; recency, .*hstu can"),
        (
            {"query_history": "hstu", "query_history_time_bias": True},
            "'hstu' does not read time_bias=True; transformer, masked_transformer can",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            Recipe(**choices)


@pytest.mark.parametrize(
    ("share", "skip", "message"),
    [
        (0.001, 0, r"share=0.001 of batch_size=256 is 0 negatives"),
        (0.1, 300, "mining.skip=300 are skipped"),
    ],
)
def test_mining_that_finds_nothing_is_refused(share, skip, message):
    parts = {"negatives": {"hard_negative_share": share}, "mining": {"skip": skip}}
    with pytest.raises(ValueError, match=message):
        Training(tiny.dataset(), tiny.split(), tiny.recipe(**parts))


def test_ratings_that_a_history_cannot_tell_apart_are_refused():
    query = {"features": ("history",), "history": "gru", "history_ratings": True}
    data, recipe = tiny.dataset(), tiny.recipe(query=query)
    stars = np.random.default_rng(0).integers(1, 6, len(data.interactions)).astype(np.float32)

    def train_on(ratings):
        rated = data.interactions.assign(rating=ratings)
        other = dataclasses.replace(data, interactions=rated)
        Training(other, make_split(other, "loo"), recipe)

    train_on(stars)
    with pytest.raises(ValueError, match="from 2 to 10"):
        train_on(2 * stars)
    with pytest.raises(ValueError, match="no train"):
        train_on(np.nan * stars)


@pytest.mark.slow
def test_warm_start_is_ahead_after_one_epoch(learned, tmp_path):
    old, _ = learned
    saved = SavedWeights(old, tmp_path / "saved")
    figures = {}
    for name in ("cold", "warm"):
        training = Training(tiny.dataset(), tiny.split(), tiny.recipe(fit={"learning_rate": 1e-3}))
        if name == "warm":
            warm_start(training, saved)
        result = fit(training, tmp_path / name, stop_after=1)
        figures[name] = result.log[0]["recall_micro@20"]
    assert figures["warm"] > 1.3 * figures["cold"]


def test_warm_start_from_another_model_is_refused(learned, tmp_path):
    saved = SavedWeights(learned[0], tmp_path)
    with np.load(tmp_path / "training" / "weights.npz") as old:
        renamed = {f"other/{name}": values for name, values in old.items()}
    np.savez(tmp_path / "training" / "weights.npz", **renamed)
    with pytest.raises(BundleError, match=r"weights\.npz shares no weight"):
        warm_start(learned[0], saved)


def test_features_of_one_example_need_queries_of_their_own():
    recipe = tiny.recipe(query={"features": ("history", "device")})
    with pytest.raises(ValueError, match="targets_per_query=1"):
        Training(tiny.dataset(), tiny.split("random"), recipe)
    alone = tiny.recipe(recipe, examples={"targets_per_query": 1})
    assert Training(tiny.dataset(), tiny.split("random"), alone).examples.alone
    with pytest.raises(ValueError, match=r"loo\+time"):
        clock = tiny.recipe(query={"features": ("history", "time")})
        Training(tiny.dataset(), tiny.split("loo"), clock)


def test_unknown_features_are_named():
    with pytest.raises(
        ValueError, match=r"unknown item features \['colour'\].*'maker'.*recipe_for"
    ):
        Training(tiny.dataset(), tiny.split(), tiny.recipe(item={"features": ("colour",)}))
    with pytest.raises(ValueError, match=r"unknown query features \['shoe'\].*'gender'"):
        Training(tiny.dataset(), tiny.split(), tiny.recipe(query={"features": ("shoe",)}))


DETERMINISTIC = """
import sys; sys.path.insert(0, {tests!r})
import numpy as np, tiny, tempfile
from twotower.towers.numbers import Clock
from twotower.training.fitting import fit, make_optimizer
from twotower.training.model import TwoTowerModel
from twotower.objective.negatives import NegativesConfig
from twotower.training.training import Training
recipe = tiny.recipe(query={{"dropout": 0.1}}, fit={{"deterministic": True, "epochs": 1}})
training = Training(tiny.dataset(), tiny.split(), recipe)
fit(training, tempfile.mkdtemp(), select=False)
np.savez({out!r}, items=training.item_vectors(training.split.candidates),
         queries=training.query_vectors(training.split.cases))
"""


@pytest.mark.slow
def test_deterministic_runs_are_equal(tmp_path):
    files = [tmp_path / "one.npz", tmp_path / "two.npz"]
    # Two processes with hashes of their own, by which sets are ordered.
    for run, file in zip((tiny.python, tiny.script), files):
        run("-c", DETERMINISTIC.format(tests=str(tiny.ROOT / "tests"), out=str(file)))
    one, two = (np.load(file, allow_pickle=False) for file in files)
    for name in ("items", "queries"):
        np.testing.assert_array_equal(one[name], two[name])
    assert np.ptp(one["items"]) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_killed_in_the_second_epoch_it_resumes_to_the_end(name, tmp_path):
    """train.py is killed or gets Ctrl-C while epoch 2 runs; the same command finishes the job."""
    command = [
        sys.executable,
        str(tiny.ROOT / "experiments" / "train.py"),
        "--dataset=synthetic",
        f"--workdir={tmp_path}",
        "--epochs=3",
        "--hidden=16",
        "--dim=8",
        "--batch_size=64",  # some 1,300 steps: an epoch takes seconds
        "--norefit",
        "--indexes=",
    ]
    last = tmp_path / "selection" / "checkpoints" / "last"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore it, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 240
    while not (last / "checkpoint").exists() and time.monotonic() < deadline:
        assert process.poll() is None, "train.py ended before its first checkpoint"
        time.sleep(0.05)
    time.sleep(1.0)  # into epoch 2
    os.kill(process.pid, signal.Signals[name])
    _, printed = process.communicate(timeout=60)
    if name == "SIGKILL":
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert printed.endswith("The same command goes on after epoch 1.\n")
    assert not (tmp_path / "bundle").exists()
    assert [path.name for path in last.glob("*.index")] == ["ckpt-1.index"]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    assert "continuing after epoch 1" in done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [entry["epoch"] for entry in metrics["log"]] == [1, 2, 3]
    assert Bundle(tmp_path / "bundle").manifest["refit"] is False
