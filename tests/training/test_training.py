"""Training on a tiny made-up service: it learns, repeats, and ends at a loss that is not a number.

Each training traces its step anew, which takes seconds. So what happens around the steps is tested
with a step that costs nothing (`tiny.without_learning`), and what `fit` says before it begins by
the functions that say it. Slow are a time that is measured, two processes that must agree to the
bit, and permuted items.
"""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import tiny
from small_trainings import QUIET

from twotower.data.dataset import Dataset
from twotower.data.splits import make_split
from twotower.evaluation import baselines
from twotower.evaluation.evaluate import evaluate
from twotower.ragged import Ragged
from twotower.tf import tf
from twotower.training import fitting
from twotower.training.fitting import fit, make_optimizer
from twotower.training.recipe import FitConfig
from twotower.training.training import Training


def popularity(split, dataset=None) -> float:
    fitted = baselines.Popularity().fit(dataset or tiny.dataset(), split.train, split.candidates)
    return evaluate(fitted.recommend, split).metrics["recall_micro@20"]["mean"]


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
    """Of all targets in one batch, as columns: those that the user likes are not negatives."""
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


def recall_after_training(dataset: Dataset, workdir, epochs: int = 3) -> tuple[float, object]:
    split = make_split(dataset, "random", "test")
    training = Training(dataset, split, tiny.recipe(fit={"epochs": epochs}))
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
    recall, split = recall_after_training(permuted, tmp_path / "permuted", epochs=6)
    assert recall < popularity(split, permuted) + 0.02
    # The same run on the true rows finds more, so the bound above means something.
    recall, split = recall_after_training(tiny.dataset(), tmp_path / "true", epochs=6)
    assert recall > popularity(split) + 0.02


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
