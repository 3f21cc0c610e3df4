"""Single objects of the shapes set: outlines, rotations, masks and colours.

The renderer draws with these and the detector builds its templates from them.

P: outline points; h, w: the window of pixels that an object touches.
"""

import functools

import numpy as np

from fluid import config
from fluid.data import captions

# RGB.
COLORS = {
  "red": (215, 30, 35),
  "orange": (248, 135, 15),
  "yellow": (250, 228, 45),
  "green": (40, 155, 60),
  "blue": (35, 75, 220),
  "purple": (125, 35, 165),
  "pink": (252, 125, 190),
  "brown": (115, 62, 22),
  "black": (14, 14, 16),
  "white": (252, 252, 252),
  "grey": (92, 92, 95),
}


def sdf(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Signed distance (negative inside) to a shape of radius about 1; y points down.

  Exact along straight edges and arcs, which is all that anti-aliasing looks at.
  """
  if name == "circle":
    return np.hypot(x, y) - 0.88
  if name == "ring":
    return np.abs(np.hypot(x, y) - 0.72) - 0.24
  x = np.abs(x)  # the others are symmetric
  if name == "square":
    return np.maximum(x, np.abs(y)) - 0.76
  if name == "triangle":
    return np.maximum(0.866 * x - 0.5 * y, y) - 0.56
  if name == "diamond":
    return (x / 0.6 + np.abs(y) / 1.1 - 1) * 0.527
  if name == "cross":
    y = np.abs(y)
    return np.minimum(np.maximum(x - 0.31, y - 0.97), np.maximum(x - 0.97, y - 0.31))
  if name == "star":
    # Fold the plane onto half a point: the edge runs from the tip to the notch.
    angle = np.abs((np.arctan2(x, -y) + np.pi / 5) % (np.pi / 2.5) - np.pi / 5)
    r = np.hypot(x, y)
    tip, notch = np.array([1.12, 0.0]), 0.47 * np.array([0.8090, 0.5878])
    nx, ny = tip[1] - notch[1], notch[0] - tip[0]
    nx, ny = np.array([-nx, -ny]) / np.hypot(nx, ny)
    return (r * np.cos(angle) - tip[0]) * nx + r * np.sin(angle) * ny
  if name == "heart":
    # A square on its corner and a disc on each of its two upper sides.
    y = y - 0.12
    body = (x + np.abs(y)) * 0.7071 - 0.54
    return np.minimum(body, np.hypot(x - 0.382, y + 0.382) - 0.54)
  raise config.ConfigError(f"unknown shape '{name}'; choose from {captions.CLASSES}")


# Largest rotation (radians) at which a shape is still itself.
ROTATION = {"square": 0.26, "diamond": 0.26, "cross": 0.3, "star": 0.63}
ROTATION |= {"triangle": 0.4, "heart": 0.3, "circle": 0.0, "ring": 0.0}


@functools.cache
def _outline(name):
  """Boundary points [P, 2] of a shape; its bounding boxes come from these."""
  grid = np.linspace(-1.2, 1.2, 481)
  x, y = np.meshgrid(grid, grid)
  inside = sdf(name, x, y) <= 0
  edge = inside & ~(
    np.roll(inside, 1, 0)
    & np.roll(inside, -1, 0)
    & np.roll(inside, 1, 1)
    & np.roll(inside, -1, 1)
  )
  return np.stack([x[edge], y[edge]], -1)


@functools.cache
def extent(name, steps):
  """Box (x1, y1, x2, y2) of the unit shape rotated by steps/32 of its ROTATION."""
  c, s = rotation(name, steps)
  x, y = _outline(name).T
  xy = np.stack([c * x - s * y, s * x + c * y])
  return np.concatenate([xy.min(1), xy.max(1)])


def rotation(name, steps):
  angle = ROTATION[name] * steps / 32
  return np.cos(angle), np.sin(angle)


def coverage(name, cx, cy, radius, steps, size):
  """Anti-aliased mask of one object.

  Returns:
    (rows, columns, mask [h, w] in [0, 1], x, y): the window of the image (slices) that
    the object touches, its coverage there, and shape coordinates for textures.
  """
  lo = extent(name, steps)
  cut = np.array([cx, cy, cx, cy]) + lo * radius
  x1, y1 = np.maximum(np.floor(cut[:2] * size).astype(int) - 1, 0)
  x2, y2 = np.minimum(np.ceil(cut[2:] * size).astype(int) + 1, size)
  u = ((np.arange(x1, x2) + 0.5) / size - cx) / radius
  v = (((np.arange(y1, y2) + 0.5) / size - cy) / radius)[:, None]
  c, s = rotation(name, steps)
  x, y = c * u + s * v, c * v - s * u
  mask = np.clip(0.5 - sdf(name, x, y) * (radius * size), 0, 1)
  return slice(y1, y2), slice(x1, x2), mask, x, y
