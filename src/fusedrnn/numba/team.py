"""The thread team of a process without the compiled extension. The twin of kernels/team.c."""

from fusedrnn import backends
from fusedrnn.numba.jit import inner
from fusedrnn.numba.machine import relax, yield_cpu

__all__ = ["functions", "spin"]


def functions() -> tuple[int, int, int]:
    """Addresses of acquire, run and release."""
    core = backends.compiled()
    return core.team()


@inner
def spin(polls):
    """One more poll of a spin: bare at first, then polite, and at last the CPU is given away."""
    if polls > 1000:
        yield_cpu()
    elif polls > 300:
        relax()
