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
/* Longer than it takes to wake up on a free CPU. */
static const double WAKE_SECONDS = 200e-6;
/* Longer than a worker that spins needs to answer. */
static const double LATE_SECONDS = 10e-6;

/* Polls of a worker that must be about to finish, before it is left behind: some microseconds. */
enum { COURTESY = 1000 };

/* A call that comes so long after the last one finds its workers asleep, as the next will. Waking one costs the caller some
 * 10 microseconds, and it is there after 50: not for a call that would wait less. */
static const double SELDOM_SECONDS = 1e-3, WORTH_WAKING = 50e-6;
/* Who would wait this long has a long call to make, for which only others like it can tell that there is a crowd. */
static const double LONG_PATIENCE = 900e-6;
/* No call is so long that others like it go on alone any longer after it. */
static const double LONGEST = 64e-3;

/* A worker's life: IDLE, then CALLED by the caller, then PRESENT by its own hand (or IDLE again: the caller went without
 * it), then GO by the caller and PRESENT when that part is done, any number of times, and IDLE when the team is let go, or
 * CALLED or OPEN by the next caller before it has seen that.
 * In an open run: IDLE, then OPEN by the caller, then BUSY by its own hand (or IDLE again: the run is over), LEFT by the
 * caller who does not wait for it, and IDLE when done. */
enum { IDLE, CALLED, PRESENT, GO, OPEN, BUSY, LEFT };

typedef struct {
    _Alignas(128) int state;
    int asleep;
    int rank;
    int placed;       /* its caller is about to give it a CPU */
    team_fn fn;       /* what is open to it, */
    void *arg;        /* its own as long as it is BUSY or LEFT */
    double signalled; /* when it was made or woken up; 0 from its falling asleep until then (under the lock) */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct {
        double until, penalty;
        int early; /* it was asked before that time, and has not been there since */
    } crowd[2];    /* somebody else's process wants its CPU: short calls and long ones do without it until then */
} worker;

static struct {
    int busy; /* 1 while some call holds the team */
    int home; /* the CPU that the caller of an open run was on; else -1 */
    int left; /* workers left behind */
    int size; /* workers that exist: at[1] to at[size] */
    team_fn fn;
    void *arg;
    int lengthy;             /* the call that holds the team is a long one */
    double last;             /* when a call took the team or let it go */
    double looked;           /* when it looked for idle CPUs, ... */
    int idle;                /* ... and how many it found */
    worker *crew[TEAM_MOST]; /* those that answered the last call: rank r is crew[r] */
    worker at[TEAM_MOST];
} team;

/* In one order with `asleep`: who falls asleep writes that and then looks here, who calls writes here and then looks there. */
static int state_of(const worker *w) { return __atomic_load_n(&w->state, __ATOMIC_SEQ_CST); }

static void set_state(worker *w, int state) { __atomic_store_n(&w->state, state, __ATOMIC_SEQ_CST); }

static int change_state(worker *w, int from, int to) {
    return __atomic_compare_exchange_n(&w->state, &from, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE);
}

/* One more poll of a spin: the first are bare (on some CPUs one pause takes 140 cycles), then polite, and past about
 * 20 microseconds the CPU is given away: there may be more threads than CPUs. */
enum { BARE = 300, POLITE = 1000 };

static void spin(unsigned polls) {
    if (polls > POLITE) sched_yield();
    else if (polls > BARE) cpu_relax();
}

/* Seconds of this thread at barriers since its run began, those aside in which it did not give its CPU away. */
static _Thread_local double waited;

/* Where no CPU is idle, the scheduler wakes a worker on its caller's, and then one of the two stands still. That is bad
 * for an open run, and good for any other: on a CPU that is shared with another process the worker would stand still for
 * slices of milliseconds, and the caller at every barrier with it. */
static void make_room(const worker *me) {
    const int here = cpu_here();
    if (__atomic_load_n(&me->placed, __ATOMIC_ACQUIRE)) return; /* two who narrow its CPUs would not widen them again */
    if (here >= 0 && here == __atomic_load_n(&team.home, __ATOMIC_RELAXED))
        cpu_leave(__atomic_load_n(&team.size, __ATOMIC_RELAXED) + 1);
}

static int is_wanted(const worker *w) {
    const int state = state_of(w);
    return state == CALLED || state == OPEN;
}

