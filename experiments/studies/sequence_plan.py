"""The study of sequential query towers: a shorter headline recipe, one change at a time."""

from ablation_plan import Plan, Run, run


def encoder(name: str, file: str, cost: float = 1.0, **kinds: bool) -> Run:
    """An encoder of ids alone, since not every one reads what the base recipe reads besides;
    trained to the end, for 60 epochs in the place of eight."""
    return run(
        "encoder", name, f"--flagfile=experiments/flags/sequences/{file}.flags", 7.5 * cost, **kinds
    )


SEQUENCES = Plan(
    "experiments/flags/studies/sequences.flags",
    "loo-5core",
    "ndcg@10",
    [
        run("base", "causal transformer, all inputs", is_pivotal=True),
        # How events become a vector.
        encoder("mean", "mean", 0.5),
        encoder("recency-weighted mean", "recency", 0.5),
        encoder("attention pooling, told times", "attention", 0.6),
        encoder("GRU", "gru", 1.5),
        encoder("causal transformer", "ids", 0.7, is_pivotal=True),
        encoder("masked transformer", "masked_transformer"),
        encoder("HSTU, told times", "hstu"),
        # What an event brings.
        run("input", "no ratings", "--noquery_history_ratings"),
        run("input", "no gaps", "--noquery_history_gaps"),
        run("input", "no time between events in attention", "--noquery_history_time_bias"),
        run("input", "no content", "--noquery_history_content --item_features=item_id", 0.9),
        # What tells places.
        run("place", "by distance", "--query_history_positions=relative"),
        run("place", "not at all", "--query_history_positions=none"),
        run("place", "the last 50 events", "--query_history_length=50 --sequence_length=50", 0.8),
        # How vectors meet.
        run("score", "cosine over .05", "--l2_normalise --temperature=0.05"),
        run("score", "a table of ids for each side", "--query_shared=nothing"),
        run("score", "what came before is a negative", "--nomask_known_positives"),
        run("score", "in-batch softmax", "--negatives=batch --correction=log_q_masked"),
        # Size.
        run("size", "one block", "--query_history_layers=1", 0.8),
        run("size", "three blocks", "--query_history_layers=3", 1.3),
        run(
            "size",
            "128",
            "--dim=128 --item_id_dim=128 --query_history_dim=128 --query_history_heads=4",
            1.7,
        ),
    ],
    minutes=9,
)
