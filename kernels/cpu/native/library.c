/* What holds for the whole library, whatever the instruction set. */

#include <omp.h>
#include <pthread.h>
#include <stdlib.h>

#include "scratch.h"

#define EXPORT __attribute__((visibility("default")))

/* Counted up by hand when the meaning of an exported function changes; kernels/cpu/library.py refuses another one. */
EXPORT int quire_abi(void) { return 3; }

EXPORT void quire_set_threads(int threads) { omp_set_num_threads(threads); }

EXPORT int quire_get_threads(void) { return omp_get_max_threads(); }

typedef struct { void *data[SCRATCH_USES]; size_t bytes[SCRATCH_USES]; } held_t;
static pthread_key_t held_key;
static pthread_once_t held_once = PTHREAD_ONCE_INIT;
static _Thread_local held_t held;

static void let_go(void *thread_held) {
    held_t *h = thread_held;
    for (int use = 0; use < SCRATCH_USES; use++) {
        free(h->data[use]);
        h->data[use] = NULL, h->bytes[use] = 0;
    }
}

static void make_key(void) { pthread_key_create(&held_key, let_go); }

void *quire_scratch(enum scratch_use use, size_t bytes) {
    if (bytes <= held.bytes[use]) return held.data[use];
    pthread_once(&held_once, make_key);
    free(held.data[use]);
    held.bytes[use] = (bytes + 4095) & ~(size_t)4095;
    held.data[use] = aligned_alloc(64, held.bytes[use]);
    if (held.data[use] == NULL) held.bytes[use] = 0;
    pthread_setspecific(held_key, &held);
    return held.data[use];
}