static void *worker_main(void *arg) {
    worker *me = arg;
    fp_flush_denormals();
    for (;;) {
        double since = 0;
        for (unsigned polls = 0; !is_wanted(me); polls++) {
            cpu_relax();
            if (polls % 64) continue;
            make_room(me);
            const double now = cpu_seconds();
            if (since == 0) since = now;
            if (now - since < SPIN_SECONDS) continue;
            pthread_mutex_lock(&me->lock);
            me->signalled = 0; /* one that came while it was awake has woken up nobody */
            __atomic_store_n(&me->asleep, 1, __ATOMIC_SEQ_CST);
            if (!is_wanted(me)) pthread_cond_wait(&me->wake, &me->lock);
            __atomic_store_n(&me->asleep, 0, __ATOMIC_SEQ_CST);
            if (me->signalled == 0) me->signalled = cpu_seconds(); /* it did not sleep at all */
            pthread_mutex_unlock(&me->lock);
            make_room(me);
            since = 0; /* whoever woke us up may have gone on alone, and will be back */
        }
        if (change_state(me, OPEN, BUSY)) {
            make_room(me);
            me->fn(me->arg, me->rank);
            if (change_state(me, BUSY, IDLE)) continue;
            __atomic_fetch_sub(&team.left, 1, __ATOMIC_RELEASE);
            set_state(me, IDLE);
        }
        if (!change_state(me, CALLED, PRESENT)) continue;
        make_room(me);
        int state;
        for (unsigned polls = 0; (state = state_of(me)) == PRESENT || state == GO; polls++) {
            spin(polls);
            if (state != GO) continue;
            team.fn(team.arg, me->rank);
            set_state(me, PRESENT);
            polls = 0;
        }
    }
    return NULL;
}

/* The child of a fork has none of the parent's threads: it starts with an empty team and builds its own. */
static void forget(void) { memset(&team, 0, sizeof team); }

static void watch_fork(void) { pthread_atfork(NULL, NULL, forget); }

static int grow(void) {
    const int rank = team.size + 1;
    worker *w = &team.at[rank];
    memset(w, 0, sizeof *w);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->wake, NULL);
    w->signalled = cpu_seconds();
    sigset_t all, before; /* signals are the main thread's */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failed = pthread_create(&w->thread, NULL, worker_main, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) return 0;
    pthread_detach(w->thread);
    __atomic_store_n(&team.size, rank, __ATOMIC_RELAXED);
    return 1;
}

/* A worker was kept from its CPU, and its caller lost so much time: for a while, some calls long and twice as long each time
 * in a row, calls like this one do without it. */
static void crowded(worker *w, double now, double lost) {
    const double before = w->crowd[team.lengthy].penalty, calls = 2 * lost < LONGEST ? 2 * lost : LONGEST;
    double penalty = before < 1e-3 ? 1e-3 : before < 16e-3 ? 2 * before : before;
    if (penalty < calls) penalty = calls;
    w->crowd[team.lengthy].penalty = penalty;
    w->crowd[team.lengthy].until = now + penalty;
}

/* ... as of a moment ago. */
static int idle_cpus(double now) {
    if (now - team.looked > SELDOM_SECONDS) {
        team.looked = now;
        team.idle = cpu_idle();
    }
    return team.idle;
}

/* Whether a worker's crowd is gone before its time: there are CPUs for it and for those asked before that still sleep. Once,
 * until it has come: a crowd that nobody sees, as where CPU time is rationed, must not be tried again and again. */
static int is_over(worker *w, int asked, double now) {
    int wanted = 1;
    if (w->crowd[team.lengthy].early) return 0;
    for (int i = 1; i < asked; i++) wanted += __atomic_load_n(&team.crew[i]->asleep, __ATOMIC_RELAXED);
    if (idle_cpus(now) < wanted) return 0;
    return w->crowd[team.lengthy].early = 1;
}

/* Nobody else's until `busy` is 0 again: how many threads there are of those wanted, or 1, and then it is not taken. */
static int take(int wanted) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (wanted <= 1) return 1;
    pthread_once(&once, watch_fork);
    if (__atomic_exchange_n(&team.busy, 1, __ATOMIC_ACQUIRE)) return 1;
    if (wanted > TEAM_MOST) wanted = TEAM_MOST;
    while (team.size + 1 < wanted && grow()) {}
    if (team.size + 1 < wanted) wanted = team.size + 1;
    if (wanted == 1) __atomic_store_n(&team.busy, 0, __ATOMIC_RELEASE);
    return wanted;
}

