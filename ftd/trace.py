"""
The 13 trace events of the seed (its ``trace-events`` file) and their switches, per pair.

An event is off until somebody asks for it: the configuration, the API, or a subscriber of the event stream for as long
as it stays.  On the data path an event that is off costs one attribute test::

    if trace.ft_trans_flush is not None:
        trace.ft_trans_flush(sent, requested)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import attrs

from ftd.bus import EventBus


@attrs.frozen
class TraceEvent:
    """The arguments of an event, in order, and the form in which QEMU's log shows them."""

    arguments: tuple[str, ...]
    log_format: str


TRACE_EVENTS: Mapping[str, TraceEvent] = {
    "ft_trans_realloc": TraceEvent(("old_size", "new_size"), "increasing buffer from {old_size} by {new_size}"),
    "ft_trans_append": TraceEvent(("size",), "buffering {size} bytes"),
    "ft_trans_flush": TraceEvent(("size", "req"), "flushed {size} of {req} bytes"),
    "ft_trans_send_header": TraceEvent(("cmd",), "send header {cmd}"),
    "ft_trans_recv_header": TraceEvent(("cmd",), "recv header {cmd}"),
    "ft_trans_put_buffer": TraceEvent(("size", "pos"), "putting {size} bytes at {pos}"),
    "ft_trans_recv_payload": TraceEvent(("len", "hdr", "total"), "recv {len} of {hdr} total {total}"),
    "ft_trans_close": TraceEvent((), "closing"),
    "ft_trans_freeze_output": TraceEvent((), "backend not ready, freezing output"),
    "ft_trans_freeze_input": TraceEvent((), "backend not ready, freezing input"),
    "ft_trans_put_ready": TraceEvent((), "file is ready to put"),
    "ft_trans_get_ready": TraceEvent((), "file is ready to get"),
    "ft_trans_cb": TraceEvent(("cb",), "callback {cb}"),
}


def log_line(name: str, args: Mapping[str, object]) -> str:
    """An event in the form of QEMU's log: ``ft_trans_send_header send header 2``."""
    return f"{name} {TRACE_EVENTS[name].log_format.format_map(args)}"


Emit = Callable[..., None]


class PairTrace:
    """One pair's switches.  Each event is an attribute: ``None`` while it is off, else a function of its arguments."""

    ft_trans_realloc: Emit | None
    ft_trans_append: Emit | None
    ft_trans_flush: Emit | None
    ft_trans_send_header: Emit | None
    ft_trans_recv_header: Emit | None
    ft_trans_put_buffer: Emit | None
    ft_trans_recv_payload: Emit | None
    ft_trans_close: Emit | None
    ft_trans_freeze_output: Emit | None
    ft_trans_freeze_input: Emit | None
    ft_trans_put_ready: Emit | None
    ft_trans_get_ready: Emit | None
    ft_trans_cb: Emit | None

    __slots__ = (*TRACE_EVENTS, "_bus", "_on", "_pair", "_watchers")

    def __init__(self, pair: str, bus: EventBus, on: Iterable[str] = ()) -> None:
        self._pair = pair
        self._bus = bus
        self._on = set(on)
        self._watchers: Counter[str] = Counter()
        for name in TRACE_EVENTS:
            self._apply(name)

    def switches(self) -> dict[str, bool]:
        """Every event, and whether the configuration or the API has it on (subscribers do not show)."""
        return {name: name in self._on for name in TRACE_EVENTS}

    def switch(self, switches: Mapping[str, bool]) -> None:
        """Turn events on and off.  :raises KeyError: for an unknown name, and then nothing has changed."""
        for name in switches:
            TRACE_EVENTS[name]
        for name, on in switches.items():
            if on:
                self._on.add(name)
            else:
                self._on.discard(name)
            self._apply(name)

    def watch(self, names: Iterable[str]) -> Callable[[], None]:
        """
        Have ``names`` on, whatever the switches say, until the returned function is called.

        :raises KeyError: for an unknown name, and then nothing has changed.
        """
        watched = tuple(names)
        for name in watched:
            TRACE_EVENTS[name]
        self._watchers.update(watched)
        self._apply_all(watched)

        def stop() -> None:
            self._watchers.subtract(watched)
            self._apply_all(watched)

        return stop

    def _apply_all(self, names: Iterable[str]) -> None:
        for name in names:
            self._apply(name)

    def _apply(self, name: str) -> None:
        is_on = name in self._on or self._watchers[name] > 0
        if is_on != (getattr(self, name, None) is not None):
            setattr(self, name, self._emitter(name) if is_on else None)
        elif not is_on:
            setattr(self, name, None)

    def _emitter(self, name: str) -> Emit:
        bus, pair, arguments = self._bus, self._pair, TRACE_EVENTS[name].arguments

        def emit(*values: object) -> None:
            bus.publish("trace", pair, {"name": name, "args": dict(zip(arguments, values, strict=True))}, name)

        return emit
