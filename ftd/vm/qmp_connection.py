"""
Keeps one QMP connection to a unix socket, for as long as it is wanted::

    STOPPED --start--> DIALLING --connected--> GREETING --negotiated--> UP
                       DIALLING, GREETING, UP --failed, closed--> WAITING --time--> DIALLING
    any --stop--> STOPPED

QEMU serves one client at a time and lets others wait in its socket's queue, unanswered.  So a connection that is not
greeted in time is reported but kept: it is served as soon as the other client leaves or a QEMU that hung goes on.
Rejected: to hang up and try again.  Every attempt would leave a dead entry in QEMU's queue, which holds two, and then
nobody could connect at all until the other client has left.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IDelayedCall, IProtocol
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from ftd.vm.errors import QmpError
from ftd.vm.qmp import Qmp

#: Seconds before the second attempt.
FIRST_WAIT = 0.05

#: Bytes of a unix socket's path: sun_path of unix(7), without the 0 at its end.
PATH_LIMIT = 107


class QmpConnection:
    """
    :param reactor: an `IReactorTime` and `IReactorUNIX`.
    :param path: of QEMU's QMP socket.
    :param limit: seconds for the greeting, for the negotiation, and for a command where nobody says otherwise.
    :param reconnect_max: seconds between two attempts at most.
    :param connected: there is a QMP that takes commands.
    :param lost: that QMP is gone, and why; never before ``connected``, and not because of `stop`.
    :param failed: there is still none, and why; called when the reason changes.
    :param jitter: a random number below 1.
    :ivar qmp: takes commands; ``None`` while there is none.
    :ivar why_down: why there is none, with what to do; empty while there is one.
    :raises QmpError: if there can be no socket of such a path.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        path: str,
        *,
        limit: float,
        reconnect_max: float,
        connected: Callable[[Qmp], None],
        lost: Callable[[str], None],
        failed: Callable[[str], None] = lambda _: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if len(os.fsencode(path)) > PATH_LIMIT:
            raise QmpError(f"{path} is too long for the path of a unix socket ({PATH_LIMIT} bytes); take a shorter one")
        self.path = path
        self.qmp: Qmp | None = None
        self.why_down = "not started"
        self._reactor = reactor
        self._limit = limit
        self._reconnect_max = reconnect_max
        self._connected = connected
        self._lost = lost
        self._failed = failed
        self._jitter = jitter
        self._wait = FIRST_WAIT
        self._is_wanted = False
        self._attempt: Deferred[IProtocol] | None = None
        self._protocol: Qmp | None = None
        self._retry: IDelayedCall | None = None
        self._greeting_timer: IDelayedCall | None = None

    def start(self) -> None:
        """Connect, and again whenever the connection is gone."""
        assert not self._is_wanted, "it is started"
        self._is_wanted = True
        self._wait = FIRST_WAIT
        self.why_down = f"connecting to {self.path}"
        self._dial()

    def stop(self) -> Deferred[None]:
        """Hang up, or give up what is under way; commands that wait hear of it.  Fires when that is done."""
        self._is_wanted = False
        self.why_down = "stopped"
        self._stop_timers()
        if self._attempt is not None:
            self._attempt.cancel()
        if self._protocol is not None:
            self._protocol.hang_up("ftd has stopped using it")
        return succeed(None)

    def _dial(self) -> None:
        self._retry = None
        factory = Factory.forProtocol(lambda: Qmp(self._reactor, limit=self._limit, ready=self._negotiated))
        factory.noisy = False
        attempt = UNIXClientEndpoint(self._reactor, self.path, timeout=self._limit).connect(factory)
        self._attempt = attempt
        attempt.addCallbacks(self._dialled, self._not_dialled)

    def _dialled(self, protocol: object) -> None:
        assert isinstance(protocol, Qmp)
        self._attempt = None
        self._protocol = protocol
        self._greeting_timer = self._reactor.callLater(self._limit, self._not_greeted)
        protocol.when_closed(self._closed)

    def _not_dialled(self, failure: Failure) -> None:
        self._attempt = None
        if self._is_wanted:
            self._is_down(self._why_not(failure.value))
            self._wait_to_retry()

    def _not_greeted(self) -> None:
        self._greeting_timer = None
        assert self._protocol is not None
        if not self._protocol.greeting:
            self._is_down(
                f"QEMU has not greeted on {self.path} within {self._limit:g} s: somebody else is connected (it serves"
                " one at a time), or it hangs; give ftd a -qmp socket of its own, or have the other disconnect"
            )

    def _negotiated(self, qmp: Qmp) -> None:
        self._stop_timers()
        self._wait = FIRST_WAIT
        self.qmp = qmp
        self.why_down = ""
        self.log.info("Connected to QEMU {version} on {path}.", version=qmp.version, path=self.path)
        self._connected(qmp)

    def _closed(self, why: str) -> None:
        self._stop_timers()
        self._protocol = None
        was_up, self.qmp = self.qmp is not None, None
        if not self._is_wanted:
            return
        if was_up:
            self.why_down = why
            self.log.warn("The QMP connection on {path} is lost: {why}", path=self.path, why=why)
        else:
            self._is_down(why)
        self._wait_to_retry()
        if was_up:
            self._lost(why)

    def _is_down(self, why: str) -> None:
        if why != self.why_down:
            self.why_down = why
            self.log.warn("No QMP connection: {why}", why=why)
            self._failed(why)

    def _wait_to_retry(self) -> None:
        # What was told of it may have stopped it.
        if not self._is_wanted:
            return
        delay = self._wait * (0.5 + self._jitter() / 2)
        self._wait = min(self._wait * 2, self._reconnect_max)
        self._retry = self._reactor.callLater(delay, self._dial)

    def _stop_timers(self) -> None:
        for timer in (self._retry, self._greeting_timer):
            if timer is not None:
                timer.cancel()
        self._retry = self._greeting_timer = None

    def _why_not(self, error: BaseException | None) -> str:
        number = error.osError if isinstance(error, ConnectError) else None
        start = f"start QEMU with -qmp unix:{self.path},server=on,wait=off"
        if number == errno.ENOENT:
            return f"there is no socket {self.path}; {start}"
        if number == errno.ECONNREFUSED:
            return f"nobody listens on {self.path}: the QEMU that made it has ended; {start}"
        if number in (errno.EACCES, errno.EPERM):
            return f"no right to connect to {self.path}; run ftd as root, or as the user that QEMU runs as"
        if isinstance(error, ConnectError) and not isinstance(number, int):
            # A queue that is full is EAGAIN, of which Twisted tells nothing but that the connection is closed.
            return (
                f"somebody else is connected to {self.path}, and others wait; give ftd a -qmp socket of its own, or"
                " have the others disconnect"
            )
        return f"cannot connect to {self.path}: {error}"
