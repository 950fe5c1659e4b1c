"""
A QEMU without a guest: its QMP, in memory, with QEMU 7.2's ways, and with the ways in which it goes wrong.

By itself::

    qemu = FakeQemu(clock, backends=[Backend("ram0", 1 << 20, path)])
    qmp = qemu.connect()
    stopped = qmp.execute("stop")
    qemu.pump()                                  # nothing moves before that
    assert qemu.run_state == "paused" and qemu.commands == [("stop", {})]

    qemu.replies["stop"] = QmpRefused("stop", "GenericError", "no")    # a value, an error, or a function of arguments
    qemu.hold("cont")                            # is answered at qemu.release(), in whatever order, or never
    qemu.on_migrate = lambda uri: …              # deliver the device state to whoever listens at uri
    qemu.die()

For what dials by itself there is a `QmpReactor`: ``reactor.qemus[path] = qemu``, and ``reactor.pass_time(…)``.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import getConnectError
from twisted.internet.interfaces import IProtocol, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from ftd.testing.reactor import MemoryReactor
from ftd.testing.transport import Link
from ftd.vm.discovery import Backend
from ftd.vm.errors import QmpRefused
from ftd.vm.qmp import MessageReader, Qmp

#: A value to return, an exception to refuse with, or a function of the arguments that returns, raises or defers either.
Reply = Any

UUID = "11111111-2222-3333-4444-555555555555"

_CAPABILITIES = ("events", "x-ignore-shared", "return-path", "multifd", "xbzrle")


class _Served(Protocol):
    """QEMU's end of a connection."""

    def __init__(self, qemu: FakeQemu) -> None:
        self._qemu = qemu
        self._reader = MessageReader()
        self.is_greeted = False
        self.is_negotiated = False

    def connectionMade(self) -> None:
        self._qemu._arrived(self)

    def dataReceived(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            self._qemu._asked(self, message)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        del reason
        self._qemu._left(self)

    def say(self, message: dict[str, Any]) -> None:
        """As QEMU does: one message a line."""
        assert self.transport is not None
        self.transport.write(json.dumps(message).encode() + b"\r\n")


class _Handle:
    """The socket of a client, as far as it is asked who is at its other end."""

    family = socket.AF_UNIX

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def getsockopt(self, *_: int) -> bytes:
        return struct.pack("3i", self._pid, 0, 0)


class FakeQemu:
    """
    :param clock: of the connections that `connect` makes.
    :param run_state: ``running``, ``paused``, ``inmigrate`` ….
    :param limit: of the connections that `connect` makes, seconds.
    :ivar commands: name and arguments of every command it was given, without the negotiation.
    :ivar replies: by command, what to answer instead of what a QEMU would.
    :ivar is_silent: greets nobody and answers nothing: it hangs, or has another client.
    :ivar on_migrate: given the URI of ``migrate``, delivers the device state; what it raises, or its Deferred errbacks
        with, is what the migration fails with.
    :ivar on_incoming: given the URI of ``migrate-incoming``, takes the device state in; the same, but a QEMU of which
        this fails dies.
    :ivar qom: by path, the properties by name, each a type and a value.
    :ivar block: what query-block returns; ``nodes`` likewise for query-named-block-nodes.
    :ivar links: the connections, oldest first.
    """

    def __init__(
        self,
        clock: IReactorTime,
        *,
        backends: Sequence[Backend] = (),
        run_state: str = "running",
        uuid: str = UUID,
        machine: str = "pc-i440fx-7.2",
        cpus: int = 1,
        version: tuple[int, int, int] = (7, 2, 22),
        pid: int = 4242,
        limit: float = 5.0,
    ) -> None:
        self.run_state = run_state
        self.pid = pid
        self.is_dead = False
        self.is_silent = False
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self.replies: dict[str, Reply] = {}
        self.capabilities = dict.fromkeys(_CAPABILITIES, False)
        self.migration: dict[str, Any] = {}
        self.on_migrate: Callable[[str], object] = lambda _: None
        self.on_incoming: Callable[[str], object] = lambda _: None
        self.block: list[dict[str, Any]] = []
        self.nodes: list[dict[str, Any]] = []
        self.memory_devices: list[dict[str, Any]] = []
        self.base_memory = sum(backend.size for backend in backends)
        self.plugged_memory = 0
        self.backends = [
            {"id": backend.id, "size": backend.size, "share": True, "prealloc": False, "policy": "default"}
            for backend in backends
        ]
        self.qom: dict[str, dict[str, tuple[str, Any]]] = {
            "/machine": {"type": ("string", f"{machine}-machine")},
            "/machine/peripheral": {"type": ("string", "container")},
            "/machine/peripheral-anon": {"type": ("string", "container")},
            "/objects": {"type": ("string", "container")},
        }
        for backend in backends:
            self.qom["/objects"][backend.id] = ("child<memory-backend-file>", "")
            self.qom[f"/objects/{backend.id}"] = {
                "type": ("string", "memory-backend-file"),
                "size": ("int", backend.size),
                "share": ("bool", True),
                "mem-path": ("string", backend.path),
            }
        self.links: list[Link] = []
        self._clock = clock
        self._limit = limit
        self._uuid = uuid
        self._version = {"qemu": dict(zip(("major", "minor", "micro"), version, strict=True)), "package": "fake"}
        self._cpus = cpus
        self._clients: list[_Served] = []
        self._holding: set[str] = set()
        self._held: list[tuple[_Served, dict[str, Any]]] = []
        self._autostart = False
        self._incoming_started = False

    # What the test calls

    def connect(self) -> Qmp:
        """A connection of its own, negotiated unless this QEMU does not let it."""
        qmp = Qmp(self._clock, limit=self._limit)
        self.attach(qmp)
        self.pump()
        return qmp

    def attach(self, client: IProtocol) -> Link:
        """Connect ``client``; nothing moves before `pump`."""
        assert not self.is_dead, "it is dead"
        link = Link(client, _Served(self))
        vars(link.client)["getHandle"] = lambda: _Handle(self.pid)
        self.links.append(link)
        if isinstance(self._clock, MemoryReactor):
            self._clock.links.append(link)
        return link

    def pump(self) -> None:
        """Let everything that was said arrive, and what comes of it."""
        while any(link.step() for link in self.links):
            pass

    def named(self, command: str) -> list[dict[str, Any]]:
        """The arguments of every ``command`` that it was given."""
        return [arguments for name, arguments in self.commands if name == command]

    def emit(self, name: str, data: dict[str, Any] | None = None) -> None:
        """Tell the client of something."""
        seconds, fraction = divmod(self._clock.seconds(), 1)
        message: dict[str, Any] = {
            "timestamp": {"seconds": int(seconds), "microseconds": int(fraction * 1e6)},
            "event": name,
        }
        if data is not None:
            message["data"] = data
        for client in self._clients:
            if client.is_negotiated:
                client.say(message)

    def hold(self, *commands: str) -> None:
        """Do and answer these only at `release`."""
        self._holding.update(commands)

    @property
    def held(self) -> list[str]:
        """The commands that wait for `release`, oldest first."""
        return [str(message["execute"]) for _, message in self._held]

    def release(self, index: int = 0) -> None:
        """Do and answer one of those that wait, and go on holding others."""
        client, message = self._held.pop(index)
        self._do(client, message)

    def release_all(self) -> None:
        """Do and answer all that waits, in order, and hold nothing any more."""
        self._holding.clear()
        while self._held:
            self.release()

    def add_device(self, name: str, kind: str, *, where: str = "peripheral", **properties: Any) -> str:
        """What ``-device KIND,id=NAME`` makes; its QOM path."""
        path = f"/machine/{where}/{name}"
        self.qom[f"/machine/{where}"][name] = (f"child<{kind}>", "")
        self.qom[path] = {"type": ("string", kind)} | {
            key.replace("_", "-"): ("bool", value) for key, value in properties.items()
        }
        return path

    def die(self) -> None:
        """As after kill -9."""
        self._is_gone()
        for link in self.links:
            if not link.is_over:
                link.cut(clean=True)

    # QEMU's part

    def _is_gone(self) -> None:
        self.is_dead = True
        self.run_state = "dead"
        self._held.clear()

    def _quit(self) -> None:
        """An orderly end: what was said still arrives."""
        self._is_gone()
        for client in self._clients:
            assert client.transport is not None
            client.transport.loseConnection()

    def _arrived(self, client: _Served) -> None:
        self._clients.append(client)
        self._greet_first()

    def _left(self, client: _Served) -> None:
        self._clients.remove(client)
        self._held = [(asker, message) for asker, message in self._held if asker is not client]
        self._greet_first()

    def _greet_first(self) -> None:
        """One client at a time: the others wait."""
        if self._clients and not self.is_silent and not self.is_dead and not self._clients[0].is_greeted:
            self._clients[0].is_greeted = True
            self._clients[0].say({"QMP": {"version": self._version, "capabilities": ["oob"]}})

    def wake(self) -> None:
        """No longer silent: greets who waits and answers what was asked."""
        self.is_silent = False
        self._greet_first()
        waiting, self._held = self._held, []
        for client, message in waiting:
            self._asked(client, message)

    def _asked(self, client: _Served, message: dict[str, Any]) -> None:
        if self.is_silent or message["execute"] in self._holding:
            self._held.append((client, message))
        else:
            self._do(client, message)

    def _do(self, client: _Served, message: dict[str, Any]) -> None:
        name, arguments = message["execute"], message.get("arguments", {})
        if name != "qmp_capabilities":
            self.commands.append((name, arguments))
        done = maybeDeferred(self._reply, client, name, arguments)
        done.addCallbacks(
            lambda value: {"return": value},
            lambda failure: {"error": _error(failure.trap(QmpRefused) and failure.value)},
        )
        done.addCallback(lambda answer: self._answer(client, message, answer))
        done.addCallback(lambda _: self._after(name, arguments))

    def _answer(self, client: _Served, message: dict[str, Any], answer: dict[str, Any]) -> None:
        if client in self._clients and not self.is_dead:
            client.say(answer | ({"id": message["id"]} if "id" in message else {}))

    def _reply(self, client: _Served, name: str, arguments: dict[str, Any]) -> Any:
        if name == "qmp_capabilities":
            client.is_negotiated = True
            return {}
        if name in self.replies:
            reply = self.replies[name]
            if isinstance(reply, Exception):
                raise reply
            return reply(arguments) if callable(reply) else reply
        act = getattr(self, "_do_" + name.replace("-", "_"), None)
        if act is None:
            raise QmpRefused(name, "CommandNotFound", f"The command {name} has not been found")
        return act(arguments)

    def _after(self, name: str, arguments: dict[str, Any]) -> None:
        """What goes on after the answer."""
        if name == "quit" and name not in self.replies:
            self._quit()
        elif name == "migrate" and self.migration.get("status") == "setup":
            self._migrate(str(arguments.get("uri")))
        elif name == "migrate-incoming" and self.migration.get("status") == "setup":
            self._load(str(arguments.get("uri")))

    def _set_migration(self, status: str, why: str = "") -> None:
        self.migration = {"status": status} | ({"error-desc": why} if why else {})
        if self.capabilities["events"]:
            self.emit("MIGRATION", {"status": status})

    def _migrate(self, uri: str) -> None:
        self._set_migration("active")
        running: Deferred[object] = maybeDeferred(self.on_migrate, uri)
        running.addCallbacks(self._migrated, self._not_migrated)

    def _migrated(self, _: object) -> None:
        if self.migration.get("status") != "active" or self.is_dead:
            return
        if self.run_state == "running":
            self.emit("STOP")
        self.run_state = "postmigrate"
        self._set_migration("completed")

    def _not_migrated(self, failure: Failure) -> None:
        if self.migration.get("status") == "active" and not self.is_dead:
            self._set_migration("failed", failure.getErrorMessage())

    def _load(self, uri: str) -> None:
        self._set_migration("active")
        running: Deferred[object] = maybeDeferred(self.on_incoming, uri)
        running.addCallbacks(self._loaded, lambda _: self.die())

    def _loaded(self, _: object) -> None:
        if self.is_dead:
            return
        self.run_state = "paused"
        self._set_migration("completed")
        if self._autostart:
            self._do_cont({})

    def _do_stop(self, _: dict[str, Any]) -> Any:
        if self.run_state == "running":
            self.run_state = "paused"
            self.emit("STOP")
        self._autostart = False
        return {}

    def _do_cont(self, _: dict[str, Any]) -> Any:
        if self.run_state == "inmigrate":
            self._autostart = True
        elif self.run_state != "running":
            self.run_state = "running"
            self.emit("RESUME")
        return {}

    def _do_quit(self, _: dict[str, Any]) -> Any:
        self.emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
        return {}

    def _do_announce_self(self, _: dict[str, Any]) -> Any:
        return {}

    def _do_query_status(self, _: dict[str, Any]) -> Any:
        return {"status": self.run_state, "running": self.run_state == "running", "singlestep": False}

    def _do_query_version(self, _: dict[str, Any]) -> Any:
        return self._version

    def _do_query_uuid(self, _: dict[str, Any]) -> Any:
        return {"UUID": self._uuid}

    def _do_query_memdev(self, _: dict[str, Any]) -> Any:
        return self.backends

    def _do_query_memory_size_summary(self, _: dict[str, Any]) -> Any:
        return {"base-memory": self.base_memory, "plugged-memory": self.plugged_memory}

    def _do_query_memory_devices(self, _: dict[str, Any]) -> Any:
        return self.memory_devices

    def _do_query_cpus_fast(self, _: dict[str, Any]) -> Any:
        return [{"cpu-index": cpu, "thread-id": self.pid + 1 + cpu} for cpu in range(self._cpus)]

    def _do_query_block(self, _: dict[str, Any]) -> Any:
        return self.block

    def _do_query_named_block_nodes(self, _: dict[str, Any]) -> Any:
        return self.nodes

    def _do_qom_list(self, arguments: dict[str, Any]) -> Any:
        return [{"name": name, "type": kind} for name, (kind, _) in self._object(arguments, "qom-list").items()]

    def _do_qom_get(self, arguments: dict[str, Any]) -> Any:
        properties = self._object(arguments, "qom-get")
        if arguments["property"] not in properties:
            raise QmpRefused("qom-get", "GenericError", f"Property '{arguments['property']}' not found")
        return properties[arguments["property"]][1]

    def _object(self, arguments: dict[str, Any], command: str) -> dict[str, tuple[str, Any]]:
        if arguments["path"] not in self.qom:
            raise QmpRefused(command, "DeviceNotFound", f"Device '{arguments['path']}' not found")
        return self.qom[arguments["path"]]

    def _do_migrate_set_capabilities(self, arguments: dict[str, Any]) -> Any:
        for switch in arguments["capabilities"]:
            if switch["capability"] not in self.capabilities:
                raise QmpRefused(
                    "migrate-set-capabilities",
                    "GenericError",
                    f"Parameter 'capability' does not accept value '{switch['capability']}'",
                )
        for switch in arguments["capabilities"]:
            self.capabilities[switch["capability"]] = switch["state"]
        return {}

    def _do_query_migrate_capabilities(self, _: dict[str, Any]) -> Any:
        return [{"capability": name, "state": state} for name, state in self.capabilities.items()]

    def _do_query_migrate(self, _: dict[str, Any]) -> Any:
        return self.migration

    def _do_migrate(self, _: dict[str, Any]) -> Any:
        if self.run_state == "inmigrate":
            raise QmpRefused("migrate", "GenericError", "Guest is waiting for an incoming migration")
        if self.migration.get("status") in ("setup", "active", "cancelling"):
            raise QmpRefused("migrate", "GenericError", "There's a migration process in progress")
        self._set_migration("setup")
        return {}

    def _do_migrate_cancel(self, _: dict[str, Any]) -> Any:
        if self.migration.get("status") in ("setup", "active"):
            self._set_migration("cancelled")
        return {}

    def _do_migrate_incoming(self, _: dict[str, Any]) -> Any:
        if self.run_state != "inmigrate":
            raise QmpRefused("migrate-incoming", "GenericError", "'-incoming' was not specified on the command line")
        if self._incoming_started:
            raise QmpRefused("migrate-incoming", "GenericError", "The incoming migration has already been started")
        self._incoming_started = True
        self._set_migration("setup")
        return {}


def _error(refused: BaseException | None) -> dict[str, str]:
    assert isinstance(refused, QmpRefused)
    return {"class": refused.error_class, "desc": str(refused).split(": ", 1)[-1]}


class _UnixConnector:
    """An attempt to connect to a unix socket."""

    def __init__(self, reactor: QmpReactor, path: str, factory: Any) -> None:
        self.path = path
        self.factory = factory
        self._reactor = reactor

    def getDestination(self) -> UNIXAddress:  # noqa: N802 (Twisted's name)
        """Where to."""
        return UNIXAddress(self.path)

    def stopConnecting(self) -> None:
        """Give up."""
        if self in self._reactor.unix_dialling:
            self._reactor.unix_dialling.remove(self)


class QmpReactor(MemoryReactor):
    """
    A `MemoryReactor` on whose host QEMUs run.

    :ivar qemus: by the path of its QMP socket, each QEMU; a dead one leaves a socket on which nobody listens.
    """

    def __init__(self) -> None:
        super().__init__()
        self.qemus: dict[str, FakeQemu] = {}
        self.unix_dialling: list[_UnixConnector] = []

    def connectUNIX(self, address: str | bytes, factory: Any, **_: Any) -> _UnixConnector:  # noqa: N802 (Twisted's name)
        """See `IReactorUNIX`."""
        connector = _UnixConnector(self, os.fsdecode(address), factory)
        factory.doStart()
        factory.startedConnecting(connector)
        self.unix_dialling.append(connector)
        return connector

    def _answer_dialling(self) -> bool:
        answered, self.unix_dialling = self.unix_dialling, []
        for connector in answered:
            qemu = self.qemus.get(connector.path)
            if qemu is None or qemu.is_dead:
                number = errno.ENOENT if qemu is None else errno.ECONNREFUSED
                error = getConnectError((number, os.strerror(number)))
                connector.factory.clientConnectionFailed(connector, Failure(error))
                continue
            client = connector.factory.buildProtocol(UNIXAddress(connector.path))
            assert client is not None
            qemu.attach(client)
        return super()._answer_dialling() or bool(answered)
