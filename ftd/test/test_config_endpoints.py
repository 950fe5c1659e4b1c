"""Tests of :mod:`ftd.config_endpoints`: endpoint strings are read as Twisted reads them, and refused with a reason."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from ftd.config_endpoints import (
    LONGEST_SOCKET_PATH,
    Address,
    Listener,
    TcpAddress,
    UnixAddress,
    collisions,
    dialled,
    listening,
)
from ftd.config_values import BadValue
from ftd.test.wire.profile import examples

BASE = Path("/base")

LISTENING: list[tuple[str, Address]] = [
    ("tcp:8441", TcpAddress("", 8441)),
    ("tcp:0", TcpAddress("", 0)),
    ("tcp:port=65535", TcpAddress("", 65535)),
    ("tcp:8441:interface=127.0.0.1", TcpAddress("127.0.0.1", 8441)),
    ("tcp:8441:127.0.0.1:5", TcpAddress("127.0.0.1", 8441)),
    ("tcp:8441:interface=localhost:backlog=5", TcpAddress("127.0.0.1", 8441)),
    ("tcp:8441:interface=", TcpAddress("", 8441)),
    ("tcp:8441:interface=0.0.0.0", TcpAddress("", 8441)),
    (r"tcp:8441:interface=\:\:", TcpAddress("", 8441)),
    (r"tcp:8441:interface=\:\:1", TcpAddress("::1", 8441)),
    (r"tcp:8441:interface=0\:0\:0\:0\:0\:0\:0\:1", TcpAddress("::1", 8441)),
    ("unix:/run/a.sock", UnixAddress("/run/a.sock")),
    ("unix:a.sock", UnixAddress("/base/a.sock")),
    ("unix:../x/./a.sock", UnixAddress("/x/a.sock")),
    (r"unix:/run/a\:b\\c=d", UnixAddress("/run/a:b\\c=d")),
    ("unix:address=/run/a.sock:mode=660:backlog=5:lockfile=0", UnixAddress("/run/a.sock")),
]

DIALLED: list[tuple[str, Address]] = [
    ("tcp:127.0.0.1:8441", TcpAddress("127.0.0.1", 8441)),
    ("tcp:host-b.example:8441", TcpAddress("host-b.example", 8441)),
    ("tcp:host=host-b:port=8441", TcpAddress("host-b", 8441)),
    ("tcp:8441:host=host-b", TcpAddress("host-b", 8441)),
    ("tcp:host-b:port=8441:timeout=3:bindAddress=127.0.0.2", TcpAddress("host-b", 8441)),
    (r"tcp:\:\:1:8441", TcpAddress("::1", 8441)),
    ("unix:/run/a.sock", UnixAddress("/run/a.sock")),
    ("unix:path=a.sock:timeout=3:lockfile=1", UnixAddress("/base/a.sock")),
]

NOT_LISTENING: list[tuple[str, str]] = [
    ("", "'' is not an endpoint of type tcp or unix"),
    ("8441", "'8441' is not an endpoint of type tcp or unix"),
    ("ssl:8441", "is not an endpoint of type tcp or unix"),
    ("TCP:8441", "is not an endpoint of type tcp or unix"),
    ("tcp", "the port is missing"),
    ("tcp:", "the port is missing"),
    ("tcp:x", "'x' is not a port: a number from 0 to 65535"),
    ("tcp:-1", "is not a port"),
    ("tcp:65536", "is not a port"),
    ("tcp:8_441", "is not a port"),
    ("tcp:8441:interface=eth0", "'eth0' is not the IP address of an interface"),
    ("tcp:8441:interface=::1", r"interface is given twice (a ':' inside an argument is written '\:')"),
    ("tcp:8441:127.0.0.1:5:6", "there is an argument too many, '6'"),
    ("tcp:8441:port=8442", "port is given twice"),
    ("tcp:port=8441:port=8442", "gives port twice"),
    ("tcp:8441:colour=red", "there is no argument 'colour'; besides the address there are backlog"),
    ("tcp:8441:backlog=many", "'many' will not do as backlog"),
    ("tcp:8441\\", "ends in a backslash"),
    ("tcp:127.0.0.1:8441", "is the wrong way round: this is where one dials to; give a port, and an interface"),
    ("tcp:host=a:port=1", "is the wrong way round"),
    ("unix", "the address is missing"),
    ("unix:/a:mode=999", "'999' will not do as mode"),
    ("unix:/a:lockfile=yes", "'yes' will not do as lockfile"),
    ("unix:/a:timeout=3", "is the wrong way round"),
    ("unix:path=/a", "is the wrong way round"),
    ("unix:/a /.", "the path of a socket cannot end in a space"),
    ("unix:/" + "x" * LONGEST_SOCKET_PATH, "the path of a socket can have 107 bytes"),
]

NOT_DIALLED: list[tuple[str, str]] = [
    ("tcp:host", "the port is missing"),
    ("tcp:port=8441:timeout=2", "the host is missing"),
    ("tcp:host:0", "'0' is not a port: a number from 1 to 65535"),
    ("tcp:host:x", "'x' is not a port"),
    ("tcp:8441:8442", "'8441' is not a host"),
    ("tcp:a b:8441", "'a b' is not a host"),
    ("tcp:::1:8441", r"there is an argument too many, '1' (a ':' inside an argument is written '\:')"),
    ("tcp:host:8441:timeout=0", "'0' will not do as timeout"),
    ("tcp:host:8441:bindAddress=eth0", "'eth0' will not do as bindAddress"),
    ("tcp:host:8441:host=b", "there is an argument too many, '8441'"),
    ("tcp:8441", "is the wrong way round: this is where one listens; give a host and a port"),
    ("tcp:8441:interface=127.0.0.1", "is the wrong way round"),
    ("unix:/a:mode=660", "is the wrong way round"),
    ("unix:address=/a", "is the wrong way round"),
    ("unix:/a:/b", "there is an argument too many, '/b'"),
]

# Parts of endpoint strings, right and wrong, that the tests against Twisted put together at random.
PARTS = [
    *("8441", "0", "port=8442", "127.0.0.1", "interface=127.0.0.1", r"interface=\:\:1", "interface=", "backlog=7", "5"),
    *("host-b", "host=host-c", r"\:\:1", "timeout=3", "bindAddress=127.0.0.2", "/run/a.sock", "a=b", r"/a\=b\:c\\d"),
    *("address=/run/b.sock", "path=/run/c.sock", "mode=600", "lockfile=0", "lockfile=1", "", "=", "\\", "x=", "=x"),
]
TEXTS = st.builds(
    lambda kind, parts: ":".join([kind, *parts]), st.sampled_from(["tcp", "unix"]), st.lists(st.sampled_from(PARTS))
)


class ReadTests(SynchronousTestCase):
    """What the strings are read as."""

    def test_listening(self) -> None:
        """Server endpoints."""
        for text, address in LISTENING:
            self.assertEqual(listening(text, BASE).address, address, text)

    def test_dialled(self) -> None:
        """Client endpoints."""
        for text, address in DIALLED:
            self.assertEqual(dialled(text, BASE).address, address, text)

    def test_not_listening(self) -> None:
        """Strings that are not server endpoints are refused with the reason."""
        for text, said in NOT_LISTENING:
            self.assertIn(said, str(self.assertRaises(BadValue, listening, text, BASE)), text)

    def test_not_dialled(self) -> None:
        """Strings that are not client endpoints are refused with the reason."""
        for text, said in NOT_DIALLED:
            self.assertIn(said, str(self.assertRaises(BadValue, dialled, text, BASE)), text)

    def test_relative_path_without_base(self) -> None:
        """Where there is no file to start from, a socket's path has to be absolute."""
        for read in (listening, dialled):
            self.assertIn("absolute", str(self.assertRaises(BadValue, read, "unix:a.sock", None)))
            self.assertEqual(read("unix:/a.sock", None).text, "unix:/a.sock")

    def test_paths_in_texts_are_absolute(self) -> None:
        """The string for Twisted has the absolute path, and everything else that was given."""
        self.assertEqual(listening("unix:a.sock:mode=660", BASE).text, "unix:/base/a.sock:mode=660")
        self.assertEqual(dialled(r"unix:path=a\:b=c:timeout=3", BASE).text, r"unix:/base/a\:b\=c:timeout=3")

    def test_read_again(self) -> None:
        """A string that came out of the reading reads as the same thing."""
        for text, _address in LISTENING:
            endpoint = listening(text, BASE)
            self.assertEqual(listening(endpoint.text, None), endpoint)


