"""Names beside points: each in the first of eight places where it covers no point and no other name."""

from __future__ import annotations

import numpy as np

# (x, y): -1 the name ends before the point, 0 it is centred, 1 it begins after it. The best places first.
PLACES: dict[str, tuple[int, int]] = {
    "middle right": (1, 0),
    "middle left": (-1, 0),
    "top center": (0, 1),
    "bottom center": (0, -1),
    "top right": (1, 1),
    "top left": (-1, 1),
    "bottom right": (1, -1),
    "bottom left": (-1, -1),
}


def steps_of(radius: float) -> np.ndarray:
    """How far from the point the near side, or corner, of its name is in each place, (8, 2)."""
    away = np.array(list(PLACES.values()), float)
    # Beside the point by its radius; in a corner, by what reaches the circle.
    return np.where((away != 0).all(1)[:, None], 0.75, 1.15) * radius * away


def _boxes(point: np.ndarray, size: np.ndarray, radius: float) -> np.ndarray:
    """The box (left, low, right, high) that a name of this size has in each place, (8, 4)."""
    low = point + steps_of(radius) + (np.array(list(PLACES.values()), float) - 1) / 2 * size
    return np.concatenate([low, low + size], axis=1)


def place_labels(
    points: np.ndarray, sizes: np.ndarray, radius: float, area: tuple[float, float, float, float]
) -> list[str | None]:
    """A place for each name, or None where all eight are taken; whoever has the fewest left chooses next.

    points : (n, 2) in pixels, y upwards. sizes : (n, 2) width and height of the names. radius : of the points.
    area : left, low, right and high, within which names must lie.
    """
    marks = np.concatenate([points - radius, points + radius], axis=1)
    places = np.array([_boxes(p, s, radius) for p, s in zip(points, sizes, strict=True)]).reshape(-1, len(PLACES), 4)
    within = (places[..., :2] >= area[:2]).all(-1) & (places[..., 2:] <= area[2:]).all(-1)
    free = within & np.array([[not _overlap(box, marks).any() for box in some] for some in places]).reshape(within.shape)
    out: list[str | None] = [None] * len(points)
    left = set(range(len(points)))
    while left:
        i = min(left, key=lambda k: (free[k].sum(), k))
        left.remove(i)
        at = np.flatnonzero(free[i])
        if len(at):
            out[i] = list(PLACES)[at[0]]
            free &= ~_overlap(places[i, at[0]], places)
    return out


def _overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of the others (..., 4) share an area with the box."""
    return (others[..., :2] < box[2:]).all(-1) & (others[..., 2:] > box[:2]).all(-1)
