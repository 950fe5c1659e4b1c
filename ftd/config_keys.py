"""
The configuration: a strict INI file, or JSON for pairs created at run time, into frozen attrs values.

Every key is declared once, on the field that holds its value: kind and bounds, default, what it is for.  The INI
reader, the JSON reader, the writer and the JSON Schema follow from that, and tests hold ``etc/ftd.conf`` and
``docs/configuration.md`` to it.

Strict means that whatever is not understood is an error that names its section and key; nothing is skipped.  The reader
does not stop at the first error, so that ``--check`` shows all of them.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import attrs

from ftd.config_endpoints import DIALLED_EXAMPLE, LISTENING_EXAMPLE
from ftd.config_link import LinkConfig
from ftd.config_values import (
    GIB,
    KIB,
    MIB,
    NAME_PATTERN,
    TIB,
    Choice,
    Count,
    Seconds,
    Size,
    Switch,
    Text,
    TraceNames,
    key,
    keys_of,
)
from ftd.config_vm import (
    DIRECTORY_PATH,
    NET_EXAMPLE,
    NET_PREFIX,
    SOCKET_PATH,
    CommandText,
    Dirty,
    Encoding,
    NetConfig,
    NetText,
    SecondaryLoss,
)

HOUR = 3600.0
DAY = 24 * HOUR

#: What names a pair, in the section's title and on the wire.
NAME = Text("1 to 64 letters, digits, '_', '.' and '-', a letter or a digit first", NAME_PATTERN)


class Role(StrEnum):
    """Which half of a pair this is: the one that sends checkpoints, or the one that holds them."""

    PRIMARY = "primary"
    SECONDARY = "secondary"


class Peer(StrEnum):
    """What is at the other end of the link: another ftd, or Kemari as it was published."""

    FTD = "ftd"
    KEMARI = "kemari"


class ByteOrder(StrEnum):
    """The byte order of the header on the wire."""

    LITTLE = "little"
    BIG = "big"


class Ack(StrEnum):
    """When the standby acknowledges: as soon as it holds the whole transaction, or when its sink has it for good."""

    RECEIVED = "received"
    APPLIED = "applied"


class Source(StrEnum):
    """Where the state comes from: programs push it, or it is a VM's."""

    FEED = "feed"
    QEMU = "qemu"


class Sink(StrEnum):
    """Where the standby keeps checkpoints; a VM that waits for its take-over keeps the newest."""

    MEMORY = "memory"
    DIRECTORY = "directory"
    QEMU = "qemu"


