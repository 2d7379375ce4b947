"""A closed surface that grows from inside an organ until the image turns dark: the idea of BET."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.sparse import coo_matrix, csr_matrix

DEPTH = 12.0
"""How far below the surface the image is looked at [mm]. BET's 20 mm sees dark ventricles from the cortex."""

STILL = 0.01
"""The surface rests where its vertices move less than this in a step, on average [mm]."""

Levels = Sequence[tuple[int, int]]


def grow_surface(
    image: np.ndarray,
    voxel_size: np.ndarray,
    *,
    centre: np.ndarray,
    radius: float,
    dark: float,
    threshold: float,
    bright: float,
    fraction: float = 0.5,
    margin: float = 25.0,
    levels: Levels = ((2, 150), (3, 200), (4, 100)),
) -> tuple[np.ndarray, np.ndarray]:
    """Let a sphere grow to the rim of a bright region.

    In every step each vertex moves towards the mean of its neighbours, the more the sharper the surface bends
    there, and along its normal: outwards while the darkest point below it is brighter than a share of the
    brightest point below it, else inwards. Comparing with what lies just below makes slow changes of coil
    sensitivity harmless. Beyond the border the image is continued by its outermost voxels, so that a surface
    runs on where the field of view cuts the organ.

    Args:
        image: Shape (x, y, z).
        voxel_size: [mm].
        centre: Where to start, in mm from the centre of the first voxel.
        radius: Of the first sphere [mm].
        dark: Intensity of background; darker is not told apart.
        threshold: Least intensity that can be the organ.
        bright: Intensity of the organ; brighter is not told apart.
        fraction: The share of the brightest that is still the organ, 0..1; larger gives a tighter surface.
        margin: How far the image is continued beyond its border [mm].
        levels: (level of the mesh, most steps) from coarse to fine; a level has 10 * 4^level + 2 vertices.

    Returns:
        Vertices in mm from the centre of the first voxel, (v, 3), and triangles as vertex numbers, (t, 3).

    References:
        Smith 2002, doi:10.1002/hbm.10062.
    """
    pad = np.ceil(margin / voxel_size).astype(int)
    padded = torch.from_numpy(np.pad(image, [(p, p) for p in pad], mode="edge")).float()[None, None]
    extent = (np.array(padded.shape[2:]) - 1) * voxel_size
    vertices, triangles = _icosahedron()
    for _ in range(levels[0][0]):
        vertices, triangles = _refine(vertices, triangles)
        vertices /= np.linalg.norm(vertices, axis=1, keepdims=True)
    vertices = centre + pad * voxel_size + radius * vertices
    for number, (_, steps) in enumerate(levels):
        if number:
            for _ in range(levels[number][0] - levels[number - 1][0]):
                vertices, triangles = _refine(vertices, triangles)
        average = _neighbour_average(triangles, len(vertices))
        for _ in range(steps):
            normals = _normals(vertices, triangles)
            # a small sphere must not look through its own centre to the other side
            depth = min(DEPTH, 0.5 * float(np.linalg.norm(vertices - vertices.mean(0), axis=1).mean()))
            below = _profiles(padded, extent, vertices, normals, depth)
            darkest = below.min(1).clip(dark, bright)
            brightest = below[:, : below.shape[1] // 2 + 1].max(1).clip(threshold, bright)
            limit = dark + fraction * (brightest - dark)
            force = 2 * (darkest - limit) / (brightest - dark)
            edge = np.linalg.norm(vertices[triangles[:, 0]] - vertices[triangles[:, 1]], axis=1).mean()
            step = _smoothing(vertices, normals, average, edge) + 0.05 * edge * force[:, None] * normals
            vertices = vertices + step
            if np.linalg.norm(step, axis=1).mean() < STILL:
                break
    return vertices - pad * voxel_size, triangles


def surface_interior(
    vertices: np.ndarray, triangles: np.ndarray, shape: Sequence[int], voxel_size: np.ndarray
) -> np.ndarray:
    """Voxels inside or on a closed surface, bool, shape (x, y, z).

    Args:
        vertices: [mm] from the centre of the first voxel.
        triangles: Vertex numbers.
        shape: Grid.
        voxel_size: [mm].
    """
    index = vertices / voxel_size
    low = np.minimum(np.floor(index.min(0)).astype(int) - 2, 0)
    high = np.maximum(np.ceil(index.max(0)).astype(int) + 3, np.array(shape))
    corners = index[triangles] - low
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max()
    parts = int(np.ceil(2 * longest))  # points at most half a voxel apart leave no gap
    i, j = np.meshgrid(np.arange(parts + 1), np.arange(parts + 1))
    weights = np.stack([i, j, parts - i - j], axis=-1)[i + j <= parts] / parts
    shell = np.zeros(high - low, dtype=bool)
    for weight in weights:
        x, y, z = np.rint(np.einsum("c,tcd->td", weight, corners)).astype(int).T
        shell[x, y, z] = True
    outside = np.empty(shell.shape, dtype=np.int32)
    ndimage.label(~shell, output=outside)
    inside = outside != outside[0, 0, 0]
    return inside[tuple(slice(-start, -start + n) for start, n in zip(low, shape, strict=True))]


def _icosahedron() -> tuple[np.ndarray, np.ndarray]:
    """Vertices on the unit sphere and the triangles between them, seen anticlockwise from outside."""
    golden = (1 + 5**0.5) / 2
    vertices = np.array([
        vertex
        for a in (-1.0, 1.0)
        for b in (-golden, golden)
        for vertex in ((0.0, a, b), (a, b, 0.0), (b, 0.0, a))
    ])  # fmt: skip
    distances = np.linalg.norm(vertices[:, None] - vertices[None], axis=2)
    triangles = []
    for i in range(12):
        for j in range(i + 1, 12):
            for k in range(j + 1, 12):
                if max(distances[i, j], distances[j, k], distances[i, k]) < 2.1:  # edges have length 2
                    outwards = np.linalg.det(vertices[[i, j, k]]) > 0
                    triangles.append((i, j, k) if outwards else (i, k, j))
    return vertices / np.linalg.norm(vertices[0]), np.array(triangles)


def _refine(vertices: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut every triangle into four at the middles of its edges."""
    edges = np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), axis=1)
    unique, inverse = np.unique(edges, axis=0, return_inverse=True)
    ab, bc, ca = inverse.reshape(3, -1) + len(vertices)
    a, b, c = triangles.T
    quarters = [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
    triangles = np.concatenate([np.stack(quarter, axis=1) for quarter in quarters])
    return np.concatenate([vertices, vertices[unique].mean(1)]), triangles


def _neighbour_average(triangles: np.ndarray, count: int) -> csr_matrix:
    """Sparse matrix that takes vertices to the means of their neighbours."""
    rows, columns = triangles.ravel(), np.roll(triangles, -1, axis=1).ravel()
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(count, count)).tocsr()
    degree = np.asarray(graph.sum(axis=1))
    return csr_matrix(graph.multiply(1 / degree))


def _normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Unit normals at the vertices, outwards."""
    a, b, c = vertices[triangles.T]
    faces = np.cross(b - a, c - a)
    normals = np.stack(
        [sum(np.bincount(corner, faces[:, axis], len(vertices)) for corner in triangles.T) for axis in range(3)],
        axis=1,
    )
    return normals / np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)


def _profiles(
    padded: torch.Tensor, extent: np.ndarray, vertices: np.ndarray, normals: np.ndarray, depth: float
) -> np.ndarray:
    """Image along the inward normals down to `depth` [mm], about one sample per mm, shape (v, sample)."""
    steps = np.linspace(0, depth, max(int(depth), 4) + 1)
    points = vertices[:, None] - steps[:, None] * normals[:, None]
    grid = torch.from_numpy(np.ascontiguousarray((2 * points / extent - 1)[..., ::-1], dtype=np.float32))
    return F.grid_sample(padded, grid[None, None], align_corners=True)[0, 0, 0].numpy()


def _smoothing(vertices: np.ndarray, normals: np.ndarray, average: csr_matrix, edge: float) -> np.ndarray:
    """Step towards the neighbours' mean: half of the way within the surface, and across it by the bend.

    A bend of less than 3.3 mm radius is undone, one of more than 10 mm is left, as in Smith 2002.
    """
    step = average @ vertices - vertices
    across = (step * normals).sum(1, keepdims=True)
    bend = 2 * np.abs(across) / edge**2
    tightest, widest = 1 / 3.33, 1 / 10
    share = 0.5 * (1 + np.tanh(6 / (tightest - widest) * (bend - (tightest + widest) / 2)))
    return 0.5 * (step - across * normals) + share * across * normals
