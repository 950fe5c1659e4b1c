"""How a VM looks on a terminal: the lines underneath its pair, in 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from ftd.cli.wording import frames, milliseconds, plain, size
from ftd.status import VmState, VmStatus

_STYLES = {
    VmState.PROTECTED: "green",
    VmState.SYNCING: "yellow",
    VmState.HOLDING: "yellow",
    VmState.UNPROTECTED: "red",
    VmState.PROMOTED: "bold green",
    VmState.FENCED: "bold red",
}


def vm_lines(vm: VmStatus, age: float, is_primary: bool) -> Iterator[Text]:
    """
    What there is to say of a VM.

    :param age: seconds since the VM was as it is shown, which what would be lost has grown by.
    """
    style = "" if vm.protection is False and vm.status is VmState.UNPROTECTED else _STYLES[vm.status]
    yield Text("  VM ").append(vm.status.value, style).append(plain("".join(f", {part}" for part in _setting(vm))))
    if vm.sync is not None:
        done, total = vm.sync.done_bytes, vm.sync.total_bytes
        share = f" ({100 * done // total} %)" if total else ""
        yield Text(f"    sync: {size(done)} of {size(total)}{share}", "yellow")
    if vm.pause_ms is not None:
        pause = vm.pause_ms
        times = f"pause {milliseconds(pause.last)} (p50 {milliseconds(pause.p50)}, p99 {milliseconds(pause.p99)})"
        yield Text(f"    {times}, {vm.dirty_pages} dirty page{'' if vm.dirty_pages == 1 else 's'}")
    if is_primary:
        yield Text("    " + ", ".join(_at_stake(vm, age)))
    elif vm.checkpoint:
        yield Text("    " + _newest(vm, age))
    if vm.reason:
        yield Text(f"    {plain(vm.reason)}", "yellow" if style == "" else style)


def _setting(vm: VmStatus) -> Iterator[str]:
    """What it runs as, in a few words."""
    if vm.run_state is None:
        yield "no QEMU"
    elif vm.run_state not in ("running", "inmigrate"):
        yield vm.run_state
    if vm.protection is False:
        yield "protection off"
    elif vm.interval_ms is not None:
        yield f"every {milliseconds(vm.interval_ms)}" if vm.interval_ms else "at begin and commit"
    if vm.ram_bytes:
        yield f"{size(vm.ram_bytes)} RAM"
    if vm.dirty_tracking is not None:
        yield vm.dirty_tracking


def _at_stake(vm: VmStatus, age: float) -> Iterator[str]:
    """What a loss of the primary would cost, and what waits so that nobody notices."""
    yield _newest(vm, age) if vm.checkpoint else "no checkpoint yet"
    yield f"held {frames(vm.held_frames)}, {size(vm.held_bytes)}"


def _newest(vm: VmStatus, age: float) -> str:
    lag = "" if vm.lag_ms is None else f", lag {milliseconds(vm.lag_ms + max(age, 0) * 1000)}"
    return f"checkpoint {vm.checkpoint} of {size(vm.checkpoint_bytes)}{lag}"
