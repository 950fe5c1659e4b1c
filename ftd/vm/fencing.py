"""Putting a VM under a fence, and letting it out again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ftd.errors import FtdError
from ftd.status import VmState
from ftd.vm.errors import QmpError
from ftd.vm.exposure import Exposure
from ftd.vm.fence import Fence
from ftd.vm.guest_keeper import GuestKeeper
from ftd.vm.task import OneTask


class Fencing:
    """
    :param tell: how the VM stands now, and why.
    :param come_to_rest: ends what is under way with the guest, and lets go of it.
    """

    def __init__(
        self,
        fence: Fence,
        exposure: Exposure,
        keeper: GuestKeeper,
        *,
        tell: Callable[[VmState, str], None],
        come_to_rest: Callable[[], Awaitable[None]],
    ) -> None:
        self._fence = fence
        self._exposure = exposure
        self._keeper = keeper
        self._tell = tell
        self._come_to_rest = come_to_rest
        self._going_up = OneTask()

    async def put_up(self, reason: str) -> None:
        """
        The VM must not run any more: first nobody hears it, then it is stopped.

        :raises FtdError: if that cannot be kept over a restart, or QEMU does not do it; it is fenced all the same.
        """
        if not self._fence.reason:
            await self._going_up.begin(self._put_up(reason))

    async def _put_up(self, reason: str) -> None:
        problem: FtdError | None = None
        try:
            self._fence.put_up(reason)
        except FtdError as error:
            problem = error
        self._exposure.shut()
        self._tell(VmState.FENCED, reason)
        await self._come_to_rest()
        # A checkpoint that was on its way may have touched them.
        self._exposure.shut()
        try:
            await self._keeper.keep_stopped()
        except QmpError as error:
            problem = problem or error
        self._keeper.let_go()
        self._exposure.hang_up()
        if problem is not None:
            self._tell(VmState.FENCED, f"{reason} ({problem})")
            raise problem

    async def take_down(self, why_unprotected: Callable[[], str]) -> None:
        """
        It goes on.  :raises FtdError: if it cannot.

        :param why_unprotected: asked when it may run.
        """
        # One that is still going up would stop the VM after it was let go on.
        await self._going_up.done()
        self._fence.take_down()
        self._tell(VmState.UNPROTECTED, why_unprotected())
        if self._keeper.qmp is not None:
            try:
                await self._keeper.qmp.execute("cont")
            finally:
                self._keeper.attach()
                self._exposure.qemu_found(is_another=False)
