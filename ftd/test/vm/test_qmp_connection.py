"""Keeping a QMP connection: when it is tried, what is said while there is none, and that QEMU's queue is not filled."""

from __future__ import annotations

from twisted.internet.error import ConnectError, getConnectError
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ftd.testing.fake_qmp import FakeQemu, QmpReactor
from ftd.vm.errors import QmpClosed, QmpError
from ftd.vm.qmp import Qmp
from ftd.vm.qmp_connection import FIRST_WAIT, PATH_LIMIT, QmpConnection

PATH = "/run/vm/qmp.sock"
LIMIT = 5.0
LONGEST_WAIT = 1.0


class QmpConnectionTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = QmpReactor()
        self.told: list[str] = []
        self.connection = self.new_connection()

    def new_connection(self, path: str = PATH) -> QmpConnection:
        """One that tells what it does, without jitter."""
        return QmpConnection(
            self.reactor,
            path,
            limit=LIMIT,
            reconnect_max=LONGEST_WAIT,
            connected=lambda qmp: self.told.append(f"connected {qmp.version}"),
            lost=lambda why: self.told.append(f"lost: {why}"),
            failed=lambda why: self.told.append(f"failed: {why}"),
            jitter=lambda: 1.0,
        )

    def start_qemu(self) -> FakeQemu:
        """A QEMU on the path."""
        qemu = self.reactor.qemus[PATH] = FakeQemu(self.reactor)
        return qemu

    def up(self) -> tuple[FakeQemu, Qmp]:
        """A connection that stands."""
        qemu = self.start_qemu()
        self.connection.start()
        self.reactor.deliver()
        assert self.connection.qmp is not None
        return qemu, self.connection.qmp

    def assert_quiet(self) -> None:
        """Nothing is tried, and nothing is waited for."""
        self.assertEqual((self.reactor.unix_dialling, self.reactor.getDelayedCalls()), ([], []))


