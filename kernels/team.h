/* The thread team: persistent POSIX threads that work off one call together, with a barrier that spins.
 * No OpenMP: it hangs after fork and costs more a step. Refuses to queue: a second Python thread that finds the team
 * busy gets a team of one and runs alone, with the same bits.
 */
#ifndef FUSEDRNN_TEAM_H
#define FUSEDRNN_TEAM_H

enum { TEAM_MOST = 256 };

typedef void (*team_fn)(void *arg, int rank);

/* Take the team: returns the number of threads at hand, the caller among them: 1 to `wanted`. Workers are called and
 * must answer, that is, be running on a CPU, within `patience` seconds: one that sleeps too deep, or whose CPU has been
 * taken by somebody else's process, is left out, and the call goes on without waiting for it. */
int team_acquire(int wanted, double patience);
/* Run fn(arg, 0..size-1), rank 0 on the caller, size at most what was granted; returns when all are done.
 * Every rank runs with denormals flushed; the caller's floating-point state is restored. */
void team_run(int size, team_fn fn, void *arg);
void team_release(int granted);

/* A barrier of up to TEAM_MOST ranks: each rank writes its own line and reads the others'. All zero at first.
 * `epoch` counts 1, 2, 3, ... and is the same for all ranks. */
typedef struct {
    _Alignas(128) unsigned long epoch;
    long turns[2]; /* taken from this line, by parity of the epoch */
} barrier_line;
void team_barrier(barrier_line *lines, int rank, int size, unsigned long epoch);
/* The next of a line's turns, 0, 1, 2, ...; each goes to one rank. A barrier winds all of them back to 0: `epoch` is that
 * of the last barrier, 0 before the first. */
static inline long team_turn(barrier_line *line, unsigned long epoch) {
    return __atomic_fetch_add(&line->turns[epoch & 1], 1, __ATOMIC_RELAXED);
}

#endif
