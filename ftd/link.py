"""
Making links: the primary dials until it has one, the secondary listens.

The dialler's life, in which `session_opened` and `session_ended` are what the pair tells it::

    STOPPED --start--> DIALLING --connected--> CONNECTED --session_ended--> WAITING --time--> DIALLING
                       DIALLING --failed--> WAITING
    any --redial--> DIALLING        any --stop--> STOPPED

The wait doubles with every attempt that did not lead to an open session, up to ``reconnect-max``, and is spread by
jitter so that the primaries of a host that comes back do not all arrive at once.  Rejected: Twisted's
`ClientService`, which forgets its failures as soon as a connection stands, so that a standby that accepts and
refuses would be dialled without a pause.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IDelayedCall,
    IProtocol,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from ftd.link_protocol import LinkProtocol
from ftd.status import LinkState

#: Seconds before the second attempt.
_FIRST_WAIT = 0.1


def _too_slow(result: IProtocol | Failure, seconds: float) -> IProtocol | Failure:
    """What an attempt is worth that was cancelled for its length; endpoints differ in how they put that."""
    return Failure(TimeoutError(f"no connection within {seconds:g} s")) if isinstance(result, Failure) else result


class _Phase(Enum):
    STOPPED = "stopped"
    DIALLING = "dialling"
    CONNECTED = "connected"
    WAITING = "waiting"


class Dialer:
    """
    Keeps one connection to an endpoint.

    :param build: makes the protocol for a connection.
    :param attempt_time: seconds that one attempt to connect may take.
    :param longest_wait: seconds between two attempts at most.
    :param changed: told the state of the link and, where it is down, why.
    """

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        build: Callable[[], LinkProtocol],
        clock: IReactorTime,
        *,
        attempt_time: float,
        longest_wait: float,
        changed: Callable[[LinkState, str], None],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._endpoint = endpoint
        self._factory = Factory.forProtocol(build)
        self._factory.noisy = False
        self._clock = clock
        self._attempt_time = attempt_time
        self._longest_wait = longest_wait
        self._changed = changed
        self._jitter = jitter
        self._phase = _Phase.STOPPED
        self._wait = _FIRST_WAIT
        self._attempt: Deferred[IProtocol] | None = None
        self._retry: IDelayedCall | None = None
        self._protocol: LinkProtocol | None = None

    @property
    def retry_after(self) -> float:
        """Seconds until the next attempt; 0 while one is under way."""
        if self._retry is None:
            return 0.0
        return max(0.0, self._retry.getTime() - self._clock.seconds())

    def start(self) -> None:
        """Connect, and again whenever the connection is gone."""
        self._wait = _FIRST_WAIT
        if self._protocol is None:
            self._dial()
        else:
            # It is still being closed, and its end leads to the next one.
            self._phase = _Phase.WAITING

    def stop(self) -> Deferred[None]:
        """Give up what is under way; a connection that stands is closed politely.  Fires when there is none."""
        self._phase = _Phase.STOPPED
        self._give_up()
        closed = self._protocol.close() if self._protocol is not None else succeed(None)
        self._changed(LinkState.DOWN, "stopped")
        return closed

    def redial(self) -> None:
        """Drop what there is and connect now."""
        self._wait = _FIRST_WAIT
        if self._phase is _Phase.CONNECTED and self._protocol is not None:
            self._phase = _Phase.WAITING
            self._protocol.hang_up()
        elif self._retry is not None:
            self._give_up()
            self._dial()

    def session_opened(self) -> None:
        """The connection has led to something: the next wait is a short one."""
        self._wait = _FIRST_WAIT

    def session_ended(self, why: str) -> None:
        """The connection is gone."""
        self._protocol = None
        if self._phase is not _Phase.STOPPED:
            self._wait_to_retry(why)

    def _give_up(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._attempt is not None:
            self._attempt.cancel()

    def _dial(self) -> None:
        self._retry = None
        self._phase = _Phase.DIALLING
        self._changed(LinkState.CONNECTING, "")
        attempt = self._attempt = self._endpoint.connect(self._factory)
        attempt.addTimeout(self._attempt_time, self._clock, _too_slow)
        attempt.addCallbacks(self._connected, self._not_connected)

    def _connected(self, protocol: object) -> None:
        assert isinstance(protocol, LinkProtocol)
        self._attempt = None
        if not protocol.connected:
            # It was over before the endpoint told us; `session_ended` has been called.
            return
        if self._phase is _Phase.STOPPED:
            protocol.hang_up()
            return
        self._protocol = protocol
        self._phase = _Phase.CONNECTED

    def _not_connected(self, failure: Failure) -> None:
        self._attempt = None
        if self._phase is not _Phase.STOPPED:
            self._wait_to_retry(failure.getErrorMessage())

    def _wait_to_retry(self, why: str) -> None:
        self._phase = _Phase.WAITING
        delay = self._wait * (0.5 + self._jitter() / 2)
        self._wait = min(self._wait * 2, self._longest_wait)
        self._changed(LinkState.DOWN, why)
        self._retry = self._clock.callLater(delay, self._dial)
