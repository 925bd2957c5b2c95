"""Small instances of the hand-written nests with their float64 meaning.

In: nothing. Out: `CASES`: name -> (text, inputs, oracle over them, output buffer).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import texts

Array = np.ndarray[Any, np.dtype[Any]]
Case = tuple[str, dict[str, Array], Callable[..., Array], str]


def _random(seed: int, **sizes: int) -> dict[str, Array]:
    r = np.random.default_rng(seed)
    return {k: r.standard_normal(n).astype(np.float32) for k, n in sizes.items()}


def _matmul(M: int, N: int, K: int) -> Callable[..., Array]:
    return lambda A, B: A.reshape(M, K) @ B.reshape(K, N)


def _convolution(H: int, W: int, C: int, O: int) -> Callable[..., Array]:
    def oracle(X: Array, V: Array, b: Array) -> Array:
        X = np.pad(X.reshape(H, W, C), ((1, 1), (1, 1), (0, 0)))
        V = V.reshape(-1, 3, 3, C, 32).transpose(1, 2, 3, 0, 4).reshape(3, 3, C, -1)[..., :O]
        taps = (X[y : y + H, x : x + W] @ V[y, x] for y in range(3) for x in range(3))
        return np.maximum(sum(taps) + b, 0)

    return oracle


def _softmax(N: int) -> Callable[..., Array]:
    def oracle(X: Array) -> Array:
        X = X.reshape(-1, N)
        e = np.exp(X - X.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    return oracle


def _layer_norm(N: int) -> Callable[..., Array]:
    def oracle(X: Array) -> Array:
        X = X.reshape(-1, N)
        return (X - X.mean(1, keepdims=True)) / np.sqrt(X.var(1, keepdims=True) + 1e-5)

    return oracle


def _attention(T: int, causal: bool) -> Callable[..., Array]:
    def oracle(Q: Array, K: Array, V: Array) -> Array:
        Q, K, V = (x.reshape(-1, T, 64) for x in (Q, K, V))
        S = Q @ K.transpose(0, 2, 1) / 8
        if causal:
            S = np.where(np.tril(np.ones((T, T), bool)), S, -np.inf)
        P = np.exp(S - S.max(-1, keepdims=True))
        return P / P.sum(-1, keepdims=True) @ V

    return oracle


def _lstm(T: int, B: int, H: int) -> Callable[..., Array]:
    def oracle(X: Array, W: Array, bias: Array) -> Array:
        X, bias = X.reshape(T, B, H), bias.reshape(4, H)
        W = W.reshape(H // 16, 2, 2 * H, 2, 16).transpose(1, 3, 2, 0, 4).reshape(4, 2 * H, H)
        h, c, out = np.zeros((B, H)), np.zeros((B, H)), []
        for t in range(T):
            i, f, g, o = (np.concatenate([X[t], h], 1) @ W[k] + bias[k] for k in range(4))
            i, f, o = (1 / (1 + np.exp(-v)) for v in (i, f, o))
            c = f * c + i * np.tanh(g)
            h = o * np.tanh(c)
            out.append(h)
        return np.stack(out)

    return oracle


def cases() -> dict[str, Case]:
    """Every nest at sizes with tails, small enough for the interpreter."""
    out: dict[str, Case] = {}
    for M, N, K in ((29, 70, 37), (14, 32, 40)):
        data = _random(M, A=M * K, B=K * N)
        out[f"matmul_{M}x{N}x{K}"] = (
            texts.matmul(M, N, K, MC=28, KC=32),
            data,
            _matmul(M, N, K),
            "C",
        )
    H, W, C, O = 5, 17, 3, 40
    data = _random(1, X=H * W * C, V=64 * 9 * C, b=O)
    out["convolution"] = (texts.convolution(H, W, C, O), data, _convolution(H, W, C, O), "Y")
    out["softmax"] = (texts.softmax(6, 256), _random(2, X=6 * 256), _softmax(256), "Y")
    out["layer_norm"] = (texts.layer_norm(6, 256), _random(3, X=6 * 256), _layer_norm(256), "Y")
    out["transpose"] = (
        texts.transpose(50, 37, 32, 32), _random(4, X=50 * 37), lambda X: X.reshape(50, 37).T.copy(), "Y",
    )  # fmt: skip
    for T, causal, QB, QR in ((70, True, 64, 8), (130, False, 56, 14)):
        text = texts.attention(1, T, QB=QB, QR=QR, causal=causal)
        data = _random(T, Q=T * 64, K=T * 64, V=T * 64)
        out[f"attention_{T}"] = (text, data, _attention(T, causal), "Y")
    T, B, H = 3, 7, 32
    data = _random(5, X=T * B * H, W=8 * H * H, bias=4 * H)
    data["W"] /= 8
    out["lstm"] = (texts.lstm(T, B, H, 6), data, _lstm(T, B, H), "Y")
    return out


CASES = cases()
