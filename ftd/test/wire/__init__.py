"""Tests of `ftd.wire`."""
