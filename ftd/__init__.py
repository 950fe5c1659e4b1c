"""ftd: a daemon that keeps a standby copy of a running state one committed transaction behind the original."""

__version__ = "0.1.0"
