"""A random ONNX model in the making, and how one is drawn.

In: a number. Out: a `Model`: bytes that `onnx.checker` and strict shape inference accept, with
values for its inputs. Invariants: the same number gives the same model; a node is added only where
its operator's shape rule gives full shapes, or else as an output that nothing reads.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["Graph", "Model", "Spec", "Tensor", "draw_model", "schema_of"]

Array = np.ndarray[Any, np.dtype[Any]]
F16, F32, F64 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)
I32, I64, U8, I8 = (np.dtype(t) for t in (np.int32, np.int64, np.uint8, np.int8))
BOOL = np.dtype(np.bool_)
MOST = 2048  # elements of a tensor
_SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 31, 33)
# Opsets in which operators have the forms that the specifications write.
OPSETS = (21, 21, 22, 22, 23, 23, 24, 24, 26, 28)
OLD_OPSET = 9
_TURN = 3  # operators of a model that are not left to chance


_REFUSALS = (
    onnx.shape_inference.InferenceError,
    onnx.defs.SchemaError,
    onnx.checker.ValidationError,
    RuntimeError,
)


class Refused(Exception):
    """The shape rule of the operator does not take the node."""


@dataclass(frozen=True)
class Tensor:
    """A value of the graph with its type."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @cached_property
    def size(self) -> int:
        return prod(self.shape)

    @cached_property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class Model:
    """An ONNX file and values of its inputs. `rows`: operators that it holds."""

    data: bytes
    inputs: dict[str, Array]
    nodes: int
    rows: frozenset[str] = frozenset()


Spec = Callable[["Graph"], None]


@lru_cache(maxsize=4096)
def schema_of(op: str, opset: int) -> Any:
    """The operator's definition at an opset. Errors: onnx.defs.SchemaError."""
    return onnx.defs.get_schema(op, opset, "")


@lru_cache(maxsize=256)
def _element(dtype: np.dtype[Any]) -> int:
    return int(helper.np_dtype_to_tensor_dtype(dtype))


