"""The daemon on ``etc/ftd.conf`` as shipped."""

from __future__ import annotations

import re
from pathlib import Path

from tests.daemon import TREE, Daemon, free_port

_SHIPPED = TREE / "etc" / "ftd.conf"


class ShippedDaemon(Daemon):
    """A daemon on a copy of the shipped file, which differs in nothing but its two ports."""

    def __init__(self, log_file: Path) -> None:
        super().__init__({}, log_file=log_file)
        self.directory.joinpath("etc").mkdir()
        self.configuration.unlink()
        self.configuration = self.directory / "etc" / "ftd.conf"
        text = _SHIPPED.read_text()
        for shipped, free in (("8440", self.port), ("8441", free_port())):
            assert len(re.findall(rf"^[^#;].*{shipped}", text, re.MULTILINE)) > 0, shipped
            text = text.replace(shipped, str(free))
        self.configuration.write_text(text)
        self.pairs = {"demo": {}, "demo-standby": {}}
