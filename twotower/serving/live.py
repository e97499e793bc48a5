"""Live: the pipelines that answer, exchanged together in one step."""

import dataclasses

from twotower.funnel.filters import fractions
from twotower.serving.asks import FieldError
from twotower.serving.pipeline import Pipeline


@dataclasses.dataclass(frozen=True, eq=False)
class Live:
    """The live pipeline, and beside it perhaps a canary for a share of the users.

    Attributes:
        pipelines: The live one, and the canary if there is one.
        share: Share of the users whom the canary answers, by a hash of their ids.
        versions: What the registry calls each of them; () without a registry.

        live = Live((Pipeline("W/bundle"),))
        live.pipelines[live.number_of("42")].recommend([Ask("42")])
    """

    pipelines: tuple[Pipeline, ...]
    share: float = 0.0
    versions: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """By what a request can name each of the pipelines."""
        return [*self.versions] or [pipeline.model_version for pipeline in self.pipelines]

    def number_of(self, user_id: str, version: str = "") -> int:
        """Which of the pipelines answers.

        Args:
            user_id: Of a canary's share or not; unknown users get the live one.
            version: One of `names`, which answers whoever the user is; "" for none.

        Raises:
            FieldError: No such version.
        """
        if version:
            if version not in self.names:
                raise FieldError("version", f"not loaded; there are {', '.join(self.names)}")
            return self.names.index(version)
        if len(self.pipelines) == 1 or not user_id:
            return 0
        return int(fractions([user_id], "canary")[0] < self.share)

    def of_user(self, user_id: str) -> Pipeline:
        """The pipeline that recommends to a user."""
        return self.pipelines[self.number_of(user_id)]

    def of_training(self, model_version: str, version: str = "") -> Pipeline:
        """The pipeline of a training, or of one of its versions.

        Two versions of one training may have different indexes and maps.

        Args:
            model_version: The training; "" for any.
            version: One of `names`; "" for the first pipeline of the training.

        Raises:
            FieldError: No such version, or none of this training.
        """
        found = self.pipelines
        if version:
            found = (self.pipelines[self.number_of("", version)],)
        for pipeline in found:
            if model_version in ("", pipeline.model_version):
                return pipeline
        loaded = ", ".join(dict.fromkeys(pipeline.model_version for pipeline in found))
        if version:
            raise FieldError("model_version", f"version {version} is of the training {loaded}")
        raise FieldError("model_version", f"not loaded; there are {loaded}")
