"""Bodies of requests, with their limits and examples, from which OpenAPI is made.

Numbers and texts must have their type: `"10"`, `10.0` and `true` are not integers here. Fields that
nobody knows are refused, so that a misspelt one is noticed.
"""

import re
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from twotower.data.columns import SPOILT_IDS
from twotower.data.times import LATEST

MAX_K = 500
MAX_HISTORY = 2_000
MAX_EXCLUDE = 10_000
MAX_TEXT = 1_000
MAX_ROWS = 256  # requests, vectors, events or items in one body
MAX_SHOWN = 100  # impressions after which an item is left out
MAX_TAGS = 100  # texts in a list of an item's, such as genres
MAX_DIM = 8192  # numbers in a vector
# JSON can write one half of a character of two code units, which no file of UTF-8 can hold.
HALF = re.compile("[\ud800-\udfff]")


def not_spoilt(value: str) -> str:
    """The id.

    Raises:
        PydanticCustomError: One that a program has spoilt, such as "nan".
    """
    if any(re.search(pattern, value) for pattern in SPOILT_IDS):
        text = (
            "expected an id: no blank at its ends, no missing value (nan, None, NULL), no number "
        )
        text += "that a program has shortened (1.23E+17), and no Python bytes (b'7')"
        raise PydanticCustomError("spoilt", text)
    return value


Id = Annotated[str, Field(min_length=1, max_length=256)]
# Ids of what is kept for training, which would refuse the whole table for a spoilt one.
KeptId = Annotated[Id, AfterValidator(not_spoilt)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Seconds = Annotated[int, Field(ge=-1, le=LATEST)]
K = Annotated[int, Field(ge=1, le=MAX_K, description="Length of the list.")]
Number = Annotated[float, Field(allow_inf_nan=False)]
# Within float32 by far: beyond it is infinite for a tower.
Rating = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]


def one_message(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """The validated value. It raises one error, not one for each type that the value may have.

    Raises:
        PydanticCustomError: None of the types fits.
    """
    try:
        return validate(value)
    except ValidationError as error:
        text = 'expected a value, up to 100 values, or a range {"from": 1990, "to": 1999}'
        raise PydanticCustomError("condition", text) from error


# One condition on a column: a value, some values, or a range of numbers.
Range = Annotated[dict[str, Number | None], Field(max_length=2)]
Condition = Annotated[
    bool | int | Number | Text | Annotated[list[Text | Number], Field(max_length=100)] | Range,
    WrapValidator(one_message),
]


class Body(BaseModel):
    """What all bodies share: strict types, no further fields, finite numbers."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Request(Body):
    """Who asks, and what is known of the request."""

    user_id: Annotated[str, Field(max_length=256)] = ""
    history: Annotated[list[Id], Field(max_length=MAX_HISTORY)] | None = Field(
        None,
        description="Ids of items that the user liked, oldest first. Without it, the history that "
        "the service knows of the user. Events sent to /events join it in the order of time, or "
        "follow it if some of its items have no time.",
    )
    times: Annotated[list[Seconds], Field(max_length=MAX_HISTORY)] | None = Field(
        None, description="Time of each item of the history, in seconds; -1 if unknown."
    )
    ratings: Annotated[list[Rating], Field(max_length=MAX_HISTORY)] | None = None
    search_text: Text = ""
    context: Annotated[dict[Name, Text], Field(max_length=32)] = Field(
        default_factory=dict,
        description="What else the query tower or a part of the funnel reads, such as "
        '{"age": "25", "device": "phone"}; GET /choices lists it under `inputs` and `reads`.',
    )
    time: Seconds | None = Field(None, description="Of the request, in seconds; now by default.")

    @field_validator("times", "ratings")
    @classmethod
    def _aligned(cls, values: list[Any] | None, info: ValidationInfo) -> list[Any] | None:
        """Raises PydanticCustomError if there is not one value for each item of the history."""
        if values is None or "history" not in info.data:  # an invalid history has its own error
            return values
        expected = len(info.data["history"] or ())
        if len(values) != expected:
            text = "expected one for each of {expected} items of history; got {given}"
            given = {"expected": expected, "given": len(values)}
            raise PydanticCustomError("aligned", text, given)
        return values


class Recommend(Request):
    """Body of `POST /recommend`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"history": ["260", "1196", "1210"], "k": 5},
                {"user_id": "42", "k": 10, "filters": {"genres": ["Comedy"]}, "explain": True},
                {"search_text": "space opera", "k": 10, "filters": {"year": {"from": 1990}}},
            ]
        }
    )
    k: K = 10
    exclude: Annotated[list[Id], Field(max_length=MAX_EXCLUDE)] = Field(
        default_factory=list, description="Further items that must not be answered."
    )
    filters: Annotated[dict[Name, Condition], Field(max_length=16)] = Field(
        default_factory=dict,
        description='Column of the catalogue -> a value, several values, or {"from": 1990, '
        '"to": 1999}.',
    )
    funnel: Annotated[str, Field(max_length=64)] = Field(
        "", description="Name of a funnel of the bundle; the service's default if empty."
    )
    sources: Annotated[list[Id], Field(max_length=MAX_ROWS)] = Field(
        default_factory=list,
        description="Sources of the funnel to ask; all if empty. Where they find nothing, the "
        "funnel's fallback answers.",
    )
    index: Annotated[str, Field(max_length=64)] = Field(
        "", description="Index that the sources search, those that search one; their own if empty."
    )
    diversity: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="Weight of diversity, from 0, which keeps the order of the ranker, to 1, which "
        "considers only how different the items are; the funnel's own by default.",
    )
    objective_weights: Annotated[dict[Name, Number], Field(max_length=16)] = Field(
        default_factory=dict, description="For funnels whose ranking weighs several objectives."
    )
    hide_shown: Annotated[int, Field(ge=0, le=MAX_SHOWN)] = Field(
        0, description="Leave out items with so many impressions in this session; 0 for none."
    )
    explain: bool = Field(
        False, description="Whether to say why each item is there, and what each stage did."
    )
    version: Annotated[str, Field(max_length=64)] = Field(
        "",
        description="A loaded version that is to answer, one of those of GET /choices; by default "
        "the live one, or the canary for its share of the users.",
    )


