"""
What the outside sees of a primary's VM, while no checkpoint decides it: its network, and its link.

The link stands for a VM that is there: a primary without one hangs up, so that its standby may take over without being
forced to.  When a VM is found, the gates are closed until the standby was heard, and has not taken over, or until it
has been silent for long.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ftd.vm.carrier import Carrier
from ftd.vm.gates import Gates


class Exposure:
    """
    :param wait: seconds of silence after which the standby is not waited for.
    :param is_unprotected: whether the VM is, so that no ACK will open the gates.
    :param may_pass: whether what such a guest sends may be seen; otherwise it is held.
    """

    def __init__(
        self,
        gates: Gates,
        carrier: Carrier,
        clock: IReactorTime,
        wait: float,
        *,
        is_unprotected: Callable[[], bool],
        may_pass: Callable[[], bool],
    ) -> None:
        self._gates = gates
        self._carrier = carrier
        self._clock = clock
        self._wait = wait
        self._is_unprotected = is_unprotected
        self._may_pass = may_pass
        self._dials = False
        # Without QMP nobody knows whether what is held comes from a guest that has died.
        self._has_qemu = False
        self._waiting: IDelayedCall | None = None

    def qemu_found(self, is_another: bool) -> None:
        """There is a VM that is not fenced; ``is_another``: the one before has died."""
        self._has_qemu = True
        if is_another:
            # What it has sent no standby knows.
            self._gates.discard()
        if not self._dials:
            self._dials = True
            self._gates.close()
            self._waiting = self._clock.callLater(self._wait, self.contact)
            self._carrier.resume_dialing()
        self.adapt()

    def qemu_lost(self) -> None:
        """Nothing changes for what is held until it is known what became of the guest."""
        self._has_qemu = False

    def contact(self) -> None:
        """The standby was heard and has not taken over, or it is not there to be heard."""
        self._stop_waiting()
        self.adapt()

    def adapt(self) -> None:
        """Open the gates of an unprotected VM, or hold, whatever is to be."""
        if self._dials and self._waiting is None and self._has_qemu and self._is_unprotected():
            if self._may_pass():
                self._gates.open()
            else:
                self._gates.hold()

    def hang_up(self) -> None:
        """There is no VM that the standby could be the standby of."""
        self._stop_waiting()
        if self._dials:
            self._dials = False
            self._carrier.hang_up()

    def shut(self) -> None:
        """The VM must not be heard any more."""
        self._stop_waiting()
        self._gates.close()

    def stop(self) -> None:
        """The daemon ends, or the pair."""
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting.active():
            waiting.cancel()
