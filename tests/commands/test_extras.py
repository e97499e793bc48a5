"""A script whose optional library is missing ends in one line that names the extra."""

import configparser

import pytest
import tiny

# Each imports the library at its top, itself or through the package, before any flag is read.
SCRIPTS = {
    "benchmarks/index_updates.py": ("threadpoolctl", "threadpoolctl", "benchmarks"),
    "benchmarks/overhead.py": ("threadpoolctl", "threadpoolctl", "benchmarks"),
    "benchmarks/retrieval.py": ("threadpoolctl", "threadpoolctl", "benchmarks"),
    "benchmarks/batching.py": ("orjson", "orjson", "serving"),
    "benchmarks/page.py": ("PIL", "pillow", "dev"),
    "studies/ctr.py": ("sklearn", "scikit-learn", "ranking"),
    "studies/multi_task.py": ("sklearn", "scikit-learn", "ranking"),
}


@pytest.fixture
def hide(tmp_path, monkeypatch):
    """A function that makes a module missing in what `tiny.python` runs. The package's metadata
    are those of setup.cfg, which an installation of an earlier version may not have."""
    setup = configparser.ConfigParser()
    setup.read(tiny.ROOT / "setup.cfg")
    extras = setup["options.extras_require"].items()
    required = [f"Requires-Dist: {line}; extra == '{extra}'" for extra, lines in extras
                for line in lines.split("\n") if line and line[0] != "#"]  # fmt: skip
    (tmp_path / "twotower-0.1.0.dist-info").mkdir()
    metadata = ["Metadata-Version: 2.1", "Name: twotower", "Version: 0.1.0", *required]
    (tmp_path / "twotower-0.1.0.dist-info" / "METADATA").write_text("\n".join(metadata))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{tiny.ROOT}")

    def missing(module: str) -> None:
        message = f"No module named {module!r}"
        code = f"raise ModuleNotFoundError({message!r}, name={module!r})\n"
        (tmp_path / f"{module}.py").write_text(code)

    return missing


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_help_of_a_script_names_the_extra(script, hide):
    module, library, extra = SCRIPTS[script]
    hide(module)
    done = tiny.python(tiny.ROOT / "experiments" / script, "--help", check=False)
    name, line = script.rpartition("/")[2], f'needs {library}; pip install "twotower[{extra}]"'
    assert (done.stderr, done.returncode) == (f"{name}: {line} (--debug shows where.)\n", 1)


def test_a_library_that_is_imported_later_is_named_too(hide):
    hide("fastapi")
    done = tiny.python(tiny.ROOT / "experiments/serve.py", "--bundle=none", check=False)
    line = 'serve.py: needs fastapi; pip install "twotower[serving]" (--debug shows where.)\n'
    assert (done.stderr, done.returncode) == (line, 1)


def test_debug_shows_where(hide):
    hide("PIL")
    page = tiny.ROOT / "experiments/benchmarks/page.py"
    done = tiny.python(page, "--debug", check=False)
    assert done.stderr.startswith("Traceback") and "from PIL import Image" in done.stderr
