"""Measurements: the cases, who is measured against whom, the correctness gate, timing, tables and plots.

Nothing here is imported by the package itself. The command line (`attractor_kernels.cli`) and the suites under
benchmarks/ are its users. torchdeq, JAX and a C++ compiler are optional: a contender that cannot run says why.
"""
