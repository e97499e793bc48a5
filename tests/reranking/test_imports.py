"""Re-ranking needs no TensorFlow, and a funnel loads it only if it has such a stage."""

import tiny

MODULES = "calibration diversity making promoted rules".split()


def test_no_tensorflow_is_loaded():
    imports = "; ".join(f"import twotower.reranking.{name}" for name in MODULES)
    tiny.python("-c", f"{imports}; import sys; assert 'tensorflow' not in sys.modules")


def test_a_funnel_without_re_ranking_does_not_load_it():
    tiny.python(
        "-c",
        "import twotower.funnel.making, twotower.funnel.saving, sys; "
        "assert not [name for name in sys.modules if 'reranking' in name]",
    )
