"""The thread team: persistent POSIX threads that work off one call together. The twin of kernels/team.c, which says
what each state and each wait is for; used where the compiled extension, whose team both backends share, was not built.
It has no open runs, its workers stay where the scheduler wakes them, and after a crowd all of them are left alone
for a while, not each by what it lost in calls short or long.

Refuses to queue: a second Python thread that finds the team busy runs its call alone, with the same bits. None of
Numba's threading layers is involved: one of them aborts the process when two threads call at once.
"""

import os

import numpy as np

from fusedrnn import backends
from fusedrnn.numba.jit import Kernel, inner, once
from fusedrnn.numba.machine import (
    at,
    call,
    cond_init,
    cond_signal,
    cond_wait,
    flush_denormals,
    fp_restore,
    get,
    mutex_init,
    mutex_lock,
    mutex_unlock,
    peek,
    poke,
    relax,
    seconds,
    swap,
    thread_create,
    yield_cpu,
)
from fusedrnn.threads import MOST

__all__ = ["functions", "spin"]

SPIN_SECONDS, WAKE_SECONDS, LATE_SECONDS, LONG_PATIENCE = 100e-6, 200e-6, 10e-6, 900e-6
SELDOM_SECONDS, WORTH_WAKING = 1e-3, 50e-6
IDLE, CALLED, PRESENT, GO = 0, 1, 2, 3

WORKER = np.dtype(
    [
        *((name, np.int64) for name in ("state", "asleep", "rank", "team", "spare")),
        ("signalled", np.float64),
        ("padding", np.int64, (10,)),
        ("lock", np.int64, (16,)),  # room for any system's pthread_mutex_t ...
        ("wake", np.int64, (16,)),  # ... and pthread_cond_t
    ]
)
LOCK, WAKE = WORKER.fields["lock"][1], WORKER.fields["wake"][1]  # type: ignore[index]
TEAM = np.dtype(
    [
        *((name, np.int64) for name in ("busy", "size", "fn", "arg", "work")),
        ("crowded_until", np.float64),
        ("penalty", np.float64),
        ("last", np.float64),
        ("padding", np.int64, (8,)),
        ("crew", np.int64, (MOST,)),
    ]
)
CREW = TEAM.fields["crew"][1]  # type: ignore[index]
TEAM_BYTES, WORKER_BYTES = TEAM.itemsize, WORKER.itemsize


@inner
def spin(polls):
    """One more poll of a spin: bare at first, then polite, and at last the CPU is given away."""
    if polls > 1000:
        yield_cpu()
    elif polls > 300:
        relax()


@inner
def worker_of(team, i):
    return team + TEAM_BYTES + i * WORKER_BYTES


def live(me):
    """What a worker does, from its birth to the end of the process."""
    w = at(me, WORKER)
    team = at(w.team, TEAM)
    flush_denormals()
    while True:
        since, polls = 0.0, 0
        while peek(me) != CALLED:
            relax()
            polls += 1
            if polls % 64:
                continue
            now = seconds()
            if since == 0.0:
                since = now
            if now - since < SPIN_SECONDS:
                continue
            mutex_lock(me + LOCK)
            w.signalled = 0.0  # one that came while it was awake has woken up nobody
            poke(me + 8, 1)
            if peek(me) != CALLED:
                cond_wait(me + WAKE, me + LOCK)
            poke(me + 8, 0)
            if w.signalled == 0.0:
                w.signalled = seconds()  # it did not sleep at all
            mutex_unlock(me + LOCK)
            since = 0.0  # whoever woke us up may have gone on alone, and will be back
        if not swap(me, CALLED, PRESENT):
            continue
        polls = 0
        while True:
            state = peek(me)
            if state != PRESENT and state != GO:  # IDLE, or CALLED already by the next caller
                break
            if state == GO:
                call(team.fn, team.arg, np.int32(w.rank))
                poke(me, PRESENT)
                polls = 0
            else:
                spin(polls)
                polls += 1


@inner
def grow(team):
    """One more worker; false where the system has no more threads."""
    t = at(team, TEAM)
    me = worker_of(team, t.size + 1)
    w = at(me, WORKER)
    w.team = team
    mutex_init(me + LOCK)
    cond_init(me + WAKE)
    w.signalled = seconds()
    if not thread_create(me + SPARE, t.work, me):
        return False
    t.size = t.size + 1
    return True


SPARE = WORKER.fields["spare"][1]  # type: ignore[index]


@inner
def crowded(team, now):
    """A worker was kept from its CPU: for a while, twice as long each time in a row, calls do without the team."""
    t = at(team, TEAM)
    t.penalty = 1e-3 if t.penalty < 1e-3 else 2 * t.penalty if t.penalty < 16e-3 else t.penalty
    t.crowded_until = now + t.penalty


