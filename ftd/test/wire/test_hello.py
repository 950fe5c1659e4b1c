"""HELLO: what is taken, what is not, and what the two sides agree on."""

from __future__ import annotations

import itertools
import json
from typing import Any

import attrs
from hypothesis import given
from twisted.trial.unittest import SynchronousTestCase

from ftd.test.wire.profile import examples
from ftd.test.wire.reaching import (
    FIRST_ID,
    LIMITS,
    PAIR,
    fed,
    frame,
    head,
    hello,
    hello_frame,
    new_receiver,
    new_sender,
    taken,
)
from ftd.testing.wire_strategies import Store, WireLink, hellos
from ftd.wire.constants import DIGEST_SIZE, FEATURES, MAX_HELLO, MAX_WINDOW, Command
from ftd.wire.errors import CallRefused, ErrorCode, WireError
from ftd.wire.events import Acknowledged, CommitRequested, HelloReceived, Refused
from ftd.wire.hello import Hello, LastCheckpoint
from ftd.wire.session import Limits

GENERATION = "6f0d8f2e-3a52-4a44-b8a9-0d3a3c6f3f11"

#: Every key that a HELLO can have, with a value that is good.
GOOD: dict[str, Any] = {
    "version": 1,
    "pair": PAIR,
    "node": "host-b",
    "generation": GENERATION,
    "last": {"generation": GENERATION, "sequence": 12},
    "features": ["atomic", "digest", "nack", "window"],
    "max_payload": 67108864,
    "max_transaction": 17179869184,
    "window": 4,
    "state": "standby",
}

SUBSETS = [frozenset(names) for size in range(5) for names in itertools.combinations(sorted(FEATURES), size)]


def said(**changes: object) -> bytes:
    """A good HELLO's payload with some of its values changed."""
    return json.dumps(GOOD | changes).encode()


def lacking(key: str) -> bytes:
    """A good HELLO's payload without one of its keys."""
    return json.dumps({name: value for name, value in GOOD.items() if name != key}).encode()


