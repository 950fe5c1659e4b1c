"""The options that all commands have, and the forms of argument that ``ftdctl`` takes beside click's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ftd.cli.session import Settings
from ftd.client import DEFAULT_URL, Address, Which
from ftd.config_values import TIB, BadValue, Seconds, Size
from ftd.trace import TRACE_EVENTS

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Callback = Callable[[click.Context, click.Parameter, Any], Any]


def converted(convert: Callable[[str], Any]) -> _Callback:
    """
    The callback of an argument that ``convert`` understands, each value where there are several; what is not given
    stays ``None``.

    :param convert: raises ``ValueError`` with a sentence for the user.  (click's own ``type=`` would drop it.)
    """

    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        try:
            if isinstance(value, tuple):
                return tuple(convert(one) for one in value)
            return None if value is None else convert(value)
        except ValueError as error:
            raise click.BadParameter(str(error), context, parameter) from error

    return callback


def shared_options(*, env: bool = False) -> Callable[[_Function], _Function]:
    """``--url`` and ``--json``, which may stand before a command and after it."""

    parse_url = converted(Address.parse)

    def set_url(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
        address = parse_url(context, parameter, value)
        if address is not None:
            context.ensure_object(Settings).url = address.url

    def set_json(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            context.ensure_object(Settings).as_json = True

    def decorate(function: _Function) -> _Function:
        function = click.option(
            "--url",
            metavar="URL",
            envvar="FTD_URL" if env else None,
            show_envvar=env,
            expose_value=False,
            callback=set_url,
            help=f"Where the daemon is: http://host:port or unix:/path/to/socket. [default: {DEFAULT_URL}]",
        )(function)
        return click.option(
            "--json", is_flag=True, expose_value=False, callback=set_json, help="Write JSON, for programs."
        )(function)

    return decorate


def limit_change(text: str) -> dict[str, Any]:
    """``on``, ``off`` or a size: what to change of a rate limit, as the arguments of ``commands.rate_limit``."""
    if text in ("on", "off"):
        return {"enabled": text == "on", "bandwidth": None}
    try:
        bandwidth = Size(0, TIB).parse(text)
    except BadValue as error:
        raise ValueError(f"{error}; or on, or off") from error
    # A limit that is given is meant to be kept; 0 lifts it and leaves the rest alone.
    return {"enabled": True if bandwidth else None, "bandwidth": bandwidth}


def seconds(text: str) -> float:
    """A time: ``500ms``, ``10``, ``10s``, ``2min``."""
    return Seconds(0.001, 86400).parse(text)


def interval(text: str) -> float:
    """A time, or 0; the daemon knows what is too short."""
    return Seconds(0, 86400).parse(text)


def which_checkpoint(text: str) -> Which:
    """The number of a checkpoint, or ``latest``."""
    if text == "latest":
        return "latest"
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(f"{text!r} is neither the number of a checkpoint nor 'latest'")
    return int(text)


def key_and_value(text: str) -> tuple[str, str]:
    """``key=value``, as in a ``[pair …]`` section."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not (key and equals):
        raise ValueError(f"{text!r} is not KEY=VALUE")
    return key, value


def trace_names(text: str) -> tuple[str, ...]:
    """Trace events with commas between them, with or without ``ft_trans_``, or ``all``."""
    if text == "all":
        return tuple(TRACE_EVENTS)
    names = tuple(name if name in TRACE_EVENTS else f"ft_trans_{name}" for name in text.split(",") if name)
    for name in names:
        if name not in TRACE_EVENTS:
            there_are = ", ".join(TRACE_EVENTS)
            raise ValueError(f"{name.removeprefix('ft_trans_')!r} is not a trace event; there are {there_are}")
    return names
