"""
``python -m bench.vm``: what it costs to protect a VM, on the machine on which it is run.

Two real daemons, two real QEMUs, and what QEMU itself takes for the same steps, measured in the same run on the same VM
in turns, so that a busy machine is busy for both.  ``docs/benchmarks.md`` says what each figure is.
"""