class Embed(Body):
    """Body of `POST /embed`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"requests": [{"history": ["260", "1196"]}]}]}
    )
    requests: Annotated[list[Request], Field(min_length=1, max_length=MAX_ROWS)]
    on_map: bool = Field(
        False, description="Whether to answer `points` too: x and y of each on the map of GET /map."
    )


Version = Annotated[str, Field(min_length=1, max_length=64)]
OptionalVersion = Annotated[str, Field(max_length=64)]
Vector = Annotated[list[Number], Field(min_length=1, max_length=MAX_DIM)]


class Search(Body):
    """Body of `POST /search`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"vectors": [[0.6, -0.8]], "model_version": "16eea292fb850412", "k": 5}]
        }
    )
    vectors: Annotated[list[Vector], Field(min_length=1, max_length=MAX_ROWS)]
    model_version: Version = Field(
        description="The training that the vectors are of, as /embed answers it."
    )
    version: OptionalVersion = Field(
        "",
        description="The loaded version whose index is searched, as /recommend names it; by "
        "default the first loaded version of the training.",
    )
    k: K = 10
    index: Annotated[str, Field(max_length=64)] = ""
    exclude: Annotated[list[Id], Field(max_length=MAX_EXCLUDE)] = Field(default_factory=list)


class Retrieve(Body):
    """Body of `POST /retrieve`, by which query processes ask an index process."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"vectors": "mpkZP83MTL8=", "model_version": "16eea292fb850412", "k": 5}]
        }
    )
    model_version: Version = Field(description="The training that the vectors are of.")
    version: OptionalVersion = Field(
        "",
        description="The version whose index is searched; by default, or if it is not held, the "
        "first version of the training.",
    )
    vectors: str = Field(description="float32, little-endian, vector after vector, as base64.")
    k: Annotated[int, Field(ge=1, lt=2**31)] = 10
    index: Annotated[str, Field(max_length=64)] = ""
    exclude: list[list[Id]] = Field(
        default_factory=list, description="Items not to find, a list for each vector; or no list."
    )


class NewVector(Body):
    """An item and its vector."""

    item_id: Id
    vector: Vector


class Vectors(Body):
    """Body of `POST /items` of an index process."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model_version": "16eea292fb850412",
                    "add": [{"item_id": "new-1", "vector": [0.6, -0.8]}],
                    "remove": ["260"],
                }
            ]
        }
    )
    model_version: Version = Field(description="The training that the vectors are of.")
    add: Annotated[list[NewVector], Field(max_length=MAX_ROWS)] = Field(default_factory=list)
    remove: Annotated[list[Id], Field(max_length=MAX_ROWS)] = Field(default_factory=list)


class Similar(Body):
    """Body of `POST /similar`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"item_id": "260", "k": 5}]})
    item_id: Id
    user_id: Annotated[str, Field(max_length=256)] = Field(
        "", description="A user: the version that recommends to this user answers."
    )
    k: K = 10
    index: Annotated[str, Field(max_length=64)] = ""


class Event(Body):
    """What a user did."""

    user_id: KeptId
    item_id: KeptId
    event: Annotated[str, Field(pattern="^(impression|click|watch|skip|like|share)$")] = "click"
    timestamp: Annotated[int, Field(ge=0, le=LATEST)] | None = Field(
        None,
        description="In seconds; now by default. In sessions, a time in the future counts as now.",
    )
    rating: Rating | None = None
    value: Rating | None = Field(None, description="What it is worth, such as seconds watched.")
    search_text: Text = ""
    device: Annotated[str, Field(max_length=64)] = ""
    country: Annotated[str, Field(max_length=64)] = ""


class Events(Body):
    """Body of `POST /events`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"events": [{"user_id": "42", "item_id": "260", "event": "watch"}]}]
        }
    )
    events: Annotated[list[Event], Field(min_length=1, max_length=MAX_ROWS)]


