"""Headers to bytes and back, and payload in views."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ftd.test.wire.profile import examples
from ftd.testing.wire_strategies import byte_orders, chunks, cut, headers
from ftd.wire.constants import HEADER_SIZE, ByteOrder, Command
from ftd.wire.framing import Deframer, Header, encode_header

#: cmd, id, seq and payload_len are different in each byte, so that no two can be mixed up.
GOLDEN: dict[Command, tuple[str, str]] = {
    Command.INIT: ("0000 0201 06050403 0a090807", "0000 0102 03040506 0708090a"),
    Command.BEGIN: ("0100 0201 06050403 0a090807", "0001 0102 03040506 0708090a"),
    Command.CONTINUE: ("0200 0201 06050403 0a090807", "0002 0102 03040506 0708090a"),
    Command.COMMIT: ("0300 0201 06050403 0a090807", "0003 0102 03040506 0708090a"),
    Command.CANCEL: ("0400 0201 06050403 0a090807", "0004 0102 03040506 0708090a"),
    Command.ATOMIC: ("0500 0201 06050403 0a090807", "0005 0102 03040506 0708090a"),
    Command.ACK: ("0600 0201 06050403 0a090807", "0006 0102 03040506 0708090a"),
    Command.HELLO: ("0700 0201 06050403 0a090807", "0007 0102 03040506 0708090a"),
    Command.NACK: ("ffff 0201 06050403 0a090807", "ffff 0102 03040506 0708090a"),
}

ORDERS: tuple[ByteOrder, ByteOrder] = ("little", "big")


class GoldenBytesTests(SynchronousTestCase):
    """The bytes of all nine commands in both byte orders."""

    def test_every_command_is_listed(self) -> None:
        self.assertEqual(set(GOLDEN), set(Command))

    def test_encode(self) -> None:
        for cmd, golden in GOLDEN.items():
            for order, expected in zip(ORDERS, golden, strict=True):
                header = encode_header(order, cmd, 0x0102, 0x03040506, 0x0708090A)
                self.assertEqual(header, bytes.fromhex(expected), f"{cmd.name}, {order}")
                self.assertEqual(len(header), HEADER_SIZE)

    def test_decode(self) -> None:
        for cmd, golden in GOLDEN.items():
            for order, written in zip(ORDERS, golden, strict=True):
                (header,) = Deframer(order).feed(bytes.fromhex(written))
                self.assertEqual(header, Header(cmd, 0x0102, 0x03040506, 0x0708090A), f"{cmd.name}, {order}")

    def test_largest_numbers(self) -> None:
        for order in ORDERS:
            header = encode_header(order, Command.NACK, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
            self.assertEqual(header, b"\xff" * HEADER_SIZE)
            self.assertEqual(list(Deframer(order).feed(header)), [Header(0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)])


class SplitHeaderTests(SynchronousTestCase):
    """A header that did not come in one read."""

    def test_at_every_byte(self) -> None:
        for order in ORDERS:
            data = encode_header(order, Command.ACK, 0x0102, 0x03040506, 0)
            for at in range(HEADER_SIZE + 1):
                deframer = Deframer(order)
                first = list(deframer.feed(data[:at]))
                self.assertEqual(deframer.inside_header, 0 < at < HEADER_SIZE, f"at {at}")
                second = list(deframer.feed(data[at:]))
                self.assertFalse(deframer.inside_header)
                self.assertEqual(first + second, [Header(Command.ACK, 0x0102, 0x03040506, 0)], f"at {at}")
                self.assertEqual(bool(first), at == HEADER_SIZE, f"at {at}")

    def test_byte_by_byte(self) -> None:
        deframer = Deframer("little")
        data = (
            encode_header("little", Command.CONTINUE, 1, 2, 3) + b"xyz" + encode_header("little", Command.ACK, 4, 5, 0)
        )
        pieces = [piece for at in range(len(data)) for piece in deframer.feed(data[at : at + 1])]
        self.assertEqual(pieces, [Header(2, 1, 2, 3), b"x", b"y", b"z", Header(6, 4, 5, 0)])

    def test_nothing(self) -> None:
        deframer = Deframer("little")
        self.assertEqual(list(deframer.feed(b"")), [])
        self.assertFalse(deframer.inside_header)


class PayloadTests(SynchronousTestCase):
    """Payload goes through in views."""

    def test_many_frames_in_one_read(self) -> None:
        data = b"".join(encode_header("little", Command.CONTINUE, 1, seq, seq) + bytes(seq) for seq in range(50))
        pieces = list(Deframer("little").feed(data))
        self.assertEqual([piece.seq for piece in pieces if isinstance(piece, Header)], list(range(50)))
        # The first frame is empty and has no piece.
        self.assertEqual([len(piece) for piece in pieces if isinstance(piece, memoryview)], list(range(1, 50)))

    def test_views_are_of_what_was_fed(self) -> None:
        deframer = Deframer("little")
        reads = [encode_header("little", Command.CONTINUE, 0, 0, 10) + b"abc", b"defg", b"hij" + bytes(5)]
        for data, expected in zip(reads, (b"abc", b"defg", b"hij"), strict=True):
            (view,) = [piece for piece in deframer.feed(data) if isinstance(piece, memoryview)]
            self.assertIs(view.obj, data)
            self.assertEqual(view, expected)

    def test_views_of_a_view_are_of_the_memory_behind_it(self) -> None:
        staging = bytearray(encode_header("little", Command.CONTINUE, 0, 0, 3) + b"abc" + bytes(100))
        _header, view = Deframer("little").feed(memoryview(staging)[: HEADER_SIZE + 3])
        assert isinstance(view, memoryview)
        self.assertIs(view.obj, staging)
        staging[HEADER_SIZE] = ord("A")
        self.assertEqual(view, b"Abc")

    def test_payload_left(self) -> None:
        deframer = Deframer("little")
        self.assertEqual(len(list(deframer.feed(encode_header("little", Command.CONTINUE, 0, 0, 5)))), 1)
        self.assertEqual(deframer.payload_left, 5)
        left = [deframer.payload_left for at in range(5) for _piece in deframer.feed(b"a")]
        self.assertEqual(left, [4, 3, 2, 1, 0])

    def test_nothing_is_decoded_ahead(self) -> None:
        """While a header is being judged what follows it has not been looked at: a refused header costs nothing."""
        deframer = Deframer("little")
        data = (
            encode_header("little", Command.CONTINUE, 0, 0, 1) + b"a" + encode_header("little", Command.COMMIT, 0, 1, 0)
        )
        feeding = deframer.feed(data)
        next(feeding)
        self.assertEqual(deframer.payload_left, 1)

    @examples(100)
    @given(st.data(), byte_orders())
    def test_any_frames_in_any_reads(self, data: st.DataObject, order: ByteOrder) -> None:
        frames = data.draw(st.lists(st.tuples(headers(), st.binary(max_size=100)), max_size=10))
        written = b"".join(
            encode_header(order, Command(header.cmd), header.id, header.seq, len(payload)) + payload
            for header, payload in frames
        )
        deframer = Deframer(order)
        seen: list[tuple[Header, bytearray]] = []
        for read in data.draw(chunks(written)):
            for piece in deframer.feed(read):
                if isinstance(piece, Header):
                    seen.append((piece, bytearray()))
                else:
                    self.assertIs(piece.obj, read.obj)
                    seen[-1][1].extend(piece)
        self.assertEqual(seen, [(header._replace(payload_len=len(payload)), payload) for header, payload in frames])
        self.assertEqual((deframer.payload_left, deframer.inside_header), (0, False))


class CutTests(SynchronousTestCase):
    """The strategies' own arithmetic."""

    def test_pieces(self) -> None:
        self.assertEqual(cut(b"abcdef", [0, 2, 2, 5, 6]), [b"ab", b"cde", b"f"])
        self.assertEqual(cut(b"", []), [])
