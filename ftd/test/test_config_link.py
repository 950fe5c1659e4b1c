"""Tests of :mod:`ftd.config`: the keys of a link's connection."""

from __future__ import annotations

from pathlib import Path

from ftd import config_link
from ftd.config import PairConfig, Role, pair_from_mapping, problems
from ftd.config_values import MIB
from ftd.errors import ConfigError
from ftd.test.test_config import PRIMARY, SECONDARY, BadFiles, BadLines, FileCase

TLS = "link-certificate = a.pem\nlink-key = /k/a.key\nlink-ca = ca.pem\n"
DIALS_A_SOCKET = "[pair a]\nrole = primary\nlink = unix:/run/a\n"

BAD_LINES: BadLines = [
    (
        PRIMARY,
        "[pair a]",
        [
            ("latency-spin = often", "latency-spin: 'often' is not possible here: it has to be auto, or 1us to 10ms, "),
            ("latency-spin = 1s", "latency-spin: '1s' is not possible here"),
            ("socket-buffer = 1", "socket-buffer: '1' is out of bounds: it has to be 4KiB to 1GiB, or 0 for what the "),
            ("congestion-control = a b", "congestion-control: 'a b' is not the name of one: it has to be "),
            ("congestion-control = none-such", "congestion-control: 'none-such' is not what this kernel has: it has"),
            ("no-delay = 5", "no-delay: '5' is not possible here: it has to be on or off"),
            ("user-timeout = 1ms", "user-timeout: '1ms' is out of bounds: it has to be 10ms to 24h, or 0 for the sys"),
            ("link-peer-name = host-b", "link-peer-name: is for a TLS link: it goes with link-certificate, link-key"),
            (TLS + "link-peer-name = *.example", "link-peer-name: '*.example' will not do: it has to be a DNS name or"),
            (TLS.replace("a.pem", ""), "link-certificate: there is no value"),
        ],
    ),
]

BAD_FILES: BadFiles = [
    (
        PRIMARY + "link-key = a.key\n",
        ["[pair a] link-certificate: is missing, and link-key needs it; for ", "[pair a] link-ca: is missing, and lin"],
    ),
    (
        SECONDARY + "link-certificate = a.pem\nlink-ca = ca.pem\n",
        ["[pair b] link-key: is missing, and link-certificate needs it; for example link-key = /etc/ftd/host-a.key"],
    ),
    (
        DIALS_A_SOCKET + TLS,
        ["[pair a] link-peer-name: is missing: a unix socket has no name to look for; for example link-peer-name = "],
    ),
]


class LinkKeysTests(FileCase):
    def test_bad_files(self) -> None:
        """Everything that is wrong is found, and said in a line each."""
        self.assert_problems(BAD_FILES, BAD_LINES)

    def test_all_keys(self) -> None:
        """Every key gets where it belongs."""
        config = self.loaded(
            f"{PRIMARY}user-timeout = 9s\nlatency-spin = 50us\nno-delay = off\nsocket-buffer = 2MiB\n"
            "congestion-control = reno\n"
        )
        expected = PairConfig(
            section="a",
            role=Role.PRIMARY,
            link="tcp:127.0.0.1:8441",
            user_timeout=9.0,
            latency_spin=0.000_05,
            no_delay=False,
            socket_buffer=2 * MIB,
            congestion_control="reno",
        )
        self.assertEqual(config.pairs["a"], expected)

    def test_user_timeout_follows_dead_time(self) -> None:
        """Whoever wants a dead link to be noticed later does not have to know what the kernel does."""
        self.assertEqual(self.loaded(PRIMARY + "dead-time = 9s\n").pairs["a"].user_timeout, 9.0)

    def test_a_time_to_look_that_is_found_out(self) -> None:
        """``auto`` and never are two things, in both notations."""
        for raw, value in (("auto", None), ("0", 0.0), (0, 0.0), (0.001, 0.001)):
            pair = pair_from_mapping("a", {"role": "primary", "link": "tcp:h:1", "latency-spin": raw})
            self.assertEqual(pair.latency_spin, value)

    def test_a_kernel_that_says_nothing(self) -> None:
        """Where the kernel's list cannot be read, the error does without."""
        self.patch(config_link, "OFFERED", Path(self.mktemp()))
        self.assertRaisesRegex(
            ConfigError,
            "'none-such' is not what this kernel has: it has to be one that the kernel has; for example",
            pair_from_mapping,
            "a",
            {"role": "primary", "link": "tcp:h:1", "congestion-control": "none-such"},
        )

    def test_an_algorithm_for_root(self) -> None:
        """What the kernel has and does not let this process use is told apart from what it does not have."""

        def refuse(name: str) -> None:
            raise PermissionError(1, "Operation not permitted", name)

        self.patch(config_link, "_try_algorithm", refuse)
        (problem,) = problems(str(self.write(PRIMARY + "congestion-control = vegas\n")))
        self.assertIn("'vegas' is for root only; net.ipv4.tcp_allowed_congestion_control has", problem.detail)
