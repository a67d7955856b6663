"""A bound on the norm of every gradient, from what the products that give them are made of.

A gradient that holds a number which is none must be seen before the update, and reading all gradients once more costs a compiled step of
few rows a tenth of its time. That of a weight is a product of two factors, activations and what comes back, (B, m) and (B, n), which are
far smaller than the (m, n) of the weight where rows B are few, and have just been computed. By Cauchy and Schwarz no entry of the product,
nor any sum on the way to it, exceeds the product of the factors' norms: where that is a finite number, so is every entry.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import fx

aten = torch.ops.aten
# Beyond it nothing is proved. Its square is a number in float32, so that below it the norm can be computed too, by whatever sum of squares.
LARGEST = 1e19
# What changes no entry, only where it lies or how wide it is.
SAME_ENTRIES = {
    aten.t.default,
    aten.transpose.int,
    aten.permute.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.clone.default,
    aten.detach.default,
    aten._to_copy.default,
}


def return_bound(module: fx.GraphModule, first: int) -> None:
    """Have a graph return, in front of its outputs from the ``first``-th on, which are gradients, a bound on the norm of all of them.

    The bound, 0-d, is no smaller than that norm but for rounding. Where it is a number below ``LARGEST`` every entry is finite. A finite
    gradient may have a larger one, and is then to be looked at itself.

    Args:
        module: As ``make_fx`` traces it: nodes know their shapes.
        first: Number of the first gradient among the outputs.
    """
    graph = module.graph
    output = next(node for node in graph.nodes if node.op == "output")
    values: list[fx.Node] = list(output.args[0])
    with graph.inserting_before(output):
        norms: dict[fx.Node, fx.Node] = {}
        bounds = [_bound(graph, gradient, norms) for gradient in sorted(values[first:], key=_is_sum)]
        values.insert(first, functools.reduce(lambda a, b: graph.call_function(aten.add.Tensor, (a, b)), bounds))
    output.args = (values,)
    module.recompile()


def _bound(graph: fx.Graph, gradient: fx.Node, norms: dict[fx.Node, fx.Node]) -> fx.Node:
    """Of one gradient; ``norms`` holds those of the factors seen so far."""
    origin = _origin(gradient)
    if origin.target is aten.mm.default:
        factors = [_origin(factor) for factor in origin.args]  # type: ignore[arg-type]
        if all(map(_size, factors)) and sum(map(_size, factors)) < _size(origin):
            for factor in factors:
                norms[factor] = norms.get(factor) or _norm(graph, factor)
            return graph.call_function(aten.mul.Tensor, tuple(norms[factor] for factor in factors))
    if _is_sum(gradient):  # of a bias: n summands of one row or another are no longer than sqrt(n) times all of them
        summed = _origin(origin.args[0])  # type: ignore[arg-type]
        if summed in norms:
            return graph.call_function(aten.mul.Scalar, (norms[summed], math.sqrt(_size(summed) / _size(origin))))
    return _norm(graph, gradient)


def _is_sum(gradient: fx.Node) -> bool:
    return _origin(gradient).target is aten.sum.dim_IntList


def _origin(node: fx.Node) -> fx.Node:
    """The node whose entries these are."""
    while node.target in SAME_ENTRIES and 0 < _size(node) == _size(node.args[0]):  # type: ignore[arg-type]
        node = node.args[0]  # type: ignore[assignment]
    return node


def _size(node: fx.Node) -> int:
    """How many entries it has; 0 where nothing is known of it: of a tensor that the graph closes over."""
    return math.prod(node.meta["val"].shape) if "val" in node.meta else 0


def _norm(graph: fx.Graph, node: fx.Node) -> fx.Node:
    known = node.meta.get("val")
    if known is not None and known.dtype in (torch.bfloat16, torch.float16):
        node = graph.call_function(aten._to_copy.default, (node,), {"dtype": torch.float32})
    squares = graph.call_function(aten.mul.Tensor, (node, node))
    if known is not None and known.dim() > 1:  # row by row first, as the loops go that make them: a third less time
        squares = graph.call_function(aten.sum.dim_IntList, (squares, [-1]))
    return graph.call_function(aten.sqrt.default, (graph.call_function(aten.sum.default, (squares,)),))
