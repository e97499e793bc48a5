"""The study of new items: how well each sampler lets items without a training row be found."""

from ablation_plan import SOFTMAX_OVER_ALL, Plan, run


def sampler(name: str, flags: str = "", cost: float = 1.0):
    """The run of a sampler. Every sampler is trained with each of --seeds."""
    return run("sampler", name, flags, cost, is_pivotal=True)


NEW_ITEMS = Plan(
    "experiments/flags/studies/new_items.flags",
    "random",
    "recall_micro@100",
    [
        sampler("in-batch"),
        sampler("uniform, 1024", "--negatives=uniform"),
        sampler("popularity ** .75, 1024", "--negatives=popularity"),
        sampler("mixed: batch and uniform, 1024", "--negatives=batch,uniform"),
        sampler("memory of 1024 beside the batch", "--negatives=batch,memory --memory_size=1024"),
        sampler("catalogue", SOFTMAX_OVER_ALL),
        sampler("in-batch, 10% mined", "--hard_negative_share=0.1 --mining_warmup=50"),
        # Against the default, which draws trained items only; they show why it is the default.
        sampler("catalogue and all untrained items", f"{SOFTMAX_OVER_ALL} --untrained_items"),
        sampler("uniform, untrained items among them", "--negatives=uniform --untrained_items"),
    ],
    minutes=1.5,
)
