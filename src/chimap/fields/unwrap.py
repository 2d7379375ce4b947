"""Phase unwrapping: from phase known up to whole turns to phase that is continuous in space and echo time.

Both methods share one signature: (phase, magnitude, mask, echo times, voxel size) -> unwrapped phase.
"""

import math

import numpy as np
import torch
from scipy import fft
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree

from chimap.arrays import Echoes, Mask, Triple
from chimap.linalg import bounding_box

TURN = 2 * math.pi


def wrap(phase: torch.Tensor) -> torch.Tensor:
    """Phase [rad] in -pi .. pi."""
    return phase - TURN * torch.round(phase / TURN)


def unwrap_quality_guided(
    phase: Echoes,
    magnitude: Echoes | None,
    mask: Mask,
    echo_times: tuple[float, ...],
    voxel_size: Triple,
) -> Echoes:
    """Unwrap along the most reliable connections first; the result differs from the input by whole turns only.

    Growing a region along its best connection, as ROMEO does, builds a maximum spanning tree of the voxel graph:
    here the tree is computed as such, and the whole turns are summed along its branches. Connections between
    neighbours are rated by the smallness of the phase step, its agreement between two echoes, and the likeness
    of magnitudes. The first echo is unwrapped in space, every other echo against the field of those before it.

    Args:
        phase: Wrapped [rad], shape (echo, x, y, z), best without an offset common to all echoes.
        magnitude: Same shape, or None.
        mask: Where to unwrap.
        echo_times: [s].
        voxel_size: Not used; part of the shared signature.

    Returns:
        Unwrapped phase [rad], zero outside the mask. Parts of the mask that do not touch are each unwrapped by
        themselves and set to the turn on which their echoes agree best (one echo: nearest to zero).

    References:
        Dymerska et al. 2021, doi:10.1002/mrm.28563; Cusack and Papadakis 2002, doi:10.1006/nimg.2002.1092.
    """
    box = bounding_box(mask)
    inside = mask[box].contiguous()
    wrapped = phase[(slice(None), *box)]
    weights = torch.ones_like(wrapped) if magnitude is None else magnitude[(slice(None), *box)]
    times = torch.tensor(echo_times, dtype=torch.float32, device=phase.device)

    voxels = wrapped[:, inside]  # (echo, voxel)
    precision = (weights[:, inside] * times[:, None]).square()  # of the field, as each echo knows it
    turns, part = _turns_along_the_tree(wrapped, weights, inside, echo_times)
    first = _nearest_turn_of_parts(voxels, voxels[0] + TURN * turns, part, precision, times)
    unwrapped = _unwrap_in_time(first, voxels, precision, times)

    result = torch.zeros_like(phase)
    result[(slice(None), *box)].masked_scatter_(inside.expand_as(wrapped), unwrapped)
    return result


def unwrap_laplacian(
    phase: Echoes,
    magnitude: Echoes | None,
    mask: Mask,
    echo_times: tuple[float, ...],
    voxel_size: Triple,
) -> Echoes:
    """Solve laplacian(result) = cos(phase) laplacian(sin phase) - sin(phase) laplacian(cos phase).

    The derivative of wrapped phase is known without unwrapping it. The equation is solved on the whole grid by the
    cosine transform (no flow across the faces), so the result is smooth, but it differs from the phase by more than
    whole turns: fields of sources where phase is noise leak in. Every echo is made zero-mean in the mask, then
    moved by the whole turns that bring it nearest to the measured phase.

    Args:
        phase: Wrapped [rad], shape (echo, x, y, z).
        magnitude: Not used; part of the shared signature.
        mask: Where the result is kept.
        echo_times: Not used; part of the shared signature.
        voxel_size: [mm].

    Returns:
        Unwrapped phase [rad], zero outside the mask.

    References:
        Schofield and Zhu 2003, doi:10.1364/OL.28.001194.
    """
    eigenvalues = sum(
        ((2 * np.cos(np.pi * np.arange(n) / n) - 2) / size**2).reshape([-1 if i == axis else 1 for i in range(3)])
        for axis, (n, size) in enumerate(zip(phase.shape[-3:], voxel_size, strict=True))
    )
    eigenvalues[0, 0, 0] = 1
    result = torch.zeros_like(phase)
    for echo, volume in enumerate(phase):
        source = torch.zeros_like(volume)
        for axis, size in enumerate(voxel_size):  # steps to both neighbours, each of less than half a turn
            step = wrap(volume.diff(dim=axis)) / size**2
            n = volume.shape[axis]
            source.narrow(axis, 0, n - 1).add_(step)
            source.narrow(axis, 1, n - 1).sub_(step)
        spectrum = fft.dctn(source.cpu().numpy(), workers=-1) / eigenvalues
        spectrum[0, 0, 0] = 0
        smooth = torch.from_numpy(fft.idctn(spectrum, workers=-1)).to(volume)
        offset = torch.angle(torch.exp(1j * (volume - smooth)[mask]).mean())
        result[echo] = (smooth + offset) * mask
    return result


