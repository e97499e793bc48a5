"""The house: reading order, sizes, examples in docstrings, and a README that its files back."""

import ast
import doctest
import importlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# A module imports only what stands above it.
ORDER = """
    twotower ragged limits provenance
    data data.dataset data.grouplens data.movielens data.tables data.planted data.synthetic
    data.cases data.splits data.examples data.sequences
    metrics
    retrieval retrieval.candidates retrieval.vectors retrieval.overfetch retrieval.store
    retrieval.base
    retrieval.brute_force retrieval.faiss_index retrieval.nodes retrieval.hnsw retrieval.ivf
    retrieval.ivf_pq retrieval.tiered retrieval.scann_index retrieval.milvus_connection
    retrieval.milvus_index
    retrieval.build retrieval.tuning retrieval.planning
    evaluation baselines
    features towers towers.dense towers.history towers.content towers.sequence towers.pooling
    towers.gru towers.transformer towers.hstu towers.item towers.query
    losses negatives frequency mining task model recipe training fitting
    bundle session pair wal live saved_models export
"""
READING_ORDER = ORDER.split()
MODULES = ["twotower"] + [f"twotower.{name}" for name in READING_ORDER[1:]]
# `load(name)` dispatches to the readers below it.
DISPATCH = {"twotower.data"}


def path_of(module: str) -> pathlib.Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_the_order_names_every_module():
    files = set((ROOT / "twotower").rglob("*.py"))
    assert files == {path_of(module) for module in MODULES}


@pytest.mark.parametrize("module", [m for m in MODULES if m not in DISPATCH])
def test_a_module_imports_only_from_above(module):
    imported = set()
    for node in ast.walk(ast.parse(path_of(module).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("twotower"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                imported.add(full if full in MODULES else node.module)
        elif isinstance(node, ast.Import):
            imported |= {a.name for a in node.names if a.name.split(".")[0] == "twotower"}
    below = [name for name in imported if MODULES.index(name) >= MODULES.index(module)]
    assert not [name for name in below if name != module], f"{module} imports {below}"


def test_no_utils_and_no_long_file():
    for path in [*(ROOT / "twotower").rglob("*.py"), *(ROOT / "experiments").glob("*.py")]:
        assert "util" not in path.name
        assert len(path.read_text().splitlines()) <= 430, path


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_readme_tables_are_what_the_results_say():
    sys.path.insert(0, str(ROOT / "experiments"))
    from render_results import rendered

    text = (ROOT / "README.md").read_text()
    assert rendered(text) == text
    # The check can fail: a figure changed by hand is noticed.
    assert rendered(text.replace("| popularity |", "| popularity, by hand |")) == text


def test_every_flag_reaches_its_field():
    sys.path.insert(0, str(ROOT / "experiments"))
    import recipe_flags
    from absl import flags

    holder = flags.FlagValues()
    old, recipe_flags.flags.FLAGS = recipe_flags.flags.FLAGS, holder
    define = {}
    try:
        for kind in ("bool", "integer", "float", "list", "string"):
            name = f"DEFINE_{kind}"
            define[name] = getattr(flags, name)
            setattr(
                recipe_flags.flags,
                name,
                lambda *args, _define=define[name], **kw: _define(*args, flag_values=holder, **kw),
            )
        recipe_flags.define()
        arguments = ["test"]
        changed = {
            "temperature": 0.2,
            "correction": "none",
            "loss": "bce",
            "temperature_kind": "learned",
            "frequency": "streaming",
            "triplet_mining": "hardest",
            "negatives": ("uniform",),
            "hard_negative_share": 0.25,
            "mining_index": "hnsw",
            "optimizer": "adamw",
            "metric": "ndcg@10",
            "history": "attention",
        }
        expected = {}
        for name, config, field in recipe_flags._fields():
            value = changed.get(name)
            if value is None:
                default = getattr(config, field.name)
                if isinstance(default, bool):
                    value = not default
                elif isinstance(default, tuple):
                    value = (*default, 64) if isinstance(default[0], int) else (*default, "more")
                elif isinstance(default, int):
                    value = default + 1
                elif isinstance(default, float):
                    value = default / 2 + 0.1
                else:
                    value = default + "x"
            if name in ("unique", "mask_own"):  # no change of both goes with correction none
                value = True
            expected[name] = value
            if isinstance(value, bool):
                arguments.append(f"--{name}" if value else f"--no{name}")
            else:
                shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
                arguments.append(f"--{name}={shown}")
        holder(arguments)
        got = recipe_flags.recipe()
        for part, prefix in recipe_flags.PARTS.items():
            config = getattr(got, part)
            for field in config.__dataclass_fields__:
                name = field if field in recipe_flags.SHARED else prefix + field
                if name in expected:
                    assert getattr(config, field) == pytest.approx(expected[name]), name
    finally:
        recipe_flags.flags.FLAGS = old
        for name, function in define.items():
            setattr(recipe_flags.flags, name, function)
