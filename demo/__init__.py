"""``make demo``: a VM is killed, and goes on elsewhere, and nobody has seen what is lost.  It is not installed."""
