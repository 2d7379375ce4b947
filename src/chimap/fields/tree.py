"""Whole turns that make one wrapped volume continuous, found along its most reliable edges.

An edge joins two face neighbours of the mask. Region growing that always takes the most reliable edge builds a
maximum spanning tree; with reliability in classes, every order within a class gives a valid one. The best class
holds nearly all edges of a head, so its edges are taken at once, as connected components: first those without a
wrap, which needs no tree at all, then the few that cross a wrap. Only what is left, mostly noise, is grown edge
by edge, on a graph whose nodes are the components.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chimap.arrays import Mask, Volume

TURN = 2 * math.pi


@dataclass(frozen=True)
class Edges:
    """Face neighbours inside a mask, as positions among the mask's voxels.

    Attributes:
        first: int32, shape (edge,).
        second: The neighbour one step on along x, y or z.
    """

    first: np.ndarray
    second: np.ndarray


def face_edges(mask: Mask) -> Edges:
    """All pairs of face neighbours in a mask (x, y, z)."""
    inside = mask.numpy(force=True)
    number = np.zeros(inside.shape, dtype=np.int32)
    number[inside] = np.arange(np.count_nonzero(inside), dtype=np.int32)
    first, second = [], []
    for axis in range(3):
        here = tuple(slice(None, -1) if other == axis else slice(None) for other in range(3))
        there = tuple(slice(1, None) if other == axis else slice(None) for other in range(3))
        both = inside[here] & inside[there]
        first.append(number[here][both])
        second.append(number[there][both])
    return Edges(np.concatenate(first), np.concatenate(second))


def wrap(phase: Tensor) -> Tensor:
    """Phase [rad] brought to -pi..pi by whole turns."""
    return phase - TURN * torch.round(phase / TURN)


def turns_of(edges: Edges, jumps: np.ndarray, safety: np.ndarray, voxels: int, *, sure: float) -> np.ndarray:
    """Whole turns to add to every voxel, so that the safest edges become continuous.

    Args:
        edges: Of the mask.
        jumps: Whole turns that the second voxel of each edge needs more than the first, if the edge is right.
        safety: How far each edge is from being wrong; larger is better.
        voxels: Number of voxels in the mask.
        sure: Edges at least that safe are one class.

    Returns:
        int32, one per voxel; zero at one voxel of each connected part.
    """
    good = (safety >= sure) & (jumps == 0)
    region, count = _components(edges.first[good], edges.second[good], voxels)
    first, second = region[edges.first], region[edges.second]
    between = np.flatnonzero(first != second)
    first, second = first[between], second[between]
    jump = jumps[between].astype(np.int32)
    cost = 1 + np.clip(sure - safety[between], 0, None)  # a sparse matrix drops edges that cost nothing
    backwards = first > second
    first, second = np.where(backwards, second, first), np.where(backwards, first, second)
    jump[backwards] *= -1
    safest = np.lexsort((cost, second, first))
    first, second, jump, cost = first[safest], second[safest], jump[safest], cost[safest]
    fresh = np.ones(len(first), dtype=bool)  # one edge for each pair of regions
    fresh[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return _turns_of_regions(first[fresh], second[fresh], jump[fresh], cost[fresh], count)[region]


def _turns_of_regions(
    first: np.ndarray, second: np.ndarray, jump: np.ndarray, cost: np.ndarray, count: int
) -> np.ndarray:
    """Turns along the minimum spanning forest of a graph, whose edges are sorted by first, then second."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

    tree = minimum_spanning_tree(coo_array((cost, (first, second)), shape=(count, count)).tocsr()).tocoo()
    taken = np.searchsorted(_key(first, second, count), _key(tree.row, tree.col, count))
    first, second, jump = tree.row, tree.col, jump[taken]
    # one more node, tied to one region of each part, makes the forest a tree
    part, parts = _components(first, second, count)
    anchors = np.zeros(parts, dtype=np.int32)
    anchors[part[::-1]] = np.arange(count - 1, -1, -1, dtype=np.int32)
    rows = np.concatenate([first, np.full(parts, count, dtype=np.int32)])
    columns = np.concatenate([second, anchors])
    whole = coo_array((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=(count + 1, count + 1))
    _, parent = breadth_first_order(whole.tocsr(), count, directed=False)
    parent[count] = count
    # an edge is the step into its child
    turns = np.zeros(count + 1, dtype=np.int32)
    down = parent[second] == first
    turns[second[down]] = jump[down]
    turns[first[~down]] = -jump[~down]
    while True:  # a node's sum up to its parent, its parent's parent, four above, eight above, ...
        turns += np.where(parent == count, 0, turns[parent])
        if (parent == count).all():
            return turns[:count]
        parent = parent[parent]


def _key(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    return first.astype(np.int64) * count + second


def _components(first: np.ndarray, second: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Number of the connected component of each node, and how many there are."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(first), dtype=np.float32), (first, second)), shape=(count, count)).tocsr()
    found, label = connected_components(graph, directed=False)
    return label, found
