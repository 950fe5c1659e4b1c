"""The dialler: when it tries, when it waits, and that it never has two connections."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from ftd.bus import EventBus
from ftd.link import Dialer
from ftd.link_protocol import LinkProtocol, Traffic
from ftd.status import LinkState
from ftd.test.link_case import TIMES, ScriptedPeer
from ftd.testing.transport import Link, Network
from ftd.trace import PairTrace

LONGEST_WAIT = 3.0
ATTEMPT_TIME = 10.0


class DialledProtocol(LinkProtocol):
    """Tells the dialler when it is over, and nothing else."""

    def __init__(self, clock: Clock, ended: Callable[[str], None]) -> None:
        super().__init__(clock, TIMES, PairTrace("demo", EventBus(lambda: 0.0)), Traffic())
        self._tell_ended = ended

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol`."""
        self._ended(reason, None)
        self._tell_ended("it broke")
        self._tell_gone()

    def _waits_for_peer(self) -> bool:
        return False


@implementer(IStreamClientEndpoint)
class OddEndpoint:
    """
    Makes of an attempt what it is told.

    :param outcome: given the protocol.
    """

    def __init__(self, outcome: Callable[[IProtocol], Deferred[IProtocol]]) -> None:
        self._outcome = outcome
        self.attempts = 0

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """See `IStreamClientEndpoint`."""
        self.attempts += 1
        protocol = factory.buildProtocol(None)  # type: ignore[arg-type]
        assert protocol is not None
        return self._outcome(protocol)


class DialerTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.network = Network()
        self.told: list[tuple[LinkState, str]] = []
        self.jitter = 1.0
        self.dialer = self.new_dialer(self.network.client_endpoint())

    def new_dialer(self, endpoint: IStreamClientEndpoint) -> Dialer:
        return Dialer(
            endpoint,
            lambda: DialledProtocol(self.clock, lambda why: self.dialer.session_ended(why)),
            self.clock,
            attempt_time=ATTEMPT_TIME,
            longest_wait=LONGEST_WAIT,
            changed=lambda state, why: self.told.append((state, why)),
            jitter=lambda: self.jitter,
        )

    def listen(self) -> None:
        """From here on somebody answers."""
        self.network.server_endpoint().listen(Factory.forProtocol(ScriptedPeer))

    def waits(self, count: int) -> list[float]:
        """How long the dialler says that it waits, and does wait, before each of the next attempts."""
        waits = []
        for _ in range(count):
            wait = self.dialer.retry_after
            waits.append(round(wait, 3))
            before = len(self.told)
            self.clock.advance(wait - 0.001)
            self.assertEqual(len(self.told), before)
            self.clock.advance(0.002)
            self.assertEqual(self.told[before], (LinkState.CONNECTING, ""))
        return waits

    @property
    def standing(self) -> int:
        """How many connections there are."""
        return sum(link.client.connected for link in self.network.links)

    def break_link(self) -> None:
        self.network.links[-1].cut(clean=False)
        self.network.pump()


class BackOffTests(DialerTestCase):
    def test_the_wait_doubles_up_to_the_longest(self) -> None:
        self.dialer.start()
        self.assertEqual(self.waits(8), [0.1, 0.2, 0.4, 0.8, 1.6, 3.0, 3.0, 3.0])

    def test_jitter_takes_up_to_half_of_it(self) -> None:
        self.jitter = 0.0
        self.dialer.start()
        self.assertEqual(self.waits(7), [0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 1.5])

    def test_each_wait_has_its_own_jitter(self) -> None:
        self.dialer.start()
        self.waits(6)
        self.jitter = 0.5
        self.assertEqual(self.waits(2), [3.0, 2.25])

    def test_a_connection_that_leads_to_nothing_counts_as_a_failure(self) -> None:
        self.listen()
        self.dialer.start()
        found = []
        for _ in range(4):
            self.break_link()
            found.append(round(self.dialer.retry_after, 3))
            self.clock.advance(self.dialer.retry_after)
        self.assertEqual(found, [0.1, 0.2, 0.4, 0.8])

    def test_a_session_makes_the_next_wait_short_again(self) -> None:
        self.dialer.start()
        self.waits(5)
        self.listen()
        self.clock.advance(LONGEST_WAIT)
        self.dialer.session_opened()
        self.break_link()
        self.assertAlmostEqual(self.dialer.retry_after, 0.1)

    def test_an_attempt_that_hangs_is_given_up(self) -> None:
        self.network.is_silent = True
        self.dialer.start()
        self.clock.advance(ATTEMPT_TIME - 0.1)
        self.assertEqual(self.told, [(LinkState.CONNECTING, "")])
        self.clock.advance(0.2)
        self.assertEqual(self.told[1:], [(LinkState.DOWN, "no connection within 10 s")])
        self.assertAlmostEqual(self.dialer.retry_after, 0.1)

    def test_it_says_why_it_is_down(self) -> None:
        self.dialer.start()
        self.assertEqual(self.told[0], (LinkState.CONNECTING, ""))
        state, why = self.told[1]
        self.assertIs(state, LinkState.DOWN)
        self.assertIn("refused", why)
        self.listen()
        self.clock.advance(1)
        self.break_link()
        self.assertEqual(self.told[-1], (LinkState.DOWN, "it broke"))

    def test_there_is_nothing_to_wait_for_while_it_dials_or_is_connected(self) -> None:
        self.assertEqual(self.dialer.retry_after, 0.0)
        self.network.is_silent = True
        self.dialer.start()
        self.assertEqual(self.dialer.retry_after, 0.0)
        self.clock.advance(ATTEMPT_TIME)
        self.network.is_silent = False
        self.listen()
        self.clock.advance(self.dialer.retry_after)
        self.assertEqual(self.standing, 1)
        self.assertEqual(self.dialer.retry_after, 0.0)

    def test_a_connection_that_is_over_before_it_is_announced_is_one_failure(self) -> None:
        def stillborn(protocol: IProtocol) -> Deferred[IProtocol]:
            protocol.makeConnection(StringTransport())
            protocol.connectionLost(connectionDone)
            return succeed(protocol)

        endpoint = OddEndpoint(stillborn)
        self.dialer = self.new_dialer(endpoint)
        self.dialer.start()
        self.assertEqual((endpoint.attempts, len(self.clock.getDelayedCalls())), (1, 1))
        self.clock.advance(0.1)
        self.assertEqual((endpoint.attempts, len(self.clock.getDelayedCalls())), (2, 1))
        self.dialer.redial()
        self.assertEqual((endpoint.attempts, len(self.clock.getDelayedCalls())), (3, 1))


