"""Spatial unwrapping of one volume: the whole turns that make it continuous along its most reliable edges.

An edge joins two face neighbours of the mask. Region growing that always takes the most reliable edge builds
a minimum spanning tree of what can go wrong; with reliability in classes, every order within a class gives a
valid one. The best class holds nearly all edges of a head, so they are taken at once, as connected
components: first those without a wrap, which needs no tree at all. What is left, edges across wraps and in
noise, is grown edge by edge on a graph whose nodes are the components. That is several times faster than a
tree over all voxels. If an edge of the best class then turns out not to be continuous, the class was too
large and a smaller one is tried: a class without contradictions has only one solution, the one that the whole
tree would have found.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from chimap.arrays import Echoes, Mask, Triple, Volume
from chimap.physics.phase import TURN, wrap

UNSURE = (0.02, 0.1, 0.3)
"""Share of the edges that are told apart by reliability, while the others are one class; tried in turn."""
MODEL_ERROR = 0.05
"""Phase [rad] by which an edge may be off even without noise; it only orders edges of high SNR."""


@dataclass(frozen=True)
class Edges:
    """Face neighbours inside a mask, as positions among the mask's voxels.

    Attributes:
        first: int32, shape (edge,).
        second: The neighbour one step on along x, y or z.
    """

    first: np.ndarray
    second: np.ndarray


def phase_deviation(phase: Echoes, magnitude: Echoes | None, mask: Mask) -> Echoes:
    """Standard deviation of the phase noise [rad], up to a factor near 1, same shape; infinite outside the
    mask.

    With a magnitude it is noise / magnitude, the noise taken from the first echo's second differences, whose
    median a field hardly touches. Without one it is the second differences themselves, averaged over 3 x 3 x
    3 voxels.
    """
    from chimap.fields.quality import NOISE, phase_quality

    if magnitude is None:
        # |second difference| of noise with deviation s is sqrt(6) s sqrt(2 / pi) on average
        found = [(1 - phase_quality(echo[None])) * NOISE / math.sqrt(12 / math.pi) for echo in phase]
        deviation = torch.stack(found).clamp_min(MODEL_ERROR)
    else:
        deviation = 1 / magnitude.clamp_min(1e-6 * float(magnitude.max()))
        deviation *= _noise(phase[0], deviation[0], mask)
    return deviation.masked_fill(~mask, torch.inf)


def _noise(phase: Volume, inverse: Volume, mask: Mask) -> float:
    """Noise of real and imaginary part, in units of the magnitude, whose inverse is given."""
    found = []
    for axis in range(3):
        n = phase.shape[axis] - 2
        if n < 1:
            continue
        thin = tuple(slice(None) if other == axis else slice(None, None, 2) for other in range(3))
        masks, phases, inverses = mask[thin], phase[thin], inverse[thin]
        inside = masks.narrow(axis, 0, n) & masks.narrow(axis, 1, n) & masks.narrow(axis, 2, n)
        before, middle, after = (phases.narrow(axis, i, n)[inside] for i in range(3))
        if len(middle) > 0:
            weight = math.sqrt(6) * inverses.narrow(axis, 1, n)[inside]
            found.append(float((wrap(before + after - 2 * middle).abs() / weight).median()) / 0.6745)
    return max(min(found, default=0.0), 1e-6 / float(inverse.max()))


def unwrap_volume(phase: Volume, deviation: Volume, mask: Mask, voxel_size: Triple) -> Volume:
    """Unwrap one volume in space.

    The reliability of an edge is how many standard deviations of its noise it is away from half a turn, where
    the number of turns across it would change. Parts of the mask that do not touch are put at the turn at
    which they are closest to the largest part where they are nearest to it; the largest has its median within
    half a turn of 0.

    Args:
        phase: Wrapped [rad], shape (x, y, z).
        deviation: Of its noise [rad], as from `phase_deviation`.
        mask: Where to unwrap.
        voxel_size: [mm].

    Returns:
        [rad], whole turns away from `phase` in the mask, zero outside.

    References:
        Region growing ordered by edges: Dymerska et al. 2021, doi:10.1002/mrm.28563; by voxels: Abdul-Rahman
        et al. 2007, doi:10.1364/AO.46.006623. Kruskal 1956, doi:10.1090/S0002-9939-1956-0078686-7.
    """
    edges = face_edges(mask)
    inside = phase[mask]
    first, second = torch.from_numpy(edges.first), torch.from_numpy(edges.second)
    variance = deviation[mask].cpu().square()
    here = inside.cpu()
    difference = here[second] - here[first]
    jumps = -torch.round(difference / TURN)
    spread = (variance[first] + variance[second]).sqrt_().add_(MODEL_ERROR)
    safety = difference.add_(jumps, alpha=TURN).abs_().neg_().add_(math.pi).div_(spread)
    turns, part = turns_of(edges, jumps.to(torch.int8).numpy(), safety.numpy(), len(here))
    unwrapped = here + TURN * torch.from_numpy(turns)
    unwrapped += TURN * torch.from_numpy(_turns_of_parts(unwrapped.numpy(), part, edges, mask, voxel_size))
    result = torch.zeros_like(phase)
    result[mask] = unwrapped.to(phase.device)
    return result


def _turns_of_parts(phase: np.ndarray, part: np.ndarray, edges: Edges, mask: Mask, voxel_size: Triple) -> np.ndarray:
    """Turns that bring every part of the mask to the level of the largest, and that one near 0."""
    sizes = np.bincount(part)
    main = int(sizes.argmax())
    inside = part == main
    turns = np.zeros(len(sizes), dtype=np.float32)
    turns[main] = -np.round(np.median(phase[inside]) / TURN)
    if len(sizes) > 1:
        from scipy.spatial import KDTree

        faces = np.bincount(edges.first, minlength=len(part)) + np.bincount(edges.second, minlength=len(part))
        rim = faces < 6
        places = np.multiply(np.argwhere(mask.numpy(force=True)), voxel_size)
        islands = np.flatnonzero(rim & ~inside)
        shore = np.flatnonzero(rim & inside)
        found = KDTree(places[shore]).query(places[islands])
        distance, nearest = np.asarray(found[0]), np.asarray(found[1])
        label = part[islands]
        least = np.full(len(sizes), np.inf)
        np.minimum.at(least, label, distance)
        near = distance <= least[label] + 2 * max(voxel_size)
        label = label[near]
        apart = (phase[shore[nearest[near]]] - phase[islands[near]]) / TURN
        others = np.arange(len(sizes)) != main
        mean = np.bincount(label, apart, len(sizes)) / np.maximum(np.bincount(label, minlength=len(sizes)), 1)
        turns[others] = np.round(mean[others]) + turns[main]
    return turns[part]


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


def turns_of(edges: Edges, jumps: np.ndarray, safety: np.ndarray, voxels: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole turns to add to every voxel, so that the safest edges become continuous.

    Args:
        edges: Of the mask.
        jumps: Whole turns that the second voxel of each edge needs more than the first, if the edge is right.
        safety: How far each edge is from being wrong; larger is better.
        voxels: Number of voxels in the mask.

    Returns:
        Turns (one per voxel, zero at one voxel of each connected part of the mask) and the number of its
        part.
    """
    if len(safety) == 0:
        return np.zeros(voxels, dtype=np.int32), np.arange(voxels, dtype=np.int32)
    sample = safety[:: max(len(safety) // 100_000, 1)]
    for share in UNSURE:
        good = safety >= np.quantile(sample, share)
        turns, part = _turns_with_class(edges, jumps, safety, good, voxels)
        if (turns[edges.second[good]] - turns[edges.first[good]] == jumps[good]).all():
            return turns, part
    return _turns_with_class(edges, jumps, safety, np.zeros(len(safety), dtype=bool), voxels)


def _turns_with_class(
    edges: Edges, jumps: np.ndarray, safety: np.ndarray, good: np.ndarray, voxels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Turns and parts where the `good` edges are all equally safe."""
    smooth = good & (jumps == 0)
    region, count = _components(edges.first[smooth], edges.second[smooth], voxels)
    first, second = region[edges.first], region[edges.second]
    between = np.flatnonzero(first != second)
    first, second = first[between], second[between]
    jump = jumps[between].astype(np.int32)
    # a sparse matrix drops edges that cost nothing
    cost = np.where(good[between], 1, 2 + safety.max() - safety[between])
    backwards = first > second
    first, second = np.where(backwards, second, first), np.where(backwards, first, second)
    jump[backwards] *= -1
    safest = np.lexsort((cost, second, first))
    first, second, jump, cost = first[safest], second[safest], jump[safest], cost[safest]
    fresh = np.ones(len(first), dtype=bool)  # one edge for each pair of regions
    fresh[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    turns, part = _turns_of_regions(first[fresh], second[fresh], jump[fresh], cost[fresh], count)
    return turns[region], part[region]


def _turns_of_regions(
    first: np.ndarray, second: np.ndarray, jump: np.ndarray, cost: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Turns and parts by the minimum spanning forest of a graph; edges sorted by first, then second."""
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
            return turns[:count], part
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
