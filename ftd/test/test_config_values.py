"""Tests of :mod:`ftd.config_values`: every kind of value, in both notations, in and out of bounds."""

from __future__ import annotations

import math
import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ftd.config_keys import NAME, Role
from ftd.config_values import (
    GIB,
    KIB,
    MIB,
    TIB,
    BadValue,
    Choice,
    Count,
    Kind,
    Seconds,
    Size,
    Switch,
    Text,
    TraceNames,
    printable,
    show_seconds,
    show_size,
    shown,
)
from ftd.test.wire.profile import examples
from ftd.trace import TRACE_EVENTS

SIZE = Size(KIB, TIB)
SIZE_OR_NONE = Size(KIB, TIB, zero="no limit")
SECONDS = Seconds(0.001, 86400.0)
SHORT = Seconds(0.000_001, 1.0)
SECONDS_OR_NONE = Seconds(0.001, 86400.0, zero="never")
COUNT = Count(1, 100)
ONE = Count(1, 1, "there is only one")
TEXT = Text("some text")
ROLE = Choice.of(Role)

#: A kind, what is given to it, and what that stands for.
GOOD: list[tuple[Kind, object, object]] = [
    (SIZE, "1024", 1024),
    (SIZE, "1024B", 1024),
    (SIZE, "1KiB", 1024),
    (SIZE, "64 MiB", 64 * MIB),
    (SIZE, "3GiB", 3 * GIB),
    (SIZE, "1TiB", TIB),
    (SIZE, 4096, 4096),
    (SIZE, 4096.0, 4096),
    (SIZE_OR_NONE, "0", 0),
    (SIZE_OR_NONE, 0, 0),
    (SECONDS, "1", 1.0),
    (SECONDS_OR_NONE, "0", 0.0),
    (SECONDS_OR_NONE, 0, 0.0),
    (SECONDS_OR_NONE, "1ms", 0.001),
    (SHORT, "1us", 0.000_001),
    (SHORT, "7.5 us", 0.000_007_5),
    (SECONDS, "0.5", 0.5),
    (SECONDS, "9ms", 0.009),
    (SECONDS, "1.5 s", 1.5),
    (SECONDS, "2min", 120.0),
    (SECONDS, "24h", 86400.0),
    (SECONDS, 5, 5.0),
    (SECONDS, 0.25, 0.25),
    (COUNT, "1", 1),
    (COUNT, "100", 100),
    (COUNT, 7, 7),
    (COUNT, 7.0, 7),
    (ONE, "1", 1),
    (Switch(), "on", True),
    (Switch(), "Yes", True),
    (Switch(), "true", True),
    (Switch(), True, True),
    (Switch(), "off", False),
    (Switch(), "no", False),
    (Switch(), "FALSE", False),
    (Switch(), False, False),
    (ROLE, "primary", Role.PRIMARY),
    (TEXT, " x y ", "x y"),
    (TEXT, "a;b", "a;b"),
    (TEXT, "Grüße", "Grüße"),
    (NAME, "a", "a"),
    (NAME, "0a_.-", "0a_.-"),
    (NAME, "x" * 64, "x" * 64),
    (TraceNames(), "none", frozenset()),
    (TraceNames(), "all", frozenset(TRACE_EVENTS)),
    (TraceNames(), "ft_trans_cb", frozenset({"ft_trans_cb"})),
    (TraceNames(), "ft_trans_cb, ft_trans_close", frozenset({"ft_trans_cb", "ft_trans_close"})),
    (TraceNames(), [], frozenset()),
    (TraceNames(), ["ft_trans_cb"], frozenset({"ft_trans_cb"})),
]

