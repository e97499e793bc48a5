"""Part, Source and Stage: the interfaces of the parts of a funnel. Numpy only.

    requests -> sources -> merge -> stages -> candidates

A source finds candidates for requests. A stage takes candidates and returns those that it keeps, in
its order: filters, rankers and re-rankers are stages. Both get a whole batch of requests at once,
one or thousands.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from twotower.data.catalogue import Catalogue
from twotower.data.requests import Requests
from twotower.retrieval.base import Retriever
from twotower.retrieval.candidates import Candidates

# Type of an array in `Part.ARRAYS` -> the kinds of NumPy's dtypes.
KINDS = {"int": "iu", "float": "f", "text": "U"}


class Model(Protocol):
    """The interface of a trained model that parts of a funnel use; a `Bundle` has it.

    Attributes:
        keys: `[num_items]` int64 ascending, keys of the items that may be recommended.
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
        """The index of this name, or exact search for `exact`."""

    def ranker(self, name: str = "default") -> Any:
        """The ranker of this name, for the stage `Rank`."""


class Part(abc.ABC):
    """Base class of sources, merges and stages: has a name in `funnel.json`, settings and arrays.

    Fitted values are arrays, so that a part is saved without pickles. By default the constructor
    takes the settings and arrays as keywords, and each is an attribute of the same name.

    Attributes:
        context: Columns of `Requests.context` that it reads itself; the query tower reads its own.
        encodes: Whether it asks the query tower for the vectors of requests.
    """

    # Name of the class in `saving.KINDS` and in `funnel.json`.
    kind: ClassVar[str]
    # Names of its settings, which JSON can hold.
    SETTINGS: ClassVar[tuple[str, ...]] = ()
    # Its arrays: name, type (`int`, `float` or `text`) and shape, as "keys int [num_items]". A
    # dimension of one name has the same size in all of them.
    ARRAYS: ClassVar[tuple[str, ...]] = ()
    context: Sequence[str] = ()
    encodes: ClassVar[bool] = False

    def settings(self) -> dict[str, Any]:
        """The settings of this part, as JSON values."""
        return {name: getattr(self, name) for name in self.SETTINGS}

    def arrays(self) -> dict[str, np.ndarray]:
        """The fitted arrays, by name, of the types and shapes in `ARRAYS`; text has the dtype
        `U`."""
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

    It leaves out `requests.exclude`. If it cannot answer a request, such as a search without a
    text, it returns an empty row. If it raises, the funnel's answer has the error.
    """

    @abc.abstractmethod
    def __call__(self, requests: Requests, k: int) -> Candidates:
        """At most `k` items for each request, best first."""


class Stage(Part):
    """Filters, scores or reorders candidates: `stage(requests, candidates)`.

    If a stage raises, the funnel skips it, and its answer has the error. If the stage is
    `required`, the funnel raises instead.
    """

    # Whether a list may not be shown without this stage, as without filters.
    required: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, requests: Requests, candidates: Candidates) -> Candidates:
        """Candidates of the same requests, none that was not given, with all their columns."""
