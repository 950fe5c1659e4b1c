"""The transports that the other tests run on behave as Twisted's own do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import CannotListenError, ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from ftd.test.link_case import FakeSource, ScriptedPeer
from ftd.test.wire.profile import examples
from ftd.testing.transport import Link, Network

CAPACITY = 100


class TwistedEnd(FileDescriptor):
    """
    Twisted's part of a connection, on a socket that takes as much as the test says.

    :ivar is_closed: everything was sent, and it closed.
    """

    bufferSize = CAPACITY

    def __init__(self) -> None:
        super().__init__(MemoryReactor())
        self.connected = 1
        self.is_closed = False
        self.written = bytearray()
        self._room = 0
        self._is_writing = False

    def startWriting(self) -> None:
        """See `FileDescriptor`."""
        self._is_writing = True

    def stopWriting(self) -> None:
        """See `FileDescriptor`."""
        self._is_writing = False

    def writeSomeData(self, data: bytes) -> int:  # noqa: N802
        """See `FileDescriptor`."""
        taken = data[: self._room]
        self._room -= len(taken)
        self.written += taken
        return len(taken)

    def drain(self, size: int) -> None:
        """Send up to ``size`` bytes, as the reactor has it do."""
        self._room = size
        if self._is_writing:
            self.doWrite()
            if self.is_closed:
                self.connectionLost(connectionDone)

    def _postLoseConnection(self) -> object:  # noqa: N802
        self.is_closed = True
        return super()._postLoseConnection()


class ProducerTests(SynchronousTestCase):
    """A producer cannot tell the two apart."""

    def setUp(self) -> None:
        self.real, self.real_source = TwistedEnd(), FakeSource()
        self.peer = ScriptedPeer()
        self.link = Link(Protocol(), self.peer, capacity=CAPACITY)
        self.source = FakeSource()

    def do(self, step: str, size: int) -> None:
        if step == "write":
            self.real.write(bytes(size))
            self.link.client.write(bytes(size))
        elif step == "parts":
            self.real.writeSequence([bytes(size), bytes(size)])
            self.link.client.writeSequence([bytes(size), bytes(size)])
        elif step == "drain":
            self.real.drain(size)
            self.link.step(size)
        elif step == "register" and self.real.producer is None:
            self.real.registerProducer(self.real_source, True)
            self.link.client.registerProducer(self.source, True)
        elif step == "unregister":
            self.real.unregisterProducer()
            self.link.client.unregisterProducer()
        elif step == "lose":
            self.real.loseConnection()
            self.link.client.loseConnection()

    @examples(200)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(("write", "parts", "drain", "register", "unregister", "lose")), st.integers(1, 90)
            ),
            max_size=25,
        )
    )
    def test_it_is_told_the_same(self, steps: list[tuple[str, int]]) -> None:
        self.setUp()
        for step, size in steps:
            # Of a block that it has sent in part Twisted counts all; here only what is unsent counts.
            self.do(step, size if step != "drain" else self.link.client.unsent)
            self.assertEqual(self.source.calls, self.real_source.calls)
            self.assertEqual(len(self.peer.heard), len(self.real.written))
            self.assertEqual(self.link.client.connected, not self.real.is_closed)

    def test_it_is_paused_at_every_write_while_full(self) -> None:
        for step, size in (("register", 0), ("write", 101), ("write", 1), ("write", 1), ("drain", 103)):
            self.do(step, size)
        self.assertEqual(self.source.calls, ["pause", "pause", "pause", "resume"])

    def test_it_goes_on_when_nothing_is_left_and_not_before(self) -> None:
        for step, size in (("register", 0), ("write", 150), ("drain", 100), ("drain", 49)):
            self.do(step, size)
        self.assertEqual((self.source.calls, self.real_source.calls), (["pause"], ["pause"]))
        self.do("drain", 1)
        self.assertEqual((self.source.calls, self.real_source.calls), (["pause", "resume"], ["pause", "resume"]))

    def test_one_that_was_paused_holds_up_the_close(self) -> None:
        for step, size in (("register", 0), ("write", 101), ("lose", 0), ("drain", 101)):
            self.do(step, size)
        self.assertEqual((self.link.client.connected, self.real.is_closed), (True, False))
        for step in ("unregister", "drain"):
            self.do(step, 1)
        self.assertEqual((self.link.client.connected, self.real.is_closed), (False, True))

    def test_it_takes_bytes_only(self) -> None:
        self.assertRaises(TypeError, self.real.write, memoryview(b"x"))
        self.assertRaises(TypeError, self.link.client.write, memoryview(b"x"))

    def test_one_at_a_time(self) -> None:
        self.do("register", 0)
        self.assertRaises(RuntimeError, self.real.registerProducer, FakeSource(), True)
        self.assertRaises(RuntimeError, self.link.client.registerProducer, FakeSource(), True)

    def test_one_that_comes_too_late_is_stopped(self) -> None:
        self.do("lose", 0)
        self.do("drain", 1)
        self.do("register", 0)
        self.assertEqual((self.source.calls, self.real_source.calls), (["stop"], ["stop"]))


class LinkTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.client, self.server = ScriptedPeer(), ScriptedPeer()
        self.link = Link(self.client, self.server, capacity=CAPACITY)

    def reasons(self) -> list[type[BaseException] | None]:
        """Why the client and the server were told that it is over."""
        return [end.lost.type if end.lost is not None else None for end in (self.client, self.server)]

    def test_nothing_moves_by_itself(self) -> None:
        self.client.say(b"hello")
        self.assertEqual((bytes(self.server.heard), self.link.to_server.waiting), (b"", 5))
        self.link.pump()
        self.assertEqual((bytes(self.server.heard), self.link.to_server.waiting), (b"hello", 0))

    def test_reads_have_the_size_that_the_test_chooses(self) -> None:
        self.client.say(b"hello")
        self.assertEqual([self.link.to_server.deliver(2) for _ in range(4)], [2, 2, 1, 0])
        sizes = iter((1, 3, 5, 5, 5))
        self.client.say(b"hello")
        self.link.pump(lambda: next(sizes))
        self.assertEqual(self.server.heard, b"hellohello")

    def test_a_stalled_direction_does_not_hold_up_the_other(self) -> None:
        self.link.to_server.is_stalled = True
        self.client.say(b"one")
        self.server.say(b"two")
        self.client.close()
        self.link.pump()
        self.assertEqual((bytes(self.server.heard), self.reasons()), (b"", [None, None]))
        self.link.to_server.is_stalled = False
        self.link.pump()
        self.assertEqual((bytes(self.server.heard), self.reasons()), (b"one", [ConnectionDone, ConnectionDone]))

    def test_who_has_paused_gets_nothing_until_it_goes_on(self) -> None:
        self.link.server.pauseProducing()
        self.client.say(b"one")
        self.link.pump()
        self.assertEqual(self.server.heard, b"")
        self.link.server.resumeProducing()
        self.assertEqual(self.server.heard, b"", "not from inside of the call")
        self.link.pump()
        self.assertEqual(self.server.heard, b"one")

    def test_who_has_paused_does_not_find_the_end_of_the_stream(self) -> None:
        self.link.server.pauseProducing()
        self.client.close()
        self.link.pump()
        self.assertEqual(self.reasons(), [ConnectionDone, None])
        self.link.server.resumeProducing()
        self.link.pump()
        self.assertEqual(self.reasons(), [ConnectionDone, ConnectionDone])

    def test_but_finds_a_reset_by_writing(self) -> None:
        self.link.server.pauseProducing()
        self.client.close()
        self.link.pump()
        self.server.say(b"are you there?")
        self.link.pump()
        self.assertEqual(self.reasons(), [ConnectionDone, ConnectionLost])

    def test_who_closes_reads_no_more(self) -> None:
        self.link.to_server.is_stalled = True
        self.client.say(b"one")
        self.client.close()
        self.server.say(b"two")
        self.link.pump()
        self.link.client.resumeProducing()
        self.link.pump()
        self.assertEqual(self.client.heard, b"")

    def test_an_abort_is_told_in_a_later_turn_and_is_a_reset_to_the_peer(self) -> None:
        self.client.say(b"one")
        self.link.client.abortConnection()
        self.assertEqual(self.reasons(), [None, None])
        self.link.pump()
        self.assertEqual((self.reasons(), bytes(self.server.heard)), ([ConnectionAborted, ConnectionLost], b""))

    def test_a_cut_comes_at_its_byte(self) -> None:
        for clean, reason in ((True, ConnectionDone), (False, ConnectionLost)):
            for at in range(6):
                self.setUp()
                self.client.say(b"hello")
                self.server.say(b"world")
                self.link.to_client.is_stalled = True
                self.link.to_server.cut(at, clean=clean)
                self.link.pump(2)
                self.assertEqual(bytes(self.server.heard), b"hello"[:at])
                self.assertEqual(self.client.heard, b"")
                self.assertEqual(self.reasons(), [reason, reason])
                self.assertTrue(self.link.is_over)

    def test_what_is_written_after_the_end_is_dropped(self) -> None:
        self.link.cut(clean=True)
        self.link.pump()
        self.client.say(b"one")
        self.link.pump()
        self.assertEqual((self.link.to_server.waiting, bytes(self.server.heard)), (0, b""))


class FullFactory(Factory[Protocol]):
    """Takes no more connections."""

    def buildProtocol(self, addr: IAddress | None) -> None:  # noqa: ARG002
        return None


class NetworkTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = Network()
        self.clients: list[ScriptedPeer] = []
        self.servers: list[ScriptedPeer] = []
        self.client_factory = self.factory(self.clients)
        self.server_factory = self.factory(self.servers)

    def factory(self, made: list[ScriptedPeer]) -> Factory:
        def build() -> ScriptedPeer:
            made.append(ScriptedPeer())
            return made[-1]

        return Factory.forProtocol(build)

    def test_a_connection_is_a_link(self) -> None:
        self.successResultOf(self.network.server_endpoint().listen(self.server_factory))
        for _ in range(2):
            self.successResultOf(self.network.client_endpoint().connect(self.client_factory))
        for number, client in enumerate(self.clients):
            client.say(bytes([number]) * 5)
        self.network.pump(2)
        self.assertEqual([bytes(server.heard) for server in self.servers], [b"\0" * 5, b"\1" * 5])
        self.assertEqual(len(self.network.links), 2)

    def test_nobody_listens(self) -> None:
        endpoint = self.network.client_endpoint()
        self.failureResultOf(endpoint.connect(self.client_factory), Refused)
        port = self.successResultOf(self.network.server_endpoint().listen(self.server_factory))
        self.failureResultOf(self.network.server_endpoint().listen(self.server_factory), CannotListenError)
        port.stopListening()
        self.failureResultOf(endpoint.connect(self.client_factory), Refused)

    def test_nobody_answers(self) -> None:
        self.network.is_silent = True
        self.assertNoResult(self.network.client_endpoint().connect(self.client_factory))

    def test_a_server_that_builds_nothing_closes(self) -> None:
        self.successResultOf(self.network.server_endpoint().listen(FullFactory()))
        self.successResultOf(self.network.client_endpoint().connect(self.client_factory))
        self.network.pump()
        (client,) = self.clients
        self.assertIs(client.lost is not None and client.lost.type, ConnectionDone)
