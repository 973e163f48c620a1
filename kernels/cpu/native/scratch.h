/* Working memory of a thread: kept from call to call, grown when more is asked for, freed when the thread ends. */

#ifndef QUIRE_SCRATCH_H
#define QUIRE_SCRATCH_H

#include <stddef.h>

/* One buffer for each use, so that those of nested functions do not meet. */
enum scratch_use {
    PLACED_ROWS, WIDE_PANEL, LAST_SUMS,               /* of matmuls */
    ATTENTION_WORK, ATTENTION_ITEMS, ATTENTION_PARTS,
    LAYER_ROWS,
    WEIGHTS,                                          /* of sampling */
    SCRATCH_USES
};

/* At least `bytes` bytes at a multiple of 64, contents unspecified; valid until the same thread asks for the same use
   again. NULL: there is no memory. Defined in library.c. */
void *quire_scratch(enum scratch_use use, size_t bytes);

#endif
