"""The processes that are measured, set up and taken down."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console

from bench.child import Child
from bench.figures import Figure, Missing
from tests.daemon import TREE, Section, free_port, ini, primary, secondary

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

#: Memory of a sink that is to hold whatever is measured.
_SINK_MEMORY = "8GiB"

#: No heartbeat is to come in between.
_TIMES = {"heartbeat": "1h", "dead_time": "2h", "handshake_time": "1min", "ack_time": "2min"}


@attrs.define
class Bench:
    """
    One run of the bench.

    :ivar short: a look at everything, with too few samples for a judgement.
    :ivar progress: where it is said what is done now.
    """

    short: bool
    progress: Console
    figures: list[Figure] = attrs.Factory(list)
    missing: list[Missing] = attrs.Factory(list)

    def say(self, what: str) -> None:
        """One line."""
        self.progress.print(f"[dim]{what}[/]", soft_wrap=True)

    def add(self, *figures: Figure) -> None:
        """What was measured."""
        self.figures += figures

    def lacks(self, case: str, group: str, why: object) -> None:
        """What could not be measured, and why."""
        self.missing.append(Missing(case, group, str(why).strip().splitlines()[-1]))
        self.say(f"{case} {group}: {why}")

    def pick(self, whole: Any, short: Any) -> Any:
        """How much of something."""
        return short if self.short else whole


@attrs.frozen
class Halves:
    """
    Two daemons with their pairs, driven from within.

    :ivar sockets: of their APIs.
    """

    primary: Child
    secondary: Child
    sockets: tuple[str, str]

    @property
    def both(self) -> tuple[Child, Child]:
        """The sending one first."""
        return self.primary, self.secondary


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory that goes again."""
    directory = Path(tempfile.mkdtemp(prefix="ftd-bench-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def rivals(count: int = 2, *, is_apart: bool = False) -> Iterator[list[Child]]:
    """
    Processes with sockets that block.

    :param is_apart: each on a core of its own, as if it were a machine of its own.
    """
    with scratch() as directory, ExitStack() as stack:
        yield [
            stack.enter_context(
                Child("bench.rival", log=directory / f"rival-{number}.log", core=number if is_apart else None)
            )
            for number in range(count)
        ]


@contextmanager
def halves(
    pairs: int = 1,
    *,
    keys: Mapping[str, str] | None = None,
    sending: Mapping[str, str] | None = None,
    receiving: Mapping[str, str] | None = None,
    daemon: Section | None = None,
    is_stock: bool = False,
    is_apart: bool = False,
    tree: Path = TREE,
    proxy: tuple[Child, float] | None = None,
) -> Iterator[Halves]:
    """
    Two processes with so many pairs between them over TCP, all links up.

    :param keys: of all halves of pairs, with underscores for dashes; ``sending`` and ``receiving`` of one kind.
    :param daemon: keys of the sending daemon's ``[ftd]``.
    :param is_stock: carried by Twisted's own transports.
    :param is_apart: each on a core of its own.
    :param tree: where ftd is.
    :param proxy: what delays each byte by so many seconds.
    :raises ChildError: if they do not start.
    """
    common = {**_TIMES, **(keys or {})}
    sections: tuple[dict[str, Section], dict[str, Section]] = ({}, {})
    for number in range(pairs):
        port = free_port()
        dialled = proxy[0].ask("proxy", port=port, delay=proxy[1])["port"] if proxy is not None else port
        sections[0][f"p{number}"] = primary(dialled, **common, **(sending or {}))
        more = {"sink": "memory", "keep": "1", "memory_limit": _SINK_MEMORY, **common, **(receiving or {})}
        sections[1][f"p{number}"] = secondary(port, **more)
    with scratch() as directory, ExitStack() as stack:
        children = []
        # Both at once: the one that dials does so until the other listens.
        for name, some, more_keys in (("receive", sections[1], {}), ("send", sections[0], daemon or {})):
            path = directory / name
            path.mkdir()
            configuration = path / "ftd.conf"
            titled = {f"pair {pair}": section for pair, section in some.items()}
            api = {"endpoint": f"unix:{path / 'api'}", "event-readers": "200"}
            configuration.write_text(ini({"ftd": more_keys, "api": api, **titled}))
            arguments = [str(configuration), *(["--stock"] if is_stock else [])]
            core = (0 if name == "send" else 1) if is_apart else None
            child = Child("bench.half", *arguments, log=path / "log", tree=tree, core=core)
            children.append(stack.enter_context(child))
        found = Halves(children[1], children[0], (str(directory / "send" / "api"), str(directory / "receive" / "api")))
        for child in found.both:
            child.ask("up")
        yield found


@attrs.frozen
class Rate:
    """
    How fast bytes went.

    :ivar rate: GB/s.
    :ivar sender: CPU seconds per GB, :ivar receiver: the same.
    """

    rate: float
    sender: float
    receiver: float


def pump(
    sender: Child, receiver: Child, total: int, size: int, tls: Mapping[str, str] | None = None, keep: int = 0
) -> Rate:
    """
    Bare bytes from one process to the other.

    :param keep: so many bytes stay where they arrive, and both sides make a digest.
    """
    port = receiver.ask("listen")["port"]
    more = {"tls": dict(tls)} if tls is not None else {}
    receiver.tell("receive", total=total, size=size, keep=keep, **more)
    sent = sender.ask("send", port=port, total=total, size=size, is_digested=bool(keep), **more)
    received = receiver.answer()
    giga = total / 1e9
    return Rate(giga / received["seconds"], sent["cpu"] / giga, received["cpu"] / giga)


def stream(pair: Halves, piece: int, size: int, count: int) -> Rate:
    """Checkpoints through a link; the time is from the first byte to the last ACK."""
    before = pair.secondary.ask("usage")["cpu"]
    sent = pair.primary.ask("stream", piece=piece, size=size, count=count)
    giga = size * count / 1e9
    return Rate(giga / sent["seconds"], sent["cpu"] / giga, (pair.secondary.ask("usage")["cpu"] - before) / giga)


def size_text(size: int) -> str:
    """Bytes as people write them."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size} B"


def column(rates: Iterable[Rate], what: str) -> list[float]:
    """One of their values."""
    return [getattr(rate, what) for rate in rates]
