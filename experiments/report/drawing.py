"""The README's pictures as SVG, each for a light and a dark page: `pictures()`.

    python experiments/report/render_results.py    # writes them beside this file, in pictures/

The badges are read from setup.cfg and the curves from experiments/results/, so that
`render_results.py --check` notices a picture that is out of date.
"""

import configparser
import dataclasses
import html
import math

from funnel_tables import NAMES
from published import PUBLISHED
from results import ROOT, read
from retrieval_tables import recall_of, tuned

FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of a page: text, lines, and those that distinguish its parts."""

    ink: str
    faint: str
    line: str
    query: str
    item: str
    others: tuple[str, ...]


THEMES = {
    "light": Theme("#1f2328", "#59636e", "#d1d9e0", "#0969da", "#1a7f37", ("#9a6700", "#8250df")),
    "dark": Theme("#f0f6fc", "#9198a1", "#3d444d", "#4493f8", "#3fb950", ("#d29922", "#ab7df8")),
}


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    """A picture of these parts."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="{FONT}" role="img">'
    )
    return "\n".join([head, f"<title>{html.escape(title)}</title>", *parts, "</svg>"]) + "\n"


def text(x, y, words: str, colour: str, size: int = 13, anchor: str = "middle") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{colour}" font-size="{size}" '
        f'text-anchor="{anchor}">{html.escape(words)}</text>'
    )


def box(x, y, width, height, stroke: str, fill: str = "none", radius: int = 6) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" '
        f'fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>'
    )


def line(x1, y1, x2, y2, colour: str, width: float = 1.5) -> str:
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" '
        f'stroke-width="{width:g}"/>'
    )


def arrow(x1, y1, x2, y2, colour: str) -> str:
    """A line with a head at its second end."""
    turn, length = math.atan2(y2 - y1, x2 - x1), 8
    corners = [(x2, y2)]
    for side in (-0.45, 0.45):
        angle = turn + side
        corners.append((x2 - length * math.cos(angle), y2 - length * math.sin(angle)))
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    ending = x2 - 5 * math.cos(turn), y2 - 5 * math.sin(turn)
    return line(x1, y1, *ending, colour) + f'<polygon points="{points}" fill="{colour}"/>'


def labelled(x, y, width, height, title: str, below: str, theme: Theme, stroke: str) -> str:
    """A box with a title and a line of explanation."""
    middle = x + width / 2
    words = text(middle, y + height / 2 - 3, title, theme.ink, 15)
    return (
        box(x, y, width, height, stroke)
        + words
        + text(middle, y + height / 2 + 15, below, theme.faint, 12)
    )


def towers(theme: Theme) -> str:
    """Two towers: a score matrix in training, an index in serving."""
    parts = []
    lanes = (
        (60, "a user", "history, id, context", "query tower", theme.query),
        (200, "an item", "id, title, genres, year", "item tower", theme.item),
    )
    for y, who, what, tower, colour in lanes:
        parts += [labelled(8, y, 160, 56, who, what, theme, theme.line)]
        parts += [labelled(208, y, 130, 56, tower, "Keras layers", theme, colour)]
        parts += [arrow(168, y + 28, 206, y + 28, theme.faint)]
        parts += [arrow(338, y + 28, 376, y + 28, theme.faint)]
        for cell in range(5):
            parts.append(box(380, y + 3 + 10 * cell, 12, 10, colour, radius=0))
        parts.append(text(386, y + 72, "vector", theme.faint, 12))
    # What vectors of both sides meet in.
    for cell in range(16):
        row, column = divmod(cell, 4)
        fill = theme.query if row == column else "none"
        parts.append(box(530 + 22 * column, 30 + 22 * row, 22, 22, theme.line, fill, 0))
    parts.append(text(612, 136, "scores: queries x items", theme.faint, 12))
    parts.append(text(574, 22, "training", theme.ink, 15))
    parts.append(labelled(504, 200, 140, 56, "index", "exact, FAISS, ScaNN", theme, theme.line))
    parts.append(text(574, 186, "serving", theme.ink, 15))
    parts += [
        arrow(398, 80, 524, 74, theme.query),
        arrow(398, 96, 500, 212, theme.query),
        arrow(398, 216, 524, 100, theme.item),
        arrow(398, 234, 500, 234, theme.item),
        arrow(624, 74, 690, 74, theme.faint),
        arrow(646, 228, 690, 228, theme.faint),
        labelled(694, 46, 150, 56, "loss", "the chosen item wins", theme, theme.line),
        labelled(694, 200, 150, 56, "ten titles", "in about a millisecond", theme, theme.line),
    ]
    return svg(852, 284, "Two towers: training by a score matrix, serving by an index", parts)