@lru_cache(maxsize=4096)
def _type(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    return helper.make_tensor_type_proto(_element(dtype), list(shape))


@dataclass
class Graph:
    """Nodes so far, and what may be read."""

    rng: random.Random
    opset: int
    float_type: np.dtype[Any] = F32
    sizes: tuple[int, ...] = _SIZES
    nodes: list[Any] = field(default_factory=list)
    inputs: dict[str, Array] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    outputs: dict[str, Tensor | None] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    told: dict[str, Any] = field(default_factory=dict)  # types that no rule gives
    number: int = 0

    def __post_init__(self) -> None:
        self.values = np.random.default_rng(self.rng.randrange(1 << 62))

    # ---- choices ----

    def fresh(self, letter: str) -> str:
        self.number += 1
        return f"{letter}{self.number}"

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def real(self) -> float:
        """A number from a bin of magnitudes."""
        low, high = self.rng.choice(((0.0, 0.0), (1e-3, 0.05), (0.05, 0.5), (0.5, 1.0), (1.0, 3.0)))
        return round(self.rng.uniform(low, high), 4)

    def size(self, most: int = 33) -> int:
        return self.rng.choice([n for n in self.sizes if n <= most] or [1])

    def shape(self, rank: int, most: int = MOST) -> tuple[int, ...]:
        out = []
        for _ in range(rank):
            out.append(self.size(max(1, most)))
            most //= out[-1]
        self.rng.shuffle(out)
        return tuple(out)

    def axis(self, t: Tensor) -> int:
        """An axis, counted from either end."""
        k = self.rng.randrange(t.rank)
        return k - t.rank if self.chance(0.3) else k

    # ---- operands ----

    def draw_array(self, dtype: np.dtype[Any], shape: Sequence[int]) -> Array:
        if dtype.kind == "f":
            return np.asarray(self.values.standard_normal(tuple(shape))).astype(dtype)
        if dtype.kind == "b":
            return np.asarray(self.values.random(tuple(shape)) < 0.5)
        low = 0 if dtype.kind == "u" else -9
        return self.values.integers(low, 10, tuple(shape)).astype(dtype)

    def put(self, array: Array, constant: float = 0.5) -> Tensor:
        """An array as a constant, with this probability, or as an input."""
        array = np.asarray(array)
        name = self.fresh("c" if self.chance(constant) else "x")
        (self.constants if name[0] == "c" else self.inputs)[name] = array
        t = Tensor(name, array.dtype, array.shape)
        if name[0] == "x":
            self.tensors.append(t)
        return t

    def const(self, array: Any, dtype: np.dtype[Any] = I64) -> Tensor:
        """What a shape rule has to know."""
        return self.put(np.asarray(array, dtype), 1.0)

    def new(self, dtype: np.dtype[Any], shape: Sequence[int], constant: float = 0.3) -> Tensor:
        return self.put(self.draw_array(dtype, shape), constant)

    def like(self, dtype: np.dtype[Any], shape: Sequence[int]) -> Tensor:
        """A tensor of exactly this type."""
        fits = [t for t in self.tensors if t.dtype == dtype and t.shape == tuple(shape)]
        if fits and self.chance(0.6):
            return self.rng.choice(fits)
        return self.new(dtype, shape)

    def any(self, kinds: str = "f", low: int = 0, high: int = 5, most: int = MOST) -> Tensor:
        """A tensor of `low` to `high` axes, recent and unread ones preferred, or a new input."""
        fits = [
            t
            for t in self.tensors
            if t.dtype.kind in kinds and low <= t.rank <= high and t.size <= most
            and (t.dtype.kind != "f" or t.dtype == self.float_type)
        ]  # fmt: skip
        if fits and self.chance(0.85):
            weights = [k + 1 + 6 * (t.name not in self.read) for k, t in enumerate(fits)]
            return self.rng.choices(fits, weights)[0]
        kind = self.rng.choice(kinds)
        dtype = {"f": self.float_type, "b": BOOL, "u": U8}.get(kind) or self.rng.choice((I64, I32))
        rank = self.rng.choice([r for r in (0, 1, 2, 2, 3, 3, 4) if low <= r <= high] or [low])
        return self.new(dtype, self.shape(rank, most), 0.0)

    def fitting(self, t: Tensor) -> Tensor:
        """A tensor that broadcasts with `t`."""
        fits = [
            o
            for o in self.tensors
            if o.dtype == t.dtype and _broadcast(o.shape, t.shape) is not None
        ]
        if fits and self.chance(0.6):
            return self.rng.choice(fits)
        shape = [1 if self.chance(0.25) else n for n in t.shape]
        return self.new(
            t.dtype, shape[self.rng.randint(0, len(shape)) if self.chance(0.3) else 0 :]
        )

    # ---- nodes ----

    def add(
        self,
        op: str,
        inputs: Sequence[Tensor | None],
        outputs: int = 1,
        /,
        **attributes: Any,
    ) -> list[Tensor | None]:
        """Add a node; its outputs, None where the shape is not known. Errors: Refused."""
        names = ["" if t is None else t.name for t in inputs]
        made = [self.fresh("t") for _ in range(outputs)]
        node = helper.make_node(op, names, made, **attributes)
        return self.attach(node, [t for t in inputs if t is not None])

    def attach(
        self, node: Any, inputs: Sequence[Tensor], like: Sequence[Tensor | None] = ()
    ) -> list[Tensor | None]:
        """Add a node that is made already. like: tensors of the types of its outputs, where the
        operator's rule says nothing. Errors: Refused.
        """
        made = list(node.output)
        data = {
            t.name: numpy_helper.from_array(self.constants[t.name])
            for t in inputs
            if t.name in self.constants and t.size <= 64
        }
        try:
            types = onnx.shape_inference.infer_node_outputs(
                schema_of(node.op_type, self.opset),
                node,
                {t.name: _type(t.dtype, t.shape) for t in inputs},
                data,
                opset_imports=[helper.make_opsetid("", self.opset)],
                ir_version=10,
            )
        except _REFUSALS as e:
            raise Refused(str(e)) from None
        found = [self._tensor(n, types.get(n)) for n in made]
        for k, t in enumerate(like):
            if t is not None and found[k] is None:
                found[k] = Tensor(made[k], t.dtype, t.shape)
                self.told[made[k]] = found[k]
        for name, t in zip(made, found, strict=True):
            proto = types.get(name)
            if t is None and (proto is None or not proto.tensor_type.HasField("shape")):
                raise Refused("no shape")
        if any(t is not None and (t.size > 4 * MOST or t.rank > 6) for t in found):
            raise Refused("too large")
        self.nodes.append(node)
        self.read |= {t.name for t in inputs}
        for name, t in zip(made, found, strict=True):
            self.outputs[name] = t
            if t is not None:
                self.tensors.append(t)
        return found

    def _tensor(self, name: str, proto: Any) -> Tensor | None:
        if proto is None or not proto.tensor_type.HasField("shape"):
            return None
        dims = proto.tensor_type.shape.dim
        if not all(d.HasField("dim_value") for d in dims):
            return None
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(proto.tensor_type.elem_type))
        return Tensor(name, dtype, tuple(d.dim_value for d in dims))

    def one(self, op: str, inputs: Sequence[Tensor | None], /, **attributes: Any) -> Tensor:
        """`add` of one output whose shape is known. Errors: Refused."""
        (t,) = self.add(op, inputs, **attributes)
        if t is None:
            raise Refused("no shape")
        return t

    # ---- the whole ----

    def model(self) -> Model:
        """What was made so far; values that nothing reads are the outputs."""
        results = [n for n in self.outputs if n not in self.read]
        results += [n for n in self.outputs if n in self.read and self.chance(0.1)]
        used = {n for node in self.nodes for n in node.input} | _inner_names(self.nodes)
        inputs = {n: a for n, a in self.inputs.items() if n in used}
        infos = [
            helper.make_tensor_value_info(n, _element(a.dtype), list(a.shape))
            for n, a in inputs.items()
        ]
        constants = [numpy_helper.from_array(a, n) for n, a in self.constants.items() if n in used]
        shown = [
            helper.make_empty_tensor_value_info(n)
            if t is None
            else helper.make_tensor_value_info(n, _element(t.dtype), list(t.shape))
            for n in results
            for t in [self.outputs[n]]
        ]
        made = {n for node in self.nodes for n in node.output} - set(results)
        told = [
            helper.make_tensor_value_info(n, _element(t.dtype), list(t.shape))
            for n, t in self.told.items()
            if n in made
        ]
        graph = helper.make_graph(self.nodes, "g", infos, shown, constants, value_info=told)
        whole = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=3 if self.opset == OLD_OPSET else 10,
        )  # fmt: skip
        if self.opset == OLD_OPSET:  # constants are inputs, too, in files of that age
            for n, a in self.constants.items():
                if n in used:
                    whole.graph.input.append(
                        helper.make_tensor_value_info(n, _element(a.dtype), list(a.shape))
                    )
        whole = onnx.shape_inference.infer_shapes(whole, strict_mode=True)
        rows = frozenset(node.op_type for node in self.nodes)
        return Model(whole.SerializeToString(), inputs, len(self.nodes), rows)


