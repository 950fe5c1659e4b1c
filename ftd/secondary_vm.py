"""A secondary that holds the checkpoints of a VM and can take over: `ftd.vm.standby` does it, this is its pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from ftd.config import PairConfig
from ftd.errors import NotInState
from ftd.interfaces import ISecondaryPair
from ftd.pair import Surroundings
from ftd.secondary import SecondaryPair
from ftd.status import LinkState, VmStatus
from ftd.vm.standby import VmStandby
from ftd.wire.hello import PROMOTED, Hello

if TYPE_CHECKING:
    from ftd.protocol import ReceiverProtocol


@implementer(ISecondaryPair)
class VmSecondaryPair(SecondaryPair):
    """
    :param endpoint: where it listens.
    :param make_standby: makes the VM's side; is given what to call when its status has changed.
    """

    def __init__(
        self,
        config: PairConfig,
        around: Surroundings,
        *,
        endpoint: IStreamServerEndpoint,
        make_standby: Callable[[Callable[[], None]], VmStandby],
    ) -> None:
        self._standby = make_standby(self._standby_changed)
        super().__init__(config, around, endpoint=endpoint, sink=self._standby)
        # The standby says itself when it has what was sent: `ack` decides there.
        self._ack_first = False

    # Life

    def start(self) -> Deferred[None]:
        """See `Pair`.  Where it fails nothing stays: neither the port nor what the standby has open."""
        return super().start().addErrback(self._not_started)

    def _not_started(self, failure: Failure) -> Failure:
        port, self._port = self._port, None
        if port is not None:
            port.stopListening()
        self._standby.stop()
        return failure

    def stop(self) -> Deferred[None]:
        """End as any secondary does; QEMU runs on, whether it stands by or has taken over."""
        return super().stop().addCallback(lambda _: self._standby.stop())

    # What the API asks

    def promote(self, force: bool) -> Deferred[None]:
        """See `IPair`."""
        if self._receiver is not None and self._receiver.is_open and not force:
            return fail(
                NotInState(
                    f"the primary is up ({self.link_peer}): demote it first, or say force if its VM must not go on",
                    self.link_state.value,
                )
            )
        if self._receiver is not None:
            self._receiver.hang_up()
        return self._standby.promote()

    def demote(self) -> Deferred[None]:
        """See `IPair`."""
        return self._standby.demote()

    # What the link tells

    def hello(self) -> Hello:
        """This side's HELLO, as of now."""
        hello = super().hello()
        return attrs.evolve(hello, state=PROMOTED) if self._standby.is_promoted else hello

    def claim(self, receiver: ReceiverProtocol, hello: Hello | None) -> str:
        """A standby that has no QEMU, or has taken over, takes no checkpoints."""
        return self._standby.refusal() or super().claim(receiver, hello)

    def _listening(self, port: IListeningPort) -> None:
        super()._listening(port)
        self._standby.start()

    def _standby_changed(self) -> None:
        """It may have become unable to hold what the primary sends, or have taken over."""
        if self._standby.refusal() and self._receiver is not None:
            self._receiver.hang_up()
        if self.link_state is LinkState.DOWN and not self._connections:
            self._wait_for_sender()
        self._changed()

    def _next_number(self) -> int:
        # A standby that is given the checkpoints of another generation begins anew.
        held = self._store.checkpoints()
        return held[-1].number + 1 if held else 1

    def _vm(self) -> VmStatus | None:
        return self._standby.vm_status()
