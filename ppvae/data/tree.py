"""Data may be one array, or a tuple or dict of arrays: the few functions that treat all three alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Leaf = Tensor | np.ndarray[Any, Any]
Tree = Any  # a leaf, or a tuple or dict of trees


def is_leaf(tree: Tree) -> bool:
    """Whether the tree is one value rather than a tuple or dict of them."""
    return not isinstance(tree, tuple | dict)


def map_leaves(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """The same structure with ``function`` of each leaf. A named tuple keeps its type."""
    if isinstance(tree, dict):
        return {key: map_leaves(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        values = [map_leaves(function, value) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    return function(tree)


def named_leaves(tree: Tree, name: str = "") -> list[tuple[str, Any]]:
    """The leaves in order, each with where it sits: ``""`` for a lone array, ``[0]`` or ``['tokens']`` inside others."""
    if isinstance(tree, dict):
        return [found for key, value in tree.items() for found in named_leaves(value, f"{name}[{key!r}]")]
    if isinstance(tree, tuple):
        return [found for i, value in enumerate(tree) for found in named_leaves(value, f"{name}[{i}]")]
    return [(name, tree)]


def cat(trees: list[Tree]) -> Tree:
    """Join trees of tensors of one structure along their rows."""
    if len(trees) == 1:
        return trees[0]
    first = trees[0]
    if isinstance(first, dict):
        return {key: cat([tree[key] for tree in trees]) for key in first}
    if isinstance(first, tuple):
        values = [cat([tree[i] for tree in trees]) for i in range(len(first))]
        return type(first)(*values) if hasattr(first, "_fields") else tuple(values)
    return torch.cat(trees)
