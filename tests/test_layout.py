"""The house: chapters, sizes, examples in docstrings, and a README that its files back."""

import ast
import doctest
import functools
import graphlib
import importlib
import operator
import pathlib
import re
import sys

import pytest
from absl import flags

from twotower.towers.history.config import READERS
from twotower.training import flags as recipe_flags
from twotower.training.recipe import CHOICES, HEAD

ROOT = pathlib.Path(__file__).parent.parent

# The chapters of the package, in the order in which data flows.
CHAPTERS = (
    "twotower", "tf", "ragged", "limits", "storage", "data", "retrieval", "evaluation",
    "funnel", "reranking", "towers", "objective", "training", "ranking", "bundle", "live",
    "trainer",
    "commands", "serving",
)  # fmt: skip
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "twotower").rglob("*.py"))
}
MODULES = list(FILES)


def chapter(module: str) -> str:
    """The part of a module's name that follows `twotower.`"""
    return module.split(".")[1] if "." in module else module


def imports(module: str) -> set[str]:
    """Modules of the package that a module imports, at its top or inside a function. The package's
    public names are imported at their first use, by nobody in the package itself."""
    found = set()
    if module == "twotower":
        return found
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("twotower"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] == "twotower"}
    return found - {module}


def test_the_chapters_are_the_folders_and_files():
    assert {chapter(module) for module in MODULES} == set(CHAPTERS)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_its_chapter_and_from_those_above(module):
    place = CHAPTERS.index(chapter(module))
    below = [name for name in imports(module) if CHAPTERS.index(chapter(name)) > place]
    assert not below, f"{module} imports {below}"


def test_no_circle():
    # `load(name)` of twotower.data dispatches to readers of its own chapter.
    graph = {module: imports(module) - {"twotower.data"} for module in MODULES}
    order = [*graphlib.TopologicalSorter(graph).static_order()]
    assert set(order) >= set(MODULES) - {"twotower.data"}


def test_the_tests_mirror_the_chapters():
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    expected = {name for name in CHAPTERS if (ROOT / "twotower" / name).is_dir()}
    assert folders - {"__pycache__"} == expected | {"experiments"}


def test_the_readme_names_every_chapter():
    text = (ROOT / "README.md").read_text()
    assert not [name for name in CHAPTERS[1:] if not re.search(rf"`{name}(/|\.py)`", text)]


