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
 * taken by somebody else's process, is left out, and the call goes on without waiting for it. Who comes seldom and has
 * little patience does not wake anyone up. */
int team_acquire(int wanted, double patience);
/* Whether who would be called first is asleep, or not born yet. */
int team_asleep(void);
/* Run fn(arg, 0..size-1), rank 0 on the caller, size at most what was granted; returns when all are done.
 * Every rank runs with denormals flushed; the caller's floating-point state is restored. */
void team_run(int size, team_fn fn, void *arg);
void team_release(int granted);

/* An open run: fn may be run by any rank at any time while it lasts, and nobody is waited for. team_open takes the team,
 * returning how many threads there are of those wanted, or 1; team_offer has fn(arg, rank) run once by each worker that is
 * idle or falls idle, and costs little where none is, so it can be repeated; team_close withdraws the offers and lets
 * the team go. Who is still at work then is left behind: it takes part in nothing until it is back, and what it reads
 * must last until team_quiet, which returns when no such worker is out any more. */
int team_open(int wanted);
void team_offer(int size, team_fn fn, void *arg);
void team_close(int size);
void team_quiet(void);

/* A block of an open run and what has become of it, in one word with the run's epoch: who comes late finds another epoch
 * and can do no harm. */
typedef struct {
    _Alignas(64) unsigned long word;
} block_line;
enum { BLOCK_FREE, BLOCK_HELD, BLOCK_KEPT, BLOCK_DONE }; /* a helper holds it, its results are kept, it is done */
static inline void block_set(block_line *b, unsigned long epoch, int state) {
    __atomic_store_n(&b->word, epoch << 2 | (unsigned long)state, __ATOMIC_RELEASE);
}
static inline int block_is(const block_line *b, unsigned long epoch, int state) {
    return __atomic_load_n(&b->word, __ATOMIC_ACQUIRE) == (epoch << 2 | (unsigned long)state);
}
static inline int block_change(block_line *b, unsigned long epoch, int from, int to) {
    unsigned long word = epoch << 2 | (unsigned long)from;
    return block_is(b, epoch, from) && __atomic_compare_exchange_n(&b->word, &word, epoch << 2 | (unsigned long)to, 0,
                                                                   __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}
/* All that belongs to an epoch is written before it begins, and read after its number. */
static inline void epoch_begin(unsigned long *epoch) { __atomic_store_n(epoch, *epoch + 1, __ATOMIC_RELEASE); }
static inline unsigned long epoch_now(const unsigned long *epoch) { return __atomic_load_n(epoch, __ATOMIC_ACQUIRE); }

/* A barrier of up to TEAM_MOST ranks: each rank writes its own line and reads the others'. All zero at first.
 * `epoch` counts 1, 2, 3, ... and is the same for all ranks. */
typedef struct {
    _Alignas(128) unsigned long epoch;
    long turns[2][2]; /* taken from this line, by parity of the epoch and by job */
    int stop[2];      /* the leader's word to the others, likewise: written before a barrier, read after it */
} barrier_line;
void team_barrier(barrier_line *lines, int rank, int size, unsigned long epoch);
/* The next of a line's turns at one of two jobs, 0, 1, 2, ...; each goes to one rank. A barrier winds all of them back to
 * 0: `epoch` is that of the last barrier, 0 before the first. */
static inline long team_turn(barrier_line *line, unsigned long epoch, int job) {
    return __atomic_fetch_add(&line->turns[epoch & 1][job], 1, __ATOMIC_RELAXED);
}

#endif
