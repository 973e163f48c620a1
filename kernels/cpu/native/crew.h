/* A crew: the threads of one parallel region that go through several operations together.

   Between two operations they meet. A meeting of threads that are awake takes a fraction of a microsecond, where waking
   a thread takes tens; and who waits for one whose core another process has taken gives its own core away. */

#ifndef QUIRE_CREW_H
#define QUIRE_CREW_H

#include <omp.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#define PATIENCE 2000 /* turns of waiting before a thread offers its core to others */

/* What a crew shares; begins as zeros. */
typedef struct {
    _Alignas(64) _Atomic int arrived;
    _Alignas(64) _Atomic unsigned round;
    _Alignas(64) _Atomic int64_t taken;
} meeting_t;

typedef struct {
    int me, threads;
    meeting_t *meeting;
} crew_t;

/* Every thread runs `call` as a member of `crew`; only one does where `when` is 0. */
#define AS_CREW(when, call)                                                                  \
    do {                                                                                     \
        meeting_t meeting = {0};                                                             \
        const int is_parallel = (when);                                                      \
        _Pragma("omp parallel if (is_parallel)") {                                           \
            const crew_t crew = {omp_get_thread_num(), omp_get_num_threads(), &meeting};     \
            call;                                                                            \
        }                                                                                    \
    } while (0)

static inline void crew_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Nobody goes on before all have come; what was written before is seen after. Counting pieces begins anew. */
static inline void meet(const crew_t *crew) {
    meeting_t *m = crew->meeting;
    if (crew->threads == 1) {
        atomic_store_explicit(&m->taken, 0, memory_order_relaxed);
        return;
    }
    const unsigned round = atomic_load_explicit(&m->round, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&m->arrived, 1, memory_order_acq_rel) == crew->threads - 1) {
        atomic_store_explicit(&m->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&m->taken, 0, memory_order_relaxed);
        atomic_store_explicit(&m->round, round + 1, memory_order_release);
        return;
    }
    for (int turn = 0; atomic_load_explicit(&m->round, memory_order_acquire) == round;)
        if (turn < PATIENCE) turn++, crew_pause();
        else sched_yield();
}

/* The next piece that nobody has taken since the last meeting: 0, 1, ... */
static inline int64_t take_piece(const crew_t *crew) {
    return atomic_fetch_add_explicit(&crew->meeting->taken, 1, memory_order_relaxed);
}

/* This thread's share of `count` pieces: from .. to - 1. */
static inline void my_share(const crew_t *crew, int64_t count, int64_t *from, int64_t *to) {
    *from = count * crew->me / crew->threads;
    *to = count * (crew->me + 1) / crew->threads;
}

#endif
