"""The gates of all NICs act as one."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ftd.test.vm.netgate_case import GateCase, numbered
from ftd.vm.gates import Gates
from ftd.vm.netgate import GateState, NetGateError

_FRAMES = numbered(0, 6)


class NoGatesTests(SynchronousTestCase):
    """A VM without a network."""

    def test_everything_is_nothing(self) -> None:
        gates = Gates(())
        gates.start()
        for act in (gates.open, gates.hold, gates.close, gates.discard):
            act()
        gates.release(gates.seal())
        self.assertEqual((gates.held_frames, gates.held_bytes), (0, 0))
        self.successResultOf(gates.stop())


class GatesTests(GateCase):
    """One gate, with something on both sides."""

    def setUp(self) -> None:
        super().setUp()
        self.gate = self.started()
        self.gates = Gates((self.gate,))

    def test_epochs(self) -> None:
        self.gates.hold()
        self.says(*_FRAMES[:2])
        first = self.gates.seal()
        self.says(*_FRAMES[2:])
        self.assertEqual((self.gates.held_frames, self.gates.held_bytes), (6, self.gate.held_bytes))
        self.gates.release(first)
        self.assertEqual(self.outside.frames(), _FRAMES[:2])
        self.gates.open()
        self.assertEqual(self.outside.frames(), _FRAMES)

    def test_states(self) -> None:
        for act, state in (
            (self.gates.open, GateState.OPEN),
            (self.gates.hold, GateState.HOLDING),
            (self.gates.close, GateState.CLOSED),
        ):
            act()
            self.assertIs(self.gate.state, state)

    def test_discarded(self) -> None:
        self.gates.hold()
        self.says(*_FRAMES)
        self.gates.discard()
        self.gates.open()
        self.assertEqual(self.outside.frames(), [])

    def test_epochs_of_another_number_of_gates(self) -> None:
        self.assertRaises(ValueError, self.gates.release, (1, 2))


class StartTests(SynchronousTestCase):
    """All of them, or none."""

    def test_one_cannot_be_set_up(self) -> None:
        log: list[str] = []

        class Gate:
            def __init__(self, name: str, error: Exception | None = None) -> None:
                self.name, self.error = name, error

            def start(self) -> None:
                if self.error is not None:
                    raise self.error
                log.append(f"start {self.name}")

            def stop(self) -> None:
                log.append(f"stop {self.name}")

        gates = Gates((Gate("a"), Gate("b"), Gate("c", NetGateError("busy")), Gate("d")))  # type: ignore[arg-type]
        self.assertRaises(NetGateError, gates.start)
        self.assertEqual(log, ["start a", "start b", "stop a", "stop b"])