def test_no_utils():
    for path in [*(ROOT / "twotower").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        assert "util" not in path.name


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def public_functions(module: str):
    """Name, class (None outside of one) and node of each public function and method."""
    for node in ast.parse(FILES[module].read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield f"{module}.{node.name}", None, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                is_public = isinstance(method, ast.FunctionDef) and (
                    method.name == "__init__" or not method.name.startswith("_")
                )
                if is_public:
                    yield f"{module}.{node.name}.{method.name}", node, method


def lacks(module: str, owner: ast.ClassDef | None, function: ast.FunctionDef) -> list[str]:
    """What a public function lacks of annotations and docstring. A method that overrides another
    one has its docstring."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args]
    if owner and "staticmethod" not in map(ast.unparse, function.decorator_list):
        named = named[1:]
    named += [*arguments.kwonlyargs, *filter(None, (arguments.vararg, arguments.kwarg))]
    missing = [name.arg for name in named if name.annotation is None]
    if function.name != "__init__":
        missing += ["return"] * (function.returns is None)
        found = importlib.import_module(module)
        found = getattr(found, owner.name) if owner else found
        # `__dict__` holds a property or classmethod as it is, with the docstring.
        for kind in getattr(found, "__mro__", [found]):
            if getattr(vars(kind).get(function.name), "__doc__", None):
                break
        else:
            missing.append("docstring")
    return missing


def test_public_functions_are_typed_and_documented():
    offenders = {
        name: missing
        for module in MODULES
        for name, owner, function in public_functions(module)
        if (missing := lacks(module, owner, function))
    }
    assert not offenders


def test_what_a_function_lacks():
    (function,) = ast.parse("def no_such(query, k: int, *, deep, **rest): pass").body
    assert lacks("json", None, function) == ["query", "deep", "rest", "return", "docstring"]
    (function,) = ast.parse("def dumps(value: dict) -> str: pass").body
    assert lacks("json", None, function) == []


def test_the_readme_is_short_and_its_table_is_what_the_results_say():
    sys.path.insert(0, str(ROOT / "experiments" / "report"))
    from render_results import rendered

    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert rendered(text) == text
    # The check can fail: a figure changed by hand is noticed.
    assert rendered(text.replace("popularity 0.", "popularity 1.")) == text


# What a field needs beside it to have an effect.
MINED, TRIPLET = ("--hard_negative_share=0.1",), ("--loss=triplet", "--temperature=1")
NEEDED = {
    **dict.fromkeys(("num_sampled", "sampled_power"), ("--negatives=popularity",)),
    "margin": TRIPLET,
    "triplet_mining": (*TRIPLET, "--correction=none"),
    "negative_ratio": ("--loss=bce",),
    "calibration": ("--loss=gbce",),
    "memory_size": ("--negatives=batch,memory",),
    "targets_share_spread": ("--targets_share=0.4",),
    "hidden_share": ("--sequence_length=5",),
    "untrained_items": ("--negatives=uniform",),
    "optimizer": ("--weight_decay=0.1",),
    "weight_decay": ("--optimizer=adamw",),
    "cosine": ("--warmup_steps=0",),
    "keep_best": ("--patience=0",),
}
CHANGED = {
    "temperature": 0.2,
    "correction": "none",
    "loss": "bce",
    "frequency": "streaming",
    "triplet_mining": "hardest",
    "negatives": ("uniform",),
    "hard_negative_share": 0.25,
    "mining_index": "hnsw",
    "optimizer": "adamw",
    "metric": "ndcg@10",
    "query_history": "attention",
    "query_shared": "item_embedding",
    "query_history_dim": 256,
    "query_history_positions": "none",
}


def changed(name: str, default):
    """Another value than the default, of its kind."""
    if name in CHANGED:
        return CHANGED[name]
    if isinstance(default, bool):
        return not default
    if isinstance(default, tuple):
        return (*default, 64) if isinstance(default[0], int) else (*default, "more")
    if isinstance(default, int):
        return default + 1
    return default / 2 + 0.1 if isinstance(default, float) else f"{default}x"


def needed(name: str) -> tuple[str, ...]:
    """What a field of mining or of a history needs beside it."""
    if name.startswith("query_history_"):
        return (f"--query_history={READERS[name.removeprefix('query_history_')][0].encoder}",)
    return MINED if name.startswith("mining_") else ()


def test_every_flag_reaches_its_field(monkeypatch):
    holder = flags.FlagValues()
    monkeypatch.setattr(recipe_flags.flags, "FLAGS", holder)
    for kind in ("bool", "integer", "float", "list", "string"):
        define = functools.partial(getattr(flags, f"DEFINE_{kind}"), flag_values=holder)
        monkeypatch.setattr(recipe_flags.flags, f"DEFINE_{kind}", define)
    groups = recipe_flags.define()
    assert sorted(name for names in groups.values() for name in names) == sorted(CHOICES)
    for name, ((_, first), *_) in CHOICES.items():
        value = changed(name, first.default)
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        if isinstance(value, bool):
            given = f"--{name}" if value else f"--no{name}"
        else:
            given = f"--{name}={shown}"
        for other in CHOICES:
            holder[other].unparse()
        holder(["test", *NEEDED.get(name, needed(name)), given])
        got = recipe_flags.recipe()
        reached = [
            getattr(operator.attrgetter(part)(got), field.name) for part, field in CHOICES[name]
        ]
        # One of both towers, or of model and examples (the seed), is reached in both.
        assert reached == [value] * (2 if name in {*HEAD, "seed"} else 1), name
    for other in CHOICES:
        holder[other].unparse()
    holder(["test", "--query_shared=item_embedding", "--query_history_dim=256"])
    with pytest.raises(ValueError, match=r"dim 256 cannot share .* whose length is 128"):
        recipe_flags.recipe()
    holder(["test", "--hidden=64,x"])
    with pytest.raises(ValueError, match=r"--hidden is a list such as 512,256; invalid .*'x'"):
        recipe_flags.recipe()
