"""Processes: starts the processes of a service, and starts those again that have died.

A process that served and dies is started again at once. One that dies before it serves may do so
each time, such as with a bundle that is damaged on disk. So it is tried again after pauses, while
the others serve on.
"""

import logging
import socket
import time

from uvicorn import Config
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from twotower.serving.draining import DRAIN_SECONDS, drop_new_connections, has_waiting_connection
from twotower.serving.metrics import forget_process

LOG = logging.getLogger("twotower.serving")
# Seconds before a process that could not start is tried again. The pause doubles each time.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0


class Processes(Multiprocess):
    """The processes of a service.

    They end when they have accepted all connections that waited. The service ends as a whole when
    no process is left and none could start.

    Args:
        config: uvicorn's settings of each process.
        sockets: Made by `listeners.bound`; shared by all processes.

    Attributes:
        could_not_start: Whether the service has ended because no process could start.
    """

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self.could_not_start = False
        self._serving = set[Process]()  # those that have answered
        # Process -> seconds of the pause before it was started. If it could not start, they are
        # those of the pause before the next try.
        self._pauses: dict[Process, float] = {}
        # Process that could not start -> when it is tried again.
        self._tries: dict[Process, float] = {}

    def keep_subprocess_alive(self) -> None:
        """Starts the processes again that have ended; see `Multiprocess`."""
        for number, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if process in self._tries:
                if time.monotonic() >= self._tries[process]:
                    self._replace(number, self._pauses[process])
            elif not self._lives(process):
                process.kill()  # it may also be hung
                process.join()
                forget_process(process.pid)
                if process in self._serving:
                    LOG.error("process %s has died and is started again", process.pid)
                    self._replace(number, 0.0)
                else:
                    self._try_later(process)

    def _lives(self, process: Process) -> bool:
        """Whether a process runs, and answers if it has served before. One that loads a bundle may
        be too busy to answer."""
        if process in self._serving:
            return process.is_alive(self.config.timeout_worker_healthcheck)
        if process.is_ready(timeout=1):
            self._serving.add(process)
        return process.process.is_alive()

    def _replace(self, number: int, pause: float) -> None:
        """Starts a process in the place of one that has ended."""
        ended = self.processes[number]
        self._serving.discard(ended)
        for known in (self._pauses, self._tries):
            known.pop(ended, None)
        self.processes[number] = process = Process(self.config, self.sockets)
        self._pauses[process] = pause
        process.start()

    def _try_later(self, process: Process) -> None:
        """Notes when a process that could not start is tried again, or ends the service."""
        pause = min(max(FIRST_PAUSE, 2 * self._pauses.get(process, 0.0)), LONGEST_PAUSE)
        self._pauses[process], self._tries[process] = pause, time.monotonic() + pause
        left = sum(other not in self._tries for other in self.processes)
        if left:
            LOG.error(
                "process %s could not start (exit code %s) and is tried again in %g s; %d of %d "
                "processes are left",
                process.pid,
                process.exitcode,
                pause,
                left,
                len(self.processes),
            )
        else:
            self.could_not_start = True
            self.should_exit.set()

    def terminate_all(self) -> None:
        """See `Multiprocess`."""
        if self.could_not_start:  # nobody is left who could accept connections
            return
        for listener in self.sockets:
            drop_new_connections(listener)
        end = time.monotonic() + (self.config.timeout_graceful_shutdown or DRAIN_SECONDS)
        time.sleep(DRAIN_SECONDS)
        while any(map(has_waiting_connection, self.sockets)) and time.monotonic() < end:
            time.sleep(0.01)
        super().terminate_all()
