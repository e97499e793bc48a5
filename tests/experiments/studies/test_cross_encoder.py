"""The cross-encoder, its score by hand; and data of any size for the studies.

The study itself, which trains twice, is slow.
"""

import json
import sys

import numpy as np
import pytest
import tiny

from twotower.data import load_dataset
from twotower.tf import tf

sys.path.insert(0, str(tiny.ROOT / "experiments" / "studies"))
SMALL = "--dataset=synthetic/small"


@pytest.fixture(scope="module")
def cross():
    """The task of a pair network with weights set by hand: width 2, vectors of 2."""
    from cross_encoder import CrossRetrieval

    recipe = tiny.recipe(task={"temperature": 1.0})
    task = CrossRetrieval(2, recipe.task, 5, recipe.negatives)
    task.pairs(tf.zeros([1, 2]), tf.zeros([1, 2]))
    task.of_query.set_weights([np.float32([[1, 0], [0, 1]]), np.float32([0, -1])])
    task.of_item.set_weights([np.float32([[1, 1], [0, 0]])])
    task.of_product.set_weights([np.float32([[0, 2], [1, 0]])])
    task.out.set_weights([np.float32([[1], [10]]), np.float32([0.5])])
    return task


def test_the_score_of_a_pair_by_hand(cross):
    # q = (1, 2), i = (3, -1): product (3, -2). Hidden: 1 + 3 - 2 = 2 and (2 - 1) + 3 + 6 = 10.
    score = cross.pairs(tf.constant([[1.0, 2.0]]), tf.constant([[3.0, -1.0]]))
    assert score.numpy().tolist() == [2 + 100 + 0.5]


def test_the_matrix_holds_the_pairs(cross):
    rng = np.random.default_rng(0)
    queries, items = np.float32(rng.normal(size=(3, 2))), np.float32(rng.normal(size=(4, 2)))
    matrix = cross.matrix(queries, items).numpy()
    for row, column in np.ndindex(3, 4):
        one = cross.pairs(queries[row : row + 1], items[column : column + 1]).numpy()
        assert matrix[row, column] == pytest.approx(one[0], rel=1e-5)
    # No product of two vectors scores like this: the rank is that of no matrix of 2 columns.
    assert np.linalg.matrix_rank(matrix) == 3


@pytest.mark.slow
def test_cross_encoder(tmp_path):
    output = tmp_path / "out.json"
    tiny.script(
        tiny.ROOT / "experiments/studies/cross_encoder.py",
        *(SMALL, "--negatives=uniform", "--num_sampled=64", "--width=16", "--batch_size=256"),
        *("--epochs=3", "--learning_rate=0.01", "--warmup_steps=5"),
        *(f"--workdir={tmp_path / 'W'}", f"--output={output}"),
    )
    towers, cross = json.loads(output.read_text())["rows"]
    assert (towers["name"], cross["name"]) == ("two towers", "cross-encoder")
    for row in (towers, cross):
        assert (row["protocol"], row["part"], len(row["log"])) == ("random", "validation", 3)
        assert row["log"][-1]["loss"] < row["log"][0]["loss"]
        # 100 of 300 items; chance finds a third.
        assert row["metrics"]["recall_micro@100"]["mean"] > 0.45
        # The model that is judged is the one of the last epoch.
        last = row["log"][-1]["recall_micro@100"]
        assert row["metrics"]["recall_micro@100"]["mean"] == pytest.approx(last, abs=1e-6)
    # Which of them is faster hangs on the machine's other work, at this size.
    assert min(cross["answer_ms"], towers["answer_ms"]) > 0


def test_a_dataset_of_any_size_is_a_folder_of_tables(tmp_path):
    folder = tmp_path / "made"
    sizes = ("--num_items=400", "--num_users=150", "--num_interactions=6000", "--seed=3")
    printed = tiny.script(
        tiny.ROOT / "experiments/studies/make_synthetic.py", *sizes, f"--output={folder}"
    ).stdout
    assert "wrote synthetic/150x400-seed3" in printed
    made = load_dataset("tables", str(folder))
    assert (len(made.items), len(made.users), len(made.interactions)) == (400, 150, 6000)


def test_tables_need_a_folder():
    with pytest.raises(ValueError, match="tables need data_dir"):
        load_dataset("tables")