class ConnectTests(QmpConnectionTestCase):
    def test_it_connects_and_negotiates(self) -> None:
        _, qmp = self.up()
        self.assertTrue(qmp.is_open)
        self.assertEqual((self.told, self.connection.why_down), (["connected 7.2.22"], ""))
        self.assert_quiet()

    def test_before_the_start_there_is_none_and_a_reason(self) -> None:
        self.assertEqual((self.connection.qmp, self.connection.why_down), (None, "not started"))
        self.assert_quiet()

    def test_without_a_socket_it_says_how_to_make_one(self) -> None:
        self.connection.start()
        self.reactor.deliver()
        self.assertIn(f"there is no socket {PATH}; start QEMU with -qmp unix:{PATH},server", self.connection.why_down)

    def test_the_same_reason_is_told_once(self) -> None:
        self.connection.start()
        self.reactor.pass_time(10.0)
        self.assertEqual(len(self.told), 1)
        self.start_qemu().die()
        self.reactor.pass_time(10.0)
        self.assertEqual(len(self.told), 2)
        self.assertIn("nobody listens", self.told[1])

    def test_the_wait_doubles_up_to_its_limit(self) -> None:
        self.connection.start()
        waits = []
        for _ in range(8):
            self.reactor.deliver()
            (retry,) = self.reactor.getDelayedCalls()
            waits.append(round(retry.getTime() - self.reactor.seconds(), 3))
            self.reactor.advance(waits[-1])
        self.assertEqual(waits, [FIRST_WAIT, 0.1, 0.2, 0.4, 0.8, LONGEST_WAIT, LONGEST_WAIT, LONGEST_WAIT])

    def test_jitter_shortens_the_wait_to_a_half_at_most(self) -> None:
        self.connection._jitter = lambda: 0.0
        self.connection.start()
        self.reactor.deliver()
        (retry,) = self.reactor.getDelayedCalls()
        self.assertAlmostEqual(retry.getTime(), FIRST_WAIT / 2)

    def test_a_qemu_that_comes_later_is_found(self) -> None:
        self.connection.start()
        self.reactor.pass_time(3.0)
        self.start_qemu()
        self.reactor.pass_time(LONGEST_WAIT)
        self.assertEqual(self.told[1:], ["connected 7.2.22"])

    def test_a_connection_makes_the_next_wait_short(self) -> None:
        self.connection.start()
        self.reactor.pass_time(10.0)
        qemu = self.start_qemu()
        self.reactor.pass_time(LONGEST_WAIT)
        qemu.die()
        self.start_qemu()
        self.reactor.deliver()
        self.reactor.pass_time(FIRST_WAIT)
        self.assertEqual(
            [told.split(":")[0] for told in self.told[1:]], ["connected 7.2.22", "lost", "connected 7.2.22"]
        )

    def test_a_path_that_cannot_be_is_refused(self) -> None:
        self.new_connection("/" + "x" * (PATH_LIMIT - 1))
        error = self.assertRaises(QmpError, self.new_connection, "/" + "ü" * (PATH_LIMIT // 2 + 1))
        self.assertIn("too long", str(error))

    def test_what_stands_in_the_way_is_said_with_what_to_do(self) -> None:
        for number, why in ((13, "no right"), (1, "no right"), (11, "Resource temporarily"), (None, "others wait")):
            self.connection = self.new_connection()
            self.connection.start()
            (dialled,) = self.reactor.unix_dialling
            self.reactor.unix_dialling.clear()
            text = "Resource temporarily unavailable"
            error = ConnectError() if number is None else getConnectError((number, text))
            dialled.factory.clientConnectionFailed(dialled, Failure(error))
            self.assertIn(why, self.connection.why_down)
            self.connection.stop()


class OtherClientTests(QmpConnectionTestCase):
    """QEMU serves one at a time."""

    def setUp(self) -> None:
        super().setUp()
        self.qemu = self.start_qemu()
        self.other = self.qemu.connect()
        self.connection.start()
        self.reactor.pass_time(LIMIT + 0.1)

    def test_it_says_that_somebody_else_may_be_connected(self) -> None:
        self.assertIn("somebody else is connected", self.connection.why_down)
        self.assertEqual(len(self.told), 1)

    def test_it_waits_in_the_queue_rather_than_fill_it(self) -> None:
        self.reactor.pass_time(60.0)
        self.assertEqual(len(self.qemu.links), 2)

    def test_it_is_served_when_the_other_leaves(self) -> None:
        self.other.hang_up()
        self.reactor.deliver()
        self.assertEqual(self.told[1:], ["connected 7.2.22"])
        self.assertEqual(self.connection.why_down, "")
        self.assert_quiet()

    def test_it_notices_that_qemu_ends_meanwhile(self) -> None:
        self.qemu.die()
        self.reactor.deliver()
        self.start_qemu()
        self.reactor.pass_time(LONGEST_WAIT)
        self.assertEqual(self.told[-1], "connected 7.2.22")
        self.assertNotIn("lost", " ".join(self.told))

    def test_it_can_be_stopped_meanwhile(self) -> None:
        self.successResultOf(self.connection.stop())
        self.reactor.deliver()
        self.assertTrue(self.qemu.links[1].is_over)
        self.assert_quiet()


class LossTests(QmpConnectionTestCase):
    def test_a_qemu_that_dies_is_lost_and_its_successor_found(self) -> None:
        qemu, qmp = self.up()
        qemu.die()
        self.reactor.deliver()
        self.assertIsNone(self.connection.qmp)
        self.assertIn("has ended", self.connection.why_down)
        self.start_qemu()
        self.reactor.pass_time(LONGEST_WAIT)
        self.assertEqual([told.split(":")[0] for told in self.told], ["connected 7.2.22", "lost", "connected 7.2.22"])
        self.assertIsNot(self.connection.qmp, qmp)

    def test_a_qemu_that_hangs_is_given_up_and_taken_back_when_it_goes_on(self) -> None:
        qemu, qmp = self.up()
        qemu.is_silent = True
        stopped = qmp.execute("stop")
        self.reactor.pass_time(LIMIT + 0.1)
        self.failureResultOf(stopped, QmpError)
        self.assertIn("did not answer stop", self.told[1])
        self.reactor.pass_time(60.0)
        self.assertEqual(len(qemu.links), 2)
        qemu.wake()
        self.reactor.deliver()
        self.assertEqual(self.told[-1], "connected 7.2.22")

    def test_a_greeting_without_a_negotiation_is_tried_again(self) -> None:
        qemu = self.start_qemu()
        qemu.hold("qmp_capabilities")
        self.connection.start()
        self.reactor.pass_time(LIMIT + 0.1)
        self.assertIn("qmp_capabilities", self.connection.why_down)
        qemu.release_all()
        self.reactor.pass_time(LONGEST_WAIT)
        self.assertEqual(self.told[-1], "connected 7.2.22")


class StopTests(QmpConnectionTestCase):
    def test_a_connection_that_stands_is_hung_up_without_a_loss(self) -> None:
        qemu, qmp = self.up()
        qemu.is_silent = True
        stopped = qmp.execute("stop")
        self.successResultOf(self.connection.stop())
        self.failureResultOf(stopped, QmpClosed)
        self.reactor.deliver()
        self.assertTrue(qemu.links[0].is_over)
        self.assertEqual((self.told, self.connection.why_down), (["connected 7.2.22"], "stopped"))
        self.assertIsNone(self.connection.qmp)
        self.assert_quiet()

    def test_a_wait_is_given_up(self) -> None:
        self.connection.start()
        self.reactor.deliver()
        self.connection.stop()
        self.assert_quiet()

    def test_an_attempt_is_given_up(self) -> None:
        self.connection.start()
        self.connection.stop()
        self.assert_quiet()
        self.assertEqual(self.told, [])

    def test_who_hears_of_a_failure_or_a_loss_may_stop_it(self) -> None:
        def stop(_: str) -> None:
            self.connection.stop()

        self.connection._failed = stop
        self.connection.start()
        self.reactor.deliver()
        self.assert_quiet()
        qemu, _ = self.up()
        self.connection._lost = stop
        qemu.die()
        self.reactor.deliver()
        self.assert_quiet()

    def test_it_can_be_started_again(self) -> None:
        self.up()
        self.connection.stop()
        self.reactor.deliver()
        self.connection.start()
        self.reactor.deliver()
        self.assertEqual(self.told, ["connected 7.2.22"] * 2)
