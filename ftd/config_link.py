"""
The keys of a link's connection: what its socket is set to, how long to look for an answer, and who may be at its ends.

They are keys of a pair like all others; whoever wants these names imports them from :mod:`ftd.config`.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from ftd.config_values import GIB, KIB, BadValue, Key, Seconds, Size, Switch, Text, key, keys_of, shown
from ftd.config_vm import PathText
from ftd.errors import ConfigError

#: What the kernel can do, by names with spaces between them.
OFFERED = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")

#: A name, or an IP address, as a certificate has it; a "*" is not a name of anybody.
_PEER_NAME = r"[A-Za-z0-9_:.-]{1,253}"

# TCP_CA_NAME_MAX is 16 with its zero.
_ALGORITHM = re.compile(r"[A-Za-z0-9_-]{1,15}")


@attrs.frozen
class SpinTime:
    """How long to look for an answer before going to sleep; ``auto``, which is ``None``, finds out."""

    seconds: Seconds

    def parse(self, raw: object) -> float | None:
        if raw == "auto":
            return None
        try:
            return self.seconds.parse(raw)
        except BadValue:
            raise BadValue(f"{shown(raw)} is not possible here: it has to be {self.allowed()}") from None

    def show(self, value: float | None) -> str:
        return "auto" if value is None else self.seconds.show(value)

    def plain(self, value: float | None) -> float | str:
        return "auto" if value is None else value

    def allowed(self) -> str:
        return f"auto, or {self.seconds.allowed()}"

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"const": "auto"}, self.seconds.schema()]}


@attrs.frozen
class CongestionControl:
    """The name of an algorithm that the kernel has for TCP."""

    def parse(self, raw: object) -> str:
        if not isinstance(raw, str) or not _ALGORITHM.fullmatch(raw):
            raise BadValue(f"{shown(raw)} is not the name of one: {self._offer()}")
        try:
            _try_algorithm(raw)
        except PermissionError:
            raise BadValue(
                f"{shown(raw)} is for root only; net.ipv4.tcp_allowed_congestion_control has what is for everybody"
            ) from None
        except OSError:
            # A module that is there and not loaded is loaded for root only.
            raise BadValue(f"{shown(raw)} is not what this kernel has: {self._offer()}") from None
        return raw

    def _offer(self) -> str:
        try:
            offered = OFFERED.read_text(encoding="ascii").split()
        except OSError:
            return "it has to be one that the kernel has"
        return f"it has to be {' or '.join(sorted(offered))}"

    def show(self, value: str) -> str:
        return value

    def plain(self, value: str) -> str:
        return value

    def allowed(self) -> str:
        return "the name of one that the kernel has"

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{_ALGORITHM.pattern}$"}


def _try_algorithm(name: str) -> None:
    """
    Set it on a socket that goes nowhere: nothing else tells both what the kernel has and what this process may use.

    :raises OSError: if it cannot be set.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, os.fsencode(name))


_FILE = PathText(Text("the path of a PEM file"))


@attrs.frozen(kw_only=True)
class LinkConfig:
    """The part of a ``[pair …]`` section that is about the connection.  Sizes are bytes, times seconds."""

    latency_spin: float | None = attrs.field(
        default=None,
        metadata=key(
            SpinTime(Seconds(0.000_001, 0.01, zero="never")),
            "How long the side that waits for an answer looks at its socket before it goes to sleep: small commits get"
            " faster and take more CPU. With auto it does so while that pays, and while few links are busy.",
        ),
    )
    no_delay: bool = attrs.field(
        default=True,
        metadata=key(
            Switch(), "Whether a TCP link sends small frames at once (TCP_NODELAY), rather than to gather them."
        ),
    )
    socket_buffer: int = attrs.field(
        default=0,
        metadata=key(
            Size(4 * KIB, GIB, zero="what the system picks"),
            "The buffers of the connection in the kernel, to send and to receive (SO_SNDBUF, SO_RCVBUF); "
            "net.core.wmem_max and rmem_max bound them.",
        ),
    )
    congestion_control: str = attrs.field(
        default="",
        metadata=key(
            CongestionControl(),
            "How a TCP link finds out how fast the network is (TCP_CONGESTION); "
            "`sysctl net.ipv4.tcp_available_congestion_control` lists what there is.",
            example="cubic",
            otherwise="the system's",
        ),
    )
    link_certificate: str = attrs.field(
        default="",
        metadata=key(
            _FILE,
            "This side's certificate, and those between it and the CA's: the link is then TLS 1.3, "
            "and both sides show who they are. Goes with link-key and link-ca.",
            example="/etc/ftd/host-a.pem",
            otherwise="none",
        ),
    )
    link_key: str = attrs.field(
        default="",
        metadata=key(
            _FILE,
            "The private key of link-certificate, without a passphrase.",
            example="/etc/ftd/host-a.key",
            otherwise="none",
        ),
    )
    link_ca: str = attrs.field(
        default="",
        metadata=key(
            _FILE,
            "The certificates of the CAs of which one has to have signed the other side's; no other is trusted.",
            example="/etc/ftd/ca.pem",
            otherwise="none",
        ),
    )
    link_peer_name: str = attrs.field(
        default="",
        metadata=key(
            Text("a DNS name or an IP address", _PEER_NAME),
            "The name that the other side's certificate has to have, letter by letter (subjectAltName).",
            example="host-b",
            otherwise="on a primary the host in link, on a secondary any",
        ),
    )

    @property
    def has_tls(self) -> bool:
        """Whether the link is TLS."""
        return bool(self.link_certificate)


_KEYS = keys_of(LinkConfig)
_TLS_FILES = tuple(_KEYS[name] for name in ("link-certificate", "link-key", "link-ca"))
_TLS_PEER = _KEYS["link-peer-name"]


def missing_for_tls(where: str, given: Mapping[str, object], dials_a_host: bool | None) -> Iterator[ConfigError]:
    """
    The keys of a TLS link that are not there though others are.

    :param where: the section, for the errors.
    :param dials_a_host: whether what is dialled has a name to find in the certificate; ``None`` for a link that
        listens.
    """
    there = [file.name for file in _TLS_FILES if file.name in given]
    if not there:
        if _TLS_PEER.name in given:
            yield ConfigError(f"is for a TLS link: it goes with {_names(_TLS_FILES)}", where, _TLS_PEER.name)
        return
    for file in _TLS_FILES:
        if file.name not in given:
            detail = f"is missing, and {there[0]} needs it; for example {file.name} = {file.example}"
            yield ConfigError(detail, where, file.name)
    if dials_a_host is False and _TLS_PEER.name not in given:
        detail = "is missing: a unix socket has no name to look for; for example "
        yield ConfigError(f"{detail}{_TLS_PEER.name} = {_TLS_PEER.example}", where, _TLS_PEER.name)


def _names(keys: tuple[Key, ...]) -> str:
    *most, last = (one.name for one in keys)
    return f"{', '.join(most)} and {last}"
