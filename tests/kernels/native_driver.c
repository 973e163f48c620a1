/* Runs the cases of tests/kernels/native/ over a library built with sanitizers: make sanitize.

   usage: driver INSTRUCTION_SET...   Buffers there are exactly as large as the kernels may touch. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "native/driver.h"

static const char *isa;

static void *find(const char *name) {
    char full[128];
    snprintf(full, sizeof full, "quire_%s_%s", isa, name);
    return dlsym(RTLD_DEFAULT, full);
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        isa = argv[i];
        CHECK(find("rms_norm"), "the library has no %s", isa);
        if (matmul_cases) matmul_cases(find);
        if (attention_cases) attention_cases(find);
        if (pointwise_cases) pointwise_cases(find);
        if (layer_cases) layer_cases(find);
        printf("%s: clean\n", isa);
    }
    return argc < 2;
}
