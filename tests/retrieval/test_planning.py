"""Fits on planted power laws, the arithmetic of sizes, and which index is suggested."""

import pytest

from twotower.retrieval import planning
from twotower.retrieval.planning import error_at_largest, plan, predict, suggest

GIB = 2**30


def row(variant, num_items, dim, each, build, p50, recall=0.98):
    return {
        "variant": variant,
        "num_items": num_items,
        "dim": dim,
        "bytes_per_vector": each,
        "build_cpu_s": build,
        "p50_ms": p50,
        "recall": recall,
    }


def law(variant, growth, each=lambda dim: 4 * dim + 8):
    """Rows that follow build = n dim 1e-6 and p50 = n^growth dim / 1000 to the letter."""
    return [
        row(variant, num, dim, each(dim), num * dim * 1e-6, num**growth * dim / 1000)
        for num, dim in ((10**5, 64), (10**6, 64), (10**6, 128), (5 * 10**6, 64))
    ]


def test_a_power_law_is_found_and_continued():
    found = predict(law("ivf", 0.5), 10**8, 32)
    # 1e8 x 32 x 1e-6 = 3200 s; sqrt(1e8) x 32 / 1000 = 320 ms; (4 x 32 + 8) x 1e8 bytes.
    assert found.build_s == pytest.approx(3200)
    assert found.p50_ms == pytest.approx(320)
    assert found.index_bytes == pytest.approx(136e8)
    # Float32 vectors, and a key of 8 bytes each.
    assert found.vector_bytes == 1e8 * (32 * 4 + 8)
    assert found.times_largest == 20
    assert found.resident_bytes == found.index_bytes + found.vector_bytes


def test_one_dimension_is_taken_as_proportional():
    rows = [row("flat", 10**5, 64, 0, 0, 2.0), row("flat", 10**6, 64, 0, 0, 20.0)]
    found = predict(rows, 10**7, 128)
    assert found.p50_ms == pytest.approx(400)  # ten times the items, twice the length
    assert found.build_s == 0 and found.index_bytes == 0


def test_error_at_the_largest_size():
    rows = law("ivf", 0.5)
    assert error_at_largest(rows) == pytest.approx(
        {"bytes": 0, "build_s": 0, "p50_ms": 0}, abs=1e-9
    )
    rows[-1] |= {"p50_ms": rows[-1]["p50_ms"] * 2, "build_cpu_s": rows[-1]["build_cpu_s"] / 4}
    # Measured twice and a quarter of the law: predicted half and four times as much.
    found = error_at_largest(rows)
    assert found["p50_ms"] == pytest.approx(-0.5) and found["build_s"] == pytest.approx(3)


def test_small_sizes_do_not_bend_the_law():
    # A constant cost of 50 s at 10,000 items; the largest is 5,000,000, so that point is left out.
    rows = [*law("ivf", 0.5), row("ivf", 10**4, 64, 264, 50.0, 9.0)]
    assert predict(rows, 10**7, 64).build_s == pytest.approx(640)


ROWS = [
    # Exact: 10 ms a million at dim 64.
    *(row("flat", n, d, 0, 0, n * d / 64e5) for n, d in ((10**5, 64), (10**6, 64), (10**6, 128))),
    *law("hnsw", 0.1, lambda dim: 4 * dim + 280),
    *law("hnsw-sq8", 0.11, lambda dim: dim + 280),
    *law("ivf_pq", 0.2, lambda dim: 24.0),
]


def test_small_catalogues_are_searched_exactly():
    found = suggest(50_000, 64, GIB, rows=ROWS)
    assert (found.backend, found.parameters) == ("flat", {})
    assert found.why[0] == (
        "flat: 0.0 GiB, 0.50 ms a search, 0 min to build; exact within 1 ms: nothing to tune or to "
        "build"
    )
    assert len(found.why) == 4


def test_the_quickest_that_fits():
    # 10 million x 64: 10e6 x (264 + 8 + 536) bytes = 7.5 GiB for hnsw, 3.2 GiB of codes and links
    # for sq8, .22 GiB for ivf_pq.
    assert suggest(10**7, 64, 16 * GIB, rows=ROWS).backend == "hnsw"
    found = suggest(10**7, 64, 4 * GIB, rows=ROWS)
    assert (found.backend, found.parameters) == ("hnsw", {"storage": "sq8"})
    assert any(line.startswith("hnsw: 7.5 GiB") and "does not fit" in line for line in found.why)
    assert suggest(10**7, 64, GIB, rows=ROWS).backend == "ivf_pq"
    with pytest.raises(ValueError, match=r"no index of 10,000,000 x 64 fits: .*More memory"):
        suggest(10**7, 64, GIB / 10, rows=ROWS)


def test_codes_say_what_they_find_alone_and_what_refining_needs():
    # 800 million x 256 float32 are 819.2 GB, their keys 6.4 GB more.
    rows = [{**one, "recall_of_codes": 0.4} if one["variant"] == "ivf_pq" else one for one in ROWS]
    line = suggest(8 * 10**8, 256, 20 * GIB, rows=rows).why[0]
    assert line.startswith("ivf_pq: 17.9 GiB")
    assert "826 GB of vectors, on disk, to refine with" in line
    assert "codes alone find as little as 0.40 where measured" in line


def test_what_was_measured_of_codes_is_said():
    line = suggest(8 * 10**8, 256, 40 * GIB).why[0]
    assert line.startswith("ivf_pq") and "codes alone find as little as 0.36" in line


def test_updates_wear_a_graph_out():
    # 10 million x 64: a build takes 640 core seconds, 320 s on two. 20% of tombstones are reached
    # after 2e6 / updates days; with 1e8 changes a day that is 1,728 s, with 4e8 432 s < 2 x 320 s.
    assert suggest(10**7, 64, 16 * GIB, 1e8, rows=ROWS).backend == "hnsw"
    found = suggest(10**7, 64, 16 * GIB, 4e8, rows=ROWS)
    assert found.backend == "tiered" and "HNSW of fresh items in front" in found.why[0]
    assert any("changes a day wear it out in 7 min" in line for line in found.why)


def test_bad_input():
    with pytest.raises(ValueError, match=r"two sizes or more; got \[1000000\]"):
        predict(law("ivf", 0.5)[1:3], 10, 10)
    with pytest.raises(ValueError, match="must be 1 or more; got 0 and 64"):
        predict(law("ivf", 0.5), 0, 64)


def test_the_project_has_measured():
    rows = planning.measurements()
    assert {"exact", "hnsw", "ivf_pq"} <= {one["variant"] for one in rows}
    found = plan(10**6, 64)
    assert [one.p50_ms for one in found] == sorted(one.p50_ms for one in found)
    assert suggest(3706, 128, GIB).backend in ("exact", "flat")
