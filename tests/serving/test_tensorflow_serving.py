"""A bundle's SavedModels as TensorFlow Serving calls them: by its messages, over gRPC.

The server here is a few lines around `tf.saved_model.load`: the real one is not a Python package.
It does what the real one does: it finds the signature by its name, makes tensors of the message's
inputs, refuses inputs of other names, and answers with named tensors.
"""

from concurrent import futures

import grpc
import numpy as np
import pytest

from twotower.tf import tf

serving = pytest.importorskip("tensorflow_serving.apis.predict_pb2")
from tensorflow.core.protobuf import saved_model_pb2  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    prediction_service_pb2_grpc as service_grpc,
)

# What the real server calls; of other methods it says that they are not supported.
METHOD = "tensorflow/serving/predict"


class Server(service_grpc.PredictionServiceServicer):
    """Serves the SavedModels of a bundle by the names of their folders."""

    def __init__(self, folder) -> None:
        names = ("query_tower", "item_tower", "retrieve")
        self._models = {name: tf.saved_model.load(str(folder / name)) for name in names}

    def Predict(self, request, context):
        model = self._models[request.model_spec.name]
        signature = model.signatures[request.model_spec.signature_name or "serving_default"]
        inputs = dict(request.inputs)
        wanted = signature.structured_input_signature[1]
        if inputs.keys() != wanted.keys():
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"expected inputs {sorted(wanted)}")
        tensors = {name: tf.constant(tf.make_ndarray(value)) for name, value in inputs.items()}
        answer = serving.PredictResponse()
        try:
            for name, value in signature(**tensors).items():
                answer.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        except tf.errors.InvalidArgumentError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return answer


@pytest.fixture(scope="module")
def predict(bundle_folder):
    """Sends inputs to a model's signature; returns its outputs as arrays."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    service_grpc.add_PredictionServiceServicer_to_server(Server(bundle_folder), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    stub = service_grpc.PredictionServiceStub(channel)

    def call(model, inputs, signature=""):
        request = serving.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = model, signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        answer = stub.Predict(request, timeout=60)
        return {name: tf.make_ndarray(value) for name, value in answer.outputs.items()}

    yield call
    channel.close()
    server.stop(None)


QUERY = {"user_id": [b"u00001", b"nobody"], "history": [[b"i00003", b"i00007"], [b"zzz", b""]]}


def test_vectors_and_items(predict, bundle):
    vectors = predict("query_tower", QUERY)["embedding"]
    assert vectors.shape == (2, bundle.manifest["dim"]) and np.isfinite(vectors).all()
    exclude = [[b"i00003", b"i00007"], [b"", b""]]
    found = predict("retrieve", {**QUERY, "k": np.int32(5), "exclude": exclude})
    alone = bundle.recommend(["i00003", "i00007"], k=5, user_id="u00001")
    assert found["ids"][0].astype(str).tolist() == alone.ids
    np.testing.assert_allclose(found["scores"][0], alone.scores, atol=1e-5)
    assert found["counts"].tolist() == [5, 5]


def test_the_signature_whose_requests_can_be_joined(predict):
    exclude = [[b""], [b""]]
    found = predict("retrieve", {**QUERY, "k": np.int32([2, 4]), "exclude": exclude}, "batched")
    assert found["ids"].shape == (2, 4) and found["counts"].tolist() == [2, 4]


def test_a_session_by_messages(predict):
    state = predict("query_tower", QUERY, "begin")
    vector = state.pop("embedding")
    event = {"user_id": [b"u00001", b"nobody"], "history": [b"i00011", b"i00012"]}
    later = predict("query_tower", {**state, **event}, "step")["embedding"]
    assert later.shape == vector.shape and (later != vector).any(1).all()


def test_refusals(predict):
    with pytest.raises(grpc.RpcError, match="expected inputs"):
        predict("query_tower", {"user_id": [b"u"]})
    with pytest.raises(grpc.RpcError, match="k"):
        predict("retrieve", {**QUERY, "k": np.int32(0), "exclude": [[b""], [b""]]})


@pytest.mark.parametrize("model", ["query_tower", "item_tower", "retrieve"])
def test_each_signature_names_the_method_of_the_server(bundle, model):
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((bundle.directory / model / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0]
    assert list(graph.meta_info_def.tags) == ["serve"]
    signatures = dict(graph.signature_def)
    signatures.pop("__saved_model_init_op", None)
    assert {signature.method_name for signature in signatures.values()} == {METHOD}
    # The server's metadata tells a client what the manifest says.
    if model == "query_tower":
        names = {spec["name"] for spec in bundle.manifest["query_inputs"]}
        assert {*signatures["serving_default"].inputs} == names