@attrs.frozen(kw_only=True)
class PairConfig(LinkConfig):
    """
    One ``[pair …]`` section: a half-pair.  Sizes are bytes, bandwidth bytes per second, times seconds.

    :ivar section: the name in the section's title, which is the one in URLs.
    """

    section: str
    role: Role = attrs.field(
        metadata=key(
            Choice.of(Role),
            "Which half this is: the primary takes state in and sends it, the secondary stands by and keeps it.",
            example="primary",
        )
    )
    link: str = attrs.field(
        metadata=key(
            Text("a client endpoint for a primary, a server endpoint for a secondary"),
            "The link between the halves, a Twisted endpoint of type tcp or unix: "
            f"where a primary dials (`{DIALLED_EXAMPLE}`), where a secondary listens (`{LISTENING_EXAMPLE}`).",
            example=DIALLED_EXAMPLE,
        )
    )
    name: str = attrs.field(
        default=attrs.Factory(lambda self: self.section, takes_self=True),
        metadata=key(
            NAME,
            "The pair's name on the wire, which both halves have to agree on; lets both halves stand in one file.",
            example="demo",
            otherwise="the section's name",
        ),
    )
    peer: Peer = attrs.field(
        default=Peer.FTD,
        metadata=key(
            Choice.of(Peer),
            "What the other half is; a secondary has to be told of a Kemari sender, a primary finds out by itself.",
        ),
    )
    byte_order: ByteOrder = attrs.field(
        default=ByteOrder.LITTLE,
        metadata=key(
            Choice.of(ByteOrder), "The byte order of headers, the same on both halves; Kemari uses its host's."
        ),
    )
    rate_limit: bool = attrs.field(
        default=True,
        metadata=key(
            Switch(),
            "On: a primary whose link is not ready makes its source wait. "
            "Off: the source runs on into the send buffer.",
        ),
    )
    bandwidth_limit: int = attrs.field(
        default=0,
        metadata=key(Size(KIB, TIB, zero="no limit"), "Bytes per second that a primary sends at most, 0 for no limit."),
    )
    frame_size: int = attrs.field(
        default=256 * KIB,
        metadata=key(
            Size(KIB, GIB), "How a primary cuts state into frames; at most max-payload and at most buffer-limit."
        ),
    )
    buffer_limit: int = attrs.field(
        default=64 * MIB,
        metadata=key(
            Size(64 * KIB, TIB),
            "Bytes that wait for the link at most; a full buffer makes the source wait in any case.",
        ),
    )
    max_payload: int = attrs.field(
        default=64 * MIB,
        metadata=key(Size(64 * KIB, 4 * GIB - 1), "The largest frame that is taken from the other half; below 4GiB."),
    )
    max_transaction: int = attrs.field(
        default=16 * GIB,
        metadata=key(Size(64 * KIB, 1024 * TIB), "The largest transaction, the sum of its frames."),
    )
    ack: Ack = attrs.field(
        default=Ack.RECEIVED,
        metadata=key(
            Choice.of(Ack),
            "When a secondary acknowledges: once it has received all of the state, "
            "or once its sink has applied it (on disk and synced, with the directory sink).",
        ),
    )
    window: int = attrs.field(
        default=1,
        metadata=key(
            Count(1, 1024),
            "How many transactions may be in flight at once, heartbeats among them; "
            "the smaller of what the two halves have counts, and 1 with Kemari or from a VM.",
        ),
    )
    heartbeat: float = attrs.field(
        default=1.0,
        metadata=key(Seconds(0.01, HOUR), "How often an idle primary shows the other half that it is there."),
    )
    dead_time: float = attrs.field(
        default=5.0,
        metadata=key(Seconds(0.02, DAY), "A link on which nothing came for this long is dead; longer than heartbeat."),
    )
    user_timeout: float = attrs.field(
        default=attrs.Factory(lambda self: self.dead_time, takes_self=True),
        metadata=key(
            Seconds(0.01, DAY, zero="the system's"),
            "The kernel gives up a TCP link on which data is not confirmed for this long (TCP_USER_TIMEOUT).",
            example="5s",
            otherwise="dead-time",
        ),
    )
    reconnect_max: float = attrs.field(
        default=10.0,
        metadata=key(
            Seconds(0.01, HOUR), "The longest pause between two attempts of a primary to dial; they grow up to it."
        ),
    )
    handshake_time: float = attrs.field(
        default=10.0,
        metadata=key(Seconds(0.01, HOUR), "A connection whose handshake takes longer is closed."),
    )
    handshakes: int = attrs.field(
        default=16,
        metadata=key(
            Count(1, 10_000),
            "How many connections a secondary holds at most, the one that has the session among them.",
            only="secondary",
        ),
    )
    ack_time: float = attrs.field(
        default=30.0,
        metadata=key(
            Seconds(0.01, DAY), "How long a commit on a primary waits for the acknowledgement before it gives up."
        ),
    )
    source: Source = attrs.field(
        default=Source.FEED,
        metadata=key(
            Choice.of(Source), "Where a primary's state comes from: the HTTP API, or a QEMU VM.", only="primary"
        ),
    )
    sink: Sink = attrs.field(
        default=Sink.DIRECTORY,
        metadata=key(
            Choice.of(Sink),
            "Where a secondary keeps checkpoints: in memory, in a directory of its own below state-dir, "
            "or in the RAM of a standby QEMU VM, which keeps the newest.",
            only="secondary",
        ),
    )
    keep: int = attrs.field(
        default=8,
        metadata=key(Count(1, 1_000_000), "How many checkpoints a secondary keeps; older ones go.", only="secondary"),
    )
    memory_limit: int = attrs.field(
        default=GIB,
        metadata=key(
            Size(64 * KIB, 1024 * TIB),
            "The memory that all checkpoints of the memory sink may take together.",
            only="secondary",
        ),
    )
    trace: frozenset[str] = attrs.field(
        default=frozenset(),
        metadata=key(
            TraceNames(),
            "The trace events that are on from the start: all, none, or names with commas between them.",
            example="ft_trans_freeze_output,ft_trans_put_ready",
        ),
    )
    qemu_qmp: str = attrs.field(
        default="",
        metadata=key(
            SOCKET_PATH,
            "The unix socket of the VM's QMP, where QEMU listens (`-qmp unix:PATH,server=on,wait=off`); "
            "it has to be ftd's own. Has to be there.",
            example="/run/ftd/vm.qmp",
            otherwise="none",
            vm=True,
        ),
    )
    qemu_interval: float = attrs.field(
        default=0.05,
        metadata=key(
            Seconds(0.001, HOUR, zero="checkpoints at begin and commit only"),
            "How often a checkpoint is taken; with 0 the cluster manager says when, by begin and commit.",
            only="primary",
            vm=True,
        ),
    )
    qemu_protect: bool = attrs.field(
        default=True,
        metadata=key(
            Switch(),
            "Whether the VM is protected from the start; `ftdctl protect` changes it.",
            only="primary",
            vm=True,
        ),
    )
    qemu_dirty: Dirty = attrs.field(
        default=Dirty.AUTO,
        metadata=key(
            Choice.of(Dirty),
            "How the pages that the guest has written are found; auto takes the first that works, in this order.",
            only="primary",
            vm=True,
        ),
    )
    qemu_encoding: Encoding = attrs.field(
        default=Encoding.AUTO,
        metadata=key(
            Choice.of(Encoding),
            "How pages are sent: as they are, compressed, or whichever is faster on the link as it is.",
            only="primary",
            vm=True,
        ),
    )
    on_secondary_loss: SecondaryLoss = attrs.field(
        default=SecondaryLoss.CONTINUE,
        metadata=key(
            Choice.of(SecondaryLoss),
            "What becomes of the guest when the standby is lost for dead-time: "
            "it goes on unprotected, or it stands still until the standby is back or protection is turned off.",
            only="primary",
            vm=True,
        ),
    )
    qemu_nets: tuple[NetConfig, ...] = attrs.field(
        default=(),
        metadata=key(
            NetText(),
            "A NIC whose frames ftd holds until the standby knows what they tell, one key for each; ID names it. "
            "With unix ftd listens at SOCKET (`-netdev stream,server=off`), with connect QEMU does (`server=on`).",
            example=NET_EXAMPLE,
            otherwise="none",
            name=f"{NET_PREFIX}ID",
            vm=True,
            family=NET_PREFIX,
        ),
    )
    qemu_command: str = attrs.field(
        default="",
        metadata=key(
            CommandText(),
            "The command line that starts the standby's QEMU, with `-incoming defer`; "
            "ftd runs it where no QEMU is there. Words as in a shell, but no shell runs it; lines below that are"
            " indented belong to it.",
            only="secondary",
            example="/etc/ftd/standby-vm.sh",
            otherwise="none",
            vm=True,
            in_file=True,
        ),
    )
    qemu_staging_dir: str = attrs.field(
        default="/dev/shm",
        metadata=key(
            DIRECTORY_PATH,
            "Where a checkpoint is kept while it arrives and until it is in the VM's RAM: a directory on a tmpfs.",
            only="secondary",
            vm=True,
        ),
    )
    qemu_staging_limit: int = attrs.field(
        default=64 * MIB,
        metadata=key(
            Size(MIB, TIB),
            "Bytes of pages that are copied while the guest is stopped at most.",
            only="primary",
            vm=True,
        ),
    )
    qemu_held_limit: int = attrs.field(
        default=64 * MIB,
        metadata=key(
            Size(128 * KIB, 64 * GIB),
            "Bytes of a NIC's frames that wait at most; beyond them the guest's sending waits, nothing is dropped.",
            vm=True,
        ),
    )
    qemu_device_limit: int = attrs.field(
        default=256 * MIB, metadata=key(Size(MIB, 16 * GIB), "The largest device state of the VM.", vm=True)
    )
    qemu_time: float = attrs.field(
        default=5.0,
        metadata=key(
            Seconds(0.1, HOUR), "A QEMU that does not answer a QMP command for this long has failed.", vm=True
        ),
    )
    qemu_rounds: int = attrs.field(
        default=8,
        metadata=key(
            Count(1, 1000),
            "How many times a full checkpoint goes over what the running guest writes meanwhile "
            "before the guest is stopped for the rest.",
            only="primary",
            vm=True,
        ),
    )

    @property
    def has_vm(self) -> bool:
        """Whether this half has a VM: the one that is protected, or the one that stands by."""
        return self.source is Source.QEMU if self.role is Role.PRIMARY else self.sink is Sink.QEMU


