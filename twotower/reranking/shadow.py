"""Shadow: runs a stage on real requests, and records its results without showing them."""

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
    """Runs a stage on real requests without showing its results, such as before an A/B test.

    The candidates pass through unchanged and at once. The stage gets copies, in another thread. So
    an answer is neither delayed nor changed if the stage raises, hangs, or writes into its arrays.
    If the stage is slower than requests come, some calls are left out and counted.

        shadow = Shadow(new_ranker, record)
        funnel = Funnel(sources, merge, [filters, ranker, shadow])

    It is not saved with a funnel: add it after loading one.

    Attributes:
        failed: Number of calls in which the stage or `record` raised.
        left_out: Number of calls that were left out because `backlog` others waited or ran.

    Args:
        stage: The stage to run, such as a new ranker.
        record: Called with the requests, the candidates that went on, and those that the stage
            returned.
        backlog: Largest number of calls that wait or run, 1 or more.
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
        """Waits for the calls so far, such as at the end of an evaluation. Returns whether all have
        ended."""
        with self._lock:
            waiting = set(self._waiting)
        return not concurrent.futures.wait(waiting, seconds).not_done

    def close(self) -> None:
        """Cancels waiting calls, and ends the thread."""
        self._threads.close()
