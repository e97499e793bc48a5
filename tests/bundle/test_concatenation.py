"""Several bundles side by side: the scores of one are the means of theirs."""

import shutil

import numpy as np
import pytest
import tiny

import twotower.bundle.export as exporting
from twotower.bundle.bundle import Bundle
from twotower.bundle.concatenation import concatenate, side_by_side
from twotower.bundle.export import add_index, export
from twotower.bundle.manifest import BundleError
from twotower.bundle.weights import warm_start
from twotower.data.inputs import QueryInputs
from twotower.evaluation.evaluate import evaluate
from twotower.retrieval.build import IndexConfig
from twotower.tf import tf
from twotower.training.training import Training


def bundle_of(folder, seed: int, protocol: str = "random", **parts) -> Bundle:
    recipe = tiny.recipe(fit={"seed": seed}, **parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting.scann_index, "available", lambda: False)  # not used here, and slow
        return export(Training(tiny.dataset(), tiny.split(protocol), recipe), folder)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    history = {"features": ("history",)}
    return [
        bundle_of(folder / "0", 0),
        bundle_of(folder / "1", 1, query=history, item={"l2_normalise": False}),
    ]


@pytest.fixture(scope="module")
def both(bundles, tmp_path_factory):
    return concatenate(bundles, tmp_path_factory.mktemp("both") / "bundle")


def requests(bundle: Bundle) -> dict:
    cases = tiny.split().cases.take(np.arange(12))
    inputs = [entry["name"] for entry in bundle.manifest["query_inputs"]]
    return QueryInputs(tiny.dataset(), inputs)(cases)


def test_by_hand():
    # 1 * 4 + 2 * 0 = 4 of the first model, 3 * 2 = 6 of the second: 5 in the mean.
    query = side_by_side([np.array([[1.0, 2.0]]), np.array([[3.0]])])
    item = side_by_side([np.array([[4.0, 0.0]]), np.array([[2.0]])])
    np.testing.assert_allclose(query @ item.T, [[5.0]])


def test_scores_are_the_mean(bundles, both):
    assert both.manifest["dim"] == sum(part.manifest["dim"] for part in bundles)
    assert both.manifest["ancestors"] == [part.model_version for part in bundles]
    assert len({both.model_version, *both.manifest["ancestors"]}) == 3
    scores = [part.query_tower(requests(part)) @ part.vectors.T for part in bundles]
    assert np.abs(scores[0] - scores[1]).max() > 0.1
    found = both.query_tower(requests(both)) @ both.vectors.T
    np.testing.assert_allclose(found, (scores[0] + scores[1]) / 2, atol=1e-5)


def test_it_is_a_bundle_like_any(bundles, both, tmp_path):
    dataset, split = tiny.dataset(), tiny.split()
    retriever = add_index(both, "hnsw", IndexConfig("hnsw"))
    inputs = QueryInputs(dataset, [entry["name"] for entry in both.manifest["query_inputs"]])

    def recommend(cases, k):
        return retriever.search(both.query_tower(inputs(cases)), k, exclude=cases.exclude)

    assert evaluate(recommend, split).metrics["recall@100"]["mean"] > 0
    again = Bundle(both.directory)  # every sha256 is compared
    np.testing.assert_array_equal(again.lineage.rows, bundles[0].lineage.rows)
    model = tf.saved_model.load(str(both.directory / "retrieve"))
    raw = {
        name: tf.constant(values, tf.string if values.dtype == object else None)
        for name, values in requests(both).items()
    }
    answer = model.signatures["serving_default"](
        k=tf.constant(5), exclude=tf.fill([12, 1], ""), **raw
    )
    exact = both.retriever().search(both.query_tower(requests(both)), 5)
    ids = both.catalogue.ids_of(exact.keys)
    assert [[one.decode() for one in row] for row in answer["ids"].numpy()] == ids.tolist()
    training = Training(dataset, split, tiny.recipe())
    with pytest.raises(BundleError, match="start from one of those"):
        warm_start(training, both, allow_seen=True)


def test_what_does_not_go_side_by_side(bundles, tmp_path):
    for few in ([], bundles[:1], [bundles[0], bundles[0]]):
        with pytest.raises(ValueError, match="two or more bundles of different trainings"):
            concatenate(few, tmp_path / "out")
    other = bundle_of(tmp_path / "other", 2, "loo")
    with pytest.raises(ValueError, match="its protocol is 'loo', that of"):
        concatenate([bundles[0], other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_none_of_them_is_written_over(tmp_path, bundles):
    """There may be no copy of the bundle that would be replaced."""
    copy = Bundle(shutil.copytree(bundles[0].directory, tmp_path / "part"))
    (tmp_path / "link").symlink_to(copy.directory)
    with pytest.raises(ValueError, match="link is one of the bundles, which would be lost"):
        concatenate([bundles[1], copy], tmp_path / "link")
    assert Bundle(copy.directory).model_version == bundles[0].model_version
