"""Checks that PyTorch makes beside a result: whether a factorization succeeded.

In: a functional graph, in which a check is an effect that passes a token on. Out: the graph without
it, returning what is to be checked as further results; after each run these are looked at, and
where one is not zero PyTorch's own check raises its error.
"""

from __future__ import annotations

import ctypes
import operator
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Check", "take_checks"]

_EFFECT = "with_effects"


@dataclass(frozen=True)
class Check:
    """`name` is the operator that the error names."""

    name: str
    is_matrix: bool

    def __call__(self, info: Any) -> None:
        """Errors: torch.linalg.LinAlgError, as eager execution raises it."""
        held = info.contiguous()
        if ctypes.string_at(held.data_ptr(), held.numel() * held.element_size()).strip(b"\0"):
            torch.ops.aten._linalg_check_errors(info, self.name, is_matrix=self.is_matrix)


def take_checks(graph: Any) -> list[Check]:
    """Take the checks out of a graph and append what they look at to its results."""
    checks: list[Check] = []
    infos: list[Any] = []
    tokens: set[Any] = set()
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is torch.ops.aten.cholesky.default:
            infos.append(_with_info(graph, node))
            checks.append(Check("cholesky", node.args[0].meta["val"].dim() == 2))
            graph.erase_node(node)
        elif _is_check(node):
            token, _, info, name = node.args
            tokens.add(token)
            for user in list(node.users):
                if user.target is operator.getitem and user.args[1] == 0:
                    user.replace_all_uses_with(token)
                graph.erase_node(user)
            graph.erase_node(node)
            infos.append(info)
            checks.append(Check(name, bool(node.kwargs.get("is_matrix", True))))
    if checks:
        end = next(n for n in graph.nodes if n.op == "output")
        results = (None if r in tokens else r for r in end.args[0])  # a token carries nothing
        end.args = ((*results, *infos),)
    return checks


def _is_check(node: Any) -> bool:
    return (
        getattr(node.target, "__name__", "") == _EFFECT
        and node.args[1] is torch.ops.aten._linalg_check_errors.default
        and all(u.target is operator.getitem for u in node.users)
        and all(u.args[1] == 0 or not u.users for u in node.users)
    )


def _with_info(graph: Any, node: Any) -> Any:
    """`cholesky`, which checks by itself, as `linalg_cholesky_ex`; returns the node of `info`."""
    op = torch.ops.aten.linalg_cholesky_ex.default
    given = node.args[0].meta["val"]
    upper = node.args[1] if len(node.args) > 1 else node.kwargs.get("upper", False)
    with graph.inserting_after(node):
        both = graph.call_function(op, (node.args[0],), {"upper": upper})
    both.meta["val"] = op(given, upper=upper)
    with graph.inserting_after(both):
        info = graph.call_function(operator.getitem, (both, 1))
    with graph.inserting_after(both):
        factor = graph.call_function(operator.getitem, (both, 0))
    factor.meta["val"], info.meta["val"] = both.meta["val"]
    node.replace_all_uses_with(factor)
    return info
