"""One folder with everything that one training made, and one manifest that holds it together.

A query tower and an index of different trainings give wrong answers without an error. So they are
written and replaced together, and each is compared with the manifest when it is read.
`exported_model.py` reads what the training exported. This file reads and writes what is added
later: indexes, funnels, rankers and a map. Layout: "The bundle" in BUILD.md. Nothing in a bundle is
ever unpickled.
"""

import contextlib
import json
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from twotower.bundle import item_map as map_files
from twotower.bundle.exported_model import ExportedModel
from twotower.bundle.inputs import query_inputs
from twotower.bundle.item_map import ItemMap
from twotower.bundle.manifest import BundleError
from twotower.bundle.recommendations import Recommendations
from twotower.data.inputs import COMPUTED
from twotower.funnel import saving
from twotower.funnel.funnel import Funnel
from twotower.ragged import Ragged
from twotower.ranking import files as ranker_files
from twotower.ranking.candidate_ranker import CandidateRanker
from twotower.retrieval import build
from twotower.retrieval.base import Retriever
from twotower.storage import paths


class Bundle(ExportedModel):
    """A loaded bundle.

    Towers and indexes are loaded at first use. If another bundle has replaced the folder by then,
    loading raises BundleError: open the folder again.

    Args:
        directory: The folder. If it is replaced while it is being opened, it is read once more.
        verify: Whether to compare the sha256 of every file when it is read. Presence, the versions
            of towers and indexes, and the shapes of arrays are always checked.

    Attributes:
        manifest: The manifest.
        keys: `[num_items]` int64, keys of the items that may be answered.
        vectors: `[num_items, dim]` float32.

    Raises:
        BundleError: A file is missing, changed, or of another training; the message names it.

        bundle = Bundle("W/bundle")
        queries = bundle.query_tower(inputs)
        found = bundle.retriever("hnsw").search(queries, 10)
        bundle.catalogue.items.loc[found.keys[0], "title"]
    """

    def recommend(
        self,
        history: Sequence[str] = (),
        k: int = 10,
        *,
        user_id: str = "",
        inputs: Mapping[str, Any] | None = None,
        times: Sequence[int] | None = None,
        ratings: Sequence[float] | None = None,
        time: int | None = None,
        exclude: Sequence[str] = (),
        where: Mapping[str, Any] | None = None,
        index: str | Retriever = "exact",
    ) -> Recommendations:
        """The best items for one person, without those of the history.

            bundle.recommend(["260", "1196"], where={"genres": ["Comedy"], "year": (1980, 1999)})

        Args:
            history: Ids of the items that the person liked, oldest first.
            k: How many items; fewer come back if no more are left.
            user_id: The person, for query towers that take it; "" for an unknown one.
            inputs: What else is known, by the names of the query tower's inputs.
            times: Time of each event of the history, in seconds.
            ratings: Rating of each event of the history.
            time: Time of the request in seconds, for protocols `+time`; now by default.
            exclude: Ids of further items that must not be answered.
            where: Conditions on columns of the catalogue, as `Catalogue.where` takes them.
            index: Name of an index, which is loaded at each call; or a `retriever` that is loaded.

        Raises:
            ValueError: Unknown ids, inputs or columns; a `where` or `index` of another type; or no
                input of the person that the query tower reads.
        """
        inputs, names = dict(inputs or {}), [*self._query_inputs]
        if isinstance(history, Mapping | Set):  # they have no order
            raise ValueError(f"history is a list of ids, oldest first; got {history!r}.")
        twice = inputs.keys() & {*COMPUTED}
        if twice or inputs.get("user_id", user_id) != user_id:
            raise ValueError(
                f"inputs have {sorted(twice) or 'another user_id'}: give those as the arguments "
                "user_id, history, times, ratings and time."
            )
        if not isinstance(where, Mapping | None):
            raise ValueError(f"where must be a mapping, such as {{'year': 1999}}; got {where!r}.")
        if not isinstance(index, str) and not hasattr(index, "search"):
            raise ValueError(f"index must be a name or a retriever; got {index!r}.")
        liked, excluded = map(self.catalogue.require_keys, (history, exclude))
        if inputs.keys() - names:
            raise ValueError(
                f"the query tower takes {sorted(names)}; unknown {sorted(inputs.keys() - names)}."
            )
        if user_id and not (inputs or len(history) or self._answers_by_id(user_id)):
            raise ValueError(
                f"of user {user_id!r} nothing is given that this bundle answers from (it takes "
                f"{sorted(names)}). Give a history, or no user, for what unknown users like."
            )
        inputs |= {"user_id": user_id}
        vector = self.query_tower(query_inputs(names, history, times, ratings, inputs, time))
        retriever = self.retriever(index) if isinstance(index, str) else index
        found = retriever.search(
            vector,
            k,
            exclude=Ragged.from_rows([np.concatenate([liked, excluded])]),
            allow=None if not where else self.catalogue.where(**where),
        )
        return Recommendations.of(self, found, liked)

    def _answers_by_id(self, user_id: str) -> bool:
        """Whether the query tower knows this user, and takes nothing but the id."""
        ids = self.read("training", lambda path: (path / "vocabularies.json").read_text())
        is_known = user_id in json.loads(ids).get("query_tower/user_id", [])
        return is_known and self._query_inputs.keys() <= {"user_id", "time"}

    # What is added to an exported model: indexes, funnels, rankers and a map.

    def _names(self, pattern: str) -> list[str]:
        """Names of the parts whose descriptions fit the pattern, without unfinished ones."""
        names = (path.parent.name for path in self.directory.glob(pattern))
        return sorted(filter(paths.is_plain_name, names))

    @contextlib.contextmanager
    def _adding(self) -> Iterator[None]:
        """Around a call that writes a part. Raises BundleError if another bundle has replaced this
        one before or meanwhile, and taken the folder to write to with it."""
        self.require_in_place()
        try:
            yield
        except Exception:
            self.require_in_place()
            raise

    @property
    def indexes(self) -> list[str]:
        """Names of the indexes in the bundle, besides `exact`."""
        return self._names("index/*/index.json")

    def retriever(self, name: str = "exact", allowed_uris: Collection[str] = ()) -> Retriever:
        """The index `name`, or exact search over the bundle's vectors for `exact`.

        Args:
            name: One of `indexes`, or `exact`.
            allowed_uris: Addresses that the index may connect to; see `build.load`.

        Raises:
            BundleError: No such index, one of another training, or one that names an address which
                is not allowed.
        """
        if name == "exact":
            config = build.IndexConfig("exact", self.manifest["metric"])
            return build.build(config, np.asarray(self.keys), np.asarray(self.vectors))
        if name not in self.indexes:
            raise BundleError(
                f"{self.directory} has no index {name!r}; it has {['exact', *self.indexes]}. "
                f"`twotower build_index --bundle={self.directory}` makes more."
            )
        path = self.directory / "index" / name
        with _of_bundle(path):
            return build.load(path, self.model_version, allowed_uris=allowed_uris)

    @property
    def funnels(self) -> list[str]:
        """Names of the funnels in the bundle."""
        return self._names("funnels/*/funnel.json")

    def funnel(self, name: str = "default") -> Funnel:
        """The funnel `name`, whose sources answer from this bundle.

            requests = Requests.of(bundle.catalogue, [["260", "1196"]])
            answer = bundle.funnel().recommend(requests, k=20)

        Raises:
            BundleError: No such funnel, or one of another training.
        """
        if name not in self.funnels:
            raise BundleError(f"{self.directory} has no funnel {name!r}; it has {self.funnels}.")
        path = self.directory / "funnels" / name
        with _of_bundle(path):
            return saving.load(path, self, self.model_version)

    def add_funnel(self, funnel: Funnel, name: str = "default") -> None:
        """Saves a funnel as `funnels/<name>/`; one of that name is replaced.

        Raises:
            ValueError: A name with a path in it, or a part that cannot be saved.
            BundleError: Another bundle has replaced this one.
        """
        paths.require_plain_name(name, "a funnel")
        with self._adding():
            saving.save(funnel, self.directory / "funnels" / name, self.model_version)

    @property
    def rankers(self) -> list[str]:
        """Names of the rankers in the bundle."""
        return self._names("rankers/*/ranker.json")

    def ranker(self, name: str = "default") -> CandidateRanker:
        """The ranker `name`, for candidates of the funnel that it was trained behind.

        Raises:
            BundleError: No such ranker, or one of another training.
        """
        if name not in self.rankers:
            raise BundleError(
                f"{self.directory} has no ranker {name!r}; it has {self.rankers}. "
                f"`twotower train_ranker --bundle={self.directory}` makes one."
            )
        path = self.directory / "rankers" / name
        with _of_bundle(path):
            return ranker_files.load(path, self.model_version)

    def ranker_entries(self, name: str) -> dict[str, Any]:
        """What `ranker.json` says of a ranker; how it was trained stands in `about`."""
        return ranker_files.entries(self.directory / "rankers" / name)

    def add_ranker(
        self,
        ranker: CandidateRanker,
        models: Sequence[Any],
        name: str = "default",
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves a ranker as `rankers/<name>/`; one of that name is replaced.

        Args:
            ranker: What it reads, and how its outputs become scores.
            models: The networks or trees behind `ranker.outputs`.
            name: A plain name.
            about: How it was trained, as JSON, for `ranker.json`.

        Raises:
            ValueError: A name with a path in it, or models of another kind.
            BundleError: Another bundle has replaced this one.
        """
        paths.require_plain_name(name, "a ranker")
        path = self.directory / "rankers" / name
        with self._adding():
            ranker_files.save(ranker, models, path, self.model_version, about or {})

    @property
    def has_map(self) -> bool:
        """Whether the bundle has a map of its items."""
        return (self.directory / "map" / map_files.DESCRIPTION).is_file()

    def item_map(self) -> ItemMap:
        """The map of the items, or of a part of them.

        Raises:
            BundleError: No map, or one of another training.
        """
        if not self.has_map:
            raise BundleError(
                f"{self.directory} has no map. `twotower build_map --bundle={self.directory}` "
                "makes one."
            )
        path = self.directory / "map"
        with _of_bundle(path):
            found = map_files.load(path, self.model_version)
            if not np.isin(found.keys, self.keys).all():
                raise ValueError("it has items that the bundle does not have. Make it again.")
            return found

    def add_map(self, item_map: ItemMap) -> None:
        """Saves a map as `map/`; one that is there is replaced.

        Raises:
            BundleError: Another bundle has replaced this one.
        """
        with self._adding():
            map_files.save(item_map, self.directory / "map", self.model_version)


def require_same_entries(bundles: Sequence[Bundle], names: Collection[str], advice: str) -> None:
    """Raises ValueError for a bundle whose manifest differs from that of the first.

    Args:
        bundles: At least one.
        names: Entries of the manifest to compare; an entry that is missing counts as None.
        advice: The last sentence of the message.
    """
    first = bundles[0]
    for bundle in bundles[1:]:
        for name in names:
            expected, found = first.manifest.get(name), bundle.manifest.get(name)
            if found != expected:
                raise ValueError(
                    f"{bundle.directory}: its {name} is {found!r}, that of {first.directory} "
                    f"{expected!r}. {advice}"
                )


@contextlib.contextmanager
def _of_bundle(path: pathlib.Path) -> Iterator[None]:
    """Turns a ValueError of a part's reader into a BundleError that names the part."""
    try:
        yield
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from error