@attrs.frozen(kw_only=True)
class ApiConfig:
    """The ``[api]`` section: bytes, seconds, and Twisted server endpoint strings."""

    endpoints: tuple[str, ...] = attrs.field(
        default=("tcp:8440:interface=127.0.0.1",),
        metadata=key(
            Text("a server endpoint"),
            "Where the HTTP API listens: a loopback address or a unix socket. "
            "More of them: `endpoint-2`, `endpoint-3` …",
            example="tcp:8440:interface=127.0.0.1",
            otherwise="`tcp:8440:interface=127.0.0.1`",
            name="endpoint",
        ),
    )
    body_limit: int = attrs.field(
        default=64 * KIB,
        metadata=key(Size(KIB, 64 * MIB), "The longest JSON body that is read. State is not JSON."),
    )
    event_readers: int = attrs.field(
        default=100,
        metadata=key(Count(1, 100_000), "How many readers of the event streams there may be at once."),
    )
    idle_time: float = attrs.field(
        default=60.0,
        metadata=key(Seconds(0.1, DAY), "An HTTP connection that says nothing for this long is closed."),
    )


@attrs.frozen(kw_only=True)
class Config:
    """
    A whole file, and the ``[ftd]`` section of it.

    :ivar path: the file, absolute.
    :ivar state_dir: absolute.
    :ivar pairs: by section name, in the order of the file.
    """

    path: Path
    node: str = attrs.field(
        default=attrs.Factory(socket.gethostname),
        metadata=key(
            Text("1 to 255 characters", r".{1,255}"),
            "The name of this daemon, for people, in the API and on the wire.",
            example="host-a",
            otherwise="the host's name",
        ),
    )
    state_dir: Path = attrs.field(
        default=attrs.Factory(lambda self: self.path.parent / "var", takes_self=True),
        metadata=key(
            Text("a path"),
            "The directory for checkpoints, generations, and pairs created at run time; relative to the file.",
            example="var",
            otherwise="`var` beside the file",
        ),
    )
    pairs_limit: int = attrs.field(
        default=1000,
        metadata=key(Count(1, 100_000), "How many pairs there may be, those created at run time among them."),
    )
    bandwidth_limit: int = attrs.field(
        default=0,
        metadata=key(
            Size(KIB, TIB, zero="no limit"),
            "Bytes per second that all primaries of this daemon send together at most, in fair shares; 0 for no limit.",
        ),
    )
    api: ApiConfig = attrs.field(factory=ApiConfig)
    pairs: Mapping[str, PairConfig] = attrs.field(factory=dict)


FTD_KEYS = keys_of(Config)
API_KEYS = keys_of(ApiConfig)
PAIR_KEYS = keys_of(PairConfig)