class TwistedTests(SynchronousTestCase):
    """Twisted takes every string that is let through, and sees the same address in it."""

    @examples(100)
    @given(TEXTS)
    def test_listening(self, text: str) -> None:
        """Server endpoints."""
        try:
            endpoint = listening(text, BASE)
        except BadValue:
            return
        reactor = MemoryReactor()
        self.successResultOf(serverFromString(reactor, endpoint.text).listen(Factory()))
        if isinstance(endpoint.address, TcpAddress):
            [(port, _factory, _backlog, interface)] = reactor.tcpServers
            host = str(ipaddress.ip_address(interface)) if interface else ""
            self.assertEqual(endpoint.address, TcpAddress(host, port))
        else:
            [(path, *_rest)] = reactor.unixServers
            self.assertEqual(endpoint.address, UnixAddress(path))

    @examples(100)
    @given(TEXTS)
    def test_dialled(self, text: str) -> None:
        """Client endpoints."""
        try:
            endpoint = dialled(text, BASE)
        except BadValue:
            return
        reactor = MemoryReactor()
        clientFromString(reactor, endpoint.text).connect(Factory())
        if isinstance(endpoint.address, TcpAddress):
            [(host, port, *_others)] = reactor.tcpClients
            self.assertEqual(endpoint.address, TcpAddress(host, port))
        else:
            [(path, *_rest)] = reactor.unixClients
            self.assertEqual(endpoint.address, UnixAddress(path))