/* Only the caller takes a worker out of IDLE. */
static void call(worker *w, int state) {
    set_state(w, state);
    if (!__atomic_load_n(&w->asleep, __ATOMIC_SEQ_CST)) return;
    const double now = cpu_seconds();
    pthread_mutex_lock(&w->lock);
    const int sleeps = w->signalled == 0;
    if (sleeps) {
        w->signalled = now;
        __atomic_store_n(&w->placed, 1, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&w->lock);
    if (!sleeps) return;
    /* A scheduler may take an idle CPU for a busy one, as under KVM, and put it behind its caller, which waits for it. Not
     * under the lock: there it would fall asleep again, and wake up anywhere. */
    if (idle_cpus(now) > 0) cpu_signal_elsewhere(w->thread, &w->wake, team.size + 1);
    else pthread_cond_signal(&w->wake);
    __atomic_store_n(&w->placed, 0, __ATOMIC_RELEASE);
}

int team_asleep(void) {
    return __atomic_load_n(&team.size, __ATOMIC_RELAXED) == 0 || __atomic_load_n(&team.at[1].asleep, __ATOMIC_RELAXED);
}

int team_acquire(int wanted, double patience) {
    wanted = take(wanted);
    if (wanted == 1) return 1;
    __atomic_store_n(&team.home, -1, __ATOMIC_RELAXED);
    const double now = cpu_seconds(), deadline = now + patience;
    const int spare_them = now - team.last > SELDOM_SECONDS && patience < WORTH_WAKING;
    int asked = 1, granted = 1;
    team.lengthy = patience >= LONG_PATIENCE;
    team.last = now;
    for (int i = 1; i <= team.size && asked < wanted; i++) {
        worker *w = &team.at[i];
        if (now < w->crowd[team.lengthy].until && !is_over(w, asked, now)) continue;
        if (spare_them && __atomic_load_n(&w->asleep, __ATOMIC_RELAXED)) continue;
        if (state_of(w) == IDLE) call(w, CALLED);
        team.crew[asked++] = w;
    }
    for (int i = 1; i < asked; i++) {
        worker *w = team.crew[i];
        int present;
        for (unsigned polls = 1; !(present = state_of(w) == PRESENT); polls++) {
            if (state_of(w) == IDLE) call(w, CALLED); /* it had been left behind */
            if (polls % 64 == 0 && cpu_seconds() > deadline) {
                change_state(w, CALLED, IDLE);
                present = state_of(w) == PRESENT;
                break;
            }
        }
        if (present) {
            team.crew[granted++] = w;
            continue;
        }
        pthread_mutex_lock(&w->lock);
        const int kept_out = w->signalled != 0 && now - w->signalled > WAKE_SECONDS && /* else it may be on its way */
                             (w->asleep || deadline - now > LATE_SECONDS);
        pthread_mutex_unlock(&w->lock);
        if (kept_out) crowded(w, deadline, 0);
    }
    if (granted == 1) __atomic_store_n(&team.busy, 0, __ATOMIC_RELEASE);
    return granted;
}

void team_run(int size, team_fn fn, void *arg) {
    const fp_state before = fp_flush_denormals();
    if (size == 1) {
        fn(arg, 0);
    } else {
        const double began = cpu_seconds();
        waited = 0;
        team.fn = fn;
        team.arg = arg;
        for (int r = 1; r < size; r++) {
            team.crew[r]->rank = r;
            set_state(team.crew[r], GO);
        }
        fn(arg, 0);
        const double done = cpu_seconds();
        for (int r = 1; r < size; r++)
            for (unsigned polls = 0; state_of(team.crew[r]) == GO; polls++) spin(polls);
        const double end = cpu_seconds(), lost = waited + (end - done), worked = end - began - lost;
        const int alone_by_now =
            lost > (size - 1) * worked + WAKE_SECONDS; /* alone the call would have been done by now */
        for (int r = 1; r < size; r++)
            if (alone_by_now) crowded(team.crew[r], end, lost);
            else memset(&team.crew[r]->crowd[team.lengthy], 0, sizeof team.crew[r]->crowd[0]);
    }
    fp_restore(before);
}

void team_release(int granted) {
    if (granted <= 1) return;
    for (int r = 1; r < granted; r++) change_state(team.crew[r], PRESENT, IDLE);
    team.last = cpu_seconds();
    __atomic_store_n(&team.busy, 0, __ATOMIC_RELEASE);
}

int team_open(int wanted) {
    wanted = take(wanted);
    if (wanted > 1) __atomic_store_n(&team.home, cpu_here(), __ATOMIC_RELAXED);
    return wanted;
}

void team_offer(int size, team_fn fn, void *arg) {
    for (int r = 1; r < size; r++) {
        worker *w = &team.at[r];
        if (state_of(w) != IDLE) continue;
        w->fn = fn;
        w->arg = arg;
        w->rank = r;
        call(w, OPEN);
    }
}

void team_close(int size) {
    if (size <= 1) return;
    for (int r = 1; r < size; r++) {
        worker *w = &team.at[r];
        if (change_state(w, OPEN, IDLE)) continue;
        for (int polls = 0; polls < COURTESY && state_of(w) == BUSY; polls++) {}
        if (state_of(w) != BUSY) continue;
        __atomic_fetch_add(&team.left, 1, __ATOMIC_ACQUIRE);
        if (!change_state(w, BUSY, LEFT)) __atomic_fetch_sub(&team.left, 1, __ATOMIC_RELEASE);
    }
    __atomic_store_n(&team.busy, 0, __ATOMIC_RELEASE);
}

void team_quiet(void) {
    while (__atomic_load_n(&team.left, __ATOMIC_ACQUIRE)) sched_yield();
}

void team_barrier(barrier_line *lines, int rank, int size, unsigned long epoch) {
    /* nobody takes turns of the epoch to come before all are here, and those of the last but one are over */
    for (int job = 0; job < 2; job++) __atomic_store_n(&lines[rank].turns[epoch & 1][job], 0, __ATOMIC_RELAXED);
    __atomic_store_n(&lines[rank].epoch, epoch, __ATOMIC_RELEASE);
    double since = 0;
    for (int r = 0; r < size; r++)
        for (unsigned polls = 0; r != rank && __atomic_load_n(&lines[r].epoch, __ATOMIC_ACQUIRE) < epoch; polls++) {
            spin(polls);
            if (polls == POLITE && since == 0) since = cpu_seconds();
        }
    if (since != 0) waited += cpu_seconds() - since;
}
