"""Everything there is to prove and measure on a machine with one GPU, in one command:

    python -m benchmarks.gpu --out DIR

`sections.py` says what is run, `sizes.py` at which sizes, `device.py` what is asked of the machine, and how a dry run
on a CPU answers it.
"""
