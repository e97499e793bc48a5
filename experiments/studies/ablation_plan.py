"""The study of losses and negatives: one base recipe, one change at a time."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        group: What is varied.
        name: Of the row; with the group it names the run.
        flags: What differs from the base recipe.
        cost: Estimated time, in runs of the base recipe.
        is_pivotal: Whether a rule hangs on it, so that it gets more seeds and protocols.
        is_large: Whether it trains on the large synthetic catalogue (--large_dir).
    """

    group: str
    name: str
    flags: tuple[str, ...] = ()
    cost: float = 1.0
    is_pivotal: bool = False
    is_large: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study.

    Attributes:
        flagfile: The base recipe.
        protocol: Of all runs.
        metric: What a run's line tells.
        runs: All of them.
        minutes: Of the base recipe on two cores, for the estimate.
        more_splits: Further protocols of the pivotal ones.
        more_flags: Protocol -> flags that are added after those of a run.
    """

    flagfile: str
    protocol: str
    metric: str
    runs: list[Run]
    minutes: float
    more_splits: tuple[str, ...] = ()
    more_flags: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def run(group: str, name: str, flags: str = "", cost: float = 1.0, **kinds: bool) -> Run:
    return Run(group, name, tuple(flags.split()), cost, **kinds)


SOFTMAX_OVER_ALL = "--negatives=catalogue --correction=none"
# Losses of a bounded score take the cosine as it is.
COSINE = "--temperature=1"
# One negative of a row is taken by its score, which no correction changes.
ONE_NEGATIVE = f"--loss=triplet {COSINE} --margin=0.3 --correction=none"
WIDE_IDS = "--item_id_dim=256"
# Share of mined negatives, and steps before they come: an epoch is 2,970 steps of 256, so that the
# first one has none.
HARD = ((0.0, 3000), (0.05, 3000), (0.1, 3000), (0.1, 0), (0.25, 3000), (0.5, 3000), (0.5, 0))
# Of 200,000 items, whose lists overlap little, so that a step encodes all that they hold.
LARGE_HARD = ((0.1, 1500), (0.5, 0))
# 200,000 items, 6,000 users, 600,000 watches; tables of ids that Adam can step through.
LARGE = "--dim=64 --item_id_dim=32 --query_history_dim=64 --batch_size=256 --epochs=3"


def hard(share: float, warmup: int, every: int, distinct: int) -> str:
    """Flags of mined negatives; `distinct` so large that hardly a row needs topping up."""
    if not share:
        return ""
    flags = f"--hard_negative_share={share} --mining_every={every} --mining_warmup={warmup}"
    return f"{flags} --mining_distinct={distinct}"


def hard_here(share: float, warmup: int, distinct: int = 0) -> str:
    distinct = distinct or (2048 if share > 0.25 else 1024)
    return f"--batch_size=256 --epochs=3 {hard(share, warmup, 1000, distinct)}"


def hard_large(share: float, warmup: int) -> str:
    return f"{LARGE} {hard(share, warmup, 500, 12_000 if share > 0.25 else 2048)}"


def hard_name(share: float, warmup: int) -> str:
    return f"{share:.0%}{'' if warmup else ', no warm-up'}"


RUNS = [
    run("base", "in-batch softmax, log-Q, hits masked", is_pivotal=True),
    # How the matrix becomes a number.
    run("loss", "softmax over the catalogue", SOFTMAX_OVER_ALL, 1.6, is_pivotal=True),
    run("loss", "binary cross-entropy, 1 negative's weight", "--loss=bce"),
    run("loss", "binary cross-entropy, 64", "--loss=bce --negative_ratio=64", is_pivotal=True),
    run("loss", "gBCE, 1, t = .75", "--loss=gbce --negative_ratio=1 --calibration=0.75"),
    run("loss", "gBCE, 64, t = .75", "--loss=gbce --negative_ratio=64 --calibration=0.75"),
    run("loss", "gBCE, 64, t = 1", "--loss=gbce --negative_ratio=64 --calibration=1"),
    run("loss", "triplet, all", f"--loss=triplet {COSINE} --margin=0.3", 2, is_pivotal=True),
    run(
        "loss",
        "triplet, semi-hard",
        f"{ONE_NEGATIVE} --triplet_mining=semi_hard",
        2,
    ),
    run(
        "loss",
        "triplet, hardest",
        f"{ONE_NEGATIVE} --triplet_mining=hardest",
        2,
    ),
    *(
        run(
            "loss",
            f"cosine contrastive, margin {margin}, weight {weight}",
            f"--loss=cosine_contrastive {COSINE} --margin={margin} --negative_ratio={weight}",
        )
        for margin, weight in ((0.4, 150), (0.4, 10), (0.7, 150))
    ),
    # Which candidates are columns.
    run("sampler", "uniform, 1024", "--negatives=uniform --num_sampled=1024", is_pivotal=True),
    run("sampler", "uniform, 4096", "--negatives=uniform --num_sampled=4096", 1.3),
    run("sampler", "popularity ** .75, 1024", "--negatives=popularity --num_sampled=1024"),
    run(
        "sampler",
        "mixed: batch and uniform, 1024",
        "--negatives=batch,uniform",
        1.3,
        is_pivotal=True,
    ),
    run("sampler", "memory of 8192 beside the batch", "--negatives=batch,memory", 2),
    run(
        "sampler", "memory of 1024 beside the batch", "--negatives=batch,memory --memory_size=1024"
    ),
    run("sampler", "hardest 100 of the batch", "--num_hardest=100", 1.3),
    # How scores are corrected.
    run("correction", "none", "--correction=none", is_pivotal=True),
    run(
        "correction",
        "none, own positives not masked",
        "--correction=none --nomask_known_positives",
        1.5,
    ),
    run(
        "correction",
        "log-Q, nothing masked",
        "--correction=log_q --nomask_known_positives",
        1.5,
        is_pivotal=True,
    ),
    run("correction", "log-Q, only the hit masked", "--nomask_known_positives", 1.5),
    run("correction", "log-Q by the stream", "--frequency=streaming"),
    run("correction", "strata by share ** .5 instead", "--correction=none --stratify=0.5"),
    run("correction", "strata, all items alike", "--correction=none --stratify=1", is_pivotal=True),
    # Batch size, with and without log-Q.
    *(
        run("batch", f"{size}{title}", f"--batch_size={size} {flags}".strip(), cost)
        for size, cost in ((128, 5), (512, 2), (1024, 1.4), (2048, 1.1), (8192, 1.2))
        for title, flags in (("", ""), (", no correction", "--correction=none"))
    ),
    # Temperature.
    *(
        run("temperature", str(value), f"--temperature={value}")
        for value in (0.03, 0.05, 0.07, 0.15, 0.2)
    ),
    run("temperature", "1, as in tutorials", "--temperature=1", is_pivotal=True),
    run("temperature", "learned", "--learned_temperature"),
    # Mined hard negatives at batch 256: share, and warm-up.
    *(
        run(
            "hard",
            hard_name(share, warmup),
            hard_here(share, warmup),
            3,
            is_pivotal=share in (0.0, 0.1) and warmup > 0,
        )
        for share, warmup in HARD
    ),
    run("hard", "10%, 512 items a batch", hard_here(0.1, 3000, 512), 2),
    *(
        run(
            "hard, 200,000 items",
            hard_name(share, warmup),
            hard_large(share, warmup),
            3,
            is_large=True,
        )
        for share, warmup in ((0.0, 1500), *LARGE_HARD)
    ),
    # Length of the vectors.
    run("norm", "vectors as they come", "--nol2_normalise --temperature=1"),
    # Dimension.
    *(run("dim", str(dim), f"--dim={dim}", 1 + dim / 1024) for dim in (32, 64, 256, 512)),
    # Ids and content.
    run("items", "id alone", "--item_features=item_id", 0.9),
    run("items", "content alone", "--item_features=title,genres,year", 0.9),
    *(
        run("cold items", name, f"--hidden_items=0.1 {flags}".strip(), 0.9)
        for name, flags in (
            ("id and content", ""),
            ("id alone", "--item_features=item_id"),
            ("content alone", "--item_features=title,genres,year"),
        )
    ),
    # What the towers share, at vectors of one length for an item's id.
    run("towers", "separate, ids of 256", f"{WIDE_IDS}"),
    run("towers", "one table of ids", f"{WIDE_IDS} --query_shared=item_embedding"),
    run("towers", "separate, id alone", f"{WIDE_IDS} --item_features=item_id", 0.9),
    run(
        "towers",
        "one tower, id alone",
        f"{WIDE_IDS} --item_features=item_id --query_shared=tower",
        0.9,
    ),
]

LOSSES = Plan(
    "experiments/flags/studies/losses.flags",
    "random",
    "recall_micro@100",
    RUNS,
    minutes=3.5,
    more_splits=("temporal-successive",),
    # Where every example has a history of its own an epoch takes ten times as long: half as many.
    more_flags={"temporal-successive": ("--epochs=3",)},
)
