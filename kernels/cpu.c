#define _GNU_SOURCE
#include "cpu.h"

#include <string.h>
#include <time.h>
#if defined(__linux__)
#include <sched.h>
#include <stdio.h>
#include <unistd.h>
#endif
#if defined(__linux__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

#if defined(__x86_64__)
/* The registers that the operating system saves: XMM and YMM are 0x6, opmasks and ZMM 0xe0 besides. */
static int os_saves(unsigned int mask) {
    unsigned int low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & mask) == mask;
}

static int runs_avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && os_saves(0x06);
}

static int runs_avx512(void) {
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && os_saves(0xe6);
}
#endif

static int always(void) { return 1; }

static const struct {
    const char *name;
    const tiles_t *tiles;
    int (*runs)(void);
} sets[] = {
#if defined(__x86_64__)
    {"avx512", fusedrnn_avx512, runs_avx512},
    {"avx2", fusedrnn_avx2, runs_avx2},
#elif defined(__aarch64__)
    {"neon", fusedrnn_neon, always},
#endif
    {"baseline", fusedrnn_baseline, always},
};

const char *cpu_isa(int index) {
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        if (sets[i].runs() && index-- == 0) return sets[i].name;
    return NULL;
}

const tiles_t *cpu_tiles(const char *isa) {
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
        if (!strcmp(sets[i].name, isa) && sets[i].runs()) return sets[i].tiles;
    return NULL;
}

int cpu_here(void) {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

void cpu_leave(int threads) {
#if defined(__linux__)
    cpu_set_t allowed, others;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
    others = allowed;
    CPU_CLR(sched_getcpu(), &others);
    if (CPU_COUNT(&others) && CPU_COUNT(&allowed) >= threads && !sched_setaffinity(0, sizeof others, &others))
        sched_setaffinity(0, sizeof allowed, &allowed);
#else
    (void)threads;
#endif
}

void cpu_signal_elsewhere(pthread_t thread, pthread_cond_t *wake, int threads) {
#if defined(__linux__)
    cpu_set_t allowed, others;
    if (!pthread_getaffinity_np(thread, sizeof allowed, &allowed)) {
        others = allowed;
        CPU_CLR(sched_getcpu(), &others);
        if (CPU_COUNT(&others) && CPU_COUNT(&allowed) >= threads &&
            !pthread_setaffinity_np(thread, sizeof others, &others)) {
            pthread_cond_signal(wake); /* it is given a CPU at once, and may have any from then on */
            pthread_setaffinity_np(thread, sizeof allowed, &allowed);
            return;
        }
    }
#else
    (void)thread, (void)threads;
#endif
    pthread_cond_signal(wake);
}

int cpu_idle(void) {
#if defined(__linux__)
    static int cpus; /* what several threads find out at a time is the same */
    if (!cpus) cpus = (int)sysconf(_SC_NPROCESSORS_ONLN);
    int busy = cpus;
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) || CPU_COUNT(&allowed) < cpus) return 0;
    FILE *const loads = fopen("/proc/loadavg", "re");
    if (!loads) return 0;
    if (fscanf(loads, "%*s %*s %*s %d/", &busy) != 1) busy = cpus;
    fclose(loads);
    return busy < cpus ? cpus - busy : 0;
#else
    return 0;
#endif
}

double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void cpu_large_pages(void *block, size_t size) {
#if defined(MADV_HUGEPAGE)
    madvise(block, size, MADV_HUGEPAGE); /* a wish: where it fails, the pages are small */
#else
    (void)block, (void)size;
#endif
}

void cpu_spare_pages(void *block, size_t size) {
#if defined(MADV_FREE)
    madvise(block, size, MADV_FREE); /* an offer: where it fails, they stay */
#else
    (void)block, (void)size;
#endif
}

const char *cpu_compiler(void) {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown";
#endif
}
