"""Makes ``twistd ftd`` known to Twisted."""

from __future__ import annotations

from twisted.application.service import ServiceMaker

ftd = ServiceMaker("ftd", "ftd.tap", "Replicates the state of pairs over the VM transaction protocol.", "ftd")
