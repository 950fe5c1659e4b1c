"""
The addresses in a configuration: Twisted endpoint strings of type ``tcp`` and ``unix``, taken apart.

The strings go to :func:`twisted.internet.endpoints.serverFromString` and ``clientFromString`` as they are; here they
are read beforehand, so that a mistake is told with its section and key, two listeners on one address are found
before either listens, and relative socket paths become absolute before the daemon leaves its directory.  Twisted has
no public way to look into an endpoint, hence this reading of the same grammar; it takes less than Twisted does (a
port is digits, an interface is an IP address, an argument is given once) and a test holds the two together.
"""

from __future__ import annotations

import ipaddress
import os.path
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import attrs
from twisted.internet.endpoints import quoteStringArgument

from ftd.config_values import BadValue, shown

DIALLED_EXAMPLE = "tcp:127.0.0.1:8441"
LISTENING_EXAMPLE = "tcp:8441:interface=127.0.0.1"

#: The size of ``sun_path`` on Linux, less the zero that ends it.
LONGEST_SOCKET_PATH = 107

_LOCALHOST = "127.0.0.1"
_HOST = re.compile(r"[A-Za-z0-9_.-]{1,253}")
_ARGUMENT = re.compile(r"(?:[^\\:]|\\.)*")
_NAMED = re.compile(r"([A-Za-z]+)=(.*)")

# The named arguments beside the address itself, and what each may be.
_BACKLOG = r"[0-9]{1,5}"
_LISTEN_TCP = {"backlog": _BACKLOG}
_LISTEN_UNIX = {"mode": r"[0-7]{3,4}", "backlog": _BACKLOG, "lockfile": r"[01]"}
_DIAL_TCP = {"timeout": r"[1-9][0-9]{0,4}", "bindAddress": r"[0-9A-Fa-f:.]+"}
_DIAL_UNIX = {"timeout": r"[1-9][0-9]{0,4}", "lockfile": r"[01]"}


@attrs.frozen
class TcpAddress:
    """
    :ivar host: what is dialled, or the interface that is listened on, empty for all of them.
    :ivar port: 0, when listening, for one that the system picks.
    """

    host: str
    port: int

    def collides(self, other: Address) -> bool:
        """Whether only one of the two can be listened on."""
        if not isinstance(other, TcpAddress) or self.port == 0 or self.port != other.port:
            return False
        return self.host == other.host or not self.host or not other.host

    def is_local(self) -> bool:
        """Whether nobody on another machine can get there."""
        return bool(self.host) and ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"port {self.port}"


@attrs.frozen
class UnixAddress:
    """:ivar path: absolute."""

    path: str

    def collides(self, other: Address) -> bool:
        """Whether only one of the two can be listened on."""
        return self == other

    def is_local(self) -> bool:
        """Whether nobody on another machine can get there."""
        return True

    def __str__(self) -> str:
        return f"socket {self.path}"


@attrs.frozen
class TapDevice:
    """A network device, which only one can have open."""

    name: str

    def collides(self, other: Address) -> bool:
        """Whether only one of the two can be had."""
        return self == other

    def is_local(self) -> bool:
        """Whether nobody on another machine can get there: nobody dials it at all."""
        return True

    def __str__(self) -> str:
        return f"tap device {self.name}"


Address = TcpAddress | UnixAddress | TapDevice


@attrs.frozen
class Endpoint:
    """:ivar text: the endpoint string for Twisted, with an absolute path."""

    text: str
    address: Address


def listening(text: str, base: Path | None) -> Endpoint:
    """
    A server endpoint string.

    :param base: the directory that a relative socket path starts from, ``None`` where there is none to start from.
    :raises BadValue: if it is not one that ftd can listen on.
    """
    return _either(_listening, _dialled, "this is where one dials to; give a port, and an interface", text, base)


def dialled(text: str, base: Path | None) -> Endpoint:
    """
    A client endpoint string; parameters and errors as for `listening`.
    """
    return _either(_dialled, _listening, "this is where one listens; give a host and a port", text, base)


def absolute_path(path: str, base: Path | None, longest: int) -> str:
    """
    A path of the configuration as an absolute one.

    :param base: the directory that a relative path starts from, ``None`` where there is none to start from.
    :param longest: how many bytes it may have then.
    :raises BadValue: if it has to be absolute and is not, ends in a space, or is too long.
    """
    what = "the path of a socket" if longest == LONGEST_SOCKET_PATH else "a path"
    if not os.path.isabs(path):
        if base is None:
            raise BadValue(f"{shown(path)} has to be an absolute path")
        path = os.path.join(base, path)
    path = os.path.normpath(path)
    if path.endswith(" "):
        # It would be lost where a value ends at the last character of its line that is not a space.
        raise BadValue(f"{what} cannot end in a space, as {shown(path)} does")
    if len(os.fsencode(path)) > longest:
        raise BadValue(f"{what} can have {longest} bytes, {shown(path)} has more")
    return path


_Reader = Callable[[str, Path | None], Endpoint]


def _either(wanted: _Reader, opposite: _Reader, mix_up: str, text: str, base: Path | None) -> Endpoint:
    """
    Read ``text`` as ``wanted``; where it can only be the ``opposite``, say that rather than what is wrong in detail.
    """
    try:
        return wanted(text, base)
    except BadValue as what_is_wrong:
        try:
            opposite(text, base)
        except BadValue:
            raise what_is_wrong from None
        raise BadValue(f"{shown(text)} is the wrong way round: {mix_up}") from None


