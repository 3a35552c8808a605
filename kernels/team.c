#define _GNU_SOURCE
#include "team.h"
#include "cpu.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>

/* A worker that has just worked expects more: it spins this long before it sleeps, the time in which a Python caller
 * comes back. Sleeping and waking costs some 50 microseconds, a spin answers in one. */
static const double SPIN_SECONDS = 100e-6;

typedef struct {
    _Alignas(128) unsigned long ordered; /* written by the caller: the number of the job at hand */
    int asleep;
    _Alignas(128) unsigned long done; /* written by the worker: the number of the last job finished */
    pthread_mutex_t lock;
    pthread_cond_t wake;
} worker;

static struct {
    int busy; /* 1 while some call holds the team */
    int size; /* workers that exist, the caller's rank 0 not counted */
    team_fn fn;
    void *arg;
    worker at[TEAM_MOST];
} team;

static void *work(void *arg) {
    const int rank = (int)(size_t)arg;
    worker *me = &team.at[rank];
    fp_flush_denormals();
    for (unsigned long job = 1;; job++) {
        double since = 0;
        for (unsigned spins = 0; __atomic_load_n(&me->ordered, __ATOMIC_ACQUIRE) < job; spins++) {
            cpu_relax();
            if (spins % 64) continue;
            const double now = cpu_seconds();
            if (since == 0) since = now;
            if (now - since < SPIN_SECONDS) continue;
            pthread_mutex_lock(&me->lock);
            __atomic_store_n(&me->asleep, 1, __ATOMIC_SEQ_CST);
            while (__atomic_load_n(&me->ordered, __ATOMIC_SEQ_CST) < job) pthread_cond_wait(&me->wake, &me->lock);
            __atomic_store_n(&me->asleep, 0, __ATOMIC_SEQ_CST);
            pthread_mutex_unlock(&me->lock);
        }
        team.fn(team.arg, rank);
        __atomic_store_n(&me->done, job, __ATOMIC_RELEASE);
    }
    return NULL;
}

/* The child of a fork has none of the parent's threads: it starts with an empty team and builds its own. */
static void forget(void) { memset(&team, 0, sizeof team); }

static void watch_fork(void) { pthread_atfork(NULL, NULL, forget); }

static int grow(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_fork);
    const int rank = team.size + 1;
    worker *w = &team.at[rank];
    memset(w, 0, sizeof *w);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->wake, NULL);
    pthread_t thread;
    sigset_t all, before; /* signals are the main thread's */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failed = pthread_create(&thread, NULL, work, (void *)(size_t)rank);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) return 0;
    pthread_detach(thread);
    team.size = rank;
    return 1;
}

int team_acquire(int wanted) {
    if (wanted <= 1 || __atomic_exchange_n(&team.busy, 1, __ATOMIC_ACQUIRE)) return 1;
    if (wanted > TEAM_MOST) wanted = TEAM_MOST;
    while (team.size + 1 < wanted && grow()) {}
    const int granted = team.size + 1 < wanted ? team.size + 1 : wanted;
    if (granted == 1) __atomic_store_n(&team.busy, 0, __ATOMIC_RELEASE);
    return granted;
}

void team_release(int granted) {
    if (granted > 1) __atomic_store_n(&team.busy, 0, __ATOMIC_RELEASE);
}

/* Wait until *value reaches `goal`. The first polls are bare loads (on some CPUs one pause takes 140 cycles), then
 * polite ones, and past about 20 microseconds the CPU is given away: there may be more threads than CPUs. */
static void wait_for(const unsigned long *value, unsigned long goal) {
    for (unsigned spins = 0; __atomic_load_n(value, __ATOMIC_ACQUIRE) < goal; spins++) {
        if (spins > 1000) sched_yield();
        else if (spins > 300) cpu_relax();
    }
}

void team_run(int size, team_fn fn, void *arg) {
    const fp_state before = fp_flush_denormals();
    if (size > 1) {
        team.fn = fn;
        team.arg = arg;
        for (int r = 1; r < size; r++) {
            worker *w = &team.at[r];
            __atomic_store_n(&w->ordered, w->done + 1, __ATOMIC_SEQ_CST);
            if (__atomic_load_n(&w->asleep, __ATOMIC_SEQ_CST)) {
                pthread_mutex_lock(&w->lock);
                pthread_cond_signal(&w->wake);
                pthread_mutex_unlock(&w->lock);
            }
        }
    }
    fn(arg, 0);
    for (int r = 1; r < size; r++) wait_for(&team.at[r].done, team.at[r].ordered);
    fp_restore(before);
}

void team_barrier(barrier_line *lines, int rank, int size, unsigned long epoch) {
    __atomic_store_n(&lines[rank].epoch, epoch, __ATOMIC_RELEASE);
    for (int r = 0; r < size; r++)
        if (r != rank) wait_for(&lines[r].epoch, epoch);
}
