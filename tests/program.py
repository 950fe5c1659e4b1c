"""Programs that run beside a test until it has seen enough, on a terminal or with their output in files."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import IO

from tests.daemon import environment
from tests.waiting import until


class Program:
    """
    A program that runs.

    :param on_terminal: its output and its errors are a terminal, as one stream.
    """

    def __init__(self, *command: str, directory: Path, env: dict[str, str] | None = None, on_terminal: bool = False):
        self._files: tuple[IO[bytes], IO[bytes]] | None = None
        self._terminal: int | None = None
        self._seen = bytearray()
        environ = {**environment(), "TERM": "xterm", "COLUMNS": "100", **(env or {})}
        out: int | IO[bytes]
        err: int | IO[bytes]
        slave: int | None = None
        if on_terminal:
            self._terminal, slave = pty.openpty()
            os.set_blocking(self._terminal, False)
            out = err = slave
        else:
            self._files = out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 (closed by `end`)
        self._process = subprocess.Popen(
            command, cwd=directory, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=err
        )
        if slave is not None:
            os.close(slave)

    def out(self) -> str:
        """All it has written so far."""
        return self._read(0)

    def err(self) -> str:
        """All errors it has written so far; on a terminal, the same as `out`."""
        return self._read(1)

    async def until_out(self, text: str, times: int = 1) -> None:
        """Wait until it has written ``text``."""
        await until(lambda: self.out().count(text) >= times, lambda: f"{text!r} in {self.out()[-2000:]!r} {self.err()}")

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; the exit status."""
        await until(lambda: self._process.poll() is not None, lambda: f"it ends; {self.out()[-2000:]!r}")
        return self._process.returncode

    def end(self) -> None:
        """Kill it if it still runs, and forget what it wrote."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._terminal is not None:
            os.close(self._terminal)
        for file in self._files or ():
            file.close()

    def _read(self, which: int) -> str:
        if self._files is not None:
            file = self._files[which]
            return os.pread(file.fileno(), 16 * 1024 * 1024, 0).decode(errors="replace")
        assert self._terminal is not None
        try:
            while data := os.read(self._terminal, 65536):
                self._seen += data
        except (BlockingIOError, OSError):
            # Nothing more for now, or the program has closed its end.
            pass
        return self._seen.decode(errors="replace")
