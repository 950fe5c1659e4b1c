"""Tests of :mod:`ftd.config`: files, good and bad; the shipped one, and the reference, which have to be complete."""

from __future__ import annotations

import os.path
import re
import shutil
import socket
import tempfile
from pathlib import Path

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ftd.config import (
    API_KEYS,
    FTD_KEYS,
    PAIR_KEYS,
    Ack,
    ApiConfig,
    ByteOrder,
    Config,
    PairConfig,
    Peer,
    Role,
    Sink,
    Source,
    load,
    problems,
)
from ftd.config_values import GIB, KIB, MIB
from ftd.errors import ConfigError
from ftd.test.wire.profile import examples
from ftd.trace import TRACE_EVENTS

ROOT = Path(__file__).parent.parent.parent

#: Why tests of files that are no part of the package do not run, where they are not there.
NOT_A_SOURCE_TREE = None if (ROOT / "setup.cfg").exists() else "ftd is installed, its sources are elsewhere"

PRIMARY = "[pair a]\nrole = primary\nlink = tcp:127.0.0.1:8441\n"
SECONDARY = "[pair b]\nrole = secondary\nlink = tcp:8441:interface=127.0.0.1\n"

#: A file, and the beginning of everything that is wrong with it, in order.
BadFiles = list[tuple[str, list[str]]]

#: The beginning of a file, what is wrong with it together with each of some lines, and the beginning of what is said.
BadLines = list[tuple[str, str, list[tuple[str, str]]]]

BAD_FILES: BadFiles = [
    # The syntax
    ("rubbish\n" + PRIMARY, ["line 1: 'rubbish' stands before any [section]"]),
    (PRIMARY + "rubbish\n", ["line 4: 'rubbish' is neither a [section] nor key = value"]),
    (PRIMARY + "= 5\n", ["line 4: '= 5' is neither a [section] nor key = value"]),
    (PRIMARY + "keep: 5\n", ["line 4: 'keep: 5' is neither"]),
    ("[ftd] node = x\n[api\n", ["line 1: '[ftd] node = x' stands before", "line 2: '[api' stands before"]),
    (PRIMARY + "window = 1\nwindow = 1\n", ["[pair a] window: line 5: the section has this key already"]),
    (PRIMARY + PRIMARY + "window = 9\n", ["[pair a]: line 4: there is such a section already"]),
    (PRIMARY + PRIMARY + PRIMARY, ["[pair a]: line 4: there is such", "[pair a]: line 7: there is such"]),
    ("[ftd]\n[ftd]\nnode = a\nnode = b\n", ["[ftd]: line 2: there is such a section already"]),
    (PRIMARY + "  ack = applied\n", ["[pair a] link: the line after it is indented, so 'ack = applied' reads as"]),
    ("\x1b[2J\n", ["line 1: '\\x1b[2J' stands before any [section]"]),
    # Sections
    ("[DEFAULT]\nrole = primary\n" + PRIMARY, ["[DEFAULT]: there is no such section"]),
    ("[http]\n", ["[http]: there is no such section"]),
    ("[FTD]\n", ["[FTD]: there is no such section; is ftd meant?"]),
    ("[pair]\n", ["[pair]: there is no such section; is pair NAME meant?"]),
    (PRIMARY.replace("[pair a]", "[pair a b]"), ["[pair a b]: 'a b' will not do: it has to be 1 to 64 letters"]),
    (PRIMARY.replace("[pair a]", "[pair ../a]"), ["[pair ../a]: '../a' will not do"]),
    # Keys that are missing
    ("[pair a]\nlink = tcp:127.0.0.1:1\n", ["[pair a] role: is missing; for example role = primary"]),
    ("[pair a]\nrole = primary\n", ["[pair a] link: is missing; for example link = tcp:127.0.0.1:8441"]),
    ("[pair a]\nrole = both\nlink = tcp:1\n", ["[pair a] role: 'both' is not possible here: it has to be primary or"]),
    # More pairs than allowed
    ("[ftd]\npairs-limit = 1\n" + PRIMARY + SECONDARY, ["[ftd] pairs-limit: the file has 2 pairs, more than that"]),
    # Links the wrong way round, or of the wrong kind
    ("[pair a]\nrole = primary\nlink = tcp:8441\n", ["[pair a] link: 'tcp:8441' is the wrong way round"]),
    ("[pair a]\nrole = secondary\nlink = tcp:h:1\n", ["[pair a] link: 'tcp:h:1' is the wrong way round"]),
    ("[pair a]\nrole = primary\nlink = ssl:h:1\n", ["[pair a] link: 'ssl:h:1' is not an endpoint of type tcp or"]),
    # Addresses that are taken
    (
        "[api]\nendpoint = unix:/a\nendpoint-7 = unix:/x/../a\n",
        ["[api] endpoint-7: socket /a is taken: [api] endpoint"],
    ),
    ("[pair c]\nrole = secondary\nlink = tcp:8440\n", ["[pair c] link: port 8440 is taken: [api] endpoint listens"]),
    (SECONDARY + SECONDARY.replace("b]", "c]"), ["[pair c] link: port 8441 is taken: [pair b] link listens there"]),
    (
        SECONDARY + "[pair c]\nrole = secondary\nlink = tcp:8441\nwindow = 0\n",
        ["[pair c] window:", "[pair c] link: port 8441 is taken: [pair b] link"],
    ),
    # Things of all kinds
    (
        "[ftd]\nx = 1\n[api]\ny = 1\n[pair a]\nz = 1\n",
        ["[ftd] x:", "[api] y:", "[pair a] z:", "[pair a] role: is missing", "[pair a] link: is missing"],
    ),
]

