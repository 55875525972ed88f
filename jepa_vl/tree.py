"""Pytrees seen as flat dictionaries of slash-separated names."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import jax

from jepa_vl.shapes import PyTree


def _name(path: Iterable[Any]) -> str:
    return "/".join(jax.tree_util.keystr((key,), simple=True) for key in path)


def flatten(tree: PyTree) -> dict[str, Any]:
    """Returns ``{"encoder/block_0/attn/q/kernel": leaf, ...}`` in tree order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_name(path): leaf for path, leaf in leaves}


def map_named(function: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """Maps ``function(name, leaf, ...)`` over the leaves of equal trees; keeps the structure."""

    def named(path: tuple, *leaves: Any) -> Any:
        return function(_name(path), *leaves)

    return jax.tree_util.tree_map_with_path(named, tree, *rest)


def mask(tree: PyTree, pattern: str) -> PyTree:
    """Returns a tree of bools: does the leaf's name match the regular expression?"""
    compiled = re.compile(pattern)
    return map_named(lambda name, _: compiled.search(name) is not None, tree)


def diff(expected: PyTree, found: PyTree) -> list[str]:
    """Describes how two trees of arrays differ in names, shapes and dtypes; empty if they agree.

    One line a difference: ``missing``, ``unexpected``, ``misshapen`` or ``other dtype``.
    """
    left, right = flatten(expected), flatten(found)
    lines = [f"missing {name}" for name in left if name not in right]
    lines += [f"unexpected {name}" for name in right if name not in left]
    for name in left.keys() & right.keys():
        a, b = left[name], right[name]
        if tuple(a.shape) != tuple(b.shape):
            lines.append(f"misshapen {name}: expected {tuple(a.shape)}, found {tuple(b.shape)}")
        elif a.dtype != b.dtype:
            lines.append(f"other dtype {name}: expected {a.dtype}, found {b.dtype}")
    return sorted(lines)


def count(tree: PyTree) -> int:
    """Number of scalars in the tree."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))


def nbytes(tree: PyTree) -> int:
    """Bytes of the tree's arrays."""
    return sum(int(leaf.size) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
