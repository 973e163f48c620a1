/* Working memory of a thread: kept from call to call, grown when more is asked for, freed when the thread ends. */

#ifndef QUIRE_SCRATCH_H
#define QUIRE_SCRATCH_H

#include <pthread.h>
#include <stdlib.h>

static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;
static _Thread_local void *scratch_data;
static _Thread_local size_t scratch_size;

static void scratch_make_key(void) { pthread_key_create(&scratch_key, free); }

/* At least `bytes` bytes at a multiple of 64, contents unspecified; valid until the same thread asks again. NULL: none. */
static inline void *scratch(size_t bytes) {
    if (bytes <= scratch_size) return scratch_data;
    pthread_once(&scratch_once, scratch_make_key);
    free(scratch_data);
    scratch_size = (bytes + 4095) & ~(size_t)4095;
    scratch_data = aligned_alloc(4096, scratch_size);
    if (scratch_data == NULL) scratch_size = 0;
    pthread_setspecific(scratch_key, scratch_data);
    return scratch_data;
}

#endif