BAD_LINES: BadLines = [
    (
        "[ftd]\n",
        "[ftd]",
        [
            ("nod = a", "nod: there is no such key; is node meant?"),
            ("state_dir = a", "state_dir: there is no such key; is state-dir meant?"),
            ("node =", "node: there is no value"),
            ("state-dir = ; comment", "state-dir: there is no value"),
            (
                "pairs-limit = 0",
                "pairs-limit: '0' is out of bounds: it has to be 1 to 100000; for example pairs-limit = 1000",
            ),
        ],
    ),
    (
        "[api]\n",
        "[api]",
        [
            ("tokens-file = a", "tokens-file: there is no such key"),
            ("endpoint-1 = unix:a", "endpoint-1: there is no such key; is endpoint meant?"),
            ("body-limit = 1", "body-limit: '1' is out of bounds: it has to be 1KiB to 64MiB"),
            ("idle-time = never", "idle-time: 'never' is not a time"),
            ("event-readers = -1", "event-readers: '-1' is not a whole number"),
            ("endpoint =", "endpoint: there is no value"),
            (
                "endpoint = 8440",
                "endpoint: '8440' is not an endpoint of type tcp or unix; for example endpoint = tcp:8440:",
            ),
            ("endpoint = tcp:8440", "endpoint: has to be a unix socket or a loopback address, as this version has no"),
            ("endpoint-2 = tcp:1:interface=192.0.2.1", "endpoint-2: has to be a unix socket or a loopback address"),
        ],
    ),
    (
        PRIMARY,
        "[pair a]",
        [
            ("Window = 1", "Window: there is no such key; is window meant?"),
            ("section = b", "section: there is no such key"),
            ("peer = qemu", "peer: 'qemu' is not possible here: it has to be ftd or kemari; for example peer = ftd"),
            ("byte-order = middle", "byte-order: 'middle' is not possible here: it has to be little or big"),
            ("rate-limit = 1", "rate-limit: '1' is not possible here: it has to be on or off"),
            ("frame-size = 64KB", "frame-size: '64KB' is not a size"),
            ("max-payload = 4GiB", "max-payload: '4GiB' is out of bounds: it has to be 64KiB to 4294967295"),
            ("max-payload = 1KiB", "max-payload: '1KiB' is out of bounds"),
            ("max-transaction = 0", "max-transaction: '0' is out of bounds"),
            (
                "bandwidth-limit = 100",
                "bandwidth-limit: '100' is out of bounds: it has to be 1KiB to 1TiB, or 0 for no",
            ),
            ("heartbeat = 1 day", "heartbeat: '1 day' is not a time"),
            ("window = 0", "window: '0' is out of bounds: it has to be 1 to 1024; for example window = 1"),
            ("window = 1025", "window: '1025' is out of bounds"),
            (
                "latency-spin = often",
                "latency-spin: 'often' is not possible here: it has to be auto, or 1us to 10ms, or 0",
            ),
            (
                "socket-buffer = 1",
                "socket-buffer: '1' is out of bounds: it has to be 4KiB to 1GiB, or 0 for what the sys",
            ),
            ("source = kvm", "source: 'kvm' is not possible here: it has to be feed or qemu"),
            ("qemu-qmp = /a", "qemu-qmp: is for a VM: the pair would have to have source = qemu, and it has feed"),
            ("on-secondary-loss = hold", "on-secondary-loss: is for a VM: the pair would have to have source = qemu"),
            ("qemu-net-n0 = unix:/a uplink t", "qemu-net-n0: is for a VM: the pair would have to have source = qemu"),
            ("qemu-command = a", "qemu-command: is for a secondary, and this pair is a primary"),
            ("trace = flush", "trace: 'flush' is not a trace event: it has to be all, or none, or some of ft_trans_"),
            ("name = a/b", "name: 'a/b' will not do"),
            ("sink = memory", "sink: is for a secondary, and this pair is a primary"),
            ("keep = 1", "keep: is for a secondary, and this pair is a primary"),
            ("memory-limit = 1GiB", "memory-limit: is for a secondary, and this pair is a primary"),
            ("max-payload = 64KiB", "max-payload: frame-size (256KiB) has to be at most max-payload (64KiB)"),
            ("buffer-limit = 64KiB", "buffer-limit: frame-size (256KiB) has to be at most buffer-limit (64KiB)"),
            (
                "frame-size = 1GiB\nbuffer-limit = 1GiB",
                "frame-size: frame-size (1GiB) has to be at most max-payload (64MiB)",
            ),
            ("frame-size = x\nmax-payload = 64KiB", "frame-size: 'x' is not a size"),
            ("heartbeat = 5s", "heartbeat: heartbeat (5s) has to be less than dead-time (5s)"),
            ("dead-time = 1s", "dead-time: heartbeat (1s) has to be less than dead-time (1s)"),
        ],
    ),
    (
        SECONDARY,
        "[pair b]",
        [
            ("source = feed", "source: is for a primary, and this pair is a secondary"),
            ("keep = 0", "keep: '0' is out of bounds"),
            ("sink = disk", "sink: 'disk' is not possible here: it has to be memory or directory or qemu"),
            (
                "qemu-command = a",
                "qemu-command: is for a VM: the pair would have to have sink = qemu, and it has direc",
            ),
            ("qemu-interval = 1s", "qemu-interval: is for a primary, and this pair is a secondary"),
            ("ack = never", "ack: 'never' is not possible here: it has to be received or applied"),
            ("dead-time = 500ms", "dead-time: heartbeat (1s) has to be less than dead-time (500ms)"),
        ],
    ),
]


