"""Tests of :mod:`ftd.config`: pairs that come as JSON, are kept as text, and are described by a schema."""

from __future__ import annotations

import json
import os.path
from collections.abc import Mapping
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ftd.config import (
    PAIR_KEYS,
    PairConfig,
    Role,
    check_listening,
    pair_from_ini,
    pair_from_mapping,
    pair_schema,
    pair_to_ini,
)
from ftd.config_values import KIB, Count, Key, Seconds, Size
from ftd.errors import ConfigError
from ftd.test.wire.profile import examples
from ftd.trace import TRACE_EVENTS

PRIMARY = "[pair a]\nrole = primary\nlink = tcp:127.0.0.1:8441\n"
SECONDARY = "[pair b]\nrole = secondary\nlink = tcp:8441:interface=127.0.0.1\n"
MINIMAL: Mapping[str, object] = {"role": "secondary", "link": "tcp:8441:interface=127.0.0.1"}


class MappingTests(SynchronousTestCase):
    """:func:`pair_from_mapping`, as the API uses it."""

    def test_json_and_text_are_the_same(self) -> None:
        """JSON numbers, booleans and lists mean the same as the text of a file."""
        plain = {"rate-limit": False, "keep": 3, "heartbeat": 0.5, "max-payload": 65536, "trace": ["ft_trans_cb"]}
        text = {"rate-limit": "off", "keep": "3", "heartbeat": "500ms", "max-payload": "64KiB", "trace": "ft_trans_cb"}
        pair = pair_from_mapping("a", {**MINIMAL, **plain})
        self.assertEqual(pair, pair_from_mapping("a", {**MINIMAL, **text}))
        self.assertEqual((pair.rate_limit, pair.keep, pair.heartbeat), (False, 3, 0.5))
        self.assertEqual((pair.max_payload, pair.trace), (64 * KIB, {"ft_trans_cb"}))

    def test_bad_values(self) -> None:
        """The first mistake is raised with the section and the key."""
        for values, key in (
            ({**MINIMAL, "keep": None}, "keep"),
            ({**MINIMAL, "keep": {}}, "keep"),
            ({**MINIMAL, "rate-limit": 1}, "rate-limit"),
            ({**MINIMAL, "colour": "red"}, "colour"),
            ({**MINIMAL, "pair": "b"}, "pair"),
            ({**MINIMAL, "section": "b"}, "section"),
            ({**MINIMAL, "link": 8441}, "link"),
            ({**MINIMAL, "link": "unix:relative"}, "link"),
            ({**MINIMAL, "dead-time": 0.5}, "dead-time"),
            ({**MINIMAL, "source": "feed"}, "source"),
            ({"role": "secondary"}, "link"),
            ({"link": "tcp:1"}, "role"),
            ({}, "role"),
        ):
            error = self.assertRaises(ConfigError, pair_from_mapping, "a", values)
            self.assertEqual((error.section, error.key), ("pair a", key))

    def test_bad_name(self) -> None:
        """A pair cannot have a name that URLs or file names would have to escape."""
        for name in ("", ".", "a/b", "a b", "x" * 65):
            error = self.assertRaises(ConfigError, pair_from_mapping, name, MINIMAL)
            self.assertIn("will not do" if name else "there is no value", error.detail)


class CheckListeningTests(SynchronousTestCase):
    """:func:`check_listening`, for pairs that come when others are there already."""

    def test_primaries_do_not_listen(self) -> None:
        """Two primaries may dial one address, also that of a secondary."""
        dialling = {"role": "primary", "link": "tcp:127.0.0.1:8441"}
        check_listening(
            [pair_from_mapping("a", dialling), pair_from_mapping("b", dialling), pair_from_mapping("c", MINIMAL)], []
        )

    def test_two_pairs_on_one_port(self) -> None:
        """The later pair is the one that is named, the earlier one is told."""
        pairs = [pair_from_mapping(name, MINIMAL) for name in "ab"]
        error = self.assertRaises(ConfigError, check_listening, pairs, ["unix:/api.sock"])
        said = "[pair b] link: port 8441 is taken: [pair a] link listens there already (two pairs on one port)"
        self.assertEqual(str(error), said)

    def test_two_pairs_on_one_socket(self) -> None:
        """Sockets are taken as well."""
        pairs = [pair_from_mapping(name, {"role": "secondary", "link": "unix:/a/b.sock"}) for name in "ab"]
        error = self.assertRaises(ConfigError, check_listening, pairs, [])
        said = "[pair b] link: socket /a/b.sock is taken: [pair a] link listens there already (two pairs on one socket)"
        self.assertEqual(str(error), said)

    def test_pair_on_a_port_of_the_api(self) -> None:
        """The endpoints of the API count, each under its key."""
        endpoints = ["unix:/api.sock", "tcp:8441:interface=127.0.0.1"]
        error = self.assertRaises(ConfigError, check_listening, [pair_from_mapping("a", MINIMAL)], endpoints)
        self.assertEqual(str(error), "[pair a] link: port 8441 is taken: [api] endpoint-2 listens there already")