class CollisionTests(SynchronousTestCase):
    """Which listeners are in each other's way."""

    def collide(self, one: str, other: str) -> bool:
        """Whether two server endpoints do, which must not depend on their order."""
        first, second = listening(one, BASE).address, listening(other, BASE).address
        self.assertEqual(first.collides(second), second.collides(first))
        return first.collides(second)

    def test_colliding(self) -> None:
        """One port on one interface, or on all; one path in two spellings."""
        for one, other in (
            ("tcp:1:interface=127.0.0.1", "tcp:1:interface=127.0.0.1"),
            ("tcp:1:interface=127.0.0.1", "tcp:1:interface=localhost"),
            ("tcp:1", "tcp:1:interface=127.0.0.1"),
            ("tcp:1:interface=0.0.0.0", "tcp:1:interface=127.0.0.1"),
            (r"tcp:1:interface=\:\:", r"tcp:1:interface=127.0.0.1"),
            ("tcp:1", "tcp:1:interface=0.0.0.0"),
            ("unix:a.sock", "unix:/base/a.sock:mode=600"),
            ("unix:a.sock", "unix:x/../a.sock"),
        ):
            self.assertTrue(self.collide(one, other), f"{one} {other}")

    def test_not_colliding(self) -> None:
        """Different ports, different interfaces, ports that the system picks, other paths, other kinds."""
        for one, other in (
            ("tcp:1", "tcp:2"),
            ("tcp:1:interface=127.0.0.1", "tcp:1:interface=127.0.0.2"),
            ("tcp:1:interface=127.0.0.1", r"tcp:1:interface=\:\:1"),
            ("tcp:0", "tcp:0"),
            ("tcp:0:interface=127.0.0.1", "tcp:0:interface=127.0.0.1"),
            ("unix:a.sock", "unix:b.sock"),
            ("unix:a.sock", "tcp:1"),
        ):
            self.assertFalse(self.collide(one, other), f"{one} {other}")

    def test_all_are_found(self) -> None:
        """Every listener that comes too late is told, with the first that has its address."""
        listeners = [
            Listener(name, "link", TcpAddress("", port)) for name, port in zip("abcd", (1, 2, 1, 1), strict=True)
        ]
        found = [(later.section, earlier.section) for later, earlier in collisions(listeners)]
        self.assertEqual(found, [("c", "a"), ("d", "a")])

    def test_local(self) -> None:
        """Loopback addresses and unix sockets are local, others and all interfaces at once are not."""
        for text in ("tcp:1:interface=127.9.9.9", r"tcp:1:interface=\:\:1", "tcp:1:interface=localhost", "unix:a"):
            self.assertTrue(listening(text, BASE).address.is_local(), text)
        for text in ("tcp:1", "tcp:1:interface=0.0.0.0", "tcp:1:interface=192.0.2.1", r"tcp:1:interface=\:\:"):
            self.assertFalse(listening(text, BASE).address.is_local(), text)
