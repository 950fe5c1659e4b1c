"""``ftdctl status --watch``: the pairs, shown anew whenever something happens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing

import attrs
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from ftd.cli.session import Session
from ftd.cli.status_view import status_view
from ftd.cli.wording import plain
from ftd.client import ApiError, ClientError, DaemonInfo, Event, Unreachable
from ftd.status import PairStatus, VmStatus

#: Seconds between two drawings, however often a pair changes.
_DRAWING = 0.5

#: Seconds between two looks at the whole daemon: its version and its uptime are new after a restart.
_LISTING = 5.0


@attrs.define
class Picture:
    """
    What is known of a daemon.

    :ivar info: as it was at ``time``, Unix seconds.
    :ivar times: when each pair was as it is in ``pairs``, Unix seconds.
    """

    info: DaemonInfo
    time: float
    pairs: dict[str, PairStatus]
    trouble: str = ""
    times: dict[str, float] = attrs.field(factory=dict)
    _in_snapshot: set[str] = attrs.field(factory=set)

    @classmethod
    async def of(cls, session: Session) -> Picture:
        """The daemon as it is now."""
        info, pairs = await session.client.info(), await session.client.pairs()
        now = session.now()
        return cls(info, now, {pair.name: pair for pair in pairs}, times={pair.name: now for pair in pairs})

    def take(self, event: Event) -> None:
        """Something has happened."""
        if event.kind == "pair" and event.data.get("removed"):
            self.pairs.pop(event.pair, None)
        elif event.kind == "pair":
            self.pairs[event.pair] = event.pair_status()
            self.times[event.pair] = event.time
            self._in_snapshot.add(event.pair)
        elif event.kind == "lagged":
            self._in_snapshot.clear()  # a new snapshot follows
        elif event.kind == "sync":
            self.pairs = {name: pair for name, pair in self.pairs.items() if name in self._in_snapshot}

    def link(self, broken: Unreachable | ApiError | None) -> None:
        """The event stream has broken, or is there again."""
        self._in_snapshot.clear()
        self.trouble = f"{broken}; trying again" if broken is not None else ""

    def view(self, now: float) -> RenderableType:
        """As it is to be shown."""
        info = attrs.evolve(self.info, uptime_seconds=self.info.uptime_seconds + now - self.time)
        shown = status_view(info, list(self.pairs.values()), now, self.times)
        return Group(shown, Text(plain(self.trouble), "bold red")) if self.trouble else shown

    def essence(self) -> object:
        """What makes it worth being shown again where every showing stays: not the signs of life."""
        return self.trouble, [
            attrs.evolve(pair, bytes_sent=0, bytes_received=0, buffered_bytes=0, heartbeats=0, vm=_essence(pair.vm))
            for pair in self.pairs.values()
        ]


def _essence(vm: VmStatus | None) -> VmStatus | None:
    """Without what changes while nothing happens."""
    return None if vm is None else attrs.evolve(vm, lag_ms=None, held_frames=0, held_bytes=0)


async def watch(session: Session) -> None:
    """Until it is cancelled.  Restarts of the daemon are sat out."""
    picture = await Picture.of(session)
    stream = session.client.events(kinds=("pair",), notice=picture.link)
    failures: list[Failure] = []

    def give_up(failure: Failure) -> None:
        failures.append(failure)
        stream.close()

    async def list_pairs() -> None:
        try:
            listed = await Picture.of(session)
        except ClientError:
            return  # the event stream has noticed it too
        picture.info, picture.time, picture.pairs = listed.info, listed.time, listed.pairs
        picture.times = listed.times

    with ExitStack() as ending:
        ending.enter_context(closing(stream))
        draw = _drawer(session, picture, ending)
        drawing = LoopingCall(draw)
        listing = LoopingCall(lambda: Deferred.fromCoroutine(list_pairs()))
        for call, interval in ((drawing, _DRAWING), (listing, _LISTING)):
            call.clock = session.reactor
            call.start(interval).addErrback(give_up)
            ending.callback(_stop, call)
        async for event in stream:
            picture.take(event)
    if failures:
        failures[0].raiseException()


def _stop(call: LoopingCall) -> None:
    if call.running:
        call.stop()


def _drawer(session: Session, picture: Picture, ending: ExitStack) -> Callable[[], None]:
    """Shows the picture: over and over in the same place on a terminal, one below the other elsewhere."""
    if session.out.is_terminal:
        live = ending.enter_context(Live(console=session.out, auto_refresh=False))
        return lambda: live.update(picture.view(session.now()), refresh=True)
    shown: list[object] = []

    def print_changed() -> None:
        if [picture.essence()] != shown:
            shown[:] = [picture.essence()]
            session.out.print(picture.view(session.now()))

    return print_changed