def _turns_along_the_tree(
    phase: Echoes, magnitude: Echoes, mask: Mask, echo_times: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole turns to add to the first echo in every voxel of the mask, and the number of its connected part."""
    count = int(mask.sum())
    number = torch.full(mask.shape, -1, dtype=torch.int32)
    number[mask.cpu()] = torch.arange(count, dtype=torch.int32)
    costs, neighbours = [], []
    for axis in range(3):
        cost = torch.full(mask.shape, -1.0)
        n = mask.shape[axis]
        both = (mask.narrow(axis, 0, n - 1) & mask.narrow(axis, 1, n - 1)).cpu()
        cost.narrow(axis, 0, n - 1).copy_(torch.where(both, _cost(phase, magnitude, echo_times, axis).cpu(), -1.0))
        costs.append(cost[mask.cpu()])
        neighbours.append(number.roll(-1, axis)[mask.cpu()])
    cost, neighbour = torch.stack(costs, dim=1), torch.stack(neighbours, dim=1)  # (voxel, 3)
    exists = cost >= 0
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), exists.sum(dim=1).cumsum(0)]).to(torch.int32)
    graph = csr_array((cost[exists].numpy() + 1e-3, neighbour[exists].numpy(), starts.numpy()), shape=(count, count))
    tree = minimum_spanning_tree(graph, overwrite=True)
    parts, part = connected_components(tree, directed=False)

    # One more node, joined to one voxel of every part, makes the forest a tree with a single root.
    _, one_of_each = np.unique(part, return_index=True)
    tree = tree.tocoo()
    rows = np.concatenate([tree.row, np.full(parts, count, dtype=np.int32)])
    columns = np.concatenate([tree.col, one_of_each.astype(np.int32)])
    joined = csr_array((np.ones(rows.size, dtype=np.float32), (rows, columns)), shape=(count + 1, count + 1))
    _, parent = breadth_first_order(joined, count, directed=False)
    parent[count] = count

    values = np.append(phase[0][mask].cpu().numpy(), 0)
    ancestor = parent.astype(np.int64)
    step = np.rint((values[ancestor] - values) / TURN).astype(np.int32)
    step[one_of_each] = 0
    # Pointer jumping: after k rounds every voxel holds the sum over its next 2^k ancestors.
    while (ancestor != count).any():
        step += step[ancestor]
        ancestor = ancestor[ancestor]
    return torch.from_numpy(step[:count]).to(phase), torch.from_numpy(part).to(phase.device)


def _cost(phase: Echoes, magnitude: Echoes, echo_times: tuple[float, ...], axis: int) -> torch.Tensor:
    """Cost of each connection along an axis, 0 for the best."""
    step = wrap(phase[0].diff(dim=axis))
    quality = 1 - step.abs() / math.pi
    if len(echo_times) > 1:
        expected = step * (echo_times[1] / echo_times[0])
        quality = quality * (1 - wrap(phase[1].diff(dim=axis) - expected).abs() / math.pi)
    n = phase.shape[axis + 1]
    low, high = magnitude[0].narrow(axis, 0, n - 1), magnitude[0].narrow(axis, 1, n - 1)
    likeness = torch.minimum(low, high) / torch.maximum(low, high).clamp_min(1e-20)
    return 1 - quality * likeness.square()


def _nearest_turn_of_parts(
    voxels: torch.Tensor,
    first: torch.Tensor,
    part: torch.Tensor,
    precision: torch.Tensor,
    times: torch.Tensor,
) -> torch.Tensor:
    """Move each connected part by the whole turns on which its echoes agree best, nearest to zero among equals."""
    parts = int(part.max()) + 1
    candidates = range(-2, 3)
    costs = torch.zeros(len(candidates), parts, device=first.device)
    sizes = torch.zeros(parts, device=first.device).index_add_(0, part, torch.ones_like(first))
    middle = torch.zeros(parts, device=first.device).index_add_(0, part, first) / sizes
    whole = torch.round(middle / TURN)
    first, middle = first - TURN * whole[part], middle / TURN - whole
    # a part of many voxels is judged by a sample of them
    asked = torch.nonzero((sizes < 1000)[part] | (torch.arange(len(part), device=part.device) % 16 == 0))[:, 0]
    asked_part, asked_first = part[asked], first[asked]
    for row, turns in enumerate(candidates):
        for echo in range(1, len(times)):
            predicted = (asked_first + TURN * turns) * (times[echo] / times[0])
            misfit = wrap(voxels[echo, asked] - predicted).abs() * precision[echo, asked].sqrt()
            costs[row].index_add_(0, asked_part, misfit)
        costs[row] *= 1 + 1e-2 * (middle + turns).abs()
    best = costs.argmin(dim=0) - 2 if len(times) > 1 else torch.zeros_like(costs[0])
    return first + TURN * best.to(first)[part]


def _unwrap_in_time(
    first: torch.Tensor, voxels: torch.Tensor, precision: torch.Tensor, times: torch.Tensor
) -> torch.Tensor:
    """Every echo at the turn nearest to what the field of the echoes before it predicts; shape (echo, voxel)."""
    unwrapped = [first]
    numerator, denominator = precision[0] * first / times[0], precision[0].clone()
    for echo in range(1, len(times)):
        predicted = numerator / denominator.clamp_min(1e-20) * times[echo]
        value = voxels[echo] + TURN * torch.round((predicted - voxels[echo]) / TURN)
        unwrapped.append(value)
        numerator += precision[echo] * value / times[echo]
        denominator += precision[echo]
    return torch.stack(unwrapped)
