"""Shadow: a stage that runs beside the answer. What it finds is recorded and not shown."""

import concurrent.futures
import copy
import threading
from collections.abc import Callable

from absl import logging

from twotower.data.requests import Requests
from twotower.funnel.stage import Stage
from twotower.funnel.threads import Threads
from twotower.limits import whole_number
from twotower.retrieval.candidates import Candidates


class Shadow(Stage):
    """Runs a stage on real requests without showing what it finds, as before an A/B test.

    The candidates go on at once and as they came. The stage gets copies, in a thread of its own.
    So an answer is neither delayed nor changed, whatever the stage does: raise, hang, or write into
    its arrays. Where it is slower than the requests come, what is too much is left out and counted.

        shadow = Shadow(new_ranker, record)
        funnel = Funnel(sources, merge, [filters, ranker, shadow])

    It is not saved with a funnel; put it into one after it was loaded.

    Attributes:
        failed: Number of calls in which the stage or `record` raised.
        left_out: Number of calls that came while `backlog` others waited.

    Args:
        stage: Such as a new ranker.
        record: Called with the requests, the candidates as they were shown, and those that the
            stage returned.
        backlog: Calls that may wait or run at once, 1 or more.
    """

    kind = "shadow"

    def __init__(
        self,
        stage: Stage,
        record: Callable[[Requests, Candidates, Candidates], None],
        backlog: int = 8,
    ) -> None:
        self.stage, self.record = stage, record
        self.backlog = whole_number(backlog, "backlog", 1)
        self.failed = self.left_out = 0
        self._threads = Threads("a shadow of the funnel", 1)
        self._waiting: set[concurrent.futures.Future] = set()
        self._lock = threading.Lock()

    def __call__(self, requests: Requests, candidates: Candidates) -> Candidates:
        try:
            with self._lock:
                self._waiting = {future for future in self._waiting if not future.done()}
                if len(self._waiting) < self.backlog:
                    copies = map(copy.deepcopy, (requests, candidates, candidates))
                    self._waiting.add(self._threads.submit(self._run, *copies))
                else:
                    self.left_out += 1
        except Exception as error:  # even a shadow that was closed does not break an answer
            self._failed(error)
        return candidates

    def _run(self, requests: Requests, shown: Candidates, candidates: Candidates) -> None:
        try:
            self.record(requests, shown, self.stage(requests, candidates))
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self.failed += 1
        logging.log_every_n_seconds(
            logging.WARNING, "shadow %s: %s: %s", 10, self.stage.kind, type(error).__name__, error
        )

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the calls so far, as at the end of an evaluation; whether all have ended."""
        with self._lock:
            waiting = set(self._waiting)
        return not concurrent.futures.wait(waiting, seconds).not_done

    def close(self) -> None:
        """Cancels what waits, and lets the thread end."""
        self._threads.close()
