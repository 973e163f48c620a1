/* What holds for the whole library, whatever the instruction set. */

#include <omp.h>

#define EXPORT __attribute__((visibility("default")))

/* Counted up by hand when the meaning of an exported function changes; kernels/cpu/library.py refuses another one. */
EXPORT int quire_abi(void) { return 1; }

EXPORT void quire_set_threads(int threads) { omp_set_num_threads(threads); }

EXPORT int quire_get_threads(void) { return omp_get_max_threads(); }
