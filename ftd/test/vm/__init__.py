"""Tests of `ftd.vm`."""
