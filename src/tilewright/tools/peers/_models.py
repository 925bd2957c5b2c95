"""The models of `tools/zoo.py` in torch and in JAX: the same formulas, the same weights.

In: the libraries. Out: `Ops` whose values are tensors. Invariant: weights are made once, before
anything is timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tilewright.tools.zoo import weight

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["JaxOps", "TorchOps"]


class TorchOps:
    """`Ops` on torch tensors; `held` has every weight by name."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}

    def weight(self, name: str, shape: Sequence[int], kind: str = "normal") -> Any:
        import torch

        if name not in self.held:
            self.held[name] = torch.from_numpy(weight(name, shape, kind))
        return self.held[name]

    def constant(self, array: Array) -> Any:
        import torch

        name = f"constant {array.shape}"
        if name not in self.held:
            self.held[name] = torch.from_numpy(array)
        return self.held[name]

    def conv(self, x: Any, w: Any, stride: int, pad: int, groups: int = 1) -> Any:
        import torch

        return torch.conv2d(x, w, None, stride, pad, 1, groups)

    def batch_norm(self, x: Any, g: Any, b: Any, mean: Any, var: Any) -> Any:
        import torch

        return torch.nn.functional.batch_norm(x, mean, var, g, b)

    def relu(self, x: Any) -> Any:
        return x.relu()

    def clip6(self, x: Any) -> Any:
        return x.clamp(0.0, 6.0)

    def sigmoid(self, x: Any) -> Any:
        return x.sigmoid()

    def gelu(self, x: Any, tanh: bool = False) -> Any:
        import torch

        return torch.nn.functional.gelu(x, approximate="tanh" if tanh else "none")

    def max_pool(self, x: Any, size: int, stride: int, pad: int) -> Any:
        import torch

        return torch.nn.functional.max_pool2d(x, size, stride, pad)

    def mean_pool(self, x: Any) -> Any:
        return x.mean((2, 3), keepdim=True)

    def add(self, x: Any, y: Any) -> Any:
        return x + y

    def scale(self, x: Any, by: float) -> Any:
        return x * by

    def matmul(self, x: Any, y: Any) -> Any:
        return x @ y

    def softmax(self, x: Any) -> Any:
        return x.softmax(-1)

    def layer_norm(self, x: Any, g: Any, b: Any) -> Any:
        import torch

        return torch.nn.functional.layer_norm(x, g.shape, g, b, 1e-5)

    def reshape(self, x: Any, shape: Sequence[int]) -> Any:
        return x.reshape(tuple(shape))

    def transpose(self, x: Any, order: Sequence[int]) -> Any:
        return x.permute(tuple(order))

    def concat(self, parts: Sequence[Any], axis: int) -> Any:
        import torch

        return torch.cat(list(parts), axis)

    def part(self, x: Any, axis: int, start: int, stop: int) -> Any:
        return x.narrow(axis, start, stop - start)

    def take(self, table: Any, ids: Any) -> Any:
        return table[ids]


class JaxOps:
    """`Ops` on JAX arrays."""

    def __init__(self) -> None:
        self.held: dict[str, Any] = {}

    def weight(self, name: str, shape: Sequence[int], kind: str = "normal") -> Any:
        if name not in self.held:
            self.held[name] = weight(name, shape, kind)
        return self.held[name]

    def constant(self, array: Array) -> Any:
        return array

    def conv(self, x: Any, w: Any, stride: int, pad: int, groups: int = 1) -> Any:
        from jax import lax

        pads = ((pad, pad), (pad, pad))
        return lax.conv_general_dilated(
            x, w, (stride, stride), pads, feature_group_count=groups
        )

    def batch_norm(self, x: Any, g: Any, b: Any, mean: Any, var: Any) -> Any:
        from jax import lax

        by = g * lax.rsqrt(var + 1e-5)
        return x * by[:, None, None] + (b - mean * by)[:, None, None]

    def relu(self, x: Any) -> Any:
        import jax

        return jax.nn.relu(x)

    def clip6(self, x: Any) -> Any:
        import jax.numpy as jnp

        return jnp.clip(x, 0.0, 6.0)

    def sigmoid(self, x: Any) -> Any:
        import jax

        return jax.nn.sigmoid(x)

    def gelu(self, x: Any, tanh: bool = False) -> Any:
        import jax

        return jax.nn.gelu(x, approximate=tanh)

    def max_pool(self, x: Any, size: int, stride: int, pad: int) -> Any:
        import jax.numpy as jnp
        from jax import lax

        pads = ((0, 0), (0, 0), (pad, pad), (pad, pad))
        return lax.reduce_window(
            x, -jnp.inf, lax.max, (1, 1, size, size), (1, 1, stride, stride), pads
        )

    def mean_pool(self, x: Any) -> Any:
        return x.mean((2, 3), keepdims=True)

    def add(self, x: Any, y: Any) -> Any:
        return x + y

    def scale(self, x: Any, by: float) -> Any:
        return x * by

    def matmul(self, x: Any, y: Any) -> Any:
        return x @ y

    def softmax(self, x: Any) -> Any:
        import jax

        return jax.nn.softmax(x, axis=-1)

    def layer_norm(self, x: Any, g: Any, b: Any) -> Any:
        import jax.numpy as jnp
        from jax import lax

        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.mean(centred * centred, -1, keepdims=True)
        return centred * lax.rsqrt(variance + 1e-5) * g + b

    def reshape(self, x: Any, shape: Sequence[int]) -> Any:
        return x.reshape(tuple(shape))

    def transpose(self, x: Any, order: Sequence[int]) -> Any:
        return x.transpose(tuple(order))

    def concat(self, parts: Sequence[Any], axis: int) -> Any:
        import jax.numpy as jnp

        return jnp.concatenate(list(parts), axis)

    def part(self, x: Any, axis: int, start: int, stop: int) -> Any:
        from jax import lax

        return lax.slice_in_dim(x, start, stop, axis=axis)

    def take(self, table: Any, ids: Any) -> Any:
        return table[ids]
