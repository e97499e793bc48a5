"""What a query process makes of an index process that answers, fails, or is of another training."""

import base64
import json

import numpy as np
import pytest
import urllib3
from fastapi.testclient import TestClient

from twotower.ragged import Ragged
from twotower.serving.app import create_app
from twotower.serving.asks import Ask
from twotower.serving.index_client import IndexCallError, IndexClient
from twotower.serving.live import Live
from twotower.serving.pipeline import Pipeline
from twotower.serving.remote_index import RemoteIndex
from twotower.serving.served_bundle import ServedBundle
from twotower.serving.service import Options, Service


class Answers:
    """What an index process may answer, in the place of a pool of connections."""

    def __init__(self, *answers) -> None:
        self.answers, self.count = list(answers), 0

    def urlopen(self, *_, **__):
        self.count += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        status, content = answer
        return urllib3.HTTPResponse(content, status=status)


CLOSED = urllib3.exceptions.ProtocolError("Connection aborted")
LATE = urllib3.exceptions.ReadTimeoutError(None, "/retrieve", "late")
SCORES = base64.b64encode(np.float32([2.0]).tobytes()).decode()
FOUND = {"model_version": "v1", "items": [["a"], []], "scores": SCORES}
FOREIGN = {"error": {"field": "model_version", "message": "this index holds vectors of ['v2']"}}
BUSY = {"error": {"field": "", "message": "too many requests are under way"}}


def client_of(*answers) -> IndexClient:
    client = IndexClient("http://127.0.0.1:1")
    client._pool = Answers(*answers)
    return client


def answered(*answers):
    client = client_of(*answers)
    return client.retrieve("v1", "hnsw", np.zeros((2, 3), np.float32), 5, Ragged.empty(2, object))


def test_a_connection_that_was_closed_is_opened_again():
    ids, scores = answered(CLOSED, (200, json.dumps(FOUND)))
    assert [row.tolist() for row in ids] == [["a"], []] and scores.tolist() == [2.0]


@pytest.mark.parametrize(
    "answers, match",
    [
        ([CLOSED, CLOSED], "does not answer; come back later"),
        ([LATE], "does not answer; come back later"),
        ([(422, json.dumps(FOREIGN))], "no vectors of model v1; deploy the bundle at the index"),
        ([(503, json.dumps(BUSY))], "answers 503: too many requests"),
        ([(502, "<html>Bad gateway")], "answers 502: no JSON"),
        ([(200, json.dumps({**FOUND, "model_version": "v2"}))], "for another training"),
    ],
)
def test_what_an_index_may_do_wrong_is_an_error_that_says_so(answers, match):
    with pytest.raises(IndexCallError, match=match):
        answered(*answers)


def test_a_mixed_pair_leaves_the_source_out_or_says_what_to_do(bundle_folder, tmp_path):
    client, wanted = client_of((422, json.dumps(FOREIGN))), "deploy the bundle at the index first"
    pipeline = Pipeline(bundle_folder, client=client, source_deadline=60)
    service = Service(Live((pipeline,)), tmp_path, options=Options(deadline=60))
    with TestClient(create_app(service)) as app:  # which starts in spite of it
        rest = app.post("/recommend", json={"history": ["i00003"]}).json()
        assert rest["items"] and wanted in rest["missing"]["two_tower"]
        alone = app.post("/recommend", json={"history": ["i00003"], "funnel": "two_tower"})
        assert alone.status_code == 503 and wanted in alone.json()["error"]["message"]
        body = {"vectors": [[0.5] * 8], "model_version": pipeline.model_version}
        search = app.post("/search", json=body)
        assert search.status_code == 503 and wanted in search.json()["error"]["message"]
        # What is added is kept, and not answered as if it had failed.
        added = app.post("/items", json={"add": [{"item_id": "n1"}]})
        assert added.status_code == 200 and wanted in added.json()["note"]
        # No request is to blame, so a batch is not asked again request by request.
        before = client._pool.count
        found = pipeline.recommend([Ask(funnel="two_tower")] * 3)
        assert client._pool.count == before + 1 and len(found) == 3


class Client:
    """Finds the same ids for each vector."""

    def __init__(self, ids: list[str], scores: list[float]) -> None:
        self.ids, self.scores = ids, scores

    def retrieve(self, model_version, index, vectors, k, exclude, version):
        self.asked = (model_version, index, k, [row.tolist() for row in exclude])
        ids = Ragged.from_rows([np.array(self.ids, object)] * len(vectors), object)
        return ids, np.float32(self.scores * len(vectors))


def test_a_remote_index_is_searched_in_ids(bundle_folder):
    bundle = ServedBundle(bundle_folder)
    (a, b), beyond = bundle.catalogue.ids_of(bundle.keys[:2]), len(bundle.catalogue)
    # `other` was added by another query process, and is not known here.
    client = Client(["other", b, a], [9.0, 3.0, 3.0])
    index = RemoteIndex(bundle, "hnsw", client)
    queries, exclude = np.ones((2, 8), np.float32), Ragged.from_rows([[bundle.keys[5], beyond], []])
    found = index.search(queries, 3, exclude)
    # Of equal scores the lower key is first, as in every index.
    assert found.keys.tolist() == [[*bundle.keys[:2], -1]] * 2 and found.counts.tolist() == [2, 2]
    excluded = [[bundle.catalogue.ids_of([bundle.keys[5]])[0]], []]
    assert client.asked == (bundle.model_version, "hnsw", 3, excluded)
    # Few allowed items are scanned here.
    exact = bundle.retriever("exact").search(queries, 2, allow=bundle.keys[3:6])
    np.testing.assert_array_equal(index.search(queries, 2, allow=bundle.keys[3:6]).keys, exact.keys)
    with pytest.raises(ValueError, match="Expected queries"):
        index.search(np.ones((1, 3), np.float32), 3)
