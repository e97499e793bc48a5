"""The negatives that each row of a batch has for itself: mined ones, and impressions."""

import dataclasses

import numpy as np
from absl import logging

from twotower.data.examples import Examples
from twotower.data.splits import Split
from twotower.objective.mining import Miner, drawn
from twotower.ragged import Ragged
from twotower.training.recipe import Recipe


class RowNegatives:
    """Chooses the hard negatives of each row of a batch.

    Args:
        recipe: How many negatives a row gets, and how they are mined.
        examples: The training rows.
        split: Its candidates may be mined.
        drawable: Keys of the items that may be negatives. An item without a training example would
            only ever be a negative. So would new items, which have the same id vector.

    Attributes:
        miner: The mined lists of the users; None if the recipe does not ask for them.
        impressions: Keys of the items that each user was shown and did not take, a row for each
            user. None if the recipe does not ask for them.

    Raises:
        ValueError: A share or a number of skipped items that leaves nothing to mine; or data
            without impressions of items that may be negatives.

    Example:
        negatives = RowNegatives(recipe, examples, split, model.negatives.keys)
        negatives.miner.mine(user_vectors, item_vectors)
        negatives(users=np.array([0, 1]), items=np.array([5, 7]), rng=np.random.default_rng(0))
    """

    def __init__(
        self, recipe: Recipe, examples: Examples, split: Split, drawable: np.ndarray
    ) -> None:
        self.config, self.num_drawable = recipe.negatives, len(drawable)
        self.miner = self.impressions = None
        if recipe.negatives.hard_negative_share:
            candidates = np.intersect1d(split.candidates, drawable)
            self.miner = self._miner(recipe, examples, candidates)
        if recipe.negatives.num_impressions:
            self.impressions = _impressions(examples, drawable)

    def _miner(self, recipe: Recipe, examples: Examples, candidates: np.ndarray) -> Miner:
        """A miner whose lists are deep enough for the rows of a whole batch."""
        share, mining = recipe.negatives.hard_negative_share, recipe.mining
        batch_size = recipe.examples.batch_size
        width = self._num_mined(batch_size)
        if not width or mining.skip >= len(candidates):
            raise ValueError(
                f"nothing would be mined: hard_negative_share={share} of batch_size={batch_size} "
                f"is {width} negatives a row, from {len(candidates)} items of which "
                f"mining.skip={mining.skip} are skipped. Raise the share or skip fewer."
            )
        if width >= len(candidates):
            logging.warning(
                "hard_negative_share %g of batch_size %d asks for %d negatives of each row's "
                "own; there are only %d items, so most of them occur more than once in a row.",
                share,
                batch_size,
                width,
                len(candidates),
            )
        known_positives = Ragged(examples.items, examples.by_user.offsets)
        deep = dataclasses.replace(mining, depth=max(mining.depth, width))
        return Miner(deep, known_positives, candidates)

    def _num_mined(self, num_examples: int) -> int:
        """Number of mined negatives of each row, in a batch of `num_examples`."""
        return self.config.num_mined(self.config.num_shared(num_examples, self.num_drawable))

    def __call__(
        self, users: np.ndarray, items: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Keys of each row's hard negatives: mined ones, then impressions.

        Args:
            users: `[num_rows]`, user of each row, as a row of `dataset.users`.
            items: `[num_examples]`, keys of the batch's items.
            rng: Source of the random numbers.

        Returns:
            `[num_rows, h]`, -1 for none.
        """
        chosen = [np.empty((len(users), 0), np.int32)]
        if self.miner is not None:
            chosen.append(self.miner.hard_negatives(users, self._num_mined(len(items)), rng, items))
        if self.impressions is not None:
            shown = self.impressions.take(users).to_dense(-1)
            chosen.append(drawn(shown, self.config.num_impressions, rng))
        return np.concatenate(chosen, axis=1)


def _impressions(examples: Examples, drawable: np.ndarray) -> Ragged:
    """The items that each user was shown and did not take, as far as they may be negatives."""
    shown = examples.passed_over()
    found = shown.where(np.isin(shown.values, drawable))
    if not len(found.values):
        raise ValueError(
            "num_impressions needs events of impressions or skips, of items that have a training "
            f"row; there are {len(shown.values)} impressions, none of such an item. Leave it out."
        )
    return found
