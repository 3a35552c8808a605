"""The Numba backend."""

from fusedrnn.numba.backend import backward, forward, pack

__all__ = ["backward", "forward", "pack"]