def values_of(key: Key) -> st.SearchStrategy[Any]:
    """Values that a key can have, in JSON's notation."""
    kind = key.kind
    if isinstance(kind, Size):
        return st.integers(kind.low, kind.high)
    if isinstance(kind, Seconds):
        return st.floats(kind.low, kind.high)
    if isinstance(kind, Count):
        return st.integers(kind.low, kind.high)
    if key.name == "name":
        return st.text("aZ0_.-", max_size=63).map(lambda rest: f"n{rest}")
    if key.name == "trace":
        return st.lists(st.sampled_from(sorted(TRACE_EVENTS)))
    return st.sampled_from(kind.schema()["enum"])


@st.composite
def pairs(draw: st.DrawFn) -> PairConfig:
    """Any pair: some of the keys that its role allows, at any values that go together."""
    role = draw(st.sampled_from(Role))
    path = draw(st.text("aZ0 .-_/:;=#é\\", max_size=20)).strip()
    assume(not os.path.normpath(f"/a{path}".replace(" ;", "")).endswith(" "))
    link = "unix:/a" + path.replace(" ;", "").replace("\\", "\\\\").replace(":", "\\:")
    values: dict[str, Any] = {"role": role.value, "link": link}
    for key in PAIR_KEYS.values():
        if not key.required and key.only in ("", role) and draw(st.booleans()):
            values[key.name] = draw(values_of(key))
    if "dead-time" in values or "heartbeat" in values:
        values["heartbeat"], values["dead-time"] = draw(st.floats(0.01, 2.0)), draw(st.floats(2.5, 100.0))
    if role is Role.PRIMARY:
        values["frame-size"] = draw(st.integers(KIB, 64 * KIB))
    return pair_from_mapping("some-pair", values)


class IniTests(SynchronousTestCase):
    """:func:`pair_to_ini`, which is how pairs that were created at run time outlive the daemon."""

    @examples(100)
    @given(pairs())
    def test_round_trip(self, pair: PairConfig) -> None:
        """Any pair, written and read again, is the same."""
        self.assertEqual(pair_from_ini(pair_to_ini(pair)), pair)

    def test_only_what_is_not_the_default(self) -> None:
        """Keys at their default are left out."""
        pair = pair_from_mapping("a", {**MINIMAL, "name": "a", "keep": 8, "max-payload": "1MiB", "heartbeat": "500ms"})
        self.assertEqual(
            pair_to_ini(pair),
            "[pair a]\nrole = secondary\nlink = tcp:8441:interface=127.0.0.1\nmax-payload = 1MiB\nheartbeat = 500ms\n",
        )

    def test_not_a_pair(self) -> None:
        """Text that is not one pair is an error, and only that."""
        for text in ("", "rubbish", "[ftd]\n", PRIMARY + SECONDARY, PRIMARY + "rubbish\n", PRIMARY + "x = 1\n"):
            self.assertRaises(ConfigError, pair_from_ini, text)


class SchemaTests(SynchronousTestCase):
    """:func:`pair_schema`, which the API publishes."""

    def test_keys(self) -> None:
        """It has every key of a pair, ``pair``, and no other."""
        schema = pair_schema()
        self.assertEqual(set(schema["properties"]), {"pair", *PAIR_KEYS})
        self.assertEqual(schema["required"], ["role", "link"])
        self.assertIs(schema["additionalProperties"], False)
        self.assertEqual(schema["anyOf"], [{"required": ["pair"]}, {"required": ["name"]}])

    def test_defaults_are_read_as_the_defaults(self) -> None:
        """A body that spells out all the defaults makes the same pair as one that has none of them."""
        for role, link in (("primary", "tcp:127.0.0.1:1"), ("secondary", "tcp:1")):
            body = {
                name: value["default"]
                for name, value in pair_schema()["properties"].items()
                if "default" in value and PAIR_KEYS[name].only in ("", role)
            }
            self.assertGreater(len(body), 15)
            minimal = {"role": role, "link": link}
            self.assertEqual(pair_from_mapping("a", {**minimal, **body}), pair_from_mapping("a", minimal))

    def test_content(self) -> None:
        """Descriptions, words, bounds and defaults are there, and all of it is JSON."""
        properties = json.loads(json.dumps(pair_schema()))["properties"]
        self.assertEqual(
            (properties["ack"]["enum"], properties["ack"]["default"]), (["received", "applied"], "received")
        )
        self.assertEqual((properties["keep"]["minimum"], properties["keep"]["default"]), (1, 8))
        self.assertEqual(properties["trace"]["default"], [])
        self.assertTrue(properties["sink"]["description"].endswith(" For a secondary only."))
        for name, key in PAIR_KEYS.items():
            self.assertIn(key.sentence, properties[name]["description"])