#: A kind, what is given to it, and a part of what is said about that.
BAD: list[tuple[Kind, object, str]] = [
    (SIZE, "64MB", "'64MB' is not a size"),
    (SIZE, "64kib", "is not a size"),
    (SIZE, "1.5GiB", "is not a size"),
    (SIZE, "-1", "is not a size"),
    (SIZE, "", "is not a size"),
    (SIZE, "१MiB", "is not a size"),
    (SIZE, "9" * 5000, "is not a size"),
    (SIZE, True, "true is not a size"),
    (SIZE, None, "null is not a size"),
    (SIZE, 1.5, "1.5 is not a size"),
    (SIZE, [1], "[1] is not a size"),
    (SIZE, "1023", "'1023' is out of bounds: it has to be 1KiB to 1TiB"),
    (SIZE, "2TiB", "it has to be 1KiB to 1TiB"),
    (SIZE, 0, "0 is out of bounds"),
    (SIZE_OR_NONE, 1, "it has to be 1KiB to 1TiB, or 0 for no limit"),
    (SECONDS, "soon", "'soon' is not a time"),
    (SECONDS, "1m", "is not a time"),
    (SECONDS, "1e3", "is not a time"),
    (SECONDS, "-1s", "is not a time"),
    (SECONDS, False, "false is not a time"),
    (SECONDS, None, "null is not a time"),
    (SECONDS, "0", "'0' is out of bounds: it has to be 1ms to 24h"),
    (SECONDS_OR_NONE, 0.0005, "it has to be 1ms to 24h, or 0 for never"),
    (SECONDS_OR_NONE, math.nan, "out of bounds"),
    (SECONDS, "25h", "out of bounds"),
    (SECONDS, -1, "out of bounds"),
    (SECONDS, math.nan, "out of bounds"),
    (SECONDS, math.inf, "out of bounds"),
    (COUNT, "0", "'0' is out of bounds: it has to be 1 to 100"),
    (COUNT, 101, "out of bounds"),
    (COUNT, "8x", "'8x' is not a whole number"),
    (COUNT, "1.0", "is not a whole number"),
    (COUNT, True, "true is not a whole number"),
    (COUNT, 1.5, "1.5 is not a whole number"),
    (ONE, 2, "2 is out of bounds: there is only one"),
    (Switch(), "maybe", "'maybe' is not possible here: it has to be on or off"),
    (Switch(), 1, "1 is not possible here"),
    (Switch(), None, "null is not possible here"),
    (ROLE, "Primary", "'Primary' is not possible here: it has to be primary or secondary"),
    (ROLE, [], "[] is not possible here"),
    (TEXT, "", "there is no value"),
    (TEXT, " \t", "there is no value"),
    (TEXT, 5, "5 is not text"),
    (TEXT, "a\nb = c", "'a\\nb = c' has control characters in it"),
    (TEXT, "\ud800", "has control characters in it"),
    (TEXT, "a ;b", "has a ';' where a comment would begin"),
    (TEXT, ";b", "has a ';' where a comment would begin"),
    (TEXT, "x" * 4097, "is longer than 4096 characters"),
    (NAME, "-a", "'-a' will not do: it has to be 1 to 64 letters"),
    (NAME, "a/b", "will not do"),
    (NAME, "..", "will not do"),
    (NAME, "ä", "will not do"),
    (NAME, "x" * 65, "will not do"),
    (TraceNames(), "ft_trans_nothing", "'ft_trans_nothing' is not a trace event: it has to be all, or none, or"),
    (TraceNames(), "all,ft_trans_cb", "'all' is not a trace event"),
    (TraceNames(), "ft_trans_cb,", "'' is not a trace event"),
    (TraceNames(), ["ft_trans_cb", 1], "1 is not a trace event"),
    (TraceNames(), {"ft_trans_cb": True}, "is not a list of trace events"),
    (TraceNames(), None, "null is not a list of trace events"),
]


class ParseTests(SynchronousTestCase):
    """``parse`` of every kind, from INI text and from JSON."""

    def test_good(self) -> None:
        """What is right is read as the value that it stands for, of the right type."""
        for kind, raw, value in GOOD:
            parsed = kind.parse(raw)
            self.assertEqual((parsed, type(parsed)), (value, type(value)), f"{kind} {raw!r}")

    def test_bad(self) -> None:
        """What is wrong is refused in one short line that quotes it and says what is wrong."""
        for kind, raw, said in BAD:
            error = self.assertRaises(BadValue, kind.parse, raw)
            self.assertIn(said, str(error))
            self.assertTrue(str(error).isprintable(), f"{kind} {raw!r}")

    def test_good_text_matches_the_schema(self) -> None:
        """The pattern in a kind's schema lets through the text that the kind reads."""
        for kind, raw, _value in GOOD:
            pattern = kind.schema().get("pattern")
            if isinstance(raw, str) and pattern is not None:
                self.assertRegex(raw, pattern)

    def test_good_words_are_in_the_schema(self) -> None:
        """The words and booleans that a kind reads stand in its schema's ``enum``."""
        for kind, raw, _value in GOOD:
            words = kind.schema().get("enum")
            if words is not None:
                self.assertIn(raw.lower() if isinstance(raw, str) else raw, words)

    def test_schema_bounds(self) -> None:
        """The bounds in a schema are those of the kind."""
        self.assertEqual((SIZE.schema()["minimum"], SIZE.schema()["maximum"]), (KIB, TIB))
        self.assertEqual(SECONDS_OR_NONE.schema()["anyOf"][0], {"const": 0})
        self.assertEqual(SIZE_OR_NONE.schema()["anyOf"], [{"const": 0}, {"minimum": KIB, "maximum": TIB}])
        self.assertEqual((SECONDS.schema()["minimum"], SECONDS.schema()["maximum"]), (0.001, 86400.0))
        self.assertEqual((COUNT.schema()["minimum"], COUNT.schema()["maximum"]), (1, 100))


