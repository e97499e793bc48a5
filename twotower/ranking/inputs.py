"""RankerInputs: the features that a ranker reads, as integer codes and numbers. Needs no
TensorFlow."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from twotower.limits import at_least

# Name of the input that holds all numbers, and of the position that only training reads.
NUMBERS, POSITION = "numbers", "position"


@dataclasses.dataclass(frozen=True)
class Field:
    """A categorical feature as integer codes, such as the item or its genres.

    Attributes:
        name: Name of the input.
        size: Number of known values. Their codes are 1 to `size`; 0 is an unknown or absent one.
        width: 1 for one code a row. A larger width is for a set of up to `width` codes, padded with
            0; their embeddings are averaged.

    >>> Field("genres", size=18, width=6).shape
    (6,)
    """

    name: str
    size: int
    width: int = 1

    def __post_init__(self) -> None:
        at_least(self, size=1, width=1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a row of the input: `()`, or `(width,)` for a set."""
        return () if self.width == 1 else (self.width,)


@dataclasses.dataclass(frozen=True)
class RankerInputs:
    """What a ranker reads for each candidate, in the order in which the network sees it.

    The network reads a dict of arrays with the same leading dimensions, such as `[num_queries,
    num_candidates]`: int32 codes by the name of their field, and `numbers`, float32 `[...,
    num_numbers]`, NaN for a number that is not known.

    Attributes:
        fields: Categorical features.
        numbers: Names of the numeric features.
        means: Mean of each number in the training rows, see `fitted`. () for zeros.
        deviations: Standard deviation of each number there. () for ones.

    Raises:
        ValueError: A name that occurs twice or is reserved, no column at all, or means and
            deviations that are not finite numbers, one for each number.

    >>> inputs = RankerInputs((Field("item", 100),), ("age",)).fitted(np.array([[1.0], [3.0]]))
    >>> inputs.means, inputs.deviations
    ((2.0,), (1.0,))
    >>> RankerInputs.from_json(inputs.to_json()) == inputs
    True
    """

    fields: tuple[Field, ...]
    numbers: tuple[str, ...] = ()
    means: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        names = [*(field.name for field in self.fields), *self.numbers]
        if not names:
            raise ValueError("a ranker needs a field or a number to read; got neither.")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"each input needs a name of its own; {twice} occur twice.")
        reserved = sorted({NUMBERS, POSITION, ""} & {field.name for field in self.fields})
        if reserved:
            raise ValueError(f"no field can be called {reserved}; take another name.")
        for name in ("means", "deviations"):
            values = getattr(self, name)
            if values and len(values) != len(self.numbers):
                raise ValueError(f"expected {len(self.numbers)} {name}; got {len(values)}.")
            if not np.isfinite(values).all():
                raise ValueError(f"{name} must be finite; got {values}.")
        if any(deviation <= 0 for deviation in self.deviations):
            raise ValueError(f"deviations must be above 0; got {self.deviations}.")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name of an input -> shape of one row of it."""
        shapes = {field.name: field.shape for field in self.fields}
        return {**shapes, NUMBERS: (len(self.numbers),)} if self.numbers else shapes

    def fitted(self, numbers: np.ndarray) -> "RankerInputs":
        """The same inputs with the mean and deviation of each number.

        Args:
            numbers: Numbers of the training rows, `[..., num_numbers]`. NaN is left out. A number
                that is constant, or NaN in all rows, gets the deviation 1.
        """
        values = np.asarray(numbers, np.float64).reshape(-1, len(self.numbers))
        known = np.isfinite(values)
        count = np.maximum(known.sum(0), 1)
        means = np.where(known, values, 0).sum(0) / count
        spread = np.sqrt(np.where(known, (values - means) ** 2, 0).sum(0) / count)
        # Rounding leaves a constant with a tiny deviation.
        spread = np.where(spread > 1e-6 * np.maximum(np.abs(means), 1e-6), spread, 1.0)
        return dataclasses.replace(
            self, means=tuple(means.tolist()), deviations=tuple(spread.tolist())
        )

    def check(self, columns: Mapping[str, np.ndarray]) -> tuple[int, ...]:
        """Checks the arrays of a call, `[..., *shape]` each, and returns their leading dimensions.

        Raises:
            ValueError: An input that is absent, of another shape or kind, a code that is out of
                range, or an infinite number.
        """
        lead: tuple[int, ...] | None = None
        for name, shape in self.shapes.items():
            if name not in columns:
                raise ValueError(
                    f"the ranker needs the input {name!r}; got {sorted(columns)}. A column that is "
                    "not known holds 0, and a number that is not known NaN."
                )
            array = np.asarray(columns[name])
            cut = array.ndim - len(shape)
            if cut < 0 or array.shape[cut:] != shape:
                expected = ", ".join(["...", *map(str, shape)])
                raise ValueError(f"expected {name} of shape [{expected}]; got {array.shape}.")
            lead = array.shape[:cut] if lead is None else lead
            if array.shape[:cut] != lead:
                raise ValueError(
                    f"all inputs need the same leading dimensions; {name} has {array.shape[:cut]}, "
                    f"others have {lead}."
                )
        for field in self.fields:
            codes = np.asarray(columns[field.name])
            if not np.issubdtype(codes.dtype, np.integer):
                raise ValueError(f"{field.name} must hold integer codes; got {codes.dtype}.")
            if codes.size and not 0 <= codes.min() <= codes.max() <= field.size:
                raise ValueError(
                    f"codes of {field.name} must lie between 0 (unknown) and {field.size}; got "
                    f"{codes.min()} to {codes.max()}. Was the ranker trained on other data?"
                )
        if self.numbers:
            infinite = np.isinf(columns[NUMBERS]).reshape(-1, len(self.numbers)).any(0)
            if infinite.any():
                names = [name for name, bad in zip(self.numbers, infinite) if bad]
                raise ValueError(f"{names} hold infinite numbers; give NaN where none is known.")
        assert lead is not None
        return lead

    def to_json(self) -> dict[str, Any]:
        """The inputs as a dict of JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "RankerInputs":
        """The inputs that `to_json` wrote.

        Raises:
            ValueError: An unknown entry, or one that is missing.
        """
        try:
            parts = {name: tuple(part) for name, part in value.items()}
            parts["fields"] = tuple(Field(**field) for field in parts["fields"])
            return cls(**parts)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{value} does not describe the inputs of a ranker: {error}") from None
