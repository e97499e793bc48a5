"""Predicts memory, build time and latency of every kind of index at sizes that were not measured.

    python experiments/benchmarks/plan_capacity.py --num_items=800000000 --dim=256
    python experiments/benchmarks/plan_capacity.py --num_items=5000000 --dim=64 --memory_gib=4 \
        --updates=100000

Predicted from what experiments/benchmarks/retrieval.py measured on this project's machine
(twotower/retrieval/measured.json, or --measurements with results of your own): bytes for each
vector, and power laws for time. `off by` says how far the same prediction is from what was measured
at the largest size, when that size is left out. Ends with what `retrieval.planning.suggest` would
take.
"""

import json
import pathlib

from absl import flags

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
from twotower.retrieval import planning

FLAGS = flags.FLAGS
flags.DEFINE_integer("num_items", None, "Vectors.", required=True, lower_bound=1)
flags.DEFINE_integer("dim", None, "Length of a vector.", required=True, lower_bound=1)
flags.DEFINE_integer("code_bytes", 16, "Bytes of an IVF-PQ code, for the sum below.", lower_bound=1)
flags.DEFINE_float("memory_gib", 20, "Memory there is for the index, in GiB.", lower_bound=0)
flags.DEFINE_float("updates", 0, "Items added, replaced or removed a day.", lower_bound=0)
flags.DEFINE_integer("cores", 2, "Cores that build.", lower_bound=1)
script.DEFINE_path("measurements", None, "JSON file like twotower/retrieval/measured.json.")


def amount(num_bytes: float) -> str:
    """Decimal bytes, as capacities are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB"


def duration(seconds: float) -> str:
    """In the unit that fits."""
    for unit, size in (("s", 60), ("min", 60), ("h", 48)):
        if seconds < size:
            return f"{seconds:.1f} {unit}"
        seconds /= size if unit != "h" else 24
    return f"{seconds:,.1f} d"


def main():
    num, dim, rows = FLAGS.num_items, FLAGS.dim, planning.measurements()
    if FLAGS.measurements:
        rows = json.loads(pathlib.Path(FLAGS.measurements).read_text())["rows"]
    print(f"{num:,} vectors x {dim} float32: {amount(planning.vector_bytes(num, dim))}")
    codes = {
        name: amount(value) for name, value in planning.code_bytes(num, FLAGS.code_bytes).items()
    }
    print(
        f"IVF-PQ codes of {FLAGS.code_bytes} bytes: {codes['codes']}, with an int64 number each in "
        f"the lists {codes['both']}; centres of 4 sqrt(n) lists: "
        f"{amount(4 * num**0.5 * dim * 4)}\n"
    )
    print(f"{'':11s} {'index':>9s} {'+ vectors':>10s} {'build':>9s} {'p50':>10s}   off by, at the")
    cores = f"{FLAGS.cores} cores"
    print(f"{'':11s} {'':>9s} {'':>10s} {cores:>9s} {'1 thread':>10s}   largest measured")
    for one in planning.plan(num, dim, rows):
        own = [row for row in rows if row["variant"] == one.variant]
        off = "too few sizes"
        if len({row["num_items"] for row in own}) > 2:
            errors = planning.error_at_largest(own).items()
            off = ", ".join(f"{name.removesuffix('_s')} {error:+.0%}" for name, error in errors)
        print(
            f"{one.variant:11s} {amount(one.index_bytes):>9s} "
            f"{amount(one.index_bytes + one.vector_bytes):>10s} "
            f"{duration(one.build_s / FLAGS.cores):>9s} {one.p50_ms:>7.2f} ms   {off}"
            + (f"; {one.times_largest:.0f} x the largest" if one.times_largest > 1 else "")
        )
    print()
    try:
        found = planning.suggest(
            num, dim, FLAGS.memory_gib * 2**30, FLAGS.updates, rows, FLAGS.cores
        )
    except ValueError as error:
        print(error)
        return
    print(f"suggested: {found.backend} {found.parameters or ''}")
    for line in found.why:
        print(f"  {line}")


if __name__ == "__main__":
    script.run(main)
