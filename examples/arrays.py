"""A function written with NumPy, and an einsum of four operands."""

import numpy as np

import tilewright as tw


@tw.function
def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


x = np.random.rand(8, 32).astype(np.float32)
np.testing.assert_allclose(softmax(x).sum(axis=-1), 1, rtol=1e-5)

w = [np.random.rand(6, 6).astype(np.float32) for _ in range(4)]
y = tw.einsum("ij,jk,kl,lm->im", *w)
np.testing.assert_allclose(y, w[0] @ w[1] @ w[2] @ w[3], rtol=1e-4)
print("equal to NumPy")
