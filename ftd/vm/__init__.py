"""
The QEMU source and sink: a stock VM, checkpointed from outside over QMP and shared guest RAM.

`ftd.vm.primary` takes checkpoints, `ftd.vm.standby` holds them and takes over.  Neither knows a pair: they are put
together in `ftd.composition`.
"""
