"""The funnel needs no TensorFlow: it can be lifted out, and an index service starts without it."""

import tiny

MODULES = (
    "funnel saving making report cold_start sources.search sources.diverse sources.fresh".split()
)


def test_no_tensorflow_is_loaded():
    imports = "; ".join(f"import twotower.funnel.{name}" for name in MODULES)
    tiny.python("-c", f"{imports}; import sys; assert 'tensorflow' not in sys.modules")
