"""Serving with several processes: their parent starts them, replaces and ends them.

uvicorn's own supervisor starts its workers anew from an import path, restarts what dies
at once for ever, and looks twice a second. Here they are forks of a process that does
nothing but wait, with the configuration read and the socket bound.
"""

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from core.restarts import Restarts

log = logging.getLogger(__name__)

_HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)


@dataclass(frozen=True)
class Worker:
    """One of several processes that serve, as it sees itself."""

    is_first: bool
    """No other has served yet: the others are started once it does."""
    parent: socket.socket
    """At its end once the parent is gone, however that ended."""

    def serves(self) -> None:
        """Tell the parent."""
        # It may be gone by now, which its end of `parent` will tell.
        with suppress(BrokenPipeError):
            self.parent.send(b".")


@dataclass
class _Place:
    """One of the processes there should be; `due_at` is when it may be started."""

    restarts: Restarts = field(default_factory=Restarts)
    pid: int | None = None
    due_at: float = 0.0


class Workers:
    """The parent: `count` processes that do `work` with what listens."""

    def __init__(
        self, count: int, listener: socket.socket, work: Callable[[Worker], None]
    ) -> None:
        self._places = [_Place() for _ in range(count)]
        self._listener = listener
        self._work = work
        self._ours, self._theirs = socket.socketpair()
        self._serves = False
        self._is_ending = False

    def run(self) -> None:
        """Return in the parent once a signal has ended it and every worker.

        In a worker this raises what its work does, or SystemExit after it; in the
        parent SystemExit with the code of the first worker if that does not start.
        """
        with _signals() as signals, self._ours, self._theirs:
            while not self._is_ending or self._living:
                if not self._is_ending:
                    self._start_due()
                for number in self._wait(signals):
                    if number != signal.SIGCHLD:
                        self._end(signal.Signals(number))
                self._reap()

    @property
    def _living(self) -> list[int]:
        return [place.pid for place in self._places if place.pid is not None]

    def _start_due(self) -> None:
        # What would refuse the start of all is told by the first one, and once.
        for place in self._places if self._serves else self._places[:1]:
            if place.pid is None and place.due_at <= time.monotonic():
                place.restarts.started()
                place.pid = self._fork()

    def _fork(self) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)
        try:
            if pid := os.fork():
                return pid
            signal.set_wakeup_fd(-1)
            for heeded in _HEEDED:
                signal.signal(heeded, signal.SIG_DFL)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEEDED)
        # Ctrl-C is for the parent, which passes it on; twice would be an impatient one.
        os.setpgid(0, 0)
        self._ours.close()
        self._work(Worker(is_first=not self._serves, parent=self._theirs))
        raise SystemExit(0)

    def _wait(self, signals: socket.socket) -> bytes:
        """Wait until there is something to do; returns the signals that came."""
        due = [place.due_at for place in self._places if place.pid is None]
        timeout = None
        if self._serves and due and not self._is_ending:
            timeout = max(0.0, min(due) - time.monotonic())
        ready, _, _ = select.select([signals, self._ours], [], [], timeout)
        if self._ours in ready:
            self._ours.recv(64)
            self._serves = True
        return signals.recv(64) if signals in ready else b""

    def _end(self, sig: signal.Signals) -> None:
        if self._is_ending and sig != signal.SIGINT:
            return
        # A second Ctrl-C is passed on as what it is: do not wait for anybody.
        passed_on = signal.SIGINT if self._is_ending else signal.SIGTERM
        self._is_ending = True
        # Or whoever still comes would wait for an answer of nobody.
        self._listener.close()
        for pid in self._living:
            os.kill(pid, passed_on)

    def _reap(self) -> None:
        while self._living:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            place = next((place for place in self._places if place.pid == pid), None)
            if place is None:
                # What a script began before it became this process, or, where this is
                # the first process of a container, what others have left behind.
                continue
            code = os.waitstatus_to_exitcode(status)
            place.pid = None
            if not self._is_ending:
                self._replace(place, pid, code)
            elif code:
                fields = {"worker": pid, "exit_code": code}
                log.warning("worker.ended", extra=fields)

    def _replace(self, place: _Place, pid: int, code: int) -> None:
        if not self._serves:
            raise SystemExit(code if code > 0 else 1)
        pause = place.restarts.pause_seconds()
        place.due_at = time.monotonic() + pause
        fields = {"worker": pid, "exit_code": code, "pause_seconds": pause}
        log.warning("worker.replaced", extra=fields)


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """What can be read from it are the numbers of the signals that came."""
    read, written = socket.socketpair()
    written.setblocking(False)
    with read, written:
        signal.set_wakeup_fd(written.fileno())
        for heeded in _HEEDED:
            signal.signal(heeded, lambda *_: None)
        try:
            yield read
        finally:
            signal.set_wakeup_fd(-1)
