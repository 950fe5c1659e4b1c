"""Whether a pair could do now what it is there for."""

from __future__ import annotations

from ftd.status import LinkState, PairStatus, VmState, VmStatus


def why_not_ready(status: PairStatus) -> str:
    """Empty if it is ready."""
    if status.has_error:
        return f"{status.has_error_name}: {status.has_error_detail}"
    # Where a VM is not protected, the reason may be the link, and says more than the link does.
    if status.vm is not None and (why := _why_vm_is_not(status.vm)):
        return why
    if status.link_state is not LinkState.UP:
        return f"the link is {status.link_state.value}: {status.link_detail}"
    return ""


def _why_vm_is_not(vm: VmStatus) -> str:
    """A VM that nobody wants protected is ready; one that was promoted has no standby any more."""
    is_missing = vm.protection and vm.status is not VmState.PROTECTED
    if not is_missing and vm.status not in (VmState.PROMOTED, VmState.FENCED):
        return ""
    return f"the VM is {vm.status.value}" + (f": {vm.reason}" if vm.reason else "")
