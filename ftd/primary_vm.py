"""A primary whose state is a VM's: the pair carries the checkpoints that `ftd.vm.primary` takes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IStreamClientEndpoint
from zope.interface import implementer

from ftd.config import PairConfig
from ftd.errors import CannotKeep, FtdError, LinkDown, NotInState
from ftd.feed import Upload
from ftd.interfaces import IPrimaryPair
from ftd.lineage import new_generation
from ftd.pair import Surroundings
from ftd.primary import PrimaryPair
from ftd.protocol import SenderProtocol
from ftd.status import Commit, LinkState, VmStatus
from ftd.vm.background import cancel
from ftd.vm.carrier import Carrier
from ftd.vm.errors import VmError
from ftd.vm.primary import VmPrimary
from ftd.wire.errors import ErrorCode, WireError
from ftd.wire.hello import Hello
from ftd.wire.sender import Buffer


@implementer(IPrimaryPair)
class VmPrimaryPair(PrimaryPair):
    """
    :param endpoint: where the standby listens.
    :param directory: where the generation and the fence are kept.
    :param make_vm: makes the VM's side, which this pair is the carrier of.
    """

    def __init__(
        self,
        config: PairConfig,
        around: Surroundings,
        *,
        endpoint: IStreamClientEndpoint,
        directory: Path,
        make_vm: Callable[[Carrier], VmPrimary],
    ) -> None:
        super().__init__(config, around, endpoint=endpoint, directory=directory)
        self._directory = directory
        self._vm_side = make_vm(self)
        self._start_again: IDelayedCall | None = None

    # Life

    def start(self) -> Deferred[None]:
        """See `Pair`.  A NIC that cannot be set up is shown, and tried again: other VMs have nothing to do with it."""
        try:
            self._vm_side.start()
        except VmError as error:
            self.log.error("{pair}: {error}", pair=self.name, error=error)
            self._vm_side.cannot_attach(str(error))
            self._start_again = self._around.clock.callLater(_START_AGAIN, self.start)
        return succeed(None)

    def stop(self) -> Deferred[None]:
        """Let go of the guest, which runs on, then end as any primary does."""
        cancel(self._start_again)
        return self._vm_side.stop().addCallback(lambda _: super(VmPrimaryPair, self).stop())

    def hello(self) -> Hello:
        """See `SenderOwner`.  One checkpoint at a time: the next one is gathered in the memory of the one before."""
        return attrs.evolve(super().hello(), window=1)

    def reset(self) -> Deferred[None]:
        """See `IPair`."""
        if self._vm_side.is_fenced:
            raise NotInState(
                f"{self.name} is fenced and does not dial: {self._vm_side.reason}", self._vm_side.state.value
            )
        return super().reset()

    # What the API asks

    def begin(self) -> Deferred[int]:
        """See `IPrimaryPair`."""
        return self._vm_side.begin()

    def commit(self, timeout: float | None = None) -> Deferred[Commit]:
        """See `IPrimaryPair`."""
        return self._vm_side.commit(self.config.ack_time if timeout is None else timeout)

    def cancel(self) -> None:
        """See `IPrimaryPair`."""
        self._vm_side.cancel()

    def append(self, body: IPushProducer) -> Upload:  # noqa: ARG002
        """See `IPrimaryPair`."""
        raise self._takes_no_uploads()

    def checkpoint(self, body: IPushProducer) -> Upload:  # noqa: ARG002
        """See `IPrimaryPair`."""
        raise self._takes_no_uploads()

    def set_protection(self, enabled: bool | None, interval: float | None) -> Deferred[None]:
        """See `IPrimaryPair`."""
        return self._vm_side.set_protection(enabled, interval)

    def promote(self, force: bool) -> Deferred[None]:
        """See `IPair`."""
        return self._vm_side.promote(force)

    def demote(self) -> Deferred[None]:
        """See `IPair`."""
        return self._vm_side.demote()

    def _takes_no_uploads(self) -> NotInState:
        return NotInState(f"the state of {self.name} is its VM's: nothing else goes into it", self.status().state)

    # What the VM's side asks (`Carrier`)

    @property
    def max_frame(self) -> int:
        """See `Carrier`."""
        return self._sender.machine.limits.max_payload if self._sender is not None else self.config.max_payload

    @property
    def number(self) -> int:
        """See `Carrier`."""
        return self._commits.number

    def start_generation(self) -> None:
        """See `Carrier`."""
        try:
            self.generation = new_generation(self._directory)
        except OSError as error:
            raise CannotKeep(f"a new generation cannot be kept in state-dir: {error.strerror}") from None
        self._commits.restart(self.generation)
        self.last_committed = None

    def open_transaction(self) -> Deferred[int]:
        """See `Carrier`."""
        return super().begin()

    def send(self, pieces: tuple[Buffer, ...]) -> None:
        """See `Carrier`."""
        if self._open is None:
            raise LinkDown("the link broke while the checkpoint was taken; it is back, and it will be taken again", 0.0)
        self.send_frame(pieces)

    def commit_transaction(self, limit: float | None) -> Deferred[Commit]:
        """See `Carrier`."""
        return super().commit(_NO_LIMIT if limit is None else limit)

    def cancel_transaction(self, why: str) -> None:
        """See `Carrier`."""
        if self._open is not None and self._sender is not None:
            with suppress(FtdError):
                self._cancel(self._up(), NotInState(why, "CANCEL"))

    def hang_up(self) -> None:
        """See `Carrier`."""
        self._dialer.stop()
        self._set_link(LinkState.DOWN, self._vm_side.reason)

    def resume_dialing(self) -> None:
        """See `Carrier`."""
        self._dialer.start()

    def changed(self) -> None:
        """See `Carrier`."""
        self._changed()

    def counted(self) -> None:
        """See `Carrier`."""
        self._counted()

    # What the link tells

    def superseded(self, hello: Hello) -> None:
        """The standby's VM runs: this one must not."""
        super().superseded(hello)
        self._vm_side.superseded(hello.node)

    def opened(self, sender: SenderProtocol, hello: Hello | None, next_id: int) -> None:
        """The session is open."""
        if hello is None:
            sender.fail(WireError(ErrorCode.STATE_INVALID, "a Kemari cannot hold the VM of a stock QEMU"))
            return
        super().opened(sender, hello, next_id)
        self._vm_side.session_opened(hello.last)

    def lost(self, sender: SenderProtocol, error: WireError | None) -> None:
        """The link is gone."""
        if sender is self._sender:
            # Before what waits for the link hears of it, and asks what this means.
            why = error.detail if error is not None else "the standby closed the link"
            self._vm_side.session_lost(why, sender.silence)
        super().lost(sender, error)

    def _set_link(self, state: LinkState, detail: str = "") -> None:
        super()._set_link(state, detail)
        if detail:
            self._vm_side.link_problem(detail)

    def _take_standby_position(self, hello: Hello | None) -> None:
        last = hello.last if hello is not None else None
        holds_ours = last is not None and last.generation == self.generation
        self._commits.number = last.sequence if last is not None and holds_ours else 0
        if not holds_ours:
            self.last_committed = None

    def _vm(self) -> VmStatus | None:
        return self._vm_side.status()


#: Seconds: as long as the link lives.
_NO_LIMIT = 86_400.0

#: Seconds until the network gates are tried again that could not be set up.
_START_AGAIN = 5.0
