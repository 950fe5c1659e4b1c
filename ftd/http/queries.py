"""The query arguments that routes take, and what they stand for."""

from __future__ import annotations

import math

from ftd.http.problems import BadArgument
from ftd.http.routes import Query, query_argument
from ftd.http.uploads import ApiRequest

TIMEOUT = Query(
    "timeout",
    "Seconds to wait for the acknowledgement, instead of the pair's ack-time.",
    {"type": "number", "exclusiveMinimum": 0},
)
WAIT = Query(
    "wait", "Whether to answer when the acknowledgement is there (true) or at once.", {"enum": ["true", "false"]}
)
OF_EVENTS = (
    Query("kinds", "The kinds of event to send, with commas between them.", {"type": "string"}),
    Query("names", "The trace events to turn on and send, with commas between them, or all.", {"type": "string"}),
    Query("last-event-id", "Go on after this event, as the header Last-Event-ID says it.", {"type": "string"}),
)


def wait(request: ApiRequest) -> bool:
    """
    Whether to wait for an acknowledgement.

    :raises BadArgument: for what is neither true nor false.
    """
    text = query_argument(request, "wait")
    if text not in (None, "true", "false"):
        raise BadArgument("wait", "must be true or false")
    return text != "false"


def timeout(request: ApiRequest) -> float | None:
    """
    How long to wait for it, in seconds; ``None`` where nothing is said.

    :raises BadArgument: for what is no time.
    """
    text = query_argument(request, "timeout")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise BadArgument("timeout", "must be a number of seconds above 0")
    return seconds