class RedialTests(DialerTestCase):
    def test_a_wait_ends_at_once(self) -> None:
        self.dialer.start()
        self.waits(6)
        self.listen()
        self.dialer.redial()
        self.assertEqual(self.standing, 1)
        self.clock.advance(60)
        self.assertEqual(len(self.network.links), 1)

    def test_a_connection_is_dropped_and_made_again(self) -> None:
        self.listen()
        self.dialer.start()
        self.dialer.redial()
        self.network.pump()
        self.assertTrue(self.network.links[0].client.is_aborted)
        self.clock.advance(0.1)
        self.assertEqual((self.standing, len(self.network.links)), (1, 2))

    def test_asking_again_before_the_old_connection_is_gone_makes_no_second_one(self) -> None:
        self.listen()
        self.dialer.start()
        for _ in range(3):
            self.dialer.redial()
        self.network.pump()
        self.clock.advance(60)
        self.assertEqual((self.standing, len(self.network.links)), (1, 2))

    def test_an_attempt_that_is_under_way_goes_on(self) -> None:
        endpoint = OddEndpoint(lambda _: Deferred())
        self.dialer = self.new_dialer(endpoint)
        self.dialer.start()
        self.dialer.redial()
        self.assertEqual(endpoint.attempts, 1)
        self.clock.advance(ATTEMPT_TIME)
        self.clock.advance(self.dialer.retry_after)
        self.dialer.redial()
        self.assertEqual(endpoint.attempts, 2)

    def test_the_wait_starts_from_the_shortest(self) -> None:
        self.dialer.start()
        self.waits(6)
        self.dialer.redial()
        self.assertEqual(self.waits(2), [0.1, 0.2])

    def test_what_was_stopped_stays_so(self) -> None:
        self.listen()
        self.dialer.redial()
        self.dialer.start()
        self.dialer.stop()
        self.network.pump()
        self.dialer.redial()
        self.clock.advance(60)
        self.assertEqual((self.standing, len(self.network.links)), (0, 1))


class StopTests(DialerTestCase):
    def assert_stopped(self) -> None:
        self.assertEqual(self.told[-1], (LinkState.DOWN, "stopped"))
        told = len(self.told)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(60)
        self.assertEqual((len(self.told), self.dialer.retry_after), (told, 0.0))

    def test_while_it_waits(self) -> None:
        self.dialer.start()
        self.dialer.stop()
        self.assert_stopped()

    def test_while_it_dials(self) -> None:
        self.network.is_silent = True
        self.dialer.start()
        self.dialer.stop()
        self.assert_stopped()

    def test_while_it_dials_again(self) -> None:
        self.dialer.start()
        self.network.is_silent = True
        self.waits(1)
        self.dialer.stop()
        self.assert_stopped()

    def test_with_no_connection_it_is_done_at_once(self) -> None:
        self.dialer.start()
        self.successResultOf(self.dialer.stop())

    def test_while_it_is_connected(self) -> None:
        self.listen()
        self.dialer.start()
        stopped = self.dialer.stop()
        self.assertNoResult(stopped)
        self.assertTrue(self.network.links[0].client.disconnecting)
        self.assertFalse(self.network.links[0].client.is_aborted)
        self.network.pump()
        self.successResultOf(stopped)
        self.assertEqual(self.standing, 0)
        self.assert_stopped()

    def test_while_a_connection_is_being_dropped(self) -> None:
        self.listen()
        self.dialer.start()
        self.dialer.redial()
        self.dialer.stop()
        self.network.pump()
        self.assertEqual(self.standing, 0)
        self.assert_stopped()

    def test_a_connection_that_comes_all_the_same_is_dropped(self) -> None:
        links = []

        def too_late(protocol: IProtocol) -> Deferred[IProtocol]:
            def connect(attempt: Deferred[IProtocol]) -> None:
                links.append(Link(protocol, ScriptedPeer()))
                attempt.callback(protocol)

            return Deferred(connect)

        self.dialer = self.new_dialer(OddEndpoint(too_late))
        self.dialer.start()
        self.dialer.stop()
        (link,) = links
        link.pump()
        self.assertTrue(link.is_over)
        self.assert_stopped()

    def test_it_can_be_started_again(self) -> None:
        self.dialer.start()
        self.waits(3)
        self.dialer.stop()
        self.dialer.start()
        self.assertEqual(self.waits(2), [0.1, 0.2])

    def test_it_is_started_again_before_the_old_connection_is_gone(self) -> None:
        self.listen()
        self.dialer.start()
        self.dialer.stop()
        self.dialer.start()
        self.network.pump()
        self.clock.advance(60)
        self.network.pump()
        self.assertEqual((self.standing, len(self.network.links)), (1, 2))
