"""The Numba backend: the cells of kernels/ compiled just in time, and callable from users' own jitted functions.

`fusedrnn.numba` is both a backend (see fusedrnn.backends) and what a simulation in Numba imports its cells from.
"""

try:
    import numba as _numba  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "numba":
        raise
    raise ModuleNotFoundError("fusedrnn.numba needs Numba: pip install fusedrnn[numba]", name="numba") from error

from fusedrnn.numba.backend import backward, forward, pack, sigmoid, stream, tanh
from fusedrnn.threads import get_num_threads, set_num_threads

__all__ = ["backward", "forward", "get_num_threads", "pack", "set_num_threads", "sigmoid", "stream", "tanh"]
