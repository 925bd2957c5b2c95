"""The same functions in float64: what a relation must also hold for.

In: the names and methods of `Field`. Out: float64 arrays of random arguments in the domain.
Invariant: uses NumPy's functions and none of the laws that `field` builds on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["Floats"]

Array = np.ndarray[Any, np.dtype[Any]]

_erf = np.vectorize(math.erf, otypes=[np.float64])
_INVERSES: dict[str, Callable[[Array], Array]] = {
    "sin": np.arcsin, "cos": np.arccos, "tan": np.arctan,
    "sinh": np.arcsinh, "cosh": np.arccosh, "tanh": np.arctanh,
    "sigmoid": lambda x: np.log(x / (1 - x)),
}  # fmt: skip


class Floats:
    """Random numbers by name, up to about `spread`; every method as in `Field`."""

    def __init__(self, count: int, seed: int, spread: float = 0.7) -> None:
        self.count = count
        self.spread = spread
        self.rng = np.random.default_rng(seed)

    def const(self, c: Any) -> Array:
        return np.full(self.count, float(c))

    def symbol(self, name: str) -> Array:
        low = 0.05 if self.spread < 1 else -self.spread
        return self.rng.uniform(low, self.spread, self.count)

    def positive(self, name: str, base: str = "e") -> Array:
        return np.asarray(np.exp(self.rng.uniform(-2 * self.spread, 2 * self.spread, self.count)))

    def signed(self, name: str) -> Array:
        return np.asarray(self.positive(name) * self.rng.choice([-1.0, 1.0], self.count))

    def split(self, name: str, up: bool = False) -> Array:
        return self.rng.uniform(-20, 20, self.count)

    def power(self, base: str, x: Array) -> Array:
        return np.asarray(np.power({"e": np.e, "2": 2.0, "10": 10.0}[base], x))

    exp = staticmethod(np.exp)
    log2 = staticmethod(np.log2)
    sqrt = staticmethod(np.sqrt)
    sin = staticmethod(np.sin)
    cos = staticmethod(np.cos)
    tan = staticmethod(np.tan)
    sinh = staticmethod(np.sinh)
    cosh = staticmethod(np.cosh)
    tanh = staticmethod(np.tanh)
    floor = staticmethod(np.floor)
    sign = staticmethod(np.sign)

    def sigmoid(self, x: Array) -> Array:
        return np.asarray(1 / (1 + np.exp(-x)))

    def log(self, x: Array, base: str = "e") -> Array:
        return np.asarray(np.log(x) / {"e": 1.0, "2": np.log(2.0), "10": np.log(10.0)}[base])

    def root(self, x: Array, n: int) -> Array:
        return np.asarray(np.abs(x) ** (1 / n) * np.sign(x))

    def asserted(self, q: Array, name: str, argument: Array) -> Array:
        return q

    def inverted(self, name: str, x: Array) -> Array:
        return np.asarray(_INVERSES[name](x))

    def odd(self, name: str, x: Array) -> Array:
        assert name == "erf"
        return np.asarray(_erf(x))
