"""The command line in processes of its own, as an operator starts it."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from core.module import ROOT

COMMAND = [sys.executable, "-W", "error", "-m", "core"]
_PATIENCE_SECONDS = 60


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would configure the service."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("VOPROS_", "OPENAI_"))
    }
    return kept | dict(more or {})


def vopros(
    *arguments: str | Path, stdin: str = "", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one command from the project's root to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=ROOT,
        input=stdin,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=_PATIENCE_SECONDS,
        check=False,
    )


def assert_refused(
    done: subprocess.CompletedProcess[str], *words: str, code: int = 1
) -> None:
    """The command ended with `code` and one line for people that holds all `words`."""
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("vopros: ")
    for word in words:
        assert word in line


class ServerProcess:
    """`vopros serve` on a free port, started and ready."""

    def __init__(
        self, *arguments: str | Path, env: Mapping[str, str] | None, first: str = ""
    ) -> None:
        self._lines: list[str] = []
        self._is_ready = threading.Event()
        self.url = ""
        command = [*COMMAND, *map(str, arguments), "serve", "--port", "0"]
        if first:
            # As a script does it that starts something, and then becomes the server.
            command = ["sh", "-c", f'{first} & exec "$@"', "sh", *command]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(env),
            stderr=subprocess.PIPE,
            text=True,
            # A group of its own, as a shell gives every command.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._is_ready.wait(_PATIENCE_SECONDS)
        assert self.url, self.log

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def end(self, sig: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and return the exit code."""
        self.process.send_signal(sig)
        return self.ended()

    def ended(self) -> int:
        """Wait for the end and return the exit code."""
        code = self.process.wait(_PATIENCE_SECONDS)
        self._reader.join()
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            for line in stderr:
                self._lines.append(line)
                if found := re.search(r"Swagger: (http://\S+)/docs", line):
                    self.url = found[1]
                    self._is_ready.set()
        self._is_ready.set()


@contextmanager
def serving(
    *arguments: str | Path, env: Mapping[str, str] | None = None, first: str = ""
) -> Iterator[ServerProcess]:
    """A server for the length of a block; `first` is what its script does before."""
    server = ServerProcess(*arguments, env=env, first=first)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)
