"""Two replicas on two logical CPUs train as one does at the same global batch.

The whole catalogue as negatives is slow: a replica adds its part of the loss in the same way.
"""

import json

import numpy as np
import pytest
import tiny

# Logical devices must be there before TensorFlow makes its first tensor.
SCRIPT = """
import json, sys, tempfile
from twotower.tf import tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import tiny
from twotower.training.fitting import fit
from twotower.training.training import Training

def curve(strategy, parts):
    recipe = tiny.recipe(
        query={"history_dropout": 0.0, "unknown_rate": 0.0},
        item={"unknown_rate": 0.0},
        examples={"batch_size": 500},
        fit={"epochs": 2},
        **parts,
    )
    with strategy.scope():
        training = Training(tiny.dataset(), tiny.split(), recipe)
    with tempfile.TemporaryDirectory() as folder:
        result = fit(training, folder)
    return [entry["loss"] for entry in result.log]

two = tf.distribute.MirroredStrategy(
    ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
)
parts = json.loads(sys.argv[1])
if "negatives" in parts:
    parts["negatives"]["negatives"] = tuple(parts["negatives"]["negatives"])
print(json.dumps([curve(strategy, parts) for strategy in (tf.distribute.get_strategy(), two)]))
"""
CATALOGUE = {"negatives": {"negatives": ["catalogue"]}, "task": {"correction": "none"}}


@pytest.mark.parametrize(
    "parts",
    [pytest.param({}, id="batch"), pytest.param(CATALOGUE, id="catalogue", marks=pytest.mark.slow)],
)
def test_two_replicas_have_the_loss_curve_of_one(parts):
    done = tiny.script("-c", SCRIPT, json.dumps(parts))
    one, two = json.loads(done.stdout.splitlines()[-1])
    assert one[1] < one[0] - 0.1
    np.testing.assert_allclose(two, one, rtol=1e-5)


REFUSED = """
from twotower.tf import tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from twotower.objective.config import NegativesConfig
from twotower.objective.hard_negatives import HardNegatives
from twotower.objective.memory import MemoryNegatives
from twotower.objective.task import TaskConfig
from twotower.ranking.config import RankerConfig
from twotower.ranking.inputs import Field, RankerInputs
from twotower.ranking.ranker import make_ranker
from twotower.towers.dense import DenseHead, Tower
from twotower.towers.features import Id
from twotower.training.model import TwoTowerModel

def model(normalised):
    towers = [
        Tower([Id(f"{name}_id", ["a"], 2)], DenseHead((4,), 2, batch_norm=name == normalised), name)
        for name in ("user", "item")
    ]
    return TwoTowerModel(*towers, towers[1].encode({"item_id": ["a"]}), [1.0], TaskConfig())

def ranker(**options):
    return make_ranker(RankerInputs((Field("item", 1),)), RankerConfig(**options))

model("user")  # on one replica
ranker(batch_norm=True)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    for kind, config in (
        (HardNegatives, NegativesConfig(hard_negative_share=0.1)),
        (MemoryNegatives, NegativesConfig(("batch", "memory"), memory_size=2)),
    ):
        try:
            kind(config, [0.5, 0.5], dim=1)
        except ValueError as error:
            print(error)
    model("neither")
    for name in ("user", "item"):
        try:
            model(name)
        except ValueError as error:
            print(error)
    ranker()
    # Without layers nothing is normalised.
    ranker(batch_norm=True, interaction="deepfm", hidden=())
    for options in ({}, {"hidden": (), "tasks": "mmoe", "expert_hidden": (4,)}):
        try:
            ranker(batch_norm=True, **options)
        except ValueError as error:
            print(error)
"""


def test_what_would_differ_on_several_replicas_is_refused():
    lines = tiny.script("-c", REFUSED).stdout.splitlines()
    assert lines == [
        f"{what} needs one replica; the strategy has 2. Train without {what}."
        for what in (
            "hard_negative_share or num_impressions",
            "negatives=memory",
            *4 * ["batch_norm"],
        )
    ]
