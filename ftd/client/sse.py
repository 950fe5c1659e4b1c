"""
Reading a ``text/event-stream`` (WHATWG HTML, section 9.2.6), sans-IO: bytes in any pieces go in, messages come out.

The reader keeps an unfinished line and an unfinished message, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

#: The longest line that is taken, bytes.  The state of a pair is about 1 KiB.
MAX_LINE = 1024 * 1024


class NotAnEventStream(ValueError):
    """The bytes cannot be an event stream of a daemon's."""


@attrs.frozen
class Message:
    """
    One message.

    :ivar id: the id to resume from after this message, empty if the stream never gave one.
    :ivar event: its ``event:`` field, ``message`` if it has none.
    :ivar data: its ``data:`` lines, joined by line feeds.
    """

    id: str
    event: str
    data: str


@attrs.define
class SseReader:
    """Cuts a stream into messages."""

    _line: bytes = b""
    _skip_line_feed: bool = False
    _id: str = ""
    _event: str = ""
    _data: list[str] = attrs.field(factory=list)

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """
        The messages that ``chunk`` completes; all of them have to be taken before the next chunk.

        :raises NotAnEventStream: for a line beyond `MAX_LINE`, or one that is not UTF-8.
        """
        if self._skip_line_feed and chunk:
            # The carriage return that ended the last chunk was one half of a CR LF.
            chunk = chunk.removeprefix(b"\n")
            self._skip_line_feed = False
        if not chunk:
            return
        self._skip_line_feed = chunk.endswith(b"\r")
        lines = (self._line + chunk).splitlines(keepends=True)
        self._line = b"" if lines[-1].endswith((b"\n", b"\r")) else lines.pop()
        for line in lines:
            message = self._take(line.rstrip(b"\r\n"))
            if message is not None:
                yield message
        if len(self._line) > MAX_LINE:
            raise NotAnEventStream(f"a line of the event stream is longer than {MAX_LINE} bytes")

    def _take(self, raw: bytes) -> Message | None:
        try:
            line = raw.decode()
        except UnicodeDecodeError as error:
            raise NotAnEventStream("the event stream is not UTF-8") from error
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")  # a comment has an empty name, which no field has
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        return None

    def _dispatch(self) -> Message | None:
        event, data = self._event, self._data
        self._event, self._data = "", []
        return Message(self._id, event or "message", "\n".join(data)) if data else None
