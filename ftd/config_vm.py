"""
The values that only the keys of a VM have: paths, network gates, a command, and the words to choose from.

The keys themselves stand with all others in :mod:`ftd.config_keys`; whoever wants these names imports them from
:mod:`ftd.config`.
"""

from __future__ import annotations

import re
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import attrs

from ftd.config_endpoints import LONGEST_SOCKET_PATH, Listener, TapDevice, UnixAddress, absolute_path
from ftd.config_values import BadValue, Text, shown

#: How many NICs of one VM there can be; QEMU's PCI bus has room for fewer devices.
MOST_NETS = 32

#: The key of one NIC begins so; what follows is its ID.
NET_PREFIX = "qemu-net-"

NET_ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}"

NET_EXAMPLE = "unix:/run/ftd/vm-n0.sock uplink tap:vm0"

# IFNAMSIZ is 16 with its zero; a "%" would have the kernel pick a name, so it is not among these.
_TAP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_NET = re.compile(r"(unix|connect):(.+?) +uplink +(.+)")
_UPLINK = re.compile(r"(unix|tap):(.+)")
_TEXT = Text("a NIC's socket and its uplink")
_COMMAND = Text("a command line")


class Dirty(StrEnum):
    """How the pages that a guest has written are found; auto is the best of the others that works."""

    AUTO = "auto"
    WRITE_PROTECT = "write-protect"
    SOFT_DIRTY = "soft-dirty"
    COMPARE = "compare"


class Encoding(StrEnum):
    """How pages travel; auto is what the speed of the link makes the better one."""

    AUTO = "auto"
    RAW = "raw"
    ZSTD = "zstd"


class SecondaryLoss(StrEnum):
    """What becomes of a guest whose standby is gone: it goes on unprotected, or it stands still."""

    CONTINUE = "continue"
    HOLD = "hold"


@attrs.frozen(kw_only=True)
class NetConfig:
    """
    One NIC of a VM, whose frames go through ftd.

    :ivar id: what follows ``qemu-net-`` in the key.
    :ivar socket: the path of the unix socket between QEMU and ftd, absolute.
    :ivar connect: whether ftd dials there and QEMU listens; otherwise ftd listens.
    :ivar uplink: the name of a tap device, or the absolute path of a unix socket that ftd dials.
    """

    id: str
    socket: str
    connect: bool
    uplink_kind: Literal["tap", "unix"]
    uplink: str

    @property
    def key(self) -> str:
        """Its key in the pair's section."""
        return f"{NET_PREFIX}{self.id}"

    def claims(self, section: str) -> list[Listener]:
        """What no other NIC or pair can have as well.  The socket of an uplink is not: many can dial a switch."""
        claims = [Listener(section, self.key, UnixAddress(self.socket), dials=self.connect)]
        if self.uplink_kind == "tap":
            claims.append(Listener(section, self.key, TapDevice(self.uplink), dials=True))
        return claims


@attrs.frozen
class PathText:
    """
    A path, relative to the file's directory or absolute.

    :ivar longest: in bytes, once it is absolute.
    """

    text: Text
    longest: int = 4095

    def parse(self, raw: object) -> str:
        return self.text.parse(raw)

    def rebased(self, value: str, base: Path | None) -> str:
        """
        The path as an absolute one.

        :param base: the directory that it starts from, ``None`` where there is none to start from.
        :raises BadValue: if it has to be absolute and is not, or is too long.
        """
        return absolute_path(value, base, self.longest)

    def show(self, value: str) -> str:
        return value

    def plain(self, value: str) -> str:
        return value

    def allowed(self) -> str:
        return self.text.allowed()

    def schema(self) -> dict[str, Any]:
        return self.text.schema()


SOCKET_PATH = PathText(Text("the path of a unix socket"), LONGEST_SOCKET_PATH)
DIRECTORY_PATH = PathText(Text("the path of a directory"))


@attrs.frozen
class NetText:
    """What a ``qemu-net-ID`` key has: ``unix:SOCKET uplink tap:NAME`` and its variants."""

    def parse(self, raw: object) -> NetConfig:
        """The NIC, without its ID and with its paths as they are given."""
        text = _TEXT.parse(raw)
        match = _NET.fullmatch(text)
        if match is None:
            raise BadValue(f"{shown(text)} will not do: it has to be {self.allowed()}")
        way, socket, there = match.groups()
        if " uplink " in there:
            raise BadValue(f"{shown(text)} has more than one uplink")
        kind, uplink = _uplink(there)
        return NetConfig(id="", socket=socket, connect=way == "connect", uplink_kind=kind, uplink=uplink)

    def rebased(self, value: NetConfig, base: Path | None) -> NetConfig:
        """The NIC with absolute paths; parameters and errors as for `PathText.rebased`."""
        socket = SOCKET_PATH.rebased(value.socket, base)
        uplink = SOCKET_PATH.rebased(value.uplink, base) if value.uplink_kind == "unix" else value.uplink
        if value.uplink_kind == "unix" and uplink == socket:
            raise BadValue(f"the socket and the uplink are the same, {shown(socket)}")
        return attrs.evolve(value, socket=socket, uplink=uplink)

    def show(self, value: NetConfig) -> str:
        way = "connect" if value.connect else "unix"
        return f"{way}:{value.socket} uplink {value.uplink_kind}:{value.uplink}"

    def plain(self, value: NetConfig) -> str:
        return self.show(value)

    def allowed(self) -> str:
        return "unix:SOCKET or connect:SOCKET, then uplink, then tap:NAME or unix:PATH"

    def schema(self) -> dict[str, Any]:
        return {**_TEXT.schema(), "pattern": r"^(unix|connect):.+ uplink .+$"}


def _uplink(text: str) -> tuple[Literal["tap", "unix"], str]:
    """A tap device or a socket; without a prefix, what has a slash in it is a socket."""
    match = _UPLINK.fullmatch(text)
    if match is None and "/" in text:
        return "unix", text
    if match is not None and match[1] == "unix":
        return "unix", match[2]
    name = match[2] if match is not None else text
    if not _TAP.fullmatch(name):
        raise BadValue(f"{shown(name)} is not a tap device (1 to 15 letters, digits, '_', '.' and '-') nor a path")
    return "tap", name


@attrs.frozen
class CommandText:
    """A command line, in words as a shell would split it; no shell runs it."""

    def parse(self, raw: object) -> str:
        command = _COMMAND.parse(raw)
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise BadValue(f"{shown(command)} is not a command line: {str(error).lower()}") from None
        if not words or not words[0]:
            raise BadValue(f"{shown(command)} has no command in it")
        return command

    def show(self, value: str) -> str:
        return value

    def plain(self, value: str) -> str:
        return value

    def allowed(self) -> str:
        return _COMMAND.allowed()

    def schema(self) -> dict[str, Any]:
        return _COMMAND.schema()