def acquire(wanted, patience, team):
    """Take the team: the number of threads at hand, the caller among them, 1 to `wanted`."""
    t = at(team, TEAM)
    wanted = np.int64(wanted)
    if wanted <= 1 or not swap(team, 0, 1):
        return np.int32(1)
    wanted = min(wanted, MOST)
    while t.size + 1 < wanted and grow(team):
        pass
    wanted = min(wanted, t.size + 1)
    now = seconds()
    deadline = now + patience
    granted = 1
    spare_them = now - t.last > SELDOM_SECONDS and patience < WORTH_WAKING
    t.last = now
    if now < t.crowded_until and patience < LONG_PATIENCE:
        wanted = 1
    for i in range(1, wanted):
        me = worker_of(team, i)
        w = at(me, WORKER)
        if spare_them and peek(me + 8):
            continue
        poke(me, CALLED)
        if not peek(me + 8):
            continue
        mutex_lock(me + LOCK)
        if w.signalled == 0.0:
            w.signalled = now
            cond_signal(me + WAKE)
        mutex_unlock(me + LOCK)
    for i in range(1, wanted):
        me = worker_of(team, i)
        w = at(me, WORKER)
        polls, present = 0, False
        if peek(me) == IDLE:
            continue  # spared
        while True:
            present = peek(me) == PRESENT
            if present:
                break
            polls += 1
            if polls % 64 == 0 and seconds() > deadline:
                present = not swap(me, CALLED, IDLE)
                break
        if present:
            poke(team + CREW + 8 * granted, me)
            granted += 1
            continue
        mutex_lock(me + LOCK)
        kept_out = w.signalled != 0.0 and now - w.signalled > WAKE_SECONDS  # else it may be on its way
        kept_out = kept_out and (w.asleep != 0 or deadline - now > LATE_SECONDS)
        mutex_unlock(me + LOCK)
        if kept_out:
            crowded(team, deadline)
    if granted == 1:
        poke(team, 0)
    return np.int32(granted)


def run(size, fn, arg, team):
    """Run fn(arg, 0..size-1), rank 0 on the caller, denormals flushed; returns when all are done."""
    t = at(team, TEAM)
    before = flush_denormals()
    if size == 1:
        call(fn, arg, np.int32(0))
    else:
        began = seconds()
        t.fn, t.arg = fn, arg
        for r in range(1, size):
            me = get(team + CREW, r)
            at(me, WORKER).rank = r
            poke(me, GO)
        call(fn, arg, np.int32(0))
        done = seconds()
        for r in range(1, size):
            polls = 0
            while peek(get(team + CREW, r)) == GO:
                spin(polls)
                polls += 1
        end = seconds()
        if end - done > done - began + WAKE_SECONDS:
            crowded(team, end)
        else:
            t.penalty = 0.0
    fp_restore(before)


def release(granted, team):
    """Let the team go."""
    if granted > 1:
        for r in range(1, granted):
            swap(get(team + CREW, r), PRESENT, IDLE)
        at(team, TEAM).last = seconds()
        poke(team, 0)


def asleep(team):
    """Whether who would be called first is asleep, or not born yet."""
    return np.int32(at(team, TEAM).size == 0 or peek(worker_of(team, 1) + 8) != 0)


live_kernel = Kernel(live, "void(int64)")
acquire_kernel = Kernel(acquire, "int32(int32, float64, int64)")
run_kernel = Kernel(run, "void(int32, int64, int64, int64)")
release_kernel = Kernel(release, "void(int32, int64)")
asleep_kernel = Kernel(asleep, "int32(int64)")


@once
def functions() -> tuple[int, int, int, int, int]:
    """Addresses of acquire, run, release, asleep, and of the team, their last argument, which C functions do not look
    at."""
    if (core := backends.compiled()) is not None:
        return (*core.team(), 0)
    memory = np.zeros(TEAM_BYTES + MOST * WORKER_BYTES + 128, np.uint8)
    address = (memory.ctypes.data + 127) // 128 * 128
    work = live_kernel.address

    def fresh() -> None:
        """The child of a fork has none of the parent's threads: it starts with an empty team and builds its own."""
        memory[:] = 0
        memory[address - memory.ctypes.data :][:TEAM_BYTES].view(TEAM)["work"] = work

    fresh()
    os.register_at_fork(after_in_child=fresh)
    kernels = acquire_kernel, run_kernel, release_kernel, asleep_kernel
    return *(kernel.address for kernel in kernels), address
