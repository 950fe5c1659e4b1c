"""The checkpoints of one VM: what the standby has of them, and what the next one has to be."""

from __future__ import annotations

from ftd.config import PairConfig
from ftd.vm.carrier import Carrier
from ftd.vm.gates import Gates
from ftd.vm.guest import Guest
from ftd.vm.replication import Figures, Replication, encoding_choice
from ftd.vm.surroundings import VmSurroundings
from ftd.wire.hello import LastCheckpoint


class Series:
    """
    :ivar standby_has: the newest checkpoint that the standby has, whatever it is of.
    :ivar figures: what is measured.
    :ivar replication: at work now.
    """

    def __init__(self, config: PairConfig, carrier: Carrier, gates: Gates, around: VmSurroundings) -> None:
        self.standby_has: LastCheckpoint | None = None
        self.figures = Figures()
        self.replication: Replication | None = None
        self._config = config
        self._carrier = carrier
        self._gates = gates
        self._around = around
        self._choice = encoding_choice(config)
        # The newest checkpoint from which on the guest's dirty pages are known.
        self._base: LastCheckpoint | None = None

    @property
    def needs_full(self) -> bool:
        """Whether a delta is nothing that the standby could use."""
        return self._base is None or self._base != self.standby_has

    def begin(self, guest: Guest) -> Replication:
        """Checkpoints of ``guest`` are to be taken, until `end`."""
        self.replication = Replication(
            guest, self._carrier, self._gates, self._choice, self.figures, self._config, self._around
        )
        return self.replication

    def end(self) -> None:
        """Nothing more is taken of it."""
        self.replication = None

    def committed(self) -> None:
        """The standby has the newest one."""
        self._base = self.standby_has = LastCheckpoint(self._carrier.generation, self._carrier.number)

    def lose_track(self) -> None:
        """What is dirty is not known any more, or the standby does not have what it is thought to."""
        self._base = None