class FileCase(SynchronousTestCase):
    """A test case that writes configuration files."""

    def write(self, content: str | bytes) -> Path:
        """A new file with this content."""
        path = Path(self.mktemp()).absolute()
        path.mkdir(parents=True)
        file = path / "ftd.conf"
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    def loaded(self, content: str) -> Config:
        """What a file with this content is read as."""
        return load(str(self.write(content)))

    def assert_problems(self, bad_files: BadFiles, bad_lines: BadLines) -> None:
        """Of every file, and of every line in its file, all of this is said and no more; `load` raises the first."""
        files = [
            (f"{start}{line}\n", [f"{section} {said}"]) for start, section, lines in bad_lines for line, said in lines
        ]
        for content, said in bad_files + files:
            path = str(self.write(content))
            found = problems(path)
            lines = [str(problem) for problem in found]
            self.assertEqual([line[: len(start)] for line, start in zip(lines, said, strict=False)], said, lines)
            self.assertEqual(len(lines), len(said), lines)
            for line in lines:
                self.assertTrue(line.isprintable(), line)
            self.assertEqual(str(self.assertRaises(ConfigError, load, path)), lines[0])


class LoadTests(FileCase):
    """Files that are right."""

    def test_empty_file(self) -> None:
        """An empty file is a configuration: everything at its default."""
        path = self.write("")
        config = load(str(path))
        self.assertEqual(config, Config(path=path))
        self.assertEqual(
            (config.node, config.state_dir, config.pairs_limit, config.pairs),
            (socket.gethostname(), path.parent / "var", 1000, {}),
        )
        api = ApiConfig(
            endpoints=("tcp:8440:interface=127.0.0.1",), body_limit=64 * KIB, event_readers=100, idle_time=60
        )
        self.assertEqual(config.api, api)

    def test_all_keys(self) -> None:
        """Every key of a file gets where it belongs."""
        config = self.loaded(
            "# comment\n; comment\n[ftd]\nnode = host-a ; comment\nstate-dir = /x/y\npairs-limit = 3\n"
            "bandwidth-limit = 1GiB\n[api]\nbody-limit = 1MiB\nevent-readers = 5\nidle-time = 5min\n"
            "[pair a]\nrole = primary\nlink = tcp:host-b:8441\nname = demo\npeer = kemari\nbyte-order = big\n"
            "rate-limit = off\nbandwidth-limit = 1MiB\nframe-size = 1MiB\nbuffer-limit = 2MiB\nmax-payload = 3MiB\n"
            "max-transaction = 4MiB\nack = applied\nwindow = 8\nheartbeat = 2s\ndead-time = 3s\nreconnect-max = 4s\n"
            "handshake-time = 6s\nack-time = 7s\nsource = feed\ntrace = all\nuser-timeout = 9s\n"
            "[pair b]\nrole = secondary\nlink = tcp:8441\nsink = memory\nkeep = 2\nmemory-limit = 5MiB\n"
        )
        self.assertEqual((config.node, config.state_dir, config.pairs_limit), ("host-a", Path("/x/y"), 3))
        self.assertEqual(config.bandwidth_limit, GIB)
        self.assertEqual((config.api.body_limit, config.api.event_readers, config.api.idle_time), (MIB, 5, 300.0))
        primary = PairConfig(
            section="a",
            name="demo",
            role=Role.PRIMARY,
            link="tcp:host-b:8441",
            peer=Peer.KEMARI,
            byte_order=ByteOrder.BIG,
            rate_limit=False,
            bandwidth_limit=MIB,
            frame_size=MIB,
            buffer_limit=2 * MIB,
            max_payload=3 * MIB,
            max_transaction=4 * MIB,
            ack=Ack.APPLIED,
            window=8,
            heartbeat=2.0,
            dead_time=3.0,
            user_timeout=9.0,
            reconnect_max=4.0,
            handshake_time=6.0,
            ack_time=7.0,
            source=Source.FEED,
            trace=frozenset(TRACE_EVENTS),
        )
        secondary = PairConfig(
            section="b", role=Role.SECONDARY, link="tcp:8441", sink=Sink.MEMORY, keep=2, memory_limit=5 * MIB
        )
        self.assertEqual(config.pairs, {"a": primary, "b": secondary})

    def test_pair_defaults(self) -> None:
        """The defaults of a pair are those that the documentation of the interfaces fixes."""
        pair = self.loaded(PRIMARY).pairs["a"]
        self.assertEqual(
            attrs.asdict(pair),
            {
                "section": "a",
                "role": "primary",
                "link": "tcp:127.0.0.1:8441",
                "name": "a",
                "peer": "ftd",
                "byte_order": "little",
                "rate_limit": True,
                "bandwidth_limit": 0,
                "frame_size": 256 * KIB,
                "buffer_limit": 64 * MIB,
                "max_payload": 64 * MIB,
                "max_transaction": 16 * GIB,
                "ack": "received",
                "window": 1,
                "heartbeat": 1.0,
                "dead_time": 5.0,
                "user_timeout": 5.0,
                "latency_spin": None,
                "no_delay": True,
                "socket_buffer": 0,
                "congestion_control": "",
                "link_certificate": "",
                "link_key": "",
                "link_ca": "",
                "link_peer_name": "",
                "reconnect_max": 10.0,
                "handshake_time": 10.0,
                "ack_time": 30.0,
                "handshakes": 16,
                "source": "feed",
                "sink": "directory",
                "keep": 8,
                "memory_limit": GIB,
                "trace": frozenset(),
                "qemu_qmp": "",
                "qemu_interval": 0.05,
                "qemu_protect": True,
                "qemu_dirty": "auto",
                "qemu_encoding": "auto",
                "on_secondary_loss": "continue",
                "qemu_nets": (),
                "qemu_command": "",
                "qemu_staging_dir": "/dev/shm",
                "qemu_staging_limit": 64 * MIB,
                "qemu_held_limit": 64 * MIB,
                "qemu_device_limit": 256 * MIB,
                "qemu_time": 5.0,
                "qemu_rounds": 8,
            },
        )

    def test_pairs_keep_the_order_of_the_file(self) -> None:
        """Pairs come in the order in which the file has them."""
        sections = [PRIMARY.replace("[pair a]", f"[pair {name}]") for name in ("z", "a", "m")]
        self.assertEqual(list(self.loaded("".join(sections)).pairs), ["z", "a", "m"])

    def test_paths_start_from_the_file(self) -> None:
        """Relative paths, of the state and of sockets, become absolute, wherever the process is."""
        # Not below trial's directory, whose name may be too long for a socket.
        short = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, short)
        path = Path(short) / "etc" / "ftd.conf"
        path.parent.mkdir()
        path.write_text(
            "[ftd]\nstate-dir = ../state\n[api]\nendpoint = unix:api.sock:mode=660\n"
            "[pair a]\nrole = primary\nlink = unix:link.sock\n[pair b]\nrole = secondary\nlink = unix:./link.sock\n"
            "sink = qemu\nqemu-qmp = vm.qmp\nqemu-staging-dir = ../shm\nqemu-net-0 = unix:n0 uplink unix:run/n0\n"
        )
        config = load(os.path.relpath(path))
        here = path.parent
        self.assertEqual(config.path, path)
        self.assertEqual(config.state_dir, here.parent / "state")
        self.assertEqual(config.api.endpoints, (f"unix:{here}/api.sock:mode=660",))
        self.assertEqual([pair.link for pair in config.pairs.values()], [f"unix:{here}/link.sock"] * 2)
        standby = config.pairs["b"]
        self.assertEqual((standby.qemu_qmp, standby.qemu_staging_dir), (f"{here}/vm.qmp", f"{here.parent}/shm"))
        self.assertEqual([(net.socket, net.uplink) for net in standby.qemu_nets], [(f"{here}/n0", f"{here}/run/n0")])

    def test_endpoints_in_order_of_their_numbers(self) -> None:
        """``endpoint`` comes first, then the numbered ones; the default goes when there is any."""
        config = self.loaded("[api]\nendpoint-10 = unix:/j\nendpoint-2 = unix:/b\nendpoint = unix:/a\n")
        self.assertEqual(config.api.endpoints, ("unix:/a", "unix:/b", "unix:/j"))
        self.assertEqual(self.loaded("[api]\nendpoint-2 = unix:/b\n").api.endpoints, ("unix:/b",))

    def test_notations(self) -> None:
        """A byte order mark, carriage returns, and indented sections are all right."""
        config = self.loaded(
            "\ufeff" + PRIMARY.replace("\n", "\r\n") + "\r\n  [pair b]\r\n  role = secondary\r\n  link = tcp:1\r\n"
        )
        self.assertEqual(list(config.pairs), ["a", "b"])

    def test_a_command_over_several_lines(self) -> None:
        """Indented, with or without the backslashes that a shell needs."""
        standby = "[pair b]\nrole = secondary\nlink = tcp:1\nsink = qemu\nqemu-qmp = /q\nqemu-command = "
        for text in (
            "qemu -m 512\n    -incoming defer\n",
            "qemu -m 512 \\\n  -incoming defer\n",
            "\n qemu -m 512\n -incoming defer\n",
        ):
            (pair,) = self.loaded(f"{standby}{text}keep = 3\n").pairs.values()
            self.assertEqual(pair.qemu_command.split(), ["qemu", "-m", "512", "-incoming", "defer"])

    def test_secondary_need_not_care_for_frame_size(self) -> None:
        """``frame-size`` is the primary's business."""
        self.assertEqual(self.loaded(SECONDARY + "max-payload = 64KiB\n").pairs["b"].max_payload, 64 * KIB)

    def test_ports_that_the_system_picks(self) -> None:
        """Port 0 is never taken."""
        any_port = SECONDARY.replace("8441", "0")
        config = self.loaded("[api]\nendpoint = tcp:0:interface=127.0.0.1\n" + any_port + any_port.replace("b]", "c]"))
        self.assertEqual(len(config.pairs), 2)


