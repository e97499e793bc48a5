"""Part, Source and Stage: the shapes of which a funnel is made. Numpy only.

    requests -> sources -> merge -> stages -> candidates

A source finds candidates for requests. A stage takes candidates and returns those that it keeps, in
its order: filters, rankers and re-rankers are stages. Both see a whole batch of requests at once,
be it one or thousands.
"""

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from twotower.data.dataset import Catalogue
from twotower.data.requests import Requests
from twotower.retrieval.base import Retriever
from twotower.retrieval.candidates import Candidates

# Type of an array in `Part.ARRAYS` -> the kinds of NumPy's dtypes.
KINDS = {"int": "iu", "float": "f", "text": "U"}


class Model(Protocol):
    """What parts of a funnel use of a trained model; a `Bundle` is one.

    Attributes:
        keys: `[num_items]` int64 ascending, keys of the items that may be answered.
        vectors: `[num_items, dim]` float32, their vectors.
    """

    keys: np.ndarray
    vectors: np.ndarray

    @property
    def catalogue(self) -> Catalogue:
        """All items."""

    @property
    def encode(self) -> Callable[[Requests], np.ndarray]:
        """Requests -> `[num_requests, dim]` float32, the query tower's vectors."""

    def retriever(self, name: str = "exact") -> Retriever:
        """The index of that name, or exact search for `exact`."""

    def ranker(self, name: str = "default") -> Any:
        """The ranker of that name, which the stage `Rank` asks for."""


class Part(abc.ABC):
    """A source, merge or stage: something with a name in `funnel.json`, settings and arrays.

    What a part has learned it keeps as arrays, so that it is saved without pickles. By default its
    constructor takes settings and arrays by their names, and both are attributes of those names.
    """

    # Name of the class in `saving.KINDS` and in `funnel.json`.
    kind: ClassVar[str]
    # Names of its settings, which JSON can hold.
    SETTINGS: ClassVar[tuple[str, ...]] = ()
    # Its arrays: name, type (`int`, `float` or `text`) and shape, as "keys int [num_items]". A
    # dimension of one name has the same size in all of them.
    ARRAYS: ClassVar[tuple[str, ...]] = ()

    def settings(self) -> dict[str, Any]:
        """What JSON can hold of this part."""
        return {name: getattr(self, name) for name in self.SETTINGS}

    def arrays(self) -> dict[str, np.ndarray]:
        """What it has learned, name -> array of numbers or of text (dtype `U`)."""
        return {name: getattr(self, name) for name in self.array_names()}

    @classmethod
    def array_names(cls) -> list[str]:
        """Names of its arrays."""
        return [entry.split()[0] for entry in cls.ARRAYS]

    @classmethod
    def check(cls, arrays: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError for arrays of other types and shapes than `ARRAYS` says."""
        sizes: dict[str, int] = {}
        for entry in cls.ARRAYS:
            name, kind, shape = entry.split(" ", 2)
            values, dims = arrays[name], shape.strip("[]").split(", ")
            fits = values.dtype.kind in KINDS[kind] and values.ndim == len(dims)
            if not fits or any(sizes.setdefault(d, n) != n for d, n in zip(dims, values.shape)):
                known = "".join(f", {d} = {sizes[d]}" for d in dims if d in sizes)
                raise ValueError(
                    f"{name} must be {kind} {shape}{known}; got {values.dtype} {[*values.shape]}."
                )

    @classmethod
    def restore(
        cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray], model: Model
    ) -> Self:
        """The part with these settings and arrays, for requests to this model."""
        return cls(**settings, **arrays)


class Source(Part):
    """Finds candidates: `source(requests, k)`.

    An answer leaves out `requests.exclude`. A source that knows nothing of a request (a search
    without a text) gives it an empty row; what it raises is named in the funnel's answer.
    """

    @abc.abstractmethod
    def __call__(self, requests: Requests, k: int) -> Candidates:
        """At most `k` items for each request, best first."""


class Stage(Part):
    """Filters, scores or reorders candidates: `stage(requests, candidates)`.

    If a stage raises, the funnel goes on without it and names it in its answer. If the stage is
    `required`, no answer is given instead.
    """

    # Whether a list may not be shown without this stage, as without filters.
    required: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, requests: Requests, candidates: Candidates) -> Candidates:
        """Candidates of the same requests, none that was not given, with all their columns."""
