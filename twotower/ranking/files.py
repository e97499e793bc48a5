"""Saves and loads rankers; nothing is pickled.

ranker.json           format and model version, inputs, heads, weights, how it was trained, sha256
                      of every file
columns/<array>.npy   what `CandidateColumns` learned from the training rows
network/              a SavedModel: columns by name, [requests, candidates, ...] -> heads
trees.txt             in its place, trees as LightGBM writes them
"""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from twotower import __version__
from twotower.funnel.saving import read_arrays, write_arrays
from twotower.ranking.candidate_ranker import CandidateRanker, Outputs
from twotower.ranking.columns import CandidateColumns
from twotower.ranking.examples import WATCH
from twotower.ranking.inputs import NUMBERS, RankerInputs
from twotower.ranking.probability import Probability
from twotower.ranking.trees import table
from twotower.storage import bundle_part, description, paths
from twotower.storage.replacing import replacing
from twotower.towers.signatures import direct

FORMAT_VERSION = 1
DESCRIPTION = "ranker.json"
NETWORK, TREES = "network", "trees"
ENTRIES = {
    "model_version": str,
    "model": str,
    "columns": dict,
    "inputs": dict,
    "heads": list,
    "residual": bool,
    "weights": dict,
    "files": dict,
}
# Arguments of the functions of `bundle_part`, after the folder.
PART = (DESCRIPTION, "a ranker", ENTRIES, FORMAT_VERSION)


def save(
    ranker: CandidateRanker,
    models: Sequence[Any],
    directory: str | pathlib.Path,
    model_version: str,
    about: Mapping[str, Any],
) -> None:
    """Writes a ranker to a temporary folder, which then replaces `directory`.

    Args:
        ranker: The ranker.
        models: `Ranker` networks or LightGBM `Booster`s; the saved ranker averages their outputs.
        directory: Folder to write; a ranker in it is replaced.
        model_version: Version of the bundle whose candidates it was trained on.
        about: Settings and figures of its training, as JSON values.

    Raises:
        ValueError: Models of another kind, or a folder that may not be replaced.
    """
    is_trees = all(hasattr(model, "model_to_string") for model in models)
    if not models or not (is_trees or all(hasattr(model, "inputs_read") for model in models)):
        kinds = [type(model).__name__ for model in models]
        raise ValueError(f"a ranker is Rankers or LightGBM Boosters, one at least; got {kinds}.")
    with replacing(directory, DESCRIPTION) as folder:
        write_arrays(ranker.columns, folder / "columns")
        if is_trees:
            (folder / TREES).mkdir()
            for number, booster in enumerate(models):
                (folder / TREES / f"{number}.txt").write_text(booster.model_to_string())
        else:
            _save_networks(models, folder / NETWORK)
        probability = ranker.probability
        described = {
            "format_version": FORMAT_VERSION,
            "model_version": model_version,
            "model": TREES if is_trees else NETWORK,
            "columns": ranker.columns.settings(),
            "inputs": (ranker.columns.inputs if is_trees else models[0].inputs_read).to_json(),
            "heads": list(ranker.heads),
            "residual": ranker.residual,
            "weights": dict(ranker.weights),
            "probability": None
            if probability is None
            else [list(probability.scores), list(probability.probabilities)],
            "about": dict(about),
            "twotower": __version__,
            "files": description.hashes(folder),
        }
        description.write(folder / DESCRIPTION, json.loads(json.dumps(described)))


def load(directory: str | pathlib.Path, model_version: str) -> CandidateRanker:
    """Reads a ranker.

    Args:
        directory: What `save` wrote.
        model_version: Version of the bundle. A ranker that was saved with another is refused.

    Raises:
        ValueError: No ranker, another format, a file that is missing, changed or not listed, a
            ranker of another model, or one whose columns are not what its model reads.
    """

    return bundle_part.load(directory, *PART, model_version, _ranker)


def check(directory: str | pathlib.Path, model_version: str) -> None:
    """Compares the files of a ranker with what describes them. The model is not opened.

    Raises:
        ValueError: As `load`, but for models that do not fit their columns.
    """
    bundle_part.load(directory, *PART, model_version, lambda *_: None)


