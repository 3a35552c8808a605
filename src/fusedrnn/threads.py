"""How many threads one call of a compiled backend may use. The reference runs in the caller's thread alone.

Any number gives the same bits. FUSEDRNN_NUM_THREADS is the number at the start; without it, it is the CPUs this process
may run on.
"""

import os
from typing import Final

from fusedrnn import backends, checks

__all__ = ["MOST", "available_cpus", "get_num_threads", "set_num_threads"]

MOST: Final = 256
"""The largest team."""

# Checked here, at import; the compiled module reads it again when it is loaded, and then keeps the number.
_number: int | None = None
if _wanted := os.environ.get("FUSEDRNN_NUM_THREADS"):
    _number = checks.size_text("FUSEDRNN_NUM_THREADS", _wanted, most=MOST)


def set_num_threads(n: int) -> None:
    """Set how many threads one call may use, the caller's own among them.

    Parameters
    ----------
    n : int
        From 1 to 256. Small calls use fewer.

    Raises
    ------
    TypeError, ValueError
        `n` is no such integer.

    Examples
    --------
    >>> import fusedrnn as fr
    >>> before = fr.get_num_threads()
    >>> fr.set_num_threads(1)
    >>> fr.get_num_threads()
    1
    >>> fr.set_num_threads(before)
    """
    global _number
    n = checks.size("n", n, most=MOST)
    if (core := backends.compiled()) is not None:
        core.set_num_threads(n)
    else:
        _number = n


def get_num_threads() -> int:
    """How many threads one call may use.

    Returns
    -------
    int
        What `set_num_threads` was given last, or FUSEDRNN_NUM_THREADS, or the number of CPUs this process may run on.

    Examples
    --------
    >>> import fusedrnn as fr
    >>> fr.get_num_threads() >= 1
    True
    """
    if (core := backends.compiled()) is not None:
        return int(core.get_num_threads())
    return _number or available_cpus()


def available_cpus() -> int:
    """Count the CPUs this process may run on.

    Returns
    -------
    int
        At least 1.
    """
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), MOST)
    return min(os.cpu_count() or 1, MOST)
