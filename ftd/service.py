"""
The daemon: pairs, API and event ring put together, started, reloaded and stopped.

It starts in two steps.  `prepare` takes everything that can be refused (the lock on ``state-dir``, the checkpoints
on disk, every address), before the daemon goes into the background, so that a failure is one line on the terminal;
`startService` lets the links go.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ftd import __version__
from ftd.api import Api
from ftd.bandwidth import SharedBandwidth
from ftd.bus import EventBus
from ftd.composition import build_pair
from ftd.config import Config, PairConfig, Role, check_listening, load, pair_from_mapping
from ftd.created_pairs import CreatedPairs
from ftd.errors import AlreadyExists, CannotKeep, ConfigError, FtdError, NotInState, Unknown
from ftd.interfaces import IDaemon, IPair
from ftd.pair import Surroundings
from ftd.primary import PrimaryPair
from ftd.secondary import SecondaryPair
from ftd.status import to_json

#: Seconds in which what is committed has to be finished at the end; the process is gone within 5.
_DRAIN = 4.0

#: Seconds in which what was answered last, such as the commits just finished, goes out to the API's clients.
_LAST_WORDS = 0.1


@attrs.frozen
class _Entry:
    """A pair that runs, and where it comes from."""

    pair: PrimaryPair | SecondaryPair
    config: PairConfig
    is_from_file: bool


@implementer(IDaemon)
class FtdService(Service):
    """
    :param reactor: does it all: time, threads, links.
    """

    log = Logger()
    version = __version__

    def __init__(self, config: Config, reactor: Any) -> None:
        self.config = config
        self.node = config.node
        self.started = time.time()
        self._reactor = reactor
        self._bus = EventBus(time.time)
        self._around = Surroundings(
            clock=reactor,
            bus=self._bus,
            node=config.node,
            bandwidth=SharedBandwidth(reactor, config.bandwidth_limit),
        )
        self._entries: dict[str, _Entry] = {}
        # Those that are being stopped: what they have (a VM, files) is nobody else's before that is done.
        self._leaving: set[str] = set()
        self._created = CreatedPairs(config.state_dir / "created")
        self._site = Api(self, self._bus, config.api, reactor).site()
        self._api_ports: dict[str, IListeningPort] = {}
        self._lock: int | None = None

    # Life

    def prepare(self) -> None:
        """
        Take everything that can be refused.

        :raises ConfigError: naming the section and key of what was.
        """
        self._take_lock()
        for config in self.config.pairs.values():
            self._add(config, is_from_file=True)
        for config in self._created.load():
            try:
                self._check_new(config)
                self._add(config, is_from_file=False)
            except FtdError as error:
                self.log.error("pair {pair}, created at run time, is off: {error}", pair=config.section, error=error)
        for number, endpoint in enumerate(self.config.api.endpoints, 1):
            self._listen(endpoint, "endpoint" if number == 1 else f"endpoint-{number}")

    def startService(self) -> None:
        """Let the links go."""
        super().startService()
        for entry in self._entries.values():
            if isinstance(entry.pair, PrimaryPair):
                entry.pair.start()
        signal.signal(signal.SIGHUP, lambda _number, _frame: self._reactor.callFromThread(self.reload))
        self.log.info(
            "ftd {version} on {node}: {pairs} pairs, API on {endpoints}",
            version=__version__,
            node=self.node,
            pairs=len(self._entries),
            endpoints=", ".join(self._api_ports),
        )

    def stopService(self) -> Deferred[None]:
        """Cancel open transactions, finish committed ones, close everything."""
        super().stopService()
        for port in self._api_ports.values():
            port.stopListening()
        # Primaries first: a standby in the same daemon still has to answer them.
        finished = self._stop_all(Role.PRIMARY)
        finished.addCallback(lambda _: self._stop_all(Role.SECONDARY))
        # A pair that hangs cannot be hurried: it is not waited for any longer.
        stopped: Deferred[None] = Deferred()
        finished.addBoth(lambda _: stopped.callback(None))
        stopped.addTimeout(_DRAIN, self._reactor)
        stopped.addErrback(lambda _: self.log.warn("not everything could be finished within {s} s", s=_DRAIN))
        return stopped.addCallback(lambda _: deferLater(self._reactor, _LAST_WORDS))

    def reload(self) -> None:
        """
        Read the configuration again (SIGHUP).  Pairs that did not change keep their links; a file with an error
        changes nothing.
        """
        try:
            config = load(str(self.config.path))
            self._check_reload(config)
        except ConfigError as error:
            self.log.error("{path}: {error}; nothing was changed", path=self.config.path, error=error)
            return
        if attrs.evolve(config, pairs=self.config.pairs) != self.config:
            self.log.warn("changes in [ftd] and [api] take a restart; only pairs were reloaded")
        self.config = attrs.evolve(self.config, pairs=config.pairs)
        going = [
            entry
            for name, entry in self._entries.items()
            if entry.is_from_file and entry.config != config.pairs.get(name)
        ]
        for entry in going:
            self._take_out(entry)
        # Primaries first, as at the end of the daemon.
        gone = self._remove_all(Role.PRIMARY, going)
        gone.addCallback(lambda _: self._remove_all(Role.SECONDARY, going))
        gone.addCallback(lambda _: self._start_reloaded())
        gone.addErrback(lambda failure: self.log.failure("reloading", failure))

    # The API's view (`IDaemon`)

    def pairs(self) -> Mapping[str, IPair]:
        """See `IDaemon`."""
        return {name: entry.pair for name, entry in self._entries.items()}

    def create_pair(self, section: str, values: Mapping[str, object]) -> Deferred[IPair]:
        """See `IDaemon`."""
        return maybeDeferred(self._create_pair, section, values)

    def delete_pair(self, name: str) -> Deferred[None]:
        """See `IDaemon`."""
        return maybeDeferred(self._delete_pair, name)

    def _create_pair(self, section: str, values: Mapping[str, object]) -> IPair:
        config = pair_from_mapping(section, values)
        self._check_new(config)
        entry = self._add(config, is_from_file=False)
        try:
            self._created.save(config)
        except OSError as error:
            self._take_out(entry)
            self._stop(entry)
            raise CannotKeep(f"pair {section} cannot be kept in state-dir: {error.strerror}") from None
        if isinstance(entry.pair, PrimaryPair):
            entry.pair.start()
        return entry.pair

    def _delete_pair(self, name: str) -> Deferred[None]:
        entry = self._entries.get(name)
        if entry is None:
            raise Unknown(f"there is no pair {name}")
        if entry.is_from_file:
            raise NotInState(
                f"pair {name} stands in {self.config.path}: remove its section there and send SIGHUP", "configured"
            )
        try:
            self._created.remove(name)
        except OSError as error:
            raise CannotKeep(f"pair {name} cannot be removed from state-dir: {error.strerror}") from None
        self._take_out(entry)
        # The file may have one of this name by now.
        return self._remove(entry).addCallback(lambda _: self._start_reloaded() if name in self.config.pairs else None)

    def _check_new(self, config: PairConfig) -> None:
        if config.section in self._entries:
            raise AlreadyExists(f"there is a pair {config.section} already")
        if config.section in self._leaving:
            raise AlreadyExists(f"the pair {config.section} that was removed is still being stopped; try again")
        if len(self._entries) >= self.config.pairs_limit:
            raise AlreadyExists(f"there are {len(self._entries)} pairs already; pairs-limit in [ftd] allows no more")
        check_listening([*self._running_configs(), config], self.config.api.endpoints)

    def _check_reload(self, config: Config) -> None:
        created = [entry.config for entry in self._entries.values() if not entry.is_from_file]
        for name in {pair.section for pair in created} & set(config.pairs):
            raise ConfigError("a pair of this name was created through the API; delete that one first", f"pair {name}")
        if len(config.pairs) + len(created) > self.config.pairs_limit:
            raise ConfigError(
                f"the file has {len(config.pairs)} pairs, {len(created)} were created through the API, and"
                f" {self.config.pairs_limit} are allowed",
                "ftd",
                "pairs-limit",
            )
        check_listening([*config.pairs.values(), *created], self.config.api.endpoints)

    # Parts

    def _running_configs(self) -> list[PairConfig]:
        return [entry.config for entry in self._entries.values()]

    def _take_lock(self) -> None:
        """Two daemons on one ``state-dir`` would write each other's checkpoints."""
        path = self.config.state_dir / "lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{path.parent} is in use by another ftd", "ftd", "state-dir") from None
        except OSError as error:
            raise ConfigError(f"{error.filename or path}: {error.strerror}", "ftd", "state-dir") from None

    def _add(self, config: PairConfig, is_from_file: bool) -> _Entry:
        """Build a pair; a secondary listens from now on."""
        pair = build_pair(config, self._around, self.config.state_dir, self._reactor)
        if isinstance(pair, SecondaryPair):
            _at_once(pair.start(), f"pair {config.section}", "link")
        entry = self._entries[config.section] = _Entry(pair, config, is_from_file)
        return entry

    def _take_out(self, entry: _Entry) -> None:
        """A pair is to be stopped: it is not among the entries any more, and its name is not free yet."""
        del self._entries[entry.config.section]
        self._leaving.add(entry.config.section)

    def _stop(self, entry: _Entry) -> Deferred[None]:
        """Stop a pair that was taken out."""

        def is_gone(result: Any) -> Any:
            self._leaving.discard(entry.config.section)
            return result

        return maybeDeferred(entry.pair.stop).addBoth(is_gone)

    def _remove(self, entry: _Entry) -> Deferred[None]:
        """Stop a pair that was taken out, and tell those who watch."""
        stopped = self._stop(entry)

        def tell(result: object) -> object:
            status = entry.pair.status()
            self._bus.publish("pair", status.name, lambda: {**to_json(status), "removed": True})
            return result

        return stopped.addBoth(tell)

    def _remove_all(self, role: Role, entries: list[_Entry]) -> Deferred[None]:
        removing = [self._remove(entry) for entry in entries if entry.config.role is role]
        return DeferredList(removing).addCallback(lambda _: None)

    def _listen(self, endpoint: str, key: str) -> None:
        listening = serverFromString(self._reactor, endpoint).listen(self._site)
        listening.addCallback(lambda port: self._api_ports.__setitem__(endpoint, port))
        _at_once(listening, "api", key)

    def _start_reloaded(self) -> None:
        if not self.running:
            # The daemon has been stopped meanwhile.
            return
        for name, config in self.config.pairs.items():
            # Whoever waits for one that is leaving comes here again.
            if name in self._entries or name in self._leaving:
                continue
            try:
                entry = self._add(config, is_from_file=True)
            except FtdError as error:
                self.log.error("{error}; the pair is off", error=error)
                continue
            if isinstance(entry.pair, PrimaryPair):
                entry.pair.start()
        self.log.info("reloaded {path}: {pairs} pairs", path=self.config.path, pairs=len(self._entries))

    def _stop_all(self, role: Role) -> Deferred[None]:
        stopping = [maybeDeferred(entry.pair.stop) for entry in self._entries.values() if entry.config.role is role]
        return DeferredList(stopping).addCallback(lambda _: None)


def _at_once(listening: Deferred[Any], section: str, key: str) -> None:
    """
    Endpoints that listen on an address of this machine do so at once: their failure is one of the start.

    :raises ConfigError: if that is how it went.
    """
    failures: list[Failure] = []
    listening.addErrback(failures.append)
    if failures:
        error = failures[0].value
        if isinstance(error, FtdError):
            # It listens, but what it is for cannot be.
            raise ConfigError(str(error), section) from None
        why = error.socketError.strerror if isinstance(error, CannotListenError) else str(error)
        raise ConfigError(f"cannot listen there: {why}", section, key) from None