def facts() -> list[tuple[str, str]]:
    """(what, which) of the badges, from setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    python = [
        entry.rpartition(" ")[2]
        for entry in config["metadata"]["classifiers"].split("\n")
        if "Python :: 3." in entry
    ]
    pins = config["options"]["install_requires"].split("\n")
    (tensorflow,) = [pin for pin in pins if pin.startswith("tensorflow >=")]
    version = tensorflow.partition(">=")[2].partition(",")[0]
    licence = config["metadata"]["license"]
    return [("Python", " | ".join(python)), ("TensorFlow", version), ("licence", licence)]


def badges(theme: Theme) -> str:
    """Facts in a row."""
    parts, x = [], 1.0
    for what, which in facts():
        left, right = 7.2 * len(what) + 16, 7.2 * len(which) + 16
        parts.append(box(x, 1, left + right, 22, theme.line, radius=4))
        parts.append(text(x + left / 2, 16, what, theme.faint, 12))
        parts.append(text(x + left + right / 2, 16, which, theme.query, 12))
        x += left + right + 8
    return svg(math.ceil(x), 24, ", ".join(map(" ".join, facts())), parts)


# What is shown of the million vectors, as tuned and by the effort of a search.
INDEXES = ("hnsw", "scann", "ivf", "ivf_pq")
BAR = 560  # pixels of a bar whose figure is 1


def measured(theme: Theme) -> str:
    """Left: quality beside baselines and published figures. Right: recall against latency."""
    parts = [text(10, 20, "MovieLens 1M, test, whole catalogue", theme.ink, 14, "start")]
    y = 48
    for title, bars in quality().items():
        parts.append(text(10, y, title, theme.faint, 12, "start"))
        for name, value, half in bars:
            y += 23
            ours = name.startswith("two towers")
            width = BAR * value
            colour = theme.query if ours else theme.line
            parts.append(text(138, y + 4, name, theme.ink if ours else theme.faint, 12, "end"))
            parts.append(box(146, y - 7, width, 14, colour, colour, 2))
            if half:
                reach = BAR * half
                end = 146 + width
                parts.append(line(end - reach, y, end + reach, y, theme.ink))
            parts.append(text(146 + width + 16, y + 4, f"{value:.3f}", theme.ink, 12, "start"))
        y += 40
    return svg(852, 290, "Quality beside baselines; recall against latency", parts + curves(theme))


def quality() -> dict[str, list[tuple[str, float, float]]]:
    """Protocol and metric -> (name, figure, half of its 95% interval) of each bar."""

    def bar(name: str, file: str, row: str, metric: str) -> tuple[str, float, float]:
        found = next(one for one in read(file)["rows"] if one["name"] == row)["metrics"][metric]
        return name, found["mean"], (found["high"] - found["low"]) / 2

    def theirs(protocol: str) -> tuple[str, float, float]:
        found = max(
            (row for row in PUBLISHED if row.protocol == protocol),
            key=lambda row: row.metrics["ndcg@10"],
        )
        name = f"{found.name.partition(',')[0]}, published"
        return name, found.metrics["ndcg@10"], 0.0

    random, sequence = "movielens/movielens_1m_random", "sequences/sequence_loo_5core_0"
    best, micro = "movielens/movielens_1m_best", "recall_micro@100"
    return {
        "random, recall_micro@100: a fifth of the ratings held out": [
            bar("two towers", best, "two towers, best recipe", micro),
            bar("EASE", random, "ease", micro),
            bar("popularity", random, "popularity", micro),
        ],
        "loo-5core, ndcg@10: the next item": [
            bar("two towers", sequence, "causal transformer", "ndcg@10"),
            theirs("loo-5core"),
            bar("popularity", sequence, "popularity", "ndcg@10"),
        ],
    }


def curves(theme: Theme) -> list[str]:
    """Recall of each index on a million vectors, by the latency of a search."""
    left, top, width, height = 520, 40, 310, 200
    rows = [
        row
        for row in read("indexes/retrieval")["rows"]
        if (row["num_items"], row["dim"], row["set"]) == (1_000_000, 128, "0.5")
        and not row["constraint"]
    ]

    def position(row: dict) -> tuple[float, float]:
        """0.1 to 10 ms, and recall .8 to 1."""
        x = left + width * (math.log10(row["p50_ms"]) + 1) / 2
        return x, top + height * (1 - (recall_of(row) - 0.8) / 0.2)

    title = "recall@100 by latency: a million vectors"
    parts = [
        text(left - 30, 20, title, theme.ink, 14, "start"),
        box(left, top, width, height, theme.line, radius=0),
    ]
    for recall in (0.8, 0.9, 1.0):
        y = top + height * (1 - (recall - 0.8) / 0.2)
        parts.append(text(left - 8, y + 4, f"{recall:.1f}", theme.faint, 12, "end"))
        parts.append(line(left, y, left + width, y, theme.line, 0.5))
    for number, label in enumerate(("0.1 ms", "1 ms", "10 ms")):
        parts.append(text(left + width * number / 2, top + height + 18, label, theme.faint, 12))
    colours = (theme.query, theme.item, *theme.others)
    for number, (variant, colour) in enumerate(zip(INDEXES, colours)):
        matching = [row for row in rows if row["variant"] == variant]
        shown = [position(row) for row in matching if not row["tuned"] and recall_of(row) >= 0.8]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in sorted(shown))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        for row in tuned(matching):
            x, y = position(row)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        y = top + height - 70 + 18 * number
        parts.append(line(left + width - 90, y - 4, left + width - 70, y - 4, colour, 2))
        parts.append(text(left + width - 62, y, variant, theme.ink, 12, "start"))
    return parts


def stages(theme: Theme) -> str:
    """Recall among all candidates and the first 100 after each stage of a funnel; sources in
    another colour."""
    (row,) = read("funnel/random")["rows"]
    parts = [
        text(10, 20, "Recall after each stage of the funnel", theme.ink, 14, "start"),
        text(842, 20, "outlined: all candidates, filled: the first 100", theme.faint, 12, "end"),
    ]
    y = 30
    for stage in row["stages"]:
        y += 25
        colour = theme.item if stage["only"] is None else theme.query
        first, whole = (stage["recall"][k]["mean"] for k in ("100", "2000"))
        parts.append(text(138, y + 4, NAMES[stage["name"]], theme.ink, 12, "end"))
        parts.append(box(146, y - 7, BAR * whole, 14, colour, radius=2))
        parts.append(box(146, y - 7, BAR * first, 14, colour, colour, 2))
        parts.append(text(154 + BAR * whole, y + 4, f"{whole:.3f}", theme.ink, 12, "start"))
    return svg(852, y + 24, "Recall after each stage of the funnel", parts)


def pictures() -> dict[str, str]:
    """File name -> SVG of every picture."""
    drawn = {"towers": towers, "badges": badges, "measured": measured, "stages": stages}
    return {
        f"{name}_{page}.svg": draw(theme)
        for name, draw in drawn.items()
        for page, theme in THEMES.items()
    }
