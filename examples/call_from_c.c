/* Calls a model that examples/artifact.py wrote as C:
 *
 *     python examples/artifact.py build && cd build
 *     cc -O2 -I. -o call_from_c ../examples/call_from_c.c mlp.c mlp_*.o && ./call_from_c
 */
#include <stdio.h>
#include <stdlib.h>

#include "mlp.h"

int main(void) {
    float x[8 * 16], y[8 * 4];
    const void *inputs[MLP_INPUTS] = {x};
    void *outputs[MLP_OUTPUTS] = {y};
    void *memory = aligned_alloc(64, (MLP_MEMORY_BYTES + 63) / 64 * 64);

    if (memory == NULL) return 1;
    for (int k = 0; k < 8 * 16; k++) x[k] = (float)(k % 7) - 3.0f;
    mlp_prepare(memory);
    mlp_run(inputs, outputs, memory);
    for (int k = 0; k < 8 * 4; k++) printf("%.9g\n", y[k]);
    free(memory);
    return 0;
}