def _inner_names(nodes: Sequence[Any]) -> set[str]:
    """Names that blocks of nodes read."""
    return {
        n for node in nodes for a in node.attribute if a.HasField("g")
        for inner in a.g.node for n in inner.input
    }  # fmt: skip


def _broadcast(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...] | None:
    try:
        return tuple(np.broadcast_shapes(tuple(a), tuple(b)))
    except ValueError:
        return None


@lru_cache(maxsize=8)
def _round_of(number: int) -> list[str]:
    """Every operator that has a specification, shuffled."""
    from tilewright.verify.models.rows import all_rows

    names = sorted(all_rows())
    random.Random(f"round {number}").shuffle(names)
    return names


def _turn(number: int) -> list[str]:
    """The operators whose turn it is: consecutive numbers walk through all of them, in rounds."""
    places = range(number * _TURN, (number + 1) * _TURN)
    length = len(_round_of(0))
    return [_round_of(k // length)[k % length] for k in places]


def draw_model(number: int, nodes: int | None = None) -> Model:
    """Model `number`: 1 to 50 nodes, log-uniform; one in a hundred has up to 300. The first nodes
    are those whose turn it is, so that no operator is left to chance.
    """
    from tilewright.verify.models.rows import specs

    rng = random.Random(f"model {number}")
    turn = _turn(number)
    opset = OLD_OPSET if rng.random() < 0.03 else rng.choice(OPSETS)
    if turn[0] not in specs(opset):
        opset = rng.choice([o for o in (OLD_OPSET, *OPSETS) if turn[0] in specs(o)])
    graph = Graph(rng, opset, rng.choice((F32, F32, F32, F32, F32, F64, F16)))
    graph.sizes = tuple(rng.sample(_SIZES, 4)) if rng.random() < 0.8 else _SIZES
    table = specs(opset)
    low, high = (50, 300) if rng.random() < 0.01 else (1, 50)
    wanted = nodes or round(low * (high / low) ** rng.random())
    names = list(table)
    turn = [n for n in turn if n in table]
    tries = 0
    while len(graph.nodes) < wanted or not graph.outputs:
        tries += 1
        if tries > 20 * wanted + 100:
            break
        if tries % 20 == 0:  # one that finds no operands here
            turn = turn[1:]
        held = len(graph.nodes), len(graph.tensors), dict(graph.outputs), set(graph.read)
        name = turn[0] if turn else rng.choice(names)
        try:
            table[name](graph)
            turn = turn[1:]
        except Refused:  # what was made on the way to the node goes again
            del graph.nodes[held[0] :]
            del graph.tensors[held[1] :]
            graph.outputs, graph.read = held[2], held[3]
    return graph.model()
