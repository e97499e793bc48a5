"""The house: reading order, sizes, examples in docstrings, and a README that its files back."""

import ast
import dataclasses
import doctest
import functools
import importlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# A module imports only what stands above it.
ORDER = """
    twotower tf ragged limits paths provenance description replacing
    data data.columns data.dataset data.grouplens data.movielens data.files data.tables
    data.planted data.synthetic
    data.cases data.splits data.lineage data.examples data.sequences
    metrics
    retrieval retrieval.threads retrieval.arguments retrieval.candidates retrieval.vectors
    retrieval.overfetch retrieval.store retrieval.base
    retrieval.brute_force retrieval.faiss_index retrieval.nodes retrieval.hnsw retrieval.ivf
    retrieval.ivf_pq retrieval.tiered retrieval.scann_index retrieval.milvus_connection
    retrieval.milvus_index
    retrieval.build retrieval.tuning retrieval.planning
    evaluation baselines
    words features towers towers.dense towers.history towers.content towers.sequence towers.pooling
    towers.gru towers.transformer towers.hstu towers.item towers.query
    losses negatives frequency mining task model recipe training fitting
    bundle session pair entries wal live saved_models export concatenation
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


# What a field needs beside it to have an effect.
MINED, TRIPLET = ("--hard_negative_share=0.1",), ("--loss=triplet", "--temperature=1")
NEEDED = {
    **dict.fromkeys(("temperature_last", "temperature_steps"), ("--temperature_kind=annealed",)),
    **dict.fromkeys(("num_sampled", "sampled_power"), ("--negatives=popularity",)),
    "margin": TRIPLET,
    "triplet_mining": (*TRIPLET, "--correction=none"),
    "negative_ratio": ("--loss=bce",),
    "calibration": ("--loss=gbce",),
    "unique": ("--correction=none",),
    "memory_size": ("--negatives=batch,memory",),
    "catalogue_refresh": ("--negatives=catalogue", "--correction=none"),
    "hard_as_draws": MINED,
    "targets_share_spread": ("--targets_share=0.4",),
    "hidden_share": ("--sequence_length=5",),
    "weight_decay": ("--optimizer=adamw",),
    "cosine": ("--warmup_steps=0",),
    "keep_best": ("--patience=0",),
}
CHANGED = {
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


def test_every_flag_reaches_its_field(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import recipe_flags
    from absl import flags

    holder = flags.FlagValues()
    monkeypatch.setattr(recipe_flags.flags, "FLAGS", holder)
    for kind in ("bool", "integer", "float", "list", "string"):
        define = functools.partial(getattr(flags, f"DEFINE_{kind}"), flag_values=holder)
        monkeypatch.setattr(recipe_flags.flags, f"DEFINE_{kind}", define)
    recipe_flags.define()
    fields = list(recipe_flags._fields())
    for name, config, field in fields:
        value = changed(name, getattr(config, field.name))
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        if isinstance(value, bool):
            given = f"--{name}" if value else f"--no{name}"
        else:
            given = f"--{name}={shown}"
        for other, *_ in fields:
            holder[other].unparse()
        holder(["test", *NEEDED.get(name, MINED if name.startswith("mining_") else ()), given])
        got = recipe_flags.recipe()
        reached = [
            getattr(getattr(got, part), kind.name)
            for part in recipe_flags.PARTS
            for kind in dataclasses.fields(getattr(got, part))
            if recipe_flags._name(part, kind.name) == name
        ]
        # One of both towers, or of model and examples (the seed), is reached in both.
        assert reached == [value] * (2 if name in {*recipe_flags.SHARED, "seed"} else 1), name
