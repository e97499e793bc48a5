"""Two-tower retrieval on TensorFlow Recommenders.

    import twotower as tt

    data = tt.load_dataset("synthetic/small")
    split = tt.make_split(data, "random")
    trainer = tt.Trainer(data, split, tt.recipe_for(data, split, epochs=4))

A public name imports its module when it is first used, and TensorFlow only if that module builds
layers: data, retrieval and evaluation do without.

The import sets `TF_USE_LEGACY_KERAS=1`, which TensorFlow reads when it is first imported (`tf.py`
says why).
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; at run time `__getattr__` finds these names
    from twotower.bundle.bundle import Bundle as Bundle
    from twotower.bundle.export import add_index as add_index
    from twotower.bundle.recommendations import Recommendations as Recommendations
    from twotower.data import load_dataset as load_dataset
    from twotower.data.cases import EvalCases as EvalCases
    from twotower.data.catalogue import Catalogue as Catalogue
    from twotower.data.dataset import Dataset as Dataset
    from twotower.data.examples import ExamplesConfig as ExamplesConfig
    from twotower.data.requests import Requests as Requests
    from twotower.data.splits import Split as Split
    from twotower.data.splits import make_split as make_split
    from twotower.data.summary import summarise as summarise
    from twotower.data.tables import read_tables as read_tables
    from twotower.evaluation.baselines.ease import Ease as Ease
    from twotower.evaluation.baselines.ials import IAls as IAls
    from twotower.evaluation.baselines.item_knn import ItemKnn as ItemKnn
    from twotower.evaluation.baselines.popularity import Popularity as Popularity
    from twotower.evaluation.comparison import Comparison as Comparison
    from twotower.evaluation.evaluate import evaluate as evaluate
    from twotower.objective.mining import MiningConfig as MiningConfig
    from twotower.objective.negatives import NegativesConfig as NegativesConfig
    from twotower.objective.task import TaskConfig as TaskConfig
    from twotower.retrieval.build import IndexConfig as IndexConfig
    from twotower.retrieval.candidates import Candidates as Candidates
    from twotower.towers.item import ItemConfig as ItemConfig
    from twotower.towers.item import item_tower as item_tower
    from twotower.towers.query import QueryConfig as QueryConfig
    from twotower.towers.query import query_tower as query_tower
    from twotower.trainer import Trainer as Trainer
    from twotower.training.defaults import recipe_for as recipe_for
    from twotower.training.model import TwoTowerModel as TwoTowerModel
    from twotower.training.recipe import FitConfig as FitConfig
    from twotower.training.recipe import Recipe as Recipe
    from twotower.training.training import Training as Training


__version__ = "0.1.0"

# Public name -> the module that it is imported from.
_PUBLIC = {
    "Bundle": "twotower.bundle.bundle",
    "Candidates": "twotower.retrieval.candidates",
    "Catalogue": "twotower.data.catalogue",
    "Comparison": "twotower.evaluation.comparison",
    "Dataset": "twotower.data.dataset",
    "Ease": "twotower.evaluation.baselines.ease",
    "EvalCases": "twotower.data.cases",
    "ExamplesConfig": "twotower.data.examples",
    "FitConfig": "twotower.training.recipe",
    "IAls": "twotower.evaluation.baselines.ials",
    "IndexConfig": "twotower.retrieval.build",
    "ItemConfig": "twotower.towers.item",
    "ItemKnn": "twotower.evaluation.baselines.item_knn",
    "MiningConfig": "twotower.objective.mining",
    "NegativesConfig": "twotower.objective.negatives",
    "Popularity": "twotower.evaluation.baselines.popularity",
    "QueryConfig": "twotower.towers.query",
    "Recipe": "twotower.training.recipe",
    "Recommendations": "twotower.bundle.recommendations",
    "Requests": "twotower.data.requests",
    "Split": "twotower.data.splits",
    "TaskConfig": "twotower.objective.task",
    "Trainer": "twotower.trainer",
    "Training": "twotower.training.training",
    "TwoTowerModel": "twotower.training.model",
    "add_index": "twotower.bundle.export",
    "evaluate": "twotower.evaluation.evaluate",
    "item_tower": "twotower.towers.item",
    "load_dataset": "twotower.data",
    "make_split": "twotower.data.splits",
    "query_tower": "twotower.towers.query",
    "read_tables": "twotower.data.tables",
    "recipe_for": "twotower.training.defaults",
    "summarise": "twotower.data.summary",
}
__all__ = [*_PUBLIC]

# Whether TensorFlow was imported with Keras 3 before this package could ask for Keras 2.
TENSORFLOW_CAME_FIRST = "tensorflow" in sys.modules and os.environ.get(
    "TF_USE_LEGACY_KERAS"
) not in ("1", "true", "True")

if not TENSORFLOW_CAME_FIRST:
    os.environ["TF_USE_LEGACY_KERAS"] = "1"


def __getattr__(name: str) -> Any:
    """The public name, from the module that defines it (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'twotower' has no attribute {name!r}.")
    value = globals()[name] = getattr(importlib.import_module(_PUBLIC[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
