"""All network gates of a VM as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, DeferredList

from ftd.vm.netgate import NetGate


class Gates:
    """
    The gates of all NICs, which open, hold and release together.

    :ivar frames: Ethernet frames that are held.
    """

    def __init__(self, gates: Sequence[NetGate]) -> None:
        self._gates = tuple(gates)

    @property
    def held_frames(self) -> int:
        """Frames of the guest that are held."""
        return sum(gate.held_frames for gate in self._gates)

    @property
    def held_bytes(self) -> int:
        """Their bytes."""
        return sum(gate.held_bytes for gate in self._gates)

    def start(self) -> None:
        """Let QEMU connect.  :raises VmError: if one cannot be set up; none is then."""
        started: list[NetGate] = []
        for gate in self._gates:
            try:
                gate.start()
            except Exception:
                for earlier in started:
                    earlier.stop()
                raise
            started.append(gate)

    def stop(self) -> Deferred[None]:
        """Nothing passes any more."""
        return DeferredList([gate.stop() for gate in self._gates]).addCallback(lambda _: None)

    def open(self) -> None:
        """Everything passes at once, what is held first."""
        self._each(NetGate.open)

    def hold(self) -> None:
        """What the guest sends waits for `release`."""
        self._each(NetGate.hold)

    def close(self) -> None:
        """Nothing passes; what is held is dropped."""
        self._each(NetGate.close)

    def discard(self) -> None:
        """What is held is never to be seen: its guest is gone."""
        self._each(NetGate.discard)

    def seal(self) -> tuple[int, ...]:
        """What the guest has sent until now is one epoch: see `NetGate.seal`."""
        return tuple(gate.seal() for gate in self._gates)

    def release(self, epochs: tuple[int, ...]) -> None:
        """These epochs, and those before them, may be seen."""
        for gate, epoch in zip(self._gates, epochs, strict=True):
            gate.release(epoch)

    def _each(self, act: Callable[[NetGate], None]) -> None:
        for gate in self._gates:
            act(gate)