class ProblemTests(FileCase):
    """Files that are not right."""

    def test_bad_files(self) -> None:
        """Everything that is wrong with a file is found, and said in a line each; `load` raises the first."""
        self.assert_problems(BAD_FILES, BAD_LINES)

    def test_no_problems(self) -> None:
        """A file that is right has none."""
        self.assertEqual(problems(str(self.write(PRIMARY + SECONDARY))), [])

    def test_section_and_key_are_attributes(self) -> None:
        """A program can tell where the mistake is."""
        [problem] = problems(str(self.write(PRIMARY + "keep = 1\n")))
        self.assertEqual((problem.section, problem.key), ("pair a", "keep"))
        self.assertEqual(problem.detail, "is for a secondary, and this pair is a primary")

    def test_files_that_are_none(self) -> None:
        """A file that is missing, a directory, or not text is told in one line, and is the only problem."""
        missing = self.write("").parent / "none.conf"
        for path, said in (
            (missing, "cannot be read: No such file or directory"),
            (missing.parent, "cannot be read: Is a directory"),
            (missing.parent / "ftd.conf" / "x", "cannot be read: Not a directory"),
            (self.write(b"\x7fELF\xff\x00"), "is not UTF-8 text (byte 4)"),
            (self.write(b"[ftd]\0"), "is not text, there are zero bytes in it"),
            (self.write(b"#" * (4 * MIB + 1)), "is over 4194304 bytes long, no configuration is"),
        ):
            self.assertEqual([str(problem) for problem in problems(str(path))], [said])
            self.assertEqual(str(self.assertRaises(ConfigError, load, str(path))), said)

    def test_text_without_end(self) -> None:
        """A text that is anything but a configuration is given up on."""
        found = problems(str(self.write("lorem ipsum\n" * 1000)))
        self.assertEqual(str(found[0]), "line 1: 'lorem ipsum' stands before any [section]")
        self.assertEqual(str(found[-1]), "has too many lines that cannot be read; the rest was not looked at")
        self.assertLess(len(found), 100)

    @examples(100)
    @given(st.text(st.sampled_from("[]=;# \n\tpair fedx0"), max_size=100) | st.text(max_size=50))
    def test_any_text(self, text: str) -> None:
        """Whatever a file has in it, it is a configuration or a list of printable lines."""
        path = Path(self.mktemp())
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        for problem in problems(str(path)):
            self.assertTrue(str(problem).isprintable())


