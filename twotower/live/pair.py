"""Pair: a query tower and an index of one training, and the checks before it goes live."""

import dataclasses
import pathlib
from collections.abc import Callable, Collection, Mapping

import numpy as np

from twotower.bundle.bundle import Bundle
from twotower.retrieval import build
from twotower.retrieval.base import Retriever
from twotower.retrieval.tuning import built_recall
from twotower.storage import description, paths

FORMAT_VERSION = 2  # of a snapshot

QueryTower = Callable[[Mapping[str, np.ndarray]], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """A query tower and an index of its training's item vectors.

    Attributes:
        query_tower: Raw inputs by name, with a batch dimension -> `[batch_size, dim]` float32.
        retriever: The index. Once it is live, change it through `LiveIndex` alone.
        tower_version: The training of the query tower.
        index_version: The training of the item vectors, as saved with the index. The two must be
            equal before the pair goes live.
        sequence: Number of the last log entry that the index held when it was loaded or built; 0
            for none. `LiveIndex.items` gives it with the items, and a snapshot holds it. If it is
            too large, the entries in between are lost. If it is too small, some entries are
            replayed again, which does no harm.
        digest: The log's digest at that entry, as a snapshot holds it, so that no other log is
            replayed; "" where it is not known.
        id_hashes: `Bundle.id_hashes` of its bundle. With them, a log whose keys are other items in
            this bundle is refused. None where they are not known.
        new_id_hashes: The same of items that were added and that the bundle does not have, key ->
            hash, as a snapshot holds them.

        pair = Pair.from_bundle(Bundle("W/bundle"), "hnsw")
        queries = pair.query_tower(inputs)
        pair.retriever.search(queries, 100)
    """

    query_tower: QueryTower
    retriever: Retriever
    tower_version: str
    index_version: str
    sequence: int = 0
    digest: str = ""
    id_hashes: np.ndarray | None = None
    new_id_hashes: Mapping[int, int] = dataclasses.field(default_factory=dict)

    @property
    def model_version(self) -> str:
        """Names the training; a pair of two is never live."""
        return self.tower_version

    def hashes_of(self, keys: np.ndarray) -> np.ndarray:
        """Hashes of the ids of these keys, `[num_keys]` uint64; 0 for keys outside the bundle."""
        found = np.zeros(len(keys), np.uint64)
        if self.id_hashes is not None:
            known = (keys >= 0) & (keys < len(self.id_hashes))
            found[known] = self.id_hashes[keys[known]]
        return found

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        index: str = "exact",
        sequence: int = 0,
        allowed_uris: Collection[str] = (),
    ) -> "Pair":
        """Tower and index of one bundle, which checks the version of each when it loads them.

        Args:
            bundle: Where from.
            index: One of `bundle.indexes`, or `exact`.
            sequence: `LiveIndex.sequence` from before the bundle's items were read; later entries
                are replayed.
            allowed_uris: Addresses that the index may connect to; see `build.load`.

        Raises:
            BundleError: No such index, or a tower or index of another training, for example
                because another bundle has replaced this one.
        """
        version, tower = bundle.model_version, bundle.query_tower
        retriever = bundle.retriever(index, allowed_uris=allowed_uris)
        return cls(tower, retriever, version, version, sequence, id_hashes=bundle.id_hashes)

    @classmethod
    def from_snapshot(
        cls, directory: str | pathlib.Path, bundle: Bundle, allowed_uris: Collection[str] = ()
    ) -> "Pair":
        """The bundle's tower with the index that `LiveIndex.snapshot` wrote.

        A snapshot that is replaced meanwhile is read once more. If its log is lost, start a new log
        with `dataclasses.replace(pair, sequence=0, digest="")`; changes after the snapshot are
        lost.

        Raises:
            ValueError: No snapshot, a damaged or newer one, one of another training, or an index
                that names an address which is not among `allowed_uris` (see `build.load`).
        """
        directory, version = paths.local(directory), bundle.model_version
        path = directory / "live.json"

        def read() -> tuple[Retriever, dict]:
            try:
                entries = {"sequence": int, "digest": str}
                described = description.read(path, "a snapshot", entries, FORMAT_VERSION)
            except FileNotFoundError as error:
                raise ValueError(f"{path} does not describe a snapshot: it is missing.") from error
            # Snapshots of earlier versions do not list their index.
            with description.checked(directory, described.get("files", {})):
                index = build.load(directory / "index", version, allowed_uris=allowed_uris)
            return index, described

        retriever, described = description.consistently(directory, read)
        sequence, digest = described["sequence"], described["digest"]
        hashes = bundle.id_hashes
        # Snapshots of earlier versions have none.
        new = {int(key): int(h, 16) for key, h in described.get("new_id_hashes", {}).items()}
        return cls(bundle.query_tower, retriever, version, version, sequence, digest, hashes, new)


@dataclasses.dataclass(frozen=True)
class Checks:
    """What a pair must show before it goes live.

    Attributes:
        probe_inputs: Raw inputs of the query tower, by name, of one request or more.
        k: Answers that recall is measured at.
        recall_target: Least share of the exact top k that the index finds.
        min_items: Least share of the live index's count that the new one holds.
        expected_items: How many items the new index must hold before the replay; None if that is
            not known.

    >>> Checks({"history": np.array([["12", "7"], ["3", ""]])}, k=10).num_probes
    2
    """

    probe_inputs: Mapping[str, np.ndarray]
    k: int = 100
    recall_target: float = 0.95
    min_items: float = 0.5
    expected_items: int | None = None

    @property
    def num_probes(self) -> int:
        """Requests in `probe_inputs`."""
        return min((len(values) for values in self.probe_inputs.values()), default=0)

    def __post_init__(self) -> None:
        if not self.num_probes:
            raise ValueError("probe_inputs must hold one request or more; got none.")


def failed_checks(pair: Pair, checks: Checks, num_live: int) -> list[str]:
    """The reasons why a pair must not go live, each with what was measured and what was expected.

    Recall is that of the index alone: neither its buffer nor the exact scan of short rows helps it.
    """
    failed, retriever, num = [], pair.retriever, len(pair.retriever)
    if pair.tower_version != pair.index_version:
        failed.append(
            f"model version: the query tower is of {pair.tower_version!r}, the index of "
            f"{pair.index_version!r}; expected one training"
        )
    if num < checks.min_items * num_live:
        failed.append(
            f"items: the index holds {num}; expected {checks.min_items} of the live {num_live}, "
            "or more"
        )
    if checks.expected_items is not None and num != checks.expected_items:
        failed.append(f"items: the index holds {num}; expected exactly {checks.expected_items}")
    wanted = (checks.num_probes, retriever.dim)
    try:
        queries = np.asarray(pair.query_tower(checks.probe_inputs))
        if queries.shape != wanted:
            failed.append(f"dim: the query tower gives {queries.shape}; the index expects {wanted}")
        elif not np.isfinite(queries).all():
            bad = int((~np.isfinite(queries).all(1)).sum())
            failed.append(f"finite: {bad} of {len(queries)} queries hold NaN or inf; expected 0")
        else:
            recall = built_recall(retriever, queries, checks.k)
            if not recall >= checks.recall_target:
                failed.append(
                    f"recall@{checks.k}: {recall:.4f} of the exact answer; expected "
                    f"{checks.recall_target} or more"
                )
    except Exception as error:  # whatever the tower raises: the pair does not go live
        failed.append(f"probe: {error!r}; expected vectors {wanted} and an answer")
    return failed
