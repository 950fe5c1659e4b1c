"""
Real daemons: ``twistd ftd`` in processes of their own, on free ports of the loopback, in directories that go again.

A daemon is a plain child process, not one of the reactor's, so that it can outlive the test that started it and serve
the next.  No daemon outlives the tests: each is killed by its process id when its test, or its group of tests, is over,
and by the kernel should the process of the tests die before that.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket as sockets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.http_client import Answer, HttpClient, NoAnswer
from tests.waiting import until

TREE = Path(__file__).parent.parent

#: Seconds in which a daemon that starts answers, on the slowest machine that is worth a thought.
START_TIME = 60.0

#: Seconds in which a daemon that was told to end does; what it promises, and as much again for a slow machine.
END_TIME = 10.0

#: Keys and values of one section.
Section = Mapping[str, str]

#: An object that the API answered with.
Json = dict[str, Any]

# twistd, which the kernel kills with whoever started it (PR_SET_PDEATHSIG of prctl(2)).
_RUN_TWISTD = """
import ctypes, signal
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
{before}
from twisted.scripts.twistd import run
run()
"""


def _shuffled_ports() -> Iterator[int]:
    ports = list(range(15_000, 32_000))
    random.shuffle(ports)
    yield from ports


_ports = _shuffled_ports()


def free_port() -> int:
    """
    A port of 127.0.0.1 that nobody listens on, and that is not handed out again.

    It lies below those that the system picks for connections (``net.ipv4.ip_local_port_range``): it stays free while
    its daemon restarts, and nobody who dials it meanwhile is connected to himself.
    """
    for port in _ports:
        with sockets.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("every port is taken")


def scratch_directory() -> Path:
    """A new directory with a short name: the path of a unix socket has 107 bytes at most."""
    return Path(tempfile.mkdtemp(prefix="ftd-tests-"))


def primary(link: int | str, **keys: str) -> Section:
    """
    The section of a primary that dials a port of the loopback, or an endpoint.

    It does not wait long before it dials again.  ``keys`` have underscores for dashes.
    """
    endpoint = f"tcp:127.0.0.1:{link}" if isinstance(link, int) else link
    return {"role": "primary", "link": endpoint, "reconnect-max": "200ms", **_dashed(keys)}


def secondary(link: int | str, **keys: str) -> Section:
    """The section of a secondary that listens on a port of the loopback, or an endpoint."""
    endpoint = f"tcp:{link}:interface=127.0.0.1" if isinstance(link, int) else link
    return {"role": "secondary", "link": endpoint, **_dashed(keys)}


def _dashed(keys: Mapping[str, str]) -> Section:
    return {key.replace("_", "-"): value for key, value in keys.items()}


def environment() -> dict[str, str]:
    """What a program of ftd needs around it: this tree first in its path, wherever it runs."""
    path = os.pathsep.join(filter(None, (str(TREE), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def twistd(*arguments: str, before: str = "") -> list[str]:
    """The command line that runs twistd; ``before`` is Python that the process runs first."""
    return [sys.executable, "-c", _RUN_TWISTD.format(before=before), *arguments]


class Daemon:
    """
    One daemon; it may be started, stopped and killed any number of times.

    :param pairs: the ``[pair NAME]`` sections by name.
    :param ftd: keys of the ``[ftd]`` section.
    :param api: keys of the ``[api]`` section, the endpoint excepted.
    :param before: Python that the process runs before it becomes a daemon.
    :param prefix: what its command line begins with: a program that becomes the daemon, ``ip netns exec NAME``.
    :param has_socket: its API listens on a unix socket, which can be reached from every network namespace.
    :param log_file: where its log goes.
    :ivar directory: its own: it holds the configuration and ``var``.
    """

    def __init__(
        self,
        pairs: Mapping[str, Section],
        *,
        ftd: Section | None = None,
        api: Section | None = None,
        before: str = "",
        prefix: Sequence[str] = (),
        has_socket: bool = False,
        log_file: Path,
    ) -> None:
        self.directory = scratch_directory()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        socket = str(self.directory / "api") if has_socket else None
        self.http = HttpClient(self.url, socket)
        self.configuration = self.directory / "ftd.conf"
        self.log_file = log_file
        self._ftd = ftd or {}
        endpoint = f"unix:{socket}" if socket else f"tcp:{self.port}:interface=127.0.0.1"
        self._api = {"endpoint": endpoint, **(api or {})}
        self._before = before
        self._prefix = tuple(prefix)
        self._process: subprocess.Popen[bytes] | None = None
        self.configure(pairs)

    def configure(self, pairs: Mapping[str, Section]) -> None:
        """Write the configuration anew; a daemon that runs has to be told to read it."""
        self.pairs = dict(pairs)
        sections = {"ftd": self._ftd, "api": self._api}
        sections.update({f"pair {name}": section for name, section in pairs.items()})
        self.configuration.write_text(ini(sections))

    # Life

    @property
    def pid(self) -> int:
        """The process id of the daemon that runs."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it was started and neither stopped nor killed since."""
        return self._process is not None

    def launch(self) -> None:
        """Start it and do not wait."""
        assert self._process is None, "it runs already"
        with self.log_file.open("ab") as log:
            command = twistd("-n", "--pidfile=", "ftd", "--config", str(self.configuration), before=self._before)
            self._process = subprocess.Popen(
                [*self._prefix, *command],
                cwd=self.directory,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def start(self) -> Daemon:
        """Start it and wait until its API answers."""
        await start_all(self)
        return self

    async def ended(self, within: float = END_TIME) -> int:
        """Wait for its end; the exit status, negative for a signal."""
        assert self._process is not None, "it does not run"
        process = self._process
        await until(lambda: process.poll() is not None, "the daemon ends", within)
        self._process = None
        return process.returncode

    async def stop(self) -> int:
        """End it politely; the exit status."""
        self.send(signal.SIGTERM)
        return await self.ended()

    def kill(self) -> None:
        """``kill -9``; nothing happens if it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None, "it does not run"
        self._process.send_signal(number)

    def remove(self) -> None:
        """Kill it and remove all that it had."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        """All that it has said so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    # What is asked most often

    async def pair(self, name: str) -> Json:
        """The state of a pair."""
        state: Json = await self.http.json(f"/v1/pairs/{name}")
        return state

    async def until_up(self, *names: str) -> None:
        """
        Wait until the links of pairs are up; if none is named, of the primaries, and if there are none, of all.

        A standby of this daemon that another primary has is up when that is.
        """
        primaries = [name for name, section in self.pairs.items() if section.get("role") != "secondary"]
        for name in names or primaries or self.pairs:
            await self.until_pair(name, link_state="up")

    async def until_pair(self, name: str, **fields: object) -> Json:
        """Wait until the state of a pair has these values; the whole state."""
        last: Json = {}

        async def has_them() -> bool:
            nonlocal last
            last = await self.pair(name)
            return all(last[field] == value for field, value in fields.items())

        await until(has_them, lambda: f"{name} has {fields}; it is {last}")
        return last

    async def push(self, name: str, state: bytes) -> Answer:
        """One whole checkpoint; the answer, which has to be that it is committed."""
        answer = await self.http.request("PUT", f"/v1/pairs/{name}/checkpoint", state)
        assert answer.status == 200, answer
        return answer

    async def checkpoints(self, name: str) -> list[Json]:
        """The list of a secondary's checkpoints."""
        listed: list[Json] = (await self.http.json(f"/v1/pairs/{name}/checkpoints"))["checkpoints"]
        return listed

    async def checkpoint(self, name: str, number: int | str = "latest") -> bytes:
        """The state of one of them."""
        answer = await self.http.request("GET", f"/v1/pairs/{name}/checkpoints/{number}")
        assert answer.status == 200, answer
        return answer.body

    async def transactions(self, name: str) -> list[Json]:
        """The history of a pair."""
        listed: list[Json] = (await self.http.json(f"/v1/pairs/{name}/transactions"))["transactions"]
        return listed

    def stored_files(self, name: str) -> list[Path]:
        """What is in the directory of a secondary's checkpoints."""
        return sorted((self.directory / "var" / "pairs" / name / "checkpoints").iterdir())

    # Memory

    def resident(self) -> int:
        """Bytes of memory that it has now (VmRSS)."""
        return self._memory("VmRSS")

    def peak_resident(self) -> int:
        """The most that it ever had (VmHWM)."""
        return self._memory("VmHWM")

    def _memory(self, field: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.removesuffix("kB")) * 1024
        raise AssertionError(f"the kernel does not say {field}")

    async def answers(self) -> bool:
        """Whether its API does."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the daemon ended with {self._process.returncode}:\n{self.log()}")
        try:
            return (await self.http.request("GET", "/healthz")).status == 200
        except NoAnswer:
            return False


async def start_all(*daemons: Daemon) -> None:
    """Start daemons, at the same time, and wait until the API of each answers."""
    for daemon in daemons:
        daemon.launch()
    for daemon in daemons:
        await until(daemon.answers, "the daemon answers", START_TIME)


def ini(sections: Mapping[str, Section]) -> str:
    """The text of a configuration file."""
    lines = []
    for title, keys in sections.items():
        lines += [f"[{title}]", *(f"{key} = {value}" for key, value in keys.items()), ""]
    return "\n".join(lines)


def problem(answer: Answer, status: int) -> Json:
    """The problem that an answer of this status has to carry."""
    assert answer.status == status, answer
    assert answer.header("Content-Type") == "application/problem+json", answer
    body: Json = json.loads(answer.body)
    assert body["status"] == status, body
    assert body["detail"], body
    return body