def entries(directory: str | pathlib.Path) -> dict[str, Any]:
    """The contents of `ranker.json`, checked.

    Raises:
        ValueError: No ranker, a description that is changed, or another format.
    """
    directory = paths.local(directory)
    return bundle_part.described(directory, *PART)


def of_networks(networks: Sequence[Any]) -> Outputs:
    """A function that averages the outputs of `Ranker`s."""
    from twotower.tf import tf

    return _called(tf.function(_mean(networks), reduce_retracing=True))


def of_trees(boosters: Sequence[Any], inputs: RankerInputs) -> Outputs:
    """A function that averages the outputs of LightGBM `Booster`s."""

    def outputs(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = table(columns, inputs)
        flat = rows.reshape(-1, rows.shape[-1])
        found = [booster.predict(flat, raw_score=True, num_threads=1) for booster in boosters]
        found = np.mean(found, axis=0)
        return {WATCH: found.reshape(rows.shape[:-1]).astype(np.float32)}

    return outputs


def _ranker(directory: pathlib.Path, described: dict) -> CandidateRanker:
    arrays: Any = read_arrays(CandidateColumns, directory, described["files"], "columns")
    columns = CandidateColumns(**described["columns"], **arrays)
    inputs = RankerInputs.from_json(described["inputs"])
    if inputs.shapes != columns.inputs.shapes or inputs.numbers != columns.numbers:
        raise ValueError(
            f"{directory / DESCRIPTION}: the model reads {[*inputs.shapes]} with the numbers "
            f"{inputs.numbers}, the columns give {[*columns.inputs.shapes]} with "
            f"{columns.numbers}. Parts of two rankers were mixed up; train one again."
        )
    if described["model"] == TREES:
        texts = sorted(name for name in described["files"] if name.startswith(f"{TREES}/"))
        outputs = of_trees([_booster(directory / name) for name in texts], inputs)
    else:
        outputs = _network(directory / NETWORK)
    points = described["probability"]
    return CandidateRanker(
        columns,
        outputs,
        tuple(described["heads"]),
        described["residual"],
        None if points is None else Probability(tuple(points[0]), tuple(points[1])),
        described["weights"],
    )


def _booster(path: pathlib.Path) -> Any:
    import lightgbm

    return lightgbm.Booster(model_str=path.read_text())


def _mean(networks: Sequence[Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Columns -> head -> mean of the networks' outputs, in TensorFlow."""

    def heads(columns: Mapping[str, Any]) -> dict[str, Any]:
        found = [network(columns) for network in networks]
        return {head: sum(part[head] for part in found) / len(found) for head in found[0]}

    return heads


def _save_networks(networks: Sequence[Any], directory: pathlib.Path) -> None:
    from twotower.tf import tf

    specs = {
        name: tf.TensorSpec(
            [None, None, *shape], tf.float32 if name == NUMBERS else tf.int32, name=name
        )
        for name, shape in networks[0].inputs_read.shapes.items()
    }
    served, heads = tf.Module(), _mean(networks)
    served.networks = list(networks)
    serve = tf.function(lambda **columns: heads(columns), autograph=False)
    signatures = {"serving_default": serve.get_concrete_function(**specs)}
    tf.saved_model.save(served, str(directory), signatures)


def _network(directory: pathlib.Path) -> Outputs:
    from twotower.tf import tf

    model = tf.saved_model.load(str(paths.literal(directory)))
    return _called(direct(model.signatures["serving_default"]), model)


def _called(heads: Callable[[dict], dict], model: Any = None) -> Outputs:
    """A TensorFlow function from arrays to arrays.

    Args:
        heads: Tensors by name -> tensors by name.
        model: What keeps its variables alive.
    """
    from twotower.tf import tf

    def outputs(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = heads({name: tf.constant(values) for name, values in columns.items()})
        return {head: values.numpy() for head, values in found.items()}

    outputs.model = model  # type: ignore[attr-defined]
    return outputs
