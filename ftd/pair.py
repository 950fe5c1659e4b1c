"""What both halves of a pair have: a name, a link, an error that sticks, a history, and a state that the API shows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from ftd.bandwidth import SharedBandwidth
from ftd.bus import EventBus
from ftd.config import PairConfig
from ftd.config_tls import TlsFiles
from ftd.errors import NotInState, PairFailed
from ftd.history import History
from ftd.link_protocol import LinkTimes, Traffic
from ftd.status import (
    FtMode,
    LastCommitted,
    LinkState,
    OpenTransaction,
    Outcome,
    PairStatus,
    TransactionStatus,
    VmStatus,
    to_json,
)
from ftd.trace import PairTrace
from ftd.transport import LinkOptions
from ftd.transport.tls_identity import TlsIdentity
from ftd.wire.errors import ErrorCode, WireError
from ftd.wire.session import Limits, Session
from ftd.wire.states import State

#: Seconds for which changes of counters are gathered before they are told as one event.
_GATHER = 0.1


@attrs.frozen(kw_only=True)
class Surroundings:
    """
    What a pair needs of its daemon.

    :ivar bandwidth: the limit that its primaries share; ``None`` for none.
    """

    clock: IReactorTime
    bus: EventBus
    node: str
    now: Callable[[], float] = time.time
    bandwidth: SharedBandwidth | None = None


@attrs.frozen
class StickyError:
    """What ``has_error`` shows until the link is re-opened."""

    code: ErrorCode
    detail: str


class Pair:
    """
    One half-pair.  `ftd.primary.PrimaryPair` and `ftd.secondary.SecondaryPair` are the two kinds.

    :raises ConfigError: if its link is TLS, and the files for that cannot be used.
    :ivar sessions: how often the link was opened.
    """

    log = Logger()

    def __init__(self, config: PairConfig, around: Surroundings) -> None:
        self.config = config
        self.name = config.section
        files = TlsFiles.of(config)
        self._tls = TlsIdentity(files) if files is not None else None
        self.trace = PairTrace(self.name, around.bus, config.trace)
        self.traffic = Traffic()
        self.history = History(self.name, around.bus, around.now)
        self.link_state = LinkState.DOWN
        self.link_detail = ""
        self.link_peer: str | None = None
        self.link_address = config.link
        self.error: StickyError | None = None
        self.last_committed: LastCommitted | None = None
        self.rate_limit = config.rate_limit
        self.bandwidth_limit = config.bandwidth_limit
        self.heartbeats = 0
        self.sessions = 0
        self._around = around
        self._bus = around.bus
        self._gathering: IDelayedCall | None = None
        # Whether whoever looks next is to be told how things stand.
        self._is_owed = False

    # What the API asks of every pair

    def transactions(self) -> Sequence[TransactionStatus]:
        """See `IPair`."""
        return self.history.recent()

    def trace_events(self) -> Mapping[str, bool]:
        """See `IPair`."""
        return self.trace.switches()

    def set_trace_events(self, switches: Mapping[str, bool]) -> None:
        """See `IPair`."""
        self.trace.switch(switches)

    def watch_trace(self, names: Collection[str]) -> Callable[[], None]:
        """See `IPair`."""
        return self.trace.watch(names)

    def status(self) -> PairStatus:
        """See `IPair`."""
        session = self._session()
        return PairStatus(
            name=self.name,
            role=self.config.role.value,
            peer=self._peer(),
            link_state=self.link_state,
            link_address=self.link_address,
            link_peer=self.link_peer,
            link_detail=self.link_detail,
            state=session.state.value if session is not None else State.INIT.value,
            ft_mode=self._ft_mode(),
            transaction=self._open_transaction(),
            id=self._next_id(),
            last_committed=self.last_committed,
            has_error=self.error.code if self.error is not None else 0,
            has_error_name=self.error.code.name if self.error is not None else None,
            has_error_detail=self.error.detail if self.error is not None else None,
            freeze_output=self._freezes_output(),
            freeze_input=self._freezes_input(),
            rate_limit=self.rate_limit,
            bandwidth_limit=self.bandwidth_limit,
            buffered_bytes=self._buffered_bytes(),
            generation=self._generation(),
            bytes_sent=self.traffic.sent,
            bytes_received=self.traffic.received,
            transactions_committed=self.history.counts[Outcome.COMMITTED],
            transactions_cancelled=self.history.counts[Outcome.CANCELLED],
            transactions_nacked=self.history.counts[Outcome.NACKED],
            transactions_failed=self.history.counts[Outcome.FAILED],
            heartbeats=self.heartbeats,
            reconnects=max(0, self.sessions - 1),
            vm=self._vm(),
        )

    def promote(self, force: bool) -> Deferred[None]:  # noqa: ARG002
        """See `IPair`."""
        return self._without_vm()

    def demote(self) -> Deferred[None]:
        """See `IPair`."""
        return self._without_vm()

    def _without_vm(self) -> Deferred[None]:
        return fail(NotInState(f"{self.name} is no pair of a VM (source or sink qemu)", self.status().state))

    # What the kinds fill in

    def start(self) -> Deferred[None]:
        """Begin to dial or to listen; fires when listening, errbacks when the address is not to be had."""
        raise AssertionError("each kind starts in its own way")

    def stop(self) -> Deferred[None]:
        """Cancel what is open, finish what is committed, close the link."""
        raise AssertionError("each kind stops in its own way")

    def _session(self) -> Session | None:
        """The wire machine of the open session."""
        raise AssertionError("each kind has its own")

    def _peer(self) -> str:
        return self.config.peer.value

    def _ft_mode(self) -> FtMode:
        if self.error is not None:
            return FtMode.ERROR
        if self.link_state is not LinkState.UP:
            return FtMode.OFF if self.link_state is LinkState.DOWN else FtMode.INIT
        return self._ft_mode_when_up()

    def _ft_mode_when_up(self) -> FtMode:
        raise AssertionError("each kind has its own")

    def _open_transaction(self) -> OpenTransaction | None:
        raise AssertionError("each kind has its own")

    def _next_id(self) -> int:
        raise AssertionError("each kind has its own")

    def _generation(self) -> str | None:
        raise AssertionError("each kind has its own")

    def _vm(self) -> VmStatus | None:
        return None

    def _freezes_output(self) -> bool:
        return False

    def _freezes_input(self) -> bool:
        return False

    def _buffered_bytes(self) -> int:
        return 0

    # What the kinds share

    def _limits(self) -> Limits:
        return Limits(self.config.max_payload, self.config.max_transaction)

    def _times(self) -> LinkTimes:
        return LinkTimes(
            handshake=self.config.handshake_time, heartbeat=self.config.heartbeat, dead=self.config.dead_time
        )

    def _link_options(self) -> LinkOptions:
        config = self.config
        return LinkOptions(
            latency_spin=config.latency_spin,
            congestion_control=config.congestion_control,
            socket_buffer=config.socket_buffer,
            no_delay=config.no_delay,
            user_timeout=config.user_timeout,
            tls=self._tls,
        )

    def _set_link(self, state: LinkState, detail: str = "") -> None:
        if (state, detail) != (self.link_state, self.link_detail):
            self.link_state = state
            self.link_detail = detail
            self._changed()

    def _session_opened(self, peer: str) -> None:
        self.error = None
        self.link_peer = peer
        self.sessions += 1
        self.log.info("{pair}: link to {peer} is up", pair=self.name, peer=peer)
        self._set_link(LinkState.UP)

    def _fail(self, error: WireError) -> None:
        """Make ``error`` the pair's error; it sticks until the link is re-opened."""
        self.error = StickyError(error.code, error.detail)
        self.log.error("{pair}: {code}: {detail}", pair=self.name, code=error.code.name, detail=error.detail)
        self._changed()

    def _check_error(self) -> None:
        """:raises PairFailed: if the pair has an error."""
        if self.error is not None:
            raise PairFailed(
                f"{self.name} has the error {self.error.code.name}: {self.error.detail}."
                " It goes when the link is re-opened; `reset` does that now",
                self.error.code,
            )

    def _changed(self) -> None:
        """Tell the world now: this change matters."""
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        status = self.status()
        self._bus.publish("pair", self.name, lambda: to_json(status))

    def _progressed(self) -> None:
        """A transaction went on: tell those who watch now, and if nobody does, whoever looks next."""
        if self._bus.is_watched:
            self._changed()
        elif not self._is_owed:
            self._owe()

    def _counted(self) -> None:
        """Tell those who watch soon, together with what else changes until then."""
        if self._is_owed or self._gathering is not None:
            return
        if self._bus.is_watched:
            self._gathering = self._around.clock.callLater(_GATHER, self._tell_gathered)
        else:
            self._owe()

    def _owe(self) -> None:
        self._is_owed = True
        self._bus.owe(self._tell_owed)

    def _tell_owed(self) -> None:
        self._is_owed = False
        self._changed()

    def _tell_gathered(self) -> None:
        self._gathering = None
        self._progressed()

    def _tell_no_more(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if self._is_owed:
            self._is_owed = False
            self._bus.forget(self._tell_owed)

    def _peer_text(self, address: Any) -> str:
        """An address as people write it."""
        host = getattr(address, "host", None)
        if host is None:
            name = getattr(address, "name", None) or "peer"
            return f"unix:{os.fsdecode(name)}"
        return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"