class ShippedFileTests(FileCase):
    """``etc/ftd.conf``."""

    skip = NOT_A_SOURCE_TREE
    path = ROOT / "etc" / "ftd.conf"

    def test_it_is_the_demo(self) -> None:
        """It has both halves of the pair demo, on this machine, with checkpoints in a directory beside it."""
        config = load(str(self.path))
        primary, secondary = config.pairs.values()
        self.assertEqual((primary.section, primary.name, primary.role), ("demo", "demo", Role.PRIMARY))
        self.assertEqual((secondary.section, secondary.name, secondary.role), ("demo-standby", "demo", Role.SECONDARY))
        self.assertEqual((primary.link, secondary.link), ("tcp:127.0.0.1:8441", "tcp:8441:interface=127.0.0.1"))
        self.assertEqual((secondary.ack, secondary.sink), (Ack.APPLIED, Sink.DIRECTORY))
        self.assertEqual(config.api.endpoints, ("tcp:8440:interface=127.0.0.1",))
        self.assertEqual(config.state_dir, self.path.parent / "var")

    def test_keys_that_are_commented_out_are_at_their_default(self) -> None:
        """The file without its semicolons means the same, but for the node's name, whose default nobody can know."""
        text = self.path.read_text(encoding="utf-8")
        spelled_out, count = re.subn(r"(?m)^;(?=[a-z-]+ = )", "", text)
        self.assertGreater(count, 20)
        self.assertNotIn("\n;", spelled_out)
        shipped = self.loaded(text)
        config = self.loaded(spelled_out)
        self.assertEqual(config, attrs.evolve(shipped, path=config.path, state_dir=config.state_dir, node="host-a"))

    def test_every_key_is_there(self) -> None:
        """A reader of the file gets to know every key."""
        text = self.path.read_text(encoding="utf-8")
        shown_keys = set(re.findall(r"(?m)^(?:# )?;?([a-z-]+) = ", text))
        self.assertEqual(shown_keys, {*FTD_KEYS, *API_KEYS, *PAIR_KEYS} - {"qemu-net-ID"})
        self.assertIn("\n# qemu-net-n0 = ", text)


class ReferenceTests(SynchronousTestCase):
    """``docs/configuration.md``."""

    skip = NOT_A_SOURCE_TREE

    def test_rows(self) -> None:
        """Every key has its row with its values, its default and its sentence, in order; nothing else has."""
        rows = []
        for key in (*FTD_KEYS.values(), *API_KEYS.values(), *PAIR_KEYS.values()):
            default = f"`{key.kind.show(key.default)}`" if key.has_plain_default else key.otherwise or "none"
            rows.append(f"| `{key.name}` | {key.kind.allowed()} | {default} | {key.description} |")
        text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
        self.assertEqual(re.findall(r"(?m)^\| `.*$", text), rows)
