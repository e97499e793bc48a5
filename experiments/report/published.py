"""What others report on MovieLens 1M: whole catalogue, seen items excluded.

`items` is the size of the catalogue: 3,416 items have five ratings or more, in the order of the
file that SASRec's authors published; 3,706 have a rating. Figures of different catalogues, or of
models with different inputs, are not comparable to the third digit.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of somebody's table.

    Attributes:
        name: Model and loss.
        protocol: The nearest of this project's protocols.
        items: Size of its catalogue.
        extra_inputs: Inputs of the model besides the items' ids and order.
        source: The paper or project that reports it.
        metrics: Metric -> figure.
    """

    name: str
    protocol: str
    items: int
    extra_inputs: str
    source: str
    metrics: dict[str, float]


# RecBole's benchmark of context-aware models on `ml-1m_context`: network -> AUC and LogLoss. Its
# split is as random as that of `ctr-1m`, and another one.
CTR_1M = {"dcn": (0.8998, 0.3119), "deepfm": (0.8997, 0.3150)}


def row(
    name, protocol, items, extra_inputs, source, hr_10, ndcg_10, hr_50=None, hr_200=None
) -> Published:
    values = {
        "hit_rate@10": hr_10,
        "ndcg@10": ndcg_10,
        "hit_rate@50": hr_50,
        "hit_rate@200": hr_200,
    }
    metrics = {metric: value for metric, value in values.items() if value is not None}
    return Published(name, protocol, items, extra_inputs, source, metrics)


GSASREC = "gSASRec, RecSys 2023 (arXiv 2308.07192)"
DROSS = "Klenitskiy and Vasilev, RecSys 2023 (arXiv 2309.07602)"
HSTU = "Zhai et al., ICML 2024 (arXiv 2402.17152)"
RECTOOLS = "RecTools, HSTU tutorial"
GUSAK = "Gusak et al., RecSys 2025 (arXiv 2507.16289)"

PUBLISHED = (
    row("SASRec, binary cross-entropy", "loo-5core", 3416, "", GSASREC, 0.239, 0.126),
    row("gSASRec", "loo-5core", 3416, "", GSASREC, 0.300, 0.173),
    row("SASRec, full softmax", "loo-5core", 3416, "", DROSS, 0.315, 0.182),
    row(
        "HSTU-large", "loo+time", 3706, "time of the request", HSTU, 0.3294, 0.1893, 0.5935, 0.7839
    ),
    row(
        "HSTU-large", "loo+time", 3706, "time of the request", RECTOOLS, 0.364, 0.216, 0.619, 0.803
    ),
    row("SASRec, full softmax", "temporal-last", 3416, "", GUSAK, 0.160, 0.095),
    row("SASRec, full softmax", "temporal-successive", 3416, "", GUSAK, 0.198, 0.108),
)
