"""
The first process of a `tests.vm.host.Host`: makes the namespaces that it is in a host, and waits for the end.

It prints its process id as it is outside, and a second line when the host is up.
"""

from __future__ import annotations

import os
import signal
import subprocess

#: Where a host has its memory: nothing there outlives it.
_VOLATILE = ("/run", "/dev/shm")


def main() -> None:
    """Do not return."""
    # That of the outside still.
    os.write(1, os.readlink("/proc/self").encode() + b"\n")
    subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
    for path in _VOLATILE:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # The kernel buries those whose parents have ended.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.write(1, b"up\n")
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