class RoundTripTests(SynchronousTestCase):
    """``show`` and ``plain`` make what ``parse`` reads back as the same value."""

    def both_ways(self, kind: Kind, value: object) -> None:
        """Check both notations of one value."""
        self.assertEqual(kind.parse(kind.show(value)), value)
        self.assertEqual(kind.parse(kind.plain(value)), value)

    @examples(100)
    @given(st.integers(KIB, TIB))
    def test_size(self, value: int) -> None:
        """Any number of bytes."""
        self.both_ways(SIZE, value)

    @examples(100)
    @given(st.floats(0.001, 86400.0) | st.integers(1, 86_400_000).map(lambda milliseconds: milliseconds / 1000))
    def test_seconds(self, value: float) -> None:
        """Any time, to the last bit of the float."""
        self.both_ways(SECONDS, value)

    @examples(100)
    @given(st.floats(0.000_001, 0.001) | st.integers(1, 1000).map(lambda microseconds: microseconds / 1_000_000))
    def test_short_times(self, value: float) -> None:
        """Any time below a millisecond, which Python would write with an exponent."""
        self.both_ways(SHORT, value)

    @examples(100)
    @given(st.integers(1, 100))
    def test_count(self, value: int) -> None:
        """Any whole number."""
        self.both_ways(COUNT, value)

    @examples(100)
    @given(st.booleans())
    def test_switch(self, value: bool) -> None:
        """On and off."""
        self.both_ways(Switch(), value)

    @examples(100)
    @given(st.sampled_from(Role))
    def test_choice(self, value: Role) -> None:
        """Any word."""
        self.both_ways(ROLE, value)

    @examples(100)
    @given(st.from_regex(re.compile(NAME.pattern, re.ASCII), fullmatch=True))
    def test_name(self, value: str) -> None:
        """Any name."""
        self.both_ways(NAME, value)

    @examples(100)
    @given(st.frozensets(st.sampled_from(sorted(TRACE_EVENTS))))
    def test_trace_names(self, value: frozenset[str]) -> None:
        """Any set of events, the empty and the full one among them."""
        self.both_ways(TraceNames(), value)


class ShowTests(SynchronousTestCase):
    """Values as a person would write them, and foreign text as a terminal can bear it."""

    def test_sizes(self) -> None:
        """The largest unit that divides a size is used."""
        shown_sizes = [show_size(size) for size in (0, 1, 1000, KIB, 1536, 3 * MIB, 16 * GIB, TIB, 1024 * TIB)]
        self.assertEqual(shown_sizes, ["0", "1", "1000", "1KiB", "1536", "3MiB", "16GiB", "1TiB", "1024TiB"])

    def test_seconds(self) -> None:
        """Whole minutes and hours from two minutes on, fractions as milliseconds where that is exact."""
        shown_times = [
            show_seconds(seconds) for seconds in (0.01, 0.5, 1.0, 60.0, 90.0, 120.0, 3600.0, 86400.0, 0.0125, 0.000_1)
        ]
        self.assertEqual(shown_times, ["10ms", "500ms", "1s", "60s", "90s", "2min", "1h", "24h", "0.0125s", "100us"])

    @examples(100)
    @given(st.text(st.characters(), max_size=200))
    def test_printable(self, text: str) -> None:
        """Nothing of a foreign text can move a terminal's cursor, begin a line or fill the screen."""
        safe = printable(text)
        self.assertTrue(safe.isprintable())
        self.assertLess(len(safe), 10 * 61 + 1)

    def test_shown(self) -> None:
        """Text is quoted, other values are shown as JSON, both are clipped."""
        self.assertEqual(shown("a\x1b[2J"), "'a\\x1b[2J'")
        self.assertEqual(shown({"a": [None, True]}), '{"a": [null, true]}')
        self.assertEqual(shown("x" * 1000), f"'{'x' * 60}…'")
