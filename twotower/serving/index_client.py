"""IndexClient: calls of a query process to an index process, each with the training it is of."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import urllib3

from twotower.ragged import Ragged

# Connections that are kept; a call beyond them opens one for itself.
CONNECTIONS = 16
# Seconds that a change of items or a question about versions may take.
CALL_TIMEOUT = 10.0


class IndexCallError(Exception):
    """An index process that does not answer, or refuses a call; clients may read the message.

    >>> str(IndexCallError("the index does not answer; come back later"))
    'the index does not answer; come back later'
    """


class IndexClient:
    """An index process elsewhere. Threads may call it at once; connections are kept.

        client = IndexClient("http://127.0.0.1:8001")
        ids, scores = client.retrieve(bundle.model_version, "hnsw", vectors, 10, exclude)

    Args:
        url: Its address.
        seconds: How long a search may take.
        token: Bearer token to send; "" for none.

    Raises:
        ValueError: No address.
    """

    def __init__(self, url: str, seconds: float = 1.0, token: str = "") -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"an index has an address such as http://127.0.0.1:8001; got {url!r}.")
        self._seconds = seconds
        headers = {"content-type": "application/json"}
        headers |= {"authorization": f"Bearer {token}"} if token else {}
        self._pool = urllib3.connection_from_url(url, maxsize=CONNECTIONS, headers=headers)

    def retrieve(
        self,
        model_version: str,
        index: str,
        vectors: np.ndarray,
        k: int,
        exclude: Ragged,
        version: str = "",
    ) -> tuple[Ragged, np.ndarray]:
        """The best `k` items of each vector.

        Args:
            model_version: The training that the vectors are of.
            index: Name of an index.
            vectors: `[num_queries, dim]` float32.
            k: Most items of each.
            exclude: Ids of items not to find, a row for each vector.
            version: Version of the registry whose index is searched; "" without a registry.

        Returns:
            Ids, best first, a row for each vector; and the scores of all rows, float32.

        Raises:
            IndexCallError: The index does not answer, or has no vectors of this training.
        """
        body = {
            "model_version": model_version,
            "version": version,
            "index": index,
            "k": k,
            # Numbers as text would cost more than the search.
            "vectors": base64.b64encode(vectors.astype("<f4").tobytes()).decode(),
            "exclude": [row.tolist() for row in exclude],
        }
        found = self._call("POST", "/retrieve", body, self._seconds)
        if found["model_version"] != model_version:
            raise IndexCallError("the index answered for another training; nothing of it is used")
        ids = Ragged.from_rows([np.array(row, object) for row in found["items"]], object)
        return ids, np.frombuffer(base64.b64decode(found["scores"]), "<f4")

    def change(
        self, model_version: str, added: Mapping[str, np.ndarray], removed: Sequence[str]
    ) -> None:
        """Adds or replaces vectors of items and removes items; they are on disk when this returns.

        Args:
            model_version: The training that the vectors are of.
            added: Id -> `[dim]` float32.
            removed: Ids.

        Raises:
            IndexCallError: The index does not answer, or has no vectors of this training.
        """
        add = [{"item_id": item, "vector": vector.tolist()} for item, vector in added.items()]
        body = {"model_version": model_version, "add": add, "remove": list(removed)}
        self._call("POST", "/items", body, CALL_TIMEOUT)

    def lacks(self, model_version: str, version: str = "") -> str:
        """Why the index process cannot answer for a version of a training; "" if it can.

        Args:
            model_version: The training.
            version: Version of the registry, which is not checked at an index process without a
                registry; "" to ask for the training alone.
        """
        try:
            ready = self._call("GET", "/readyz", None, CALL_TIMEOUT)
        except IndexCallError as error:
            return str(error)
        if model_version not in ready.get("model_versions", []):
            return foreign(model_version)
        held = ready.get("versions", [])
        if version and held and version not in held:
            return f"the index does not hold version {version}; deploy it there first, then here"
        return ""

    def _call(self, method: str, path: str, body: Any, seconds: float) -> Any:
        """The answer, from JSON."""
        content = None if body is None else orjson.dumps(body)
        try:
            answer = self._answer(method, path, content, seconds)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise IndexCallError("the index does not answer; come back later") from error
        found = self._object(answer.data)
        if answer.status == 200 and found:
            return found
        error = found.get("error") or {}
        if error.get("field") == "model_version":
            raise IndexCallError(foreign(body["model_version"]))
        raise IndexCallError(
            f"the index answers {answer.status}: {error.get('message', 'no JSON')}"
        )

    def _answer(self, method: str, path: str, content: bytes | None, seconds: float) -> Any:
        for last in (False, True):
            try:
                return self._pool.urlopen(
                    method, path, content, retries=False, redirect=False, timeout=seconds
                )
            except urllib3.exceptions.ProtocolError:
                # A kept connection that the index closed just now; all calls may come twice.
                if last:
                    raise

    @staticmethod
    def _object(content: bytes) -> dict[str, Any]:
        """An answer from JSON; nothing where it is none, as that of a proxy may be."""
        try:
            found = orjson.loads(content)
        except orjson.JSONDecodeError:
            return {}
        return found if isinstance(found, dict) else {}


def foreign(model_version: str) -> str:
    """What to do where an index has no vectors of a training."""
    return (
        f"the index holds no vectors of model {model_version}; deploy the bundle at the index "
        "first, then here"
    )
