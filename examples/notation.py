"""Index notation, compiled."""

import numpy as np

import tilewright as tw

program = tw.program("C[i,j] = sum(k) A[i,k] * B[k,j]")
fast = tw.compile(program)
a, b = np.random.rand(64, 48).astype(np.float32), np.random.rand(48, 32).astype(np.float32)
np.testing.assert_allclose(fast(a, b), a @ b, rtol=1e-4)
print(program)
