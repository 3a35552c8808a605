"""How many threads one call of a compiled backend may use. The reference runs in the caller's thread alone.

Any number gives the same bits. FUSEDRNN_NUM_THREADS is the number at the start; without it, it is the CPUs this process
may use.
"""

import contextlib
import math
import os
from pathlib import Path, PurePosixPath
from typing import Final

from fusedrnn import backends, checks

__all__ = ["MOST", "available_cpus", "get_num_threads", "set_num_threads"]

MOST: Final = 256
"""The largest team."""

CGROUPS: Final = Path("/sys/fs/cgroup")
OWN_CGROUPS: Final = Path("/proc/self/cgroup")
"""Linux's control groups, and those of this process."""
CACHES: Final = Path("/sys/devices/system/cpu/cpu0/cache")
"""Linux's description of a CPU's caches."""

# The compiled module begins with it when it is loaded, and then keeps the number itself.
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
        What `set_num_threads` was given last, or FUSEDRNN_NUM_THREADS, or the number of CPUs this process may use.

    Examples
    --------
    >>> import fusedrnn as fr
    >>> fr.get_num_threads() >= 1
    True
    """
    if (core := backends.compiled()) is not None:
        return int(core.get_num_threads())
    return at_first()


def at_first() -> int:
    """How many threads a call may use as long as there is no compiled module to ask.

    Returns
    -------
    int
        As of `get_num_threads`; the CPUs are counted once.
    """
    global _number
    if _number is None:
        _number = available_cpus()
    return _number


def available_cpus() -> int:
    """Count the CPUs this process may use.

    Returns
    -------
    int
        Those it may run on, or fewer where a control group, a container's for instance, leaves it less of their time:
        2 where it leaves it that of 1.5. At least 1.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, math.ceil(min(_quota(), MOST))))


def own_cache() -> int:
    """Look up how large the cache is that a thread has to itself.

    Returns
    -------
    int
        Bytes of L2, at most 2 MB of them, since a larger one is mostly shared; 1 MB where the system does not say.
    """
    found = 0
    for cache in CACHES.glob("index*"):
        with contextlib.suppress(ValueError, OSError):
            if (cache / "level").read_text().strip() == "2":
                found = int((cache / "size").read_text().strip().removesuffix("K")) << 10
    return min(found, 2 << 20) if found > 0 else 1 << 20


def _quota() -> float:
    """The CPUs whose time the control groups of this process, and those around them, leave it; infinity without any."""
    least = math.inf
    with contextlib.suppress(OSError, ValueError):
        for line in OWN_CGROUPS.read_text(encoding="utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:  # version 2
                root, names = CGROUPS, ["cpu.max"]
            elif "cpu" in controllers.split(","):
                root, names = CGROUPS / "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
            else:
                continue
            own = PurePosixPath(group.lstrip("/"))
            for path in (own, *own.parents):
                with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                    texts = [(root / path / name).read_text(encoding="utf-8") for name in names]
                    quota, period = " ".join(texts).split()  # "150000 100000", "max 100000", "-1 100000"
                    if quota not in ("max", "-1"):
                        least = min(least, int(quota) / int(period))
    return least
