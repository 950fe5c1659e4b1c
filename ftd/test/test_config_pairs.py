"""Tests of :mod:`ftd.config`: pairs that come as JSON, are kept as text, and are described by a schema."""

from __future__ import annotations

import json
import os.path
import re
from collections.abc import Mapping
from pathlib import Path
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
from ftd.config_link import CongestionControl, SpinTime
from ftd.config_values import KIB, Count, Key, Seconds, Size
from ftd.config_vm import NET_ID_PATTERN, PathText
from ftd.errors import ConfigError
from ftd.test.wire.profile import examples
from ftd.trace import TRACE_EVENTS

PRIMARY = "[pair a]\nrole = primary\nlink = tcp:127.0.0.1:8441\n"
SECONDARY = "[pair b]\nrole = secondary\nlink = tcp:8441:interface=127.0.0.1\n"
VM: Mapping[str, object] = {"role": "primary", "link": "tcp:h:1", "source": "qemu", "qemu-qmp": "/vm.qmp"}
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
            ({**MINIMAL, "qemu-qmp": "/vm.qmp"}, "qemu-qmp"),
            ({**MINIMAL, "sink": "qemu"}, "qemu-qmp"),
            ({**MINIMAL, "sink": "qemu", "qemu-qmp": "/vm.qmp", "qemu-command": "/qemu"}, "qemu-command"),
            ({**MINIMAL, "sink": "qemu", "qemu-qmp": "/vm.qmp", "qemu-staging-dir": "shm"}, "qemu-staging-dir"),
            ({**VM, "qemu-qmp": "vm.qmp"}, "qemu-qmp"),
            ({**VM, "qemu-interval": 0.0005}, "qemu-interval"),
            ({**VM, "qemu-net-n0": 1}, "qemu-net-n0"),
            ({**VM, "qemu-net-n0": "unix:n0 uplink tap:t"}, "qemu-net-n0"),
            ({**VM, "qemu-net-n0": "unix:/n0 uplink run/up"}, "qemu-net-n0"),
            ({**VM, "qemu-net": "unix:/n0 uplink t"}, "qemu-net"),
            ({"role": "secondary"}, "link"),
            ({"link": "tcp:1"}, "role"),
            ({}, "role"),
        ):
            error = self.assertRaises(ConfigError, pair_from_mapping, "a", values)
            self.assertEqual((error.section, error.key), ("pair a", key))

    def test_vm(self) -> None:
        """A pair with a VM can be created; its times are seconds, as all are."""
        body = {"qemu-interval": 0.1, "qemu-protect": False, "qemu-rounds": 3, "qemu-net-n0": "unix:/a uplink b"}
        pair = pair_from_mapping("a", {**VM, **body})
        self.assertEqual((pair.qemu_interval, pair.qemu_protect, pair.qemu_rounds), (0.1, False, 3))
        self.assertEqual([(net.id, net.socket, net.uplink) for net in pair.qemu_nets], [("n0", "/a", "b")])
        self.assertEqual(pair_from_mapping("a", {**VM, "qemu-interval": 0}).qemu_interval, 0.0)

    def test_command_only_in_a_file(self) -> None:
        """Whoever can reach the API cannot have the daemon run a program; who writes its file can."""
        standby = {**MINIMAL, "sink": "qemu", "qemu-qmp": "/vm.qmp", "qemu-command": "/qemu -x"}
        error = self.assertRaises(ConfigError, pair_from_mapping, "a", standby)
        self.assertEqual(error.detail, "can stand in the configuration file only: it names a program to run")
        self.assertEqual(pair_from_mapping("a", standby, Path("/etc")).qemu_command, "/qemu -x")
        self.assertNotIn("qemu-command", pair_schema()["properties"])

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

    def test_two_pairs_on_one_vm(self) -> None:
        """A QMP socket, the socket of a NIC and a tap device are for one pair each; also as what the API listens on."""
        vm = pair_from_mapping("a", {**VM, "qemu-net-n0": "unix:/n0 uplink tap:t"})
        for other, said in (
            ({"qemu-qmp": "/vm.qmp"}, "[pair b] qemu-qmp: socket /vm.qmp is taken: [pair a] qemu-qmp uses it already"),
            ({"qemu-qmp": "/n0"}, "[pair b] qemu-qmp: socket /n0 is taken: [pair a] qemu-net-n0 listens there already"),
            (
                {"qemu-net-x": "unix:/n0 uplink u"},
                "[pair b] qemu-net-x: socket /n0 is taken: [pair a] qemu-net-n0 list",
            ),
            (
                {"qemu-net-x": "unix:/x uplink t"},
                "[pair b] qemu-net-x: tap device t is taken: [pair a] qemu-net-n0 use",
            ),
            ({"qemu-net-x": "unix:/api uplink u"}, "[pair b] qemu-net-x: socket /api is taken: [api] endpoint listens"),
        ):
            pair = pair_from_mapping("b", {**VM, "qemu-qmp": "/other.qmp", **other})
            error = self.assertRaises(ConfigError, check_listening, [vm, pair], ["unix:/api"])
            self.assertEqual(str(error)[: len(said)], said)

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
    if isinstance(kind, SpinTime):
        return st.just("auto") | st.just(0) | st.floats(kind.seconds.low, kind.seconds.high)
    if isinstance(kind, CongestionControl):
        return st.just("reno")
    if key.name == "link-peer-name":
        return st.sampled_from(["host-b", "fd00::1", "192.0.2.1"])
    if key.name == "name":
        return st.text("aZ0_.-", max_size=63).map(lambda rest: f"n{rest}")
    if key.name == "trace":
        return st.lists(st.sampled_from(sorted(TRACE_EVENTS)))
    if isinstance(kind, PathText):
        return st.text("aZ0 .-_/:=#é", max_size=20).map(lambda rest: f"/{rest}x")
    return st.sampled_from(kind.schema()["enum"])


