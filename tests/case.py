"""What the end to end tests stand on: a case that has daemons, cleans up after itself, and runs ``curl``."""

from __future__ import annotations

import atexit
import json
import os
import shutil
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SkipTest, TestCase

from tests.daemon import Daemon, Section, free_port, scratch_directory
from tests.proxy import CuttingProxy
from tests.raw_peer import RawSender, RawStandby, connect
from tests.waiting import limited

T = TypeVar("T")

#: Whether what is missing on this machine is a failure and no reason to skip.
IN_CI = os.environ.get("CI") == "true"


@attrs.frozen
class Output:
    """What a command left behind."""

    status: int
    out: bytes
    err: bytes

    def json(self) -> Any:
        """What it wrote, as JSON; it has to have gone well."""
        assert self.status == 0, self
        return json.loads(self.out)


async def run(
    program: str, *arguments: str, directory: Path | None = None, env: Mapping[str, str] | None = None
) -> Output:
    """Run a program to its end while the reactor goes on."""
    out, err, status = await limited(
        getProcessOutputAndValue(
            program, arguments, env={**os.environ, **(env or {})}, path=str(directory) if directory else None
        )
    )
    return Output(status, out, err)


class EndToEndCase(TestCase):
    """A case whose tests use real daemons."""

    #: Seconds for a whole test, far beyond what any of them takes.
    timeout = 120.0

    def daemon(self, pairs: Mapping[str, Section], **more: Any) -> Daemon:
        """A daemon of this test, not yet started."""
        daemon = Daemon(pairs, log_file=Path(self.mktemp()).absolute(), **more)
        self.addCleanup(daemon.remove)
        self.addCleanup(self.assert_no_fault, daemon)
        return daemon

    def assert_no_fault(self, daemon: Daemon) -> None:
        """Nothing that happened was a surprise to the daemon."""
        self.assertNotIn("Traceback (most recent call last)", daemon.log())

    def scratch(self) -> Path:
        """A directory of this test."""
        directory = scratch_directory()
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        return directory

    def in_background(self, work: Coroutine[Deferred[Any], Any, T]) -> Deferred[T]:
        """Start something that the test waits for later, or that ends with it."""
        started = Deferred.fromCoroutine(work)
        self.addCleanup(self._give_up, started)
        return started

    def _give_up(self, started: Deferred[Any]) -> None:
        if not started.called:
            started.addErrback(lambda _: None)
            started.cancel()

    async def proxy(self, target: int) -> tuple[CuttingProxy, int]:
        """A proxy of this test before a port, and its own port."""
        proxy, port = CuttingProxy(target), free_port()
        self.addCleanup(proxy.stop)
        await proxy.listen(port)
        return proxy, port

    async def raw_sender(self, port: int) -> RawSender:
        """A connection of this test to a port that a secondary listens on."""
        sender = await connect(port)
        self.addCleanup(sender.abort)
        return sender

    async def raw_standby(self, port: int) -> RawStandby:
        """What listens on a port in place of a secondary."""
        standby = RawStandby()
        self.addCleanup(standby.stop)
        await standby.listen(port)
        return standby

    async def curl(self, *arguments: str) -> Output:
        """``curl``, silent but for what goes wrong."""
        program = shutil.which("curl")
        if program is None:
            if IN_CI:
                self.fail("there is no curl here")
            raise SkipTest("there is no curl here")
        return await run(program, "--silent", "--show-error", *arguments)

    async def curl_json(self, *arguments: str) -> Any:
        """What ``curl`` got, which has to be JSON."""
        return (await self.curl(*arguments)).json()


class SharedDaemonCase(EndToEndCase):
    """
    A case whose tests share one daemon, each leaving it as it found it.

    The daemon starts with the first of them and is removed when another case wants its own, or at the end.
    """

    #: The sections of the daemon's pairs.
    pairs: ClassVar[Mapping[str, Section]]
    #: What else `Daemon` takes.
    settings: ClassVar[Mapping[str, Any]] = {}
    #: The pairs whose links are up before each test; if there are none, what `Daemon.until_up` takes for all.
    up: ClassVar[tuple[str, ...]] = ()

    shared: Daemon

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        self.shared = await _shared.of(self)
        self.addCleanup(self.assert_no_fault, self.shared)


class _Shared:
    """The one daemon that is shared now."""

    def __init__(self) -> None:
        self._owner: type[SharedDaemonCase] | None = None
        self._daemon: Daemon | None = None

    async def of(self, test: SharedDaemonCase) -> Daemon:
        """The daemon of a test's case, all of its links up."""
        if self._owner is not type(test) or self._daemon is None:
            self.remove()
            self._owner = type(test)
            self._daemon = Daemon(test.pairs, log_file=Path(test.mktemp()).absolute(), **test.settings)
            await self._daemon.start()
        await self._daemon.until_up(*test.up)
        return self._daemon

    def remove(self) -> None:
        """End the daemon, if there is one."""
        if self._daemon is not None:
            self._daemon.remove()
            self._daemon = None


_shared = _Shared()
atexit.register(_shared.remove)
