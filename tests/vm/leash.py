"""
Run a program that does not outlive another process, whoever its parent is.

    python leash.py KEEPER PROGRAM ARGUMENT…

The process becomes the program, so its id and its descriptors are what they would be without the leash; a child of it
waits for the end of KEEPER, a process id, and kills the program then.  The kernel's own means (PR_SET_PDEATHSIG) goes
by the parent, and a QEMU that a daemon started has to outlive that.
"""

from __future__ import annotations

import os
import select
import signal
import sys


def watch(keeper: int, program: int) -> None:
    """Return when ``program`` has ended; kill it if ``keeper`` ends before."""
    try:
        keeper_end = os.pidfd_open(keeper)
    except ProcessLookupError:
        os.kill(program, signal.SIGKILL)
        return
    program_end = os.pidfd_open(program)
    ended, _, _ = select.select([keeper_end, program_end], [], [])
    if program_end not in ended:
        signal.pidfd_send_signal(program_end, signal.SIGKILL)


def main(keeper: int, command: list[str]) -> None:
    """Become the program."""
    program = os.getpid()
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            os.closerange(0, 1024)
            watch(keeper, program)
        os._exit(0)
    os.wait()
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
