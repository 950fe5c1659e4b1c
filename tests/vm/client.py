"""
A client of the Linux guest, run as a program in the guest's network; it needs nothing but Python.

    client.py lines HOST PORT    one connection, from which numbered lines come
    client.py counts HOST PORT   requests, one after the other, each of which is answered with a number

For each number it prints one line: the number, when it was asked for (of a line, when the one before came), and when it
came, in seconds of CLOCK_MONOTONIC.  A connection that breaks ends ``lines``, and is said on stderr; ``counts`` says it
and asks again.
"""

from __future__ import annotations

import http.client
import socket
import sys
import time

#: Seconds after which it ends whatever happens.
LONGEST = 600.0

#: Seconds without an answer after which a connection is given up.
PATIENCE = 60.0

#: Seconds between two requests.
PAUSE = 0.01


def note(number: bytes, asked: float) -> float:
    """Print a number; the time."""
    now = time.monotonic()
    sys.stdout.write(f"{int(number)} {asked:.6f} {now:.6f}\n")
    sys.stdout.flush()
    return now


def complain(error: object) -> None:
    """Print what went wrong."""
    sys.stderr.write(f"{time.monotonic():.6f} {error!r}\n")
    sys.stderr.flush()


def lines(host: str, port: int, end: float) -> None:
    """Follow one connection to its end."""
    with socket.create_connection((host, port), PATIENCE) as connection, connection.makefile("rb") as stream:
        last = time.monotonic()
        while last < end:
            line = stream.readline()
            if not line.endswith(b"\n"):
                complain(f"the connection ended with {line!r}")
                return
            last = note(line, last)


def counts(host: str, port: int, end: float) -> None:
    """Ask again and again."""
    while time.monotonic() < end:
        asked = time.monotonic()
        connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        try:
            connection.request("GET", "/cgi-bin/count")
            answer = connection.getresponse()
            body = answer.read()
            if answer.status == 200:
                note(body, asked)
            else:
                complain((answer.status, body))
        except (OSError, http.client.HTTPException) as error:
            complain(error)
        finally:
            connection.close()
        time.sleep(PAUSE)


if __name__ == "__main__":
    kinds = {"lines": lines, "counts": counts}
    try:
        kinds[sys.argv[1]](sys.argv[2], int(sys.argv[3]), time.monotonic() + LONGEST)
    except OSError as error:
        complain(error)
