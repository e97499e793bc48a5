"""What is popular among requests like this one: of its region, age group, hour."""

from collections.abc import Sequence

import numpy as np

from twotower.data.dataset import Dataset
from twotower.data.requests import CONTEXT, Requests
from twotower.funnel.attributes import Attribute
from twotower.funnel.sources.answers import at_most, first_allowed, in_batches
from twotower.funnel.sources.popularity import require_rows
from twotower.funnel.stage import Source
from twotower.ragged import Ragged
from twotower.retrieval.candidates import Candidates, best_of_dense


class ContextPopularity(Source):
    """Popularity given attributes of the request, shrunk towards the overall popularity.

    With n training rows in all, n(i) of item i, n(a) of an attribute's value and n(i, a) of both:

        share(i) = n(i) / n
        share(i | a) = (n(i, a) + prior * share(i)) / (n(a) + prior)
        score(i) = log share(i) + sum over known attributes of log(share(i | a) / share(i))

    So a value with few rows changes little. Several attributes count as independent of each other
    given the item (naive Bayes). A value that no training row has is not known, and a request
    without any known attribute gets an empty row.

        zip_code = Attribute.of(dataset, "zip_code", short=lambda text: text[:1])
        age = Attribute.of(dataset, "age")
        ContextPopularity.fit(dataset, split.train, [zip_code, age])(requests, k=500)

    For users of whom nothing but demographics is known, give these in `Requests.context`, in the
    form that the attributes have (a region is "9", not "94110").

    Args:
        items: `[num_known]` int64, ascending: keys of the items with a training row.
        log_share: `[num_known]` float32, log share(i).
        attribute: `[num_groups]` int64, which attribute a group is of, as a place in `names`.
        value: `[num_groups]` text, its value.
        log_lift: `[num_groups, num_known]` float32, log(share(i | a) / share(i)).
        user_id: `[num_users]` text, users whose values are known.
        user_values: `[num_attributes, num_users]` text, their values, "" where not known.
        names: Names of the attributes.
        prior: Number of rows that the overall popularity counts in each group.
    """

    kind = "context_popularity"
    SETTINGS = ("names", "prior")
    ARRAYS = (
        "items int [num_known]",
        "log_share float [num_known]",
        "attribute int [num_groups]",
        "value text [num_groups]",
        "log_lift float [num_groups, num_known]",
        "user_id text [num_users]",
        "user_values text [num_attributes, num_users]",
    )

    def __init__(
        self,
        items: np.ndarray,
        log_share: np.ndarray,
        attribute: np.ndarray,
        value: np.ndarray,
        log_lift: np.ndarray,
        user_id: np.ndarray,
        user_values: np.ndarray,
        names: Sequence[str],
        prior: float,
    ) -> None:
        self.items, self.log_share, self.log_lift = items, log_share, log_lift
        self.attribute, self.value = attribute, value
        self.user_id, self.user_values = user_id, user_values
        self.names, self.prior = list(names), prior
        self.context = self.names
        self._attributes = [Attribute(n, user_id, v) for n, v in zip(self.names, user_values)]
        self._group = [
            {text: int(group) for group, text in enumerate(value.tolist()) if attribute[group] == i}
            for i in range(len(self.names))
        ]

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        train: np.ndarray,
        attributes: Sequence[Attribute],
        prior: float = 1000.0,
    ) -> "ContextPopularity":
        """Counts the training rows of each item and value.

        Args:
            dataset: The data.
            train: `[num_train]` rows of `dataset.interactions`, such as a split's `train`.
            attributes: What a request is known by, such as `Attribute.of(dataset, "age")`, or
                `Attribute("hour")`. A row's value is that of its user, its time or its column.
            prior: Number of rows that the overall popularity counts in each group, positive.

        Raises:
            ValueError: No rows, no attributes or two of one name, a prior that is not positive
                and finite, or an attribute of which no row has a value.
        """
        names = [attribute.name for attribute in attributes]
        if not names or len(set(names)) < len(names) or not 0 < prior < np.inf:
            raise ValueError(
                "expected attributes of different names and a positive, finite prior; got "
                f"{names}, {prior}."
            )
        items, columns = np.unique(dataset.item_keys[require_rows(cls, train)], return_inverse=True)
        share = np.bincount(columns) / len(train)
        rows = _requests_of(dataset, train)
        attribute_of, values, lifts = [], [], []
        for place, attribute in enumerate(attributes):
            texts = attribute(rows).astype(str)
            known = texts != ""
            if not known.any():
                raise ValueError(
                    f"no training row has a value of {attribute.name!r}; users have the columns "
                    f"{list(dataset.users.columns)}, interactions "
                    f"{list(dataset.interactions.columns)}."
                )
            groups, group = np.unique(texts[known], return_inverse=True)
            cells = np.bincount(
                group * len(items) + columns[known], minlength=len(groups) * len(items)
            )
            counts = cells.reshape(len(groups), len(items))  # [num_groups, num_known]
            shrunk = (counts + prior * share) / (counts.sum(1, keepdims=True) + prior)
            lifts.append(np.log(shrunk / share).astype(np.float32))
            values += groups.tolist()
            attribute_of += [place] * len(groups)
        user_id = np.unique(np.concatenate([attribute.user_id for attribute in attributes]))
        users = Requests.of(dataset.catalogue, [[]] * len(user_id), user_id=user_id.tolist())
        return cls(
            items,
            np.log(share).astype(np.float32),
            np.array(attribute_of),
            np.array(values, str),
            np.concatenate(lifts),
            user_id,
            np.stack([attribute(users).astype(str) for attribute in attributes]),
            names,
            prior,
        )

    def __call__(self, requests: Requests, k: int) -> Candidates:
        k = at_most(k, len(self.items))

        def answer(part: Requests) -> Candidates:
            # Requests of the same groups share one list.
            groups, which = np.unique(self._groups(part), axis=0, return_inverse=True)
            scores = np.tile(self.log_share, (len(groups), 1))
            for of_attribute in groups.T:
                known = of_attribute >= 0
                scores[known] += self.log_lift[of_attribute[known]]
            longest = min(k + int(part.exclude.lengths.max(initial=0)), len(self.items))
            columns, best = best_of_dense(scores, longest)
            keys = self.items[columns]
            keys[(groups < 0).all(1)] = -1
            return first_allowed(keys[which], best[which], k, part.exclude)

        return in_batches(answer, requests, 4 * len(self.items), k)

    def _groups(self, requests: Requests) -> np.ndarray:
        """Group of each request's value, -1 where not known, `[num_requests, num_attributes]`."""
        groups = [
            [group_of.get(text, -1) for text in attribute(requests).tolist()]
            for attribute, group_of in zip(self._attributes, self._group)
        ]
        return np.array(groups, np.int64).T


def _requests_of(dataset: Dataset, train: np.ndarray) -> Requests:
    """Requests with the users, times and contexts of training rows, without histories."""
    rows, none = dataset.interactions, Ragged.empty(len(train))
    return Requests(
        user_id=rows["user_id"].to_numpy(object)[train],
        history=none,
        history_time=none,
        history_rating=none,
        exclude=none,
        time=dataset.timestamps[train] if dataset.has_times else np.full(len(train), -1),
        context={name: rows[name].to_numpy(object)[train] for name in CONTEXT if name in rows},
    )
