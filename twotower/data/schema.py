"""Which column of your files is which of ours, and how its times are written: a line of text.

    user_id=visitorid,item_id=itemid,timestamp=timestamp:ms

reads `visitorid` as `user_id`, `itemid` as `item_id`, and `timestamp` in milliseconds. A column of
a file without a header is its number, from 1: `user_id=1,item_id=2,timestamp=4`. An entry is for
each table that has such a column of ours, or for one alone: `items.item_id=movie,items.title=name`.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence

import pyarrow as pa

from twotower.data.dataset import INTERACTION_COLUMNS, REQUIRED

# How many a second, by unit.
UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
# Dates such as 20.8.2011, by the order of their parts.
DATE_ORDERS = ("dayfirst", "monthfirst")
# Tables of the columns that not all tables have.
_ITEM_COLUMNS = ("title", "description", "genres", "maker", "year", "released")
TABLES_OF = {
    **dict.fromkeys(INTERACTION_COLUMNS, ("interactions",)),
    **dict.fromkeys(_ITEM_COLUMNS, ("items",)),
    "user_id": ("interactions", "users"),
    "item_id": ("interactions", "items"),
}
HOW = (
    "Entries are name=column, behind which the unit or format of times may stand: "
    "user_id=visitorid,timestamp=time:ms, with s, ms, us, ns, dayfirst, monthfirst or a format "
    "such as %d.%m.%Y."
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry of a schema.

    Attributes:
        table: `interactions`, `items` or `users`; "" for each that has such a column.
        name: Our name.
        column: The file's name, or its number from 1.
        unit: Of times: one of `UNITS` or `DATE_ORDERS`, or a format of strptime; else "".

    >>> (entry,) = parse("timestamp=time:ms")
    >>> entry.name, entry.column, entry.unit, entry.is_for("items")
    ('timestamp', 'time', 'ms', False)
    """

    table: str
    name: str
    column: str
    unit: str = ""

    def is_for(self, table: str) -> bool:
        """Whether the entry says something of a table."""
        if self.table or self.column.isdigit():
            return table == (self.table or "interactions")
        return table in TABLES_OF.get(self.name, REQUIRED)


def parse(columns: str | Mapping[str, str] | None) -> list[Entry]:
    """The entries of a schema, as text or as a dictionary of the parts around `=`.

    Raises:
        ValueError: An entry of another form, an unknown table or unit, a name that occurs twice or
            is a misspelt column, or a unit for a column that does not hold times.
    """
    entries = []
    for left, right in pairs(columns, HOW).items():
        table, dot, name = left.rpartition(".")
        column, _, unit = right.partition(":")
        if dot and table not in REQUIRED:
            raise ValueError(f"{left!r}: there is no table {table!r}, but {list(REQUIRED)}.")
        if name not in TABLES_OF and (close := difflib.get_close_matches(name, TABLES_OF, 1, 0.88)):
            raise ValueError(
                f"{left}={right}: there is no column {name!r}; did you mean {close[0]!r}? A column "
                "of another meaning needs no entry: it keeps the name that the file has."
            )
        if unit and name in TABLES_OF and name not in ("timestamp", "released"):
            raise ValueError(f"{left}={right}: {name} is no time, so it has no unit. {HOW}")
        if unit and unit not in (*UNITS, *DATE_ORDERS) and "%" not in unit:
            raise ValueError(f"{left}={right}: {unit!r} is no unit of times. {HOW}")
        entries.append(Entry(table, name, column, unit))
    return entries


def pairs(text: str | Mapping[str, object] | None, how: str) -> dict[str, str]:
    """`a=b,c=d` or a dictionary as a dictionary of strings.

    Raises:
        ValueError: A part without a name, an `=` or a value; or a name that occurs twice.
    """
    if not isinstance(text, str | Mapping | None):
        raise ValueError(f"{text!r} is neither a text nor a dictionary. {how}")
    if not isinstance(text, str):
        return {str(name): str(value) for name, value in (text or {}).items()}
    found: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, value = map(str.strip, part.partition("="))
        if not name or not value:
            raise ValueError(f"{part!r} is no name=value. {how}")
        if name in found:
            raise ValueError(f"{name!r} stands twice in {text!r}. {how}")
        found[name] = value
    return found


def has_header(entries: list[Entry], table: str) -> bool:
    """Whether a table's text files begin with names: its columns are not given as numbers."""
    return not any(entry.is_for(table) and entry.column.isdigit() for entry in entries)


def renamed(
    found: pa.Table, where: str, table: str, entries: Sequence[Entry], is_headless: bool
) -> tuple[pa.Table, dict[str, str], list[str]]:
    """A file's columns under our names.

    Args:
        found: Columns as the file has them.
        where: What the file is called in errors.
        table: Which table it is.
        entries: Of the schema.
        is_headless: Whether columns are called by their numbers; others are then left out.

    Returns:
        The table; the unit of each of our columns that has one; and a sentence for each column
        that is left out.

    Raises:
        ValueError: A required column that the file does not have, or two names for one column.
    """
    ours = [entry for entry in entries if entry.is_for(table)]
    ours.sort(key=lambda entry: bool(entry.table))  # an entry for this table goes before
    columns, units, notes = {}, {}, []
    for entry in ours:
        if entry.column in found.column_names:
            columns[entry.name], units[entry.name] = entry.column, entry.unit
    for name, column in columns.items():
        first = next(other for other, same in columns.items() if same == column)
        if first != name:
            raise ValueError(
                f"{where}: the schema reads column {column!r} twice, as {first!r} and as {name!r}. "
                f"Give each name another column of {found.column_names}."
            )
    rest = [name for name in found.column_names if name not in columns.values()]
    twins = [name for name in rest if is_headless or name in columns]
    if twins:
        notes.append(f"{table}: left out the columns {', '.join(twins)} of the file")
    columns |= {name: name for name in rest if name not in twins}
    missing = [name for name in REQUIRED[table] if name not in columns and name != "timestamp"]
    if missing:
        raise ValueError(
            f"{where} lacks {missing}; it has {found.column_names}. Say which column is which, as "
            "in columns='user_id=visitorid,item_id=itemid,timestamp=time:ms' (--columns). If the "
            "file begins with a row and not with names, give numbers: 'user_id=1,item_id=2'."
        )
    names = sorted(columns, key=lambda name: found.column_names.index(columns[name]))
    return pa.table({name: found[columns[name]] for name in names}), units, notes
