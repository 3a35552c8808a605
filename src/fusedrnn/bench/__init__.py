"""How fast the kernels are here: the machine's limits, the work that is timed, and the peers it is timed beside.

`python -m fusedrnn probe` and `python -m fusedrnn bench` run it, the suites of `benchmarks/` are built on it. Nothing
else in the package imports it.
"""