class NewItem(BaseModel):
    """An item and what is known of it; further fields are columns of the catalogue.

    A column is a text, a number, a list of texts, such as genres, or a list of numbers, such as an
    embedding (an empty one is missing). What is left out is missing.
    """

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    item_id: KeptId

    @model_validator(mode="after")
    def _plain(self) -> "NewItem":
        """Raises ValueError for columns that are neither text, numbers nor lists of these."""
        columns = self.model_extra or {}
        if len(columns) > 64:
            raise ValueError(f"expected 64 columns or fewer; got {len(columns)}")
        for name, value in columns.items():
            if not 0 < len(name) <= 64:
                raise ValueError(f"{name[:64]!r}: names of columns have 1 to 64 characters")
            if name == "user_id":
                raise ValueError("user_id: an item is of no user, so it has no such column")
            if fault := _fault(value):
                expected = "a text, a number, or a list of texts or of numbers"
                raise ValueError(f"{name}: expected {expected}; got {fault}")
        return self


def _fault(value: Any) -> str:
    """What is wrong with the value of a column, in a few words; "" if nothing is."""
    if not isinstance(value, list):
        return _fault_of_one(value, 10 * MAX_TEXT)
    is_text = [isinstance(entry, str) for entry in value]
    if any(is_text) and not all(is_text):
        return "a list of texts and others"
    most = MAX_TAGS if any(is_text) else MAX_DIM
    if len(value) > most:
        return f"a list of {len(value):,} entries, where {most:,} are the most"
    faults = filter(None, (_fault_of_one(entry, 256) for entry in value))
    return next((f"a list with {fault}" for fault in faults), "")


def _fault_of_one(value: Any, most: int) -> str:
    """As `_fault`, for what is no list; a text has at most so many characters."""
    if isinstance(value, str):
        if len(value) > most:
            return f"a text of {len(value):,} characters, where {most:,} are the most"
        return "a text with half a character (a lone surrogate)" if HALF.search(value) else ""
    if type(value) in (int, float):
        return "" if abs(value) < 2**53 else "a number that is not within 2**53"
    return {bool: "true or false", dict: "an object", list: "a list"}.get(type(value), "null")


class Items(Body):
    """Body of `POST /items`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"add": [{"item_id": "new-1", "title": "Tin Moon", "genres": ["Drama"]}]},
                {"remove": ["260"]},
            ]
        }
    )
    add: Annotated[list[NewItem], Field(max_length=MAX_ROWS)] = Field(default_factory=list)
    remove: Annotated[list[Id], Field(max_length=MAX_ROWS)] = Field(default_factory=list)


class Deploy(Body):
    """Body of `POST /deploys`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"version": "16eea292fb850412-0a1b2c3d", "share": 0.05}]}
    )
    version: Name = Field(description="One of the registry's versions, as GET /deploys lists them.")
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Of the users; below 1 the version is a canary."
    )


class Item(BaseModel):
    """One answered item; further fields are columns of the catalogue."""

    model_config = ConfigDict(extra="allow")
    item_id: str
    score: float


class Recommended(BaseModel):
    """Answer of `POST /recommend`."""

    items: list[Item]
    model_version: str
    version: str = Field(description="The version that answered, as GET /choices lists it.")
    funnel: str
    unknown: list[str] = Field(
        description="Items of the history that the model does not know, such as those added after "
        "its export: they have no effect before the next one."
    )
    unread: list[str] = Field(
        description="What has no effect: names of the context, `search_text` among them, that "
        "neither the query tower nor a part of the funnel reads; and `index` if no source searches "
        "one."
    )
    missing: dict[str, str] = Field(
        description="Sources and stages, such as the ranker, that were left out, and why."
    )
    request_id: str
    history: list[Item] | None = Field(
        None, description="The newest items of the history; these and what follows if `explain`."
    )
    stages: list[dict[str, Any]] | None = Field(
        None, description="Of each source, the merge and each stage: name, candidates, ms, lost."
    )
    batch: dict[str, Any] | None = Field(
        None, description="How many requests were answered together, and in how many ms."
    )
    relaxed: dict[str, int] | None = Field(
        None, description="Filters that let requests pass of which nothing would be left."
    )
    fallback: bool | None = Field(
        None, description="Whether nothing was left, so that the funnel's fallback answered."
    )
