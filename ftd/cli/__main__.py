"""``python -m ftd.cli``."""

from __future__ import annotations

from ftd.cli import main

main(prog_name="ftdctl")