def _listening(text: str, base: Path | None) -> Endpoint:
    kind, positional, named = _arguments(text)
    if kind == "unix":
        return _unix(positional, named, "address", _LISTEN_UNIX, base)
    given = _bind(("port", "interface", "backlog"), positional, named, in_order=True)
    port = _port(_needed(given, "port"), low=0)
    host = _interface(given.pop("interface", ""))
    _check_extras(given, _LISTEN_TCP)
    return Endpoint(text, TcpAddress(host, port))


def _dialled(text: str, base: Path | None) -> Endpoint:
    kind, positional, named = _arguments(text)
    if kind == "unix":
        return _unix(positional, named, "path", _DIAL_UNIX, base)
    given = _bind(("host", "port"), positional, named, in_order=False)
    host = _needed(given, "host")
    port = _port(_needed(given, "port"), low=1)
    if host.isdigit() or not (_HOST.fullmatch(host) or _is_ip(host)):
        raise BadValue(f"{shown(host)} is not a host")
    _check_extras(given, _DIAL_TCP)
    return Endpoint(text, TcpAddress(host, port))


def _unix(
    positional: Sequence[str], named: Mapping[str, str], path_name: str, extras: Mapping[str, str], base: Path | None
) -> Endpoint:
    given = _bind((path_name,), positional, named, in_order=True)
    path = _needed(given, path_name)
    _check_extras(given, extras)
    path = absolute_path(path, base, LONGEST_SOCKET_PATH)
    return Endpoint(
        ":".join(["unix", _quoted(path), *(f"{n}={_quoted(v)}" for n, v in given.items())]), UnixAddress(path)
    )


def _arguments(text: str) -> tuple[str, list[str], dict[str, str]]:
    """An endpoint string as its type, its positional arguments and its named ones, all without their backslashes."""
    parts = []
    position = 0
    while position <= len(text):
        part = _ARGUMENT.match(text, position)
        assert part is not None  # it matches the empty string
        parts.append(part[0])
        position = part.end() + 1
        if position <= len(text) and text[position - 1] != ":":
            raise BadValue(f"{shown(text)} ends in a backslash")
    kind, *rest = parts
    if kind not in ("tcp", "unix"):
        raise BadValue(f"{shown(text)} is not an endpoint of type tcp or unix")
    positional = []
    named: dict[str, str] = {}
    for part_text in rest:
        match = _NAMED.fullmatch(part_text)
        if match is None:
            positional.append(_unescaped(part_text))
        elif match[1] in named:
            raise BadValue(f"{shown(text)} gives {match[1]} twice")
        else:
            named[match[1]] = _unescaped(match[2])
    return kind, positional, named


def _bind(names: Sequence[str], positional: Sequence[str], named: Mapping[str, str], in_order: bool) -> dict[str, str]:
    """
    All arguments by name.

    :param names: what positional arguments stand for: the first ones of them when ``in_order``, as in a server
        endpoint, otherwise those that are not given by name, as in a client endpoint.
    """
    free = names if in_order else [name for name in names if name not in named]
    taken = dict(zip(free, positional, strict=False))
    hint = "a ':' inside an argument is written '\\:'"
    if len(positional) > len(free):
        raise BadValue(f"there is an argument too many, {shown(positional[len(free)])} ({hint})")
    for name in named:
        if name in taken:
            raise BadValue(f"{name} is given twice ({hint})")
    return {**taken, **named}


def _needed(given: dict[str, str], name: str) -> str:
    """Take out an argument that has to be there."""
    value = given.pop(name, "")
    if not value:
        raise BadValue(f"the {name} is missing")
    return value


def _check_extras(given: Mapping[str, str], allowed: Mapping[str, str]) -> None:
    """Every argument that is left over has to be one of ``allowed``, and to look as it says there."""
    for name, value in given.items():
        if name not in allowed:
            raise BadValue(f"there is no argument {shown(name)}; besides the address there are {', '.join(allowed)}")
        if not re.fullmatch(allowed[name], value):
            raise BadValue(f"{shown(value)} will not do as {name}")


def _port(text: str, low: int) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not low <= int(text) <= 65535:
        raise BadValue(f"{shown(text)} is not a port: a number from {low} to 65535")
    return int(text)


def _interface(text: str) -> str:
    """An interface in one spelling: empty for all of them, otherwise an IP address."""
    if text == "localhost":
        return _LOCALHOST
    if text and not _is_ip(text):
        raise BadValue(f"{shown(text)} is not the IP address of an interface")
    return "" if not text or ipaddress.ip_address(text).is_unspecified else str(ipaddress.ip_address(text))


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _quoted(text: str) -> str:
    # Twisted's function leaves a "=" as it is, which would turn a positional argument into a named one.
    return str(quoteStringArgument(text)).replace("=", r"\=")


@attrs.frozen
class Listener:
    """
    Something of the configuration that listens, or that only one can have: where it says so, and on what.

    :ivar dials: it is not listened on, but used by nobody else.
    """

    section: str
    key: str
    address: Address
    dials: bool = False


def collisions(listeners: Iterable[Listener]) -> Iterable[tuple[Listener, Listener]]:
    """Every listener whose address an earlier one has, with the first of those."""
    seen: list[Listener] = []
    for listener in listeners:
        earlier = next((other for other in seen if listener.address.collides(other.address)), None)
        if earlier is not None:
            yield listener, earlier
        seen.append(listener)
