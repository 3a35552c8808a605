/* What this CPU and this operating system can run; CPUs, the clock, pages, flush-to-zero. */
#ifndef FUSEDRNN_CPU_H
#define FUSEDRNN_CPU_H

#include "tiles.h"

#include <pthread.h>

/* The instruction sets that run here, best first; NULL behind the last. */
const char *cpu_isa(int index);
/* The two tables (float32, float64) of an instruction set, NULL where the name is unknown or cannot run here. */
const tiles_t *cpu_tiles(const char *isa);
/* The CPU that this thread runs on; -1 where the system does not tell. */
int cpu_here(void);
/* Moves this thread to another of its CPUs, if they are as many as these threads, and leaves it free to come back. */
void cpu_leave(int threads);
/* Wakes up a thread on another CPU than this one, if its CPUs are as many as these threads. */
void cpu_signal_elsewhere(pthread_t thread, pthread_cond_t *wake, int threads);
/* CPUs that have nothing to do, of all that the system has; 0 where it does not tell, or this process may not use all. */
int cpu_idle(void);
double cpu_seconds(void);
/* Asks for large pages behind a block that is about to be written for the first time, where the system has them. */
void cpu_large_pages(void *block, size_t size);
/* Lets the system have the pages of a block, all whole, until they are written to again; what was there may be gone. */
void cpu_spare_pages(void *block, size_t size);
const char *cpu_compiler(void);

/* Flush-to-zero for the time of a call: denormals cost up to a hundred cycles each, and gates need none. */
#if defined(__x86_64__)
#include <xmmintrin.h>
typedef unsigned int fp_state;
static inline fp_state fp_now(void) { return _mm_getcsr(); }
static inline fp_state fp_flush_denormals(void) {
    const fp_state before = fp_now();
    _mm_setcsr(before | 0x8040); /* FTZ and DAZ */
    return before;
}
static inline void fp_restore(fp_state before) { _mm_setcsr(before); }
static inline void cpu_relax(void) { _mm_pause(); }
#elif defined(__aarch64__)
#include <stdint.h>
typedef uint64_t fp_state;
static inline fp_state fp_now(void) {
    fp_state now;
    __asm__ volatile("mrs %0, fpcr" : "=r"(now));
    return now;
}
static inline fp_state fp_flush_denormals(void) {
    const fp_state before = fp_now();
    __asm__ volatile("msr fpcr, %0" ::"r"(before | (UINT64_C(1) << 24)));
    return before;
}
static inline void fp_restore(fp_state before) { __asm__ volatile("msr fpcr, %0" ::"r"(before)); }
static inline void cpu_relax(void) { __asm__ volatile("yield"); }
#else
typedef int fp_state;
static inline fp_state fp_now(void) { return 0; }
static inline fp_state fp_flush_denormals(void) { return 0; }
static inline void fp_restore(fp_state before) { (void)before; }
static inline void cpu_relax(void) {}
#endif

#endif
