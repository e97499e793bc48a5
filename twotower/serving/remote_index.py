"""RemoteIndex and QueryBundle: a bundle whose indexes are searched in a process of their own."""

import pathlib
from collections.abc import Collection, Mapping

import numpy as np

from twotower.limits import whole_number
from twotower.ragged import Ragged
from twotower.retrieval.arguments import checked_exclude
from twotower.retrieval.backends.brute_force import BruteForceIndex
from twotower.retrieval.base import Retriever
from twotower.retrieval.candidates import NO_KEY, NO_SCORE, Candidates
from twotower.serving.index_client import IndexClient
from twotower.serving.schemas import MAX_ROWS
from twotower.serving.served_bundle import ServedBundle


class RemoteIndex(BruteForceIndex):
    """An index elsewhere, which is searched over HTTP.

    It is an exact index over the bundle's vectors, which stay on disk: sources that read vectors
    find them here, and a search among few allowed items is a scan of them. All other searches are
    calls.

    Args:
        bundle: Whose index it is.
        name: Its name there.
        client: Calls it.

        RemoteIndex(bundle, "hnsw", IndexClient("http://127.0.0.1:8001")).search(vectors, 10)
    """

    def __init__(self, bundle: ServedBundle, name: str, client: IndexClient) -> None:
        super().__init__(bundle.manifest["metric"])
        self._bundle, self._name, self._client = bundle, name, client
        self.build(np.asarray(bundle.keys), np.asarray(bundle.vectors))

    def search(
        self,
        queries: np.ndarray,
        k: int,
        exclude: Ragged | None = None,
        allow: np.ndarray | None = None,
    ) -> Candidates:
        """See `Retriever.search`.

        Raises:
            IndexCallError: The index does not answer, or has no vectors of this training.
        """
        queries = self._checked_queries(queries)
        if allow is not None or not len(queries):
            return super().search(queries, k, exclude, allow)
        k = min(whole_number(k, "k", 1), max(len(self), 1))
        if exclude is not None:
            exclude = checked_exclude(exclude, len(queries))
        exclude = exclude or Ragged.empty(len(queries))
        bundle, items = self._bundle, self._bundle.items_now
        exclude = exclude.where((exclude.values >= 0) & (exclude.values < len(items)))
        excluded = Ragged(items.ids_of(exclude.values), exclude.offsets)
        # A registry names a bundle's folder by its version. Without a registry the name has no
        # meaning for the index process, and is only cut to the length that a call allows.
        ids, scores = self._client.retrieve(
            bundle.model_version, self._name, queries, k, excluded, bundle.directory.name[:64]
        )
        # An item that another query process has added, and this one not yet, has no key here.
        keys = Ragged(bundle.items_now.keys_of(ids.values), ids.offsets).to_dense(NO_KEY)
        return Candidates.rank(keys, Ragged(scores, ids.offsets).to_dense(NO_SCORE), k)


class QueryBundle(ServedBundle):
    """A bundle whose indexes are in another process, which gets every change of items.

    Changes count here at once. Those that the index did not take wait for `send_changes`.

    Args:
        directory: The bundle's folder.
        client: Calls the index process.
        index: Index of searches that name none; see `ServedBundle`.

        bundle = QueryBundle("W/bundle", IndexClient("http://127.0.0.1:8001"))
    """

    def __init__(self, directory: str | pathlib.Path, client: IndexClient, index: str = "") -> None:
        self._client = client
        # Id -> vector, None for a removed item; what the index has not acknowledged.
        self._unsent: dict[str, np.ndarray | None] = {}
        super().__init__(directory, index)

    def _open_index(self, name: str, allowed_uris: Collection[str]) -> Retriever:
        return RemoteIndex(self, name, self._client)

    def _change(self, changed: Mapping[int, np.ndarray | None]) -> None:
        super()._change(changed)
        ids = self.items_now.ids_of(np.array([*changed], np.int64))
        self._unsent |= zip(ids, changed.values())

    def send_changes(self) -> None:
        """Sends the changes that the index has not acknowledged.

        Raises:
            IndexCallError: It does not take them; they wait for the next call.
        """
        while some := dict(list(self._unsent.items())[:MAX_ROWS]):
            added = {item: vector for item, vector in some.items() if vector is not None}
            removed = [item for item, vector in some.items() if vector is None]
            self._client.change(self.model_version, added, removed)
            for item in some:
                del self._unsent[item]