class DecodeTests(SynchronousTestCase):
    """From a payload to a `Hello`."""

    def assert_invalid(self, payload: bytes, why: str) -> None:
        error = self.assertRaises(WireError, Hello.decode, payload)
        self.assertIs(error.code, ErrorCode.STATE_INVALID)
        self.assertEqual(error.detail, f"the peer's HELLO cannot be used: {why}", payload[:200])

    def test_good(self) -> None:
        self.assertEqual(
            Hello.decode(said()),
            Hello(
                pair=PAIR,
                node="host-b",
                generation=GENERATION,
                last=LastCheckpoint(GENERATION, 12),
                features=frozenset({"atomic", "digest", "nack", "window"}),
                max_payload=1 << 26,
                max_transaction=1 << 34,
                window=4,
                state="standby",
            ),
        )

    def test_what_may_be_null_or_missing(self) -> None:
        for key in ("generation", "last"):
            for payload in (said(**{key: None}), lacking(key)):
                self.assertIsNone(getattr(Hello.decode(payload), key))
        self.assertEqual(Hello.decode(lacking("max_transaction")).max_transaction, 0)
        self.assertEqual(Hello.decode(lacking("window")).window, 1)

    def test_unknown_keys_are_ignored(self) -> None:
        self.assertEqual(Hello.decode(said(colour="green", extra={"a": [1]})), Hello.decode(said()))

    def test_no_json(self) -> None:
        for payload in (
            b"{",
            b"\xff\xfe\x00",
            b"\x80abc",
            b"hello",
            b'{"a":1} x',
            b"\0" * 12,
            b'{"version":' + b"9" * 5000,
        ):
            self.assert_invalid(payload, "it is not JSON")

    def test_deep_nesting(self) -> None:
        for payload in (b"[" * MAX_HELLO, b'{"a":' * (MAX_HELLO // 5)):
            self.assert_invalid(payload, "it is not JSON")

    def test_json_but_no_object(self) -> None:
        for payload in (b"[]", b"1", b"null", b'"HELLO"', b"NaN"):
            self.assert_invalid(payload, "it is not a JSON object")

    def test_version(self) -> None:
        for version, shown in ((2, "2"), (0, "0"), ("1", "'1'"), (None, "None"), ([1], "[1]"), (True, "True")):
            self.assert_invalid(said(version=version), f"it speaks version {shown}, this side speaks 1")
        self.assert_invalid(lacking("version"), "it speaks version None, this side speaks 1")

    def test_a_long_version_is_not_repeated_whole(self) -> None:
        error = self.assertRaises(WireError, Hello.decode, said(version="x" * 60000))
        self.assertLess(len(error.detail), 200)

    def test_texts(self) -> None:
        wrong: tuple[object, ...] = (None, 1, ["x"], {}, True)
        for key in ("pair", "node", "state"):
            for payload in (lacking(key), *(said(**{key: value}) for value in wrong)):
                self.assert_invalid(payload, f"{key} is not a string")

    def test_generation(self) -> None:
        wrong: tuple[object, ...] = (1, ["x"], {}, False)
        for value in wrong:
            self.assert_invalid(said(generation=value), "generation is not a string")

    def test_features(self) -> None:
        wrong: tuple[object, ...] = (None, "nack", 1, {}, ["nack", 1], [[]])
        for payload in (lacking("features"), *(said(features=value) for value in wrong)):
            self.assert_invalid(payload, "features is not a list of strings")

    def test_limits(self) -> None:
        wrong: tuple[object, ...] = (None, "1", 1.5, True, -1, [], float("nan"))
        for payload in (lacking("max_payload"), *(said(max_payload=value) for value in (*wrong, 0))):
            self.assert_invalid(payload, "max_payload is not a number of at least 1")
        for value in wrong:
            self.assert_invalid(said(max_transaction=value), "max_transaction is not a number of at least 0")
        for value in (*wrong, 0):
            self.assert_invalid(said(window=value), "window is not a number of at least 1")

    def test_a_window_is_no_wider_than_ids_can_be_told_apart(self) -> None:
        self.assertEqual(Hello.decode(said(window=1 << 40)).window, MAX_WINDOW)

    def test_last(self) -> None:
        wrong: tuple[object, ...] = (1, "x", [], True)
        for value in wrong:
            self.assert_invalid(said(last=value), "last is neither null nor an object")
        for generation in (None, 1):
            self.assert_invalid(said(last={"generation": generation, "sequence": 1}), "generation is not a string")
        for sequence in (None, "1", -1, 1.0, True):
            self.assert_invalid(
                said(last={"generation": GENERATION, "sequence": sequence}), "sequence is not a number of at least 0"
            )

    def test_refused(self) -> None:
        """A refusal counts whatever else the HELLO has, or has not."""
        for payload in (said(refused="no"), said(refused="no", version=2), b'{"refused":"no"}'):
            error = self.assertRaises(WireError, Hello.decode, payload)
            self.assertEqual((error.code, error.detail), (ErrorCode.STATE_INVALID, "the peer refused the session: no"))

    def test_a_long_refusal_is_not_repeated_whole(self) -> None:
        error = self.assertRaises(WireError, Hello.decode, said(refused="x" * 60000))
        self.assertLess(len(error.detail), 600)

    def test_a_refusal_is_one_line(self) -> None:
        """It ends up in logs and on terminals."""
        error = self.assertRaises(WireError, Hello.decode, said(refused="a\nb\x1b[2J\ud800"))
        self.assertEqual(error.detail, "the peer refused the session: a?b?[2J?")

    def test_no_refusal(self) -> None:
        for value in ("", None, 0, ["no"]):
            self.assertEqual(Hello.decode(said(refused=value)), Hello.decode(said()))


class EncodeTests(SynchronousTestCase):
    """From a `Hello` to a payload."""

    def test_keys(self) -> None:
        """All of them are there, the features in order, and `refused` only where it says something."""
        self.assertEqual(json.loads(Hello.decode(said()).encode()), GOOD)
        refusal = Hello(pair=PAIR, node="b", max_payload=1, state="promoted", refused="the standby was promoted")
        self.assertEqual(json.loads(refusal.encode())["refused"], "the standby was promoted")

    def test_offers_everything_unless_told_otherwise(self) -> None:
        self.assertEqual(Hello(pair=PAIR, node="b", max_payload=1, state="standby").features, FEATURES)

    @examples(100)
    @given(hellos())
    def test_round_trip(self, spoken: Hello) -> None:
        self.assertEqual(Hello.decode(spoken.encode()), spoken)


class FrameTests(SynchronousTestCase):
    """HELLO on the wire, heard by the sender and by the receiver."""

    def assert_refused(self, data: bytes, code: ErrorCode, detail: str) -> None:
        sender, receiver = new_sender(), new_receiver()
        receiver.greet(hello())
        errors = [self.assertRaises(WireError, fed, sender, data), self.assertRaises(WireError, taken, receiver, data)]
        for machine, error in zip((sender, receiver), errors, strict=True):
            self.assertEqual((error.code, error.detail), (code, detail))
            self.assertEqual(machine.state.name, "CLOSED")
            self.assertIsNone(machine.peer_hello)
            self.assertEqual(machine.features, frozenset())

    def test_id_seq_and_payload(self) -> None:
        payload = said()
        for data in (frame(7, 1, 0, payload), frame(7, 0, 1, payload), frame(7)):
            self.assert_refused(data, ErrorCode.STATE_INVALID, "a HELLO has id 0, seq 0 and a payload")

    def test_longest(self) -> None:
        """64 KiB are taken, and a byte more is refused by its header."""
        padded = said().ljust(MAX_HELLO)
        self.assertEqual(len(fed(new_sender(), frame(7, payload=padded))), 1)
        for length in (MAX_HELLO + 1, 0xFFFFFFFF):
            detail = f"a HELLO of {length} bytes; 65536 are allowed"
            self.assert_refused(head(7, payload_len=length), ErrorCode.REALLOC_BUF, detail)

    def test_malformed(self) -> None:
        self.assert_refused(
            frame(7, payload=said(max_payload=0)),
            ErrorCode.STATE_INVALID,
            "the peer's HELLO cannot be used: max_payload is not a number of at least 1",
        )

    def test_another_pair(self) -> None:
        self.assert_refused(
            hello_frame(pair="other"),
            ErrorCode.STATE_INVALID,
            f"the peer speaks of pair 'other', this side of '{PAIR}'",
        )

    def test_a_long_name_is_not_repeated_whole(self) -> None:
        error = self.assertRaises(WireError, fed, new_sender(), hello_frame(pair="x" * 60000))
        self.assertLess(len(error.detail), 300)

    def test_refused(self) -> None:
        """A receiver may refuse in its first HELLO too."""
        self.assert_refused(
            frame(7, payload=said(refused="no")), ErrorCode.STATE_INVALID, "the peer refused the session: no"
        )

    def test_a_second_one(self) -> None:
        receiver = new_receiver()
        receiver.greet(hello())
        error = self.assertRaises(WireError, taken, receiver, hello_frame() + hello_frame())
        self.assertEqual((error.code, error.detail), (ErrorCode.STATE_INVALID, "HELLO is not allowed in state GREETED"))

    def test_split_at_every_byte(self) -> None:
        data = hello_frame()
        for at in range(len(data)):
            sender, receiver = new_sender(), new_receiver()
            receiver.greet(hello())
            for feed in (
                lambda part, machine=sender: fed(machine, part),
                lambda part, machine=receiver: taken(machine, part),
            ):
                self.assertEqual(feed(data[:at]), [])
                self.assertEqual(feed(data[at:]), [HelloReceived(hello())])

    def test_refusal_after_the_answer(self) -> None:
        """What a receiver sends when it will not open the session is a HELLO like any other."""
        receiver, sender = new_receiver(), new_sender()
        fed(sender, receiver.greet(hello()))
        sender.greet(hello(state="primary"))
        refusal = Hello(pair=PAIR, node="b", max_payload=1, state="standby", refused="another sender has the session")
        error = self.assertRaises(WireError, fed, sender, receiver.hello_frame(refusal))
        self.assertEqual(error.detail, "the peer refused the session: another sender has the session")


class LimitsTests(SynchronousTestCase):
    """What a receiver says that it takes binds the sender."""

    def agreed(self, max_payload: int, max_transaction: int) -> Limits:
        sender = new_sender()
        spoken = Hello(pair=PAIR, node="b", max_payload=max_payload, max_transaction=max_transaction, state="standby")
        fed(sender, frame(7, payload=spoken.encode()))
        return sender.limits

    def test_the_smaller_one_counts(self) -> None:
        self.assertEqual(self.agreed(10, 20), Limits(10, 20))
        self.assertEqual(self.agreed(1 << 40, 1 << 60), LIMITS)

    def test_a_peer_that_does_not_say(self) -> None:
        self.assertEqual(self.agreed(10, 0), Limits(10, LIMITS.max_transaction))


class AgreementTests(SynchronousTestCase):
    """A feature is in force when both HELLOs list it, and each does what it says only then."""

    def linked(self, sender_offers: frozenset[str], receiver_offers: frozenset[str]) -> WireLink:
        link = WireLink.between(
            Store(next_id=FIRST_ID), sender_features=sender_offers, receiver_features=receiver_offers
        )
        link.settle()
        return link

    def test_every_pair_of_subsets(self) -> None:
        self.assertEqual(len(set(SUBSETS)), 16)
        for sender_offers, receiver_offers in itertools.product(SUBSETS, repeat=2):
            link = self.linked(sender_offers, receiver_offers)
            agreed = sender_offers & receiver_offers
            where = f"{sorted(sender_offers)} and {sorted(receiver_offers)}"
            self.assertEqual((link.sender.features, link.receiver.features), (agreed, agreed), where)
            self.assert_digest(link, "digest" in agreed)
            self.assert_nack(link, "nack" in agreed)
            self.assert_atomic(link, "atomic" in agreed)
            self.assertFalse(link.is_broken, where)

    def test_the_smaller_window_counts_where_it_is_agreed(self) -> None:
        for wished, allowed, offers, agreed in ((4, 2, FEATURES, 2), (2, 9, FEATURES, 2), (4, 4, SUBSETS[0], 1)):
            sender, receiver = new_sender(), new_receiver()
            receiver_hello = attrs.evolve(hello(FEATURES), window=allowed)
            sender_hello = attrs.evolve(hello(offers, "primary"), window=wished)
            fed(sender, receiver.greet(receiver_hello))
            taken(receiver, sender.greet(sender_hello))
            self.assertEqual((sender.window, receiver.window), (agreed, agreed))

    def test_features_of_a_later_version(self) -> None:
        link = self.linked(FEATURES | {"encryption"}, FEATURES | {"encryption", "compression"})
        self.assertEqual((link.sender.features, link.receiver.features), (FEATURES, FEATURES))

    def assert_digest(self, link: WireLink, agreed: bool) -> None:
        commit = link.sender.heartbeat()[12:]
        self.assertEqual(len(commit), 12 + (DIGEST_SIZE if agreed else 0))
        # xxh3-64 of nothing, as its author publishes it.
        self.assertEqual(commit[12:], bytes.fromhex("c294d3380580062d") if agreed else b"")
        link.send(frame(Command.BEGIN, FIRST_ID), commit)
        link.settle()
        self.assertIsInstance(link.events[-1], Acknowledged)

    def assert_nack(self, link: WireLink, agreed: bool) -> None:
        link.send(link.sender.heartbeat())
        link.deliver_to_receiver(100)
        self.assertIsInstance(link.pending, CommitRequested)
        self.assertEqual(link.receiver.can_refuse, agreed)
        if agreed:
            link.answer(ErrorCode.FLUSH)
            link.settle()
            assert isinstance(link.events[-1], Refused)
            self.assertIs(link.events[-1].code, ErrorCode.FLUSH)
        else:
            self.assertRaises(CallRefused, link.receiver.refuse, ErrorCode.FLUSH)
            link.settle()
            self.assertIsInstance(link.events[-1], Acknowledged)

    def assert_atomic(self, link: WireLink, agreed: bool) -> None:
        if agreed:
            before, after = link.sender.atomic(b"whole")
            link.send(before, b"whole", after)
            link.settle()
            self.assertEqual([over.state for over in link.store.handed_over], [b"whole"])
        else:
            self.assertRaises(CallRefused, link.sender.atomic, b"whole")
            self.assertTrue(link.sender.begin())
