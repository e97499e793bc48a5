"""Recommending to new users from a few picks, compared with demographics and popularity.

    python experiments/studies/onboarding.py --data_dir=ml-1m --output=onboarding.json

A share of the users is new: no source learns from their rows. Each is shown a list of items and
picks the first few that the user has rated well (in training rows). The items of the user's
held-out rows are to be found. Two lists are compared: the most popular items, and those whose
answers tell most about the others (twotower/funnel/cold_start.py). The picks become the history of
a request to a funnel. Its sources are collaborative filtering, and popularity among all and among
people of the same age, gender, occupation and region. Its weights are fitted on another share of
users, who are new as well.
"""

import dataclasses
import pathlib

import numpy as np
from absl import flags

from twotower.commands import script

from twotower.bundle.provenance import provenance, write_result  # isort: skip
from twotower.data import load_dataset, splits
from twotower.evaluation.comparison import Comparison
from twotower.evaluation.evaluate import evaluate
from twotower.funnel import cold_start
from twotower.funnel.filters import Filters, Seen
from twotower.funnel.funnel import Funnel, Inlet
from twotower.funnel.making import attributes, fitted
from twotower.funnel.merge import ReciprocalRank
from twotower.funnel.sources.collaborative import Ease, IAls
from twotower.funnel.sources.context_popularity import ContextPopularity
from twotower.funnel.sources.popularity import Popularity

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", "movielens/1m", "A dataset with ratings and demographics.")
script.DEFINE_path("data_dir", None, "GroupLens folder, or TFDS' data directory.")
flags.DEFINE_enum("part", "validation", ["validation", "test"], "Which users are new.")
flags.DEFINE_integer("shown", 20, "Length of the list.", lower_bound=1)
flags.DEFINE_integer("picks", 5, "Items that a user picks at most.", lower_bound=1)
flags.DEFINE_float("liked", 4.0, "Least rating of a pick.")
flags.DEFINE_integer("seed", 0, "Of the choice of new users.")
script.DEFINE_path("output", None, "JSON file to write.")

SHARE = 0.2  # of users, twice: for the weights, and for the figures
METRICS = ("hit_rate@10", "ndcg@10", "recall@100")
PEOPLE = ("age", "gender", "occupation", "zip_code")


def new_users(dataset, split, rng) -> tuple[np.ndarray, list]:
    """Rows that may be learned from, and cases of two shares of users who have none of them."""
    group = rng.permutation(len(dataset.users)) / len(dataset.users) // SHARE
    rows = split.train[group[dataset.user_rows[split.train]] >= 2]
    row_of = {user: row for row, user in enumerate(dataset.users["user_id"])}
    users = np.array([row_of[user] for user in split.cases.user_id])
    return rows, [split.cases.take(group[users] == share) for share in (0, 1)]


def liked_alone(cases, least: float):
    """The cases with only those events in the history that have a good rating."""
    return cases.with_events(cases.history_rating.values >= least)


def after_onboarding(cases, shown: np.ndarray):
    """The cases as new users ask them, with picks for a history; what was shown is not an
    answer."""
    asked = cold_start.picked(liked_alone(cases, FLAGS.liked), shown, FLAGS.picks)
    # Ids stay, since demographics and the clusters of intervals go by them; no source has rows.
    return dataclasses.replace(asked, user_id=cases.user_id)


def main() -> None:
    dataset = load_dataset(FLAGS.dataset, FLAGS.data_dir)
    split = splits.make_split(dataset, "random", FLAGS.part)
    rows, (tuning, judged) = new_users(dataset, split, np.random.default_rng(FLAGS.seed))
    people = Inlet(ContextPopularity.fit(dataset, rows, attributes(dataset, PEOPLE)))
    popular = Inlet(Popularity.fit(dataset, rows))
    tastes = {
        "ease": Inlet(Ease.fit(dataset, rows)),
        "ials": Inlet(IAls.fit(dataset, rows)),
    }
    lists = {
        "most popular": cold_start.most_popular(dataset, rows, FLAGS.shown),
        "most telling": cold_start.most_telling(dataset, rows, FLAGS.shown),
    }
    seen = [Filters([Seen()])]
    judged_on = after_onboarding(judged, lists["most popular"])
    funnels = {
        "popularity": (Funnel({"popular": popular}, ReciprocalRank(), seen), judged_on),
        "demographics": (Funnel({"people": people}, ReciprocalRank(), seen), judged_on),
    }
    for name, shown in lists.items():
        sources = {**tastes, "people": people, "popular": popular}
        funnel = Funnel(sources, ReciprocalRank(), seen)
        funnel.merge = fitted(funnel, after_onboarding(tuning, shown), bounds=(0, 1, 3))
        picks = f"{FLAGS.picks} picks of {FLAGS.shown}, {name}"
        funnels[picks] = funnel, after_onboarding(judged, shown)
    reports = {name: evaluate(*asked, ks=(10, 100)) for name, asked in funnels.items()}
    table = {name: report.metrics for name, report in reports.items()}
    print(Comparison(f"{len(judged)} new users, {FLAGS.part}", table).table(METRICS))
    result = []
    for name, report in reports.items():
        row = {"name": name, "metrics": report.metrics, "num_cases": len(judged)}
        row["mean_picks"] = float(funnels[name][1].history.lengths.mean())
        if name not in ("popularity", "demographics"):
            row["ahead"] = {
                other: {metric: report.compare(reports[other], metric) for metric in METRICS}
                for other in reports
                if other != name
            }
        result.append(row | {"protocol": "random, new users", "part": FLAGS.part, **provenance()})
    for row in result:
        for other, ahead in row.get("ahead", {}).items():
            value = ahead["hit_rate@10"]
            interval = f"[{value['low']:+.4f}, {value['high']:+.4f}]"
            print(f"{row['name']} minus {other}: hit_rate@10 {value['mean']:+.4f} {interval}")
    if FLAGS.output:
        write_result(pathlib.Path(FLAGS.output), {"rows": result})


if __name__ == "__main__":
    script.run(main)
