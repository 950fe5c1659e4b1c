"""A daemon on a reactor in memory, with its files in a directory of the test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from ftd.config import load
from ftd.errors import FtdError
from ftd.primary import PrimaryPair
from ftd.secondary import SecondaryPair
from ftd.service import FtdService
from ftd.status import Commit, LinkState
from ftd.test.pair_case import Body
from ftd.testing.reactor import MemoryReactor

API = "[api]\nendpoint = tcp:8440:interface=127.0.0.1\n"

DAEMON = f"[ftd]\nnode = host-a\nstate-dir = var\n\n{API}"


def pair(name: str, port: int, more: str = "") -> str:
    """Both halves of a pair, as they stand in the file."""
    return (
        f"\n[pair {name}]\nrole = primary\nlink = tcp:127.0.0.1:{port}\n{more}"
        f"\n[pair {name}-standby]\nrole = secondary\nname = {name}\nack = applied\n"
        f"link = tcp:{port}:interface=127.0.0.1\n{more}"
    )


class ServiceTestCase(SynchronousTestCase):
    """
    Each test has a file and a reactor.

    :ivar service: the daemon, from `start` on.
    """

    service: FtdService

    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir()
        self.path = self.home / "ftd.conf"
        self.state_dir = self.home / "var"
        self.reactor = MemoryReactor()
        self.patch(os, "fsync", lambda _descriptor: None)
        previous = signal.getsignal(signal.SIGHUP)
        self.addCleanup(lambda: signal.signal(signal.SIGHUP, previous))

    # The daemon

    def configure(self, *pairs: str, daemon: str = DAEMON) -> None:
        """Write the file."""
        self.path.write_text(daemon + "".join(pairs))

    def new_service(self) -> FtdService:
        """A daemon that has taken nothing yet."""
        service = FtdService(load(str(self.path)), self.reactor)
        self.addCleanup(self.release, service)
        return service

    def start(self, *pairs: str) -> FtdService:
        """A daemon with these pairs, the links of which are up."""
        self.configure(*(pairs or [pair("demo", 8441)]))
        self.service = self.new_service()
        self.service.prepare()
        self.service.startService()
        self.reactor.deliver()
        return self.service

    def restart(self) -> FtdService:
        """Kill the daemon and start another on the same files."""
        self.release(self.service)
        self.reactor = MemoryReactor()
        self.service = self.new_service()
        self.service.prepare()
        self.service.startService()
        self.reactor.deliver()
        return self.service

    def release(self, service: FtdService) -> None:
        """Give back what the end of the process would."""
        if service._lock is not None:
            os.close(service._lock)
            service._lock = None

    # Its pairs

    def primary(self, name: str = "demo") -> PrimaryPair:
        """A primary that runs."""
        found = self.service.pairs()[name]
        assert isinstance(found, PrimaryPair)
        return found

    def secondary(self, name: str = "demo-standby") -> SecondaryPair:
        """A secondary that runs."""
        found = self.service.pairs()[name]
        assert isinstance(found, SecondaryPair)
        return found

    def names(self) -> list[str]:
        """The pairs that run."""
        return list(self.service.pairs())

    def ports(self) -> list[int]:
        """The ports on which the daemon listens."""
        return sorted(port for _, port in self.reactor.listening)

    def push(self, name: str, data: bytes) -> Deferred[object]:
        """A whole checkpoint."""
        upload = self.primary(name).checkpoint(Body())
        upload.write(data)
        upload.finish()
        return upload.done

    def check_works(self, *names: str) -> None:
        """Make sure that these pairs commit what they are given."""
        for name in names:
            self.assertIs(self.primary(name).status().link_state, LinkState.UP, name)
            committing = self.push(name, name.encode())
            self.reactor.deliver()
            self.assertIsInstance(self.successResultOf(committing), Commit)
            store = self.secondary(f"{name}-standby").store()
            with store.open(store.checkpoints()[-1].number) as file:
                self.assertEqual(file.read(), name.encode())

    # What it says

    def refused(self, error: type[FtdError], result: Deferred[Any]) -> FtdError:
        """What ``result`` failed with."""
        refused = self.failureResultOf(result, error).value
        assert isinstance(refused, FtdError)
        return refused

    @contextmanager
    def logged(self, level: LogLevel) -> Iterator[list[str]]:
        """The lines that are logged at ``level`` meanwhile."""
        lines: list[str] = []
        with capturedLogs() as events:
            yield lines
        lines.extend(formatEvent(event) for event in events if event["log_level"] is level)
