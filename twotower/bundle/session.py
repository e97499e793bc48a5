"""Session: query vectors of users, kept up to date event by event through a bundle's SavedModel."""

from collections.abc import Mapping

import numpy as np

from twotower.bundle.bundle import Bundle
from twotower.bundle.inputs import as_type
from twotower.bundle.manifest import BundleError, state_version
from twotower.towers.signatures import direct


class Session:
    """The state of some users and their query vectors.

    An event costs what the history encoder needs for it: sums for a mean, one step for a GRU, one
    token for a causal transformer. Past its window an encoder reads the window anew, once in
    `stride` events (`towers/history/sequence.py`).

        session = Session(bundle, {"history": [["12", "7"]], ...})
        index.search(session.vector, 10)
        session.add({"history": ["31"], ...})
        later = Session.resume(bundle, session.state, session.vector)

    Args:
        bundle: Whose query tower has a history.
        inputs: Its raw inputs, as for `bundle.query_tower`; a row for each user.

    Attributes:
        vector: `[num_users, dim]` float32.
        state: Name -> `[num_users, ...]` tensors, for whoever keeps sessions elsewhere (`resume`).

    Raises:
        BundleError: A bundle whose query tower has no history.
        ValueError: An input that is missing or unknown.
    """

    def __init__(self, bundle: Bundle, inputs: Mapping[str, np.ndarray]) -> None:
        begin = self._open(bundle)["begin"]
        self._take(begin(**bundle.query_tensors(inputs)))

    def _open(self, bundle: Bundle) -> Mapping:
        """The bundle's signatures."""
        signatures = bundle.query_tower.model.signatures
        if "begin" not in signatures:
            raise BundleError(
                f"{bundle.directory}: the query tower reads no history, or was exported before "
                "there were sessions; compute vectors by bundle.query_tower."
            )
        self._bundle, self._step = bundle, direct(signatures["step"])
        _, self._specs = signatures["step"].structured_input_signature
        return signatures

    @classmethod
    def resume(cls, bundle: Bundle, state: Mapping, vector: np.ndarray) -> "Session":
        """A session that goes on from what another one of the same model left.

        Args:
            bundle: Of that model.
            state: `state` of that session, as tensors or arrays.
            vector: Its `vector`.

        Raises:
            BundleError: A state of another model, or one that is not whole.
            ValueError: A state and vectors of different numbers of users; numbers that are not
                finite or out of range.
        """
        session = cls.__new__(cls)
        session._open(bundle)
        specs = {name: spec for name, spec in session._specs.items() if name.startswith("state_")}
        number = state_version(bundle.model_version)
        is_whole = isinstance(state, Mapping) and state.keys() == specs.keys()
        if not is_whole or {*np.ravel(state["state_version"]).tolist()} - {number}:
            raise BundleError(
                f"{bundle.directory}: this is no state of model {bundle.model_version}, whose "
                f"parts are {sorted(specs)}; begin a new session from the users' histories."
            )
        import tensorflow as tf

        session.vector = np.asarray(vector, np.float32)
        if session.vector.shape[1:] != (bundle.manifest["dim"],):
            raise ValueError(
                f"vector: expected [num_users, {bundle.manifest['dim']}]; got "
                f"{session.vector.shape}."
            )
        session.state = {
            name: tf.constant(as_type(name, state[name], spec.dtype.name))
            for name, spec in specs.items()
        }
        session._check(session.state)
        check = bundle.query_tower.model.signatures["check"]
        right = {"vector": np.isfinite(session.vector).all(1)} | check(**session.state)
        for name, rows in right.items():
            if not np.all(rows):
                raise ValueError(
                    f"{name}: row {np.argmin(rows)} has numbers that are not finite or out of "
                    "range; begin a new session from that user's history."
                )
        return session

    def _take(self, answer: dict) -> None:
        self.vector = answer["embedding"].numpy()
        self.state = {name: value for name, value in answer.items() if name != "embedding"}

    def _check(self, inputs: Mapping) -> None:
        """Raises ValueError if an input of `step` has not one row for each user."""
        for name, values in inputs.items():
            shape = self._specs[name].shape
            if not shape.is_compatible_with(values.shape) or len(values) != len(self.vector):
                raise ValueError(
                    f"{name}: expected the shape {(len(self.vector), *shape[1:])}, a row for each "
                    f"of this session's users; got {tuple(values.shape)}."
                )

    def add(self, event: Mapping[str, np.ndarray]) -> np.ndarray:
        """One more event for each user; returns `vector`.

        Args:
            event: The same inputs, with one event's `[num_users]` instead of each history. An
                item that the tower does not know, such as "", changes nothing for that user but
                the time of the request, where that is an input.

        Raises:
            ValueError: An input that is missing or unknown, or of other users by their number.
        """
        inputs = self._bundle.query_tensors(event, is_event=True)
        self._check(inputs)
        self._take(self._step(self.state | inputs))
        return self.vector

    @property
    def rereads(self) -> np.ndarray:
        """How often each user's window was full and moved, and so was read anew, `[num_users]`;
        zeros where there is no window. (`attention` and `masked_transformer` read it anew at every
        event besides.)"""
        found = self.state.get("state_reread")
        return np.zeros(len(self.vector), np.int32) if found is None else found.numpy()
