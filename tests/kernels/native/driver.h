/* What a driver file sees: `find` gives the function of the instruction set under test, or NULL where it has none. */

#ifndef QUIRE_DRIVER_H
#define QUIRE_DRIVER_H

#include <stdint.h>

typedef void *(*find_t)(const char *name);

#define CHECK(condition, ...)                              \
    do {                                                   \
        if (!(condition)) {                                \
            fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); \
            fprintf(stderr, __VA_ARGS__);                  \
            fputc('\n', stderr);                           \
            exit(1);                                       \
        }                                                  \
    } while (0)

/* Uniform in -1 .. 1, the same in every run. */
static inline float noise(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(*state >> 32) * 0x1p-31f;
}

/* Each in a file of its own beside this one. */
void matmul_cases(find_t find) __attribute__((weak));
void attention_cases(find_t find) __attribute__((weak));
void pointwise_cases(find_t find) __attribute__((weak));
void layer_cases(find_t find) __attribute__((weak));

#endif