@st.composite
def nets(draw: st.DrawFn) -> dict[str, object]:
    """The keys of some NICs of a VM."""
    ids = draw(st.lists(st.from_regex(NET_ID_PATTERN, fullmatch=True), max_size=3, unique=True))
    keys: dict[str, object] = {}
    for number, id in enumerate(ids):
        way = draw(st.sampled_from(["unix", "connect"]))
        uplink = draw(st.sampled_from([f"tap{number}", f"tap:tap{number}", f"unix:/up {number}", "/switch"]))
        keys[f"qemu-net-{id}"] = f"{way}:/net {number} uplink {uplink}"
    return keys


@st.composite
def pairs(draw: st.DrawFn) -> PairConfig:
    """Any pair: some of the keys that its role allows, at any values that go together."""
    role = draw(st.sampled_from(Role))
    path = draw(st.text("aZ0 .-_/:;=#é\\", max_size=20)).strip()
    assume(not os.path.normpath(f"/a{path}".replace(" ;", "")).endswith(" "))
    link = "unix:/a" + path.replace(" ;", "").replace("\\", "\\\\").replace(":", "\\:")
    values: dict[str, Any] = {"role": role.value, "link": link}
    origin = "source" if role is Role.PRIMARY else "sink"
    has_vm = draw(st.booleans())
    for key in PAIR_KEYS.values():
        if key.required or key.only not in ("", role) or key.in_file or key.family or (key.vm and not has_vm):
            continue
        if draw(st.booleans()):
            values[key.name] = draw(values_of(key))
    if has_vm:
        values |= {origin: "qemu", "peer": "ftd", "qemu-qmp": "/run/vm.qmp", **draw(nets())}
    elif values.get(origin) == "qemu":
        del values[origin]
    files = ("link-certificate", "link-key", "link-ca")
    if not all(name in values for name in (*files, "link-peer-name")):
        values = {name: value for name, value in values.items() if name not in (*files, "link-peer-name")}
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
        self.assertEqual(set(schema["properties"]), {"pair", *PAIR_KEYS} - {"qemu-net-ID", "qemu-command"})
        ((pattern, net),) = schema["patternProperties"].items()
        self.assertEqual(pattern, f"^qemu-net-{NET_ID_PATTERN}$")
        self.assertTrue(re.search(net["pattern"], "unix:/a uplink tap:b"))
        self.assertEqual(schema["required"], ["role", "link"])
        self.assertIs(schema["additionalProperties"], False)
        self.assertEqual(schema["anyOf"], [{"required": ["pair"]}, {"required": ["name"]}])

    def test_defaults_are_read_as_the_defaults(self) -> None:
        """A body that spells out all the defaults makes the same pair as one that has none of them."""
        feed: Mapping[str, object] = {"role": "primary", "link": "tcp:h:1"}
        standby_vm = {**MINIMAL, "sink": "qemu", "qemu-qmp": "/vm.qmp"}
        for minimal, role, has_vm in (
            (feed, "primary", False),
            (MINIMAL, "secondary", False),
            (VM, "primary", True),
            (standby_vm, "secondary", True),
        ):
            defaults = {
                name: value["default"]
                for name, value in pair_schema()["properties"].items()
                if "default" in value and PAIR_KEYS[name].only in ("", role) and (has_vm or not PAIR_KEYS[name].vm)
            }
            body = {name: value for name, value in defaults.items() if name not in minimal}
            self.assertGreater(len(body), 15)
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
        self.assertTrue(properties["qemu-dirty"]["description"].endswith(" For a primary with source = qemu only."))
        for name in properties.keys() - {"pair"}:
            self.assertIn(PAIR_KEYS[name].sentence, properties[name]["description"])
