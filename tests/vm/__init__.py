"""End to end with real virtual machines: QEMU under TCG, guests that are made here, two daemons and what kills them."""
