"""Live: the pipelines that answer, exchanged together in one step."""

import dataclasses

from twotower.funnel.filters import fractions
from twotower.serving.pipeline import Pipeline


@dataclasses.dataclass(frozen=True, eq=False)
class Live:
    """The live pipeline, and beside it perhaps a canary for a share of the users.

    Attributes:
        pipelines: The live one, and the canary if there is one.
        share: Share of the users whom the canary answers, by a hash of their ids.

        live = Live((Pipeline("W/bundle"),))
        live.pipelines[live.number_of("42")].recommend([Ask("42")])
    """

    pipelines: tuple[Pipeline, ...]
    share: float = 0.0

    def number_of(self, user_id: str) -> int:
        """The place of the user's pipeline; unknown users get the live one."""
        if len(self.pipelines) == 1 or not user_id:
            return 0
        return int(fractions([user_id], "canary")[0] < self.share)

    def of_version(self, model_version: str) -> Pipeline | None:
        """The pipeline of a training, or None."""
        found = (p for p in self.pipelines if p.model_version == model_version)
        return next(found, None)
