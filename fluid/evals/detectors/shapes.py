"""Finds the objects of the shapes set in pixels, without learned weights.

The background is fitted as a smooth surface; each palette colour then explains a pixel
as a mixture, `background + alpha (colour - background)`. Connected pixels of one
colour form an object, and its alpha mask, brought to a common centre and area, is
correlated with masks of every class over rotations and blurs. Blurred or noisy images
(samples of a model) keep their alpha masks, only softer.

S: working side in pixels; T: template side; M: templates; h, w: a patch.
"""

import functools

import numpy as np
from scipy import ndimage

from fluid import config
from fluid.data import captions, sprites

# Larger images are reduced (box mean) to about this side: nothing is gained above it.
WORKING_SIZE = 64
# Background pixels: brightness and spread of the channels.
BRIGHTNESS, SPREAD = (135, 212), 55
# A template covers this many square roots of the object's area to each side.
TEMPLATE, REACH = 24, 1.15
# Standard deviations of the templates' blur, in square roots of the area.
BLURS = (0.04, 0.09, 0.14)
# Correlation with the best template -> score. Intact objects lie above the last but
# one knot even when blurred and noisy; fragments and merged objects below.
SCORE = ((0.78, 0.88, 0.93, 1.0), (0.0, 0.4, 0.92, 1.0))
MIN_AREA = 12  # pixels of an image 32 wide; the smallest object has 24
MAX_SHARE = 0.4  # of the image; the largest object has 0.22
RESIDUAL = 70  # distance of a pixel from the mixtures of its colour and background
# A colour may be this pale (alpha of its body); fainter bodies lose score, to none.
PALE, FAINT = 0.75, 0.6


def _axis_weights(center: float, scale: float, n: int) -> np.ndarray:
  """[T, n] weights that resample n pixels onto the template axis around center."""
  grid = np.linspace(-REACH, REACH, TEMPLATE) * scale + center - 0.5
  width = max(1.0, 2 * REACH * scale / TEMPLATE)  # a hat at least as wide as a step
  return np.maximum(1 - np.abs(grid[:, None] - np.arange(n)) / width, 0) / width


def normalize(alpha: np.ndarray) -> np.ndarray:
  """Mask [h, w] -> unit vector [T * T], free of place and size."""
  area = alpha.sum()
  h, w = alpha.shape
  cy = alpha.sum(1) @ (np.arange(h) + 0.5) / area
  cx = alpha.sum(0) @ (np.arange(w) + 0.5) / area
  scale = np.sqrt(area)
  out = _axis_weights(cy, scale, h) @ alpha @ _axis_weights(cx, scale, w).T
  out = out.ravel() - out.mean()
  return out / (np.linalg.norm(out) + 1e-6)


@functools.cache
def templates() -> tuple[np.ndarray, np.ndarray]:
  """Unit vectors [M, T * T] and their class indices [M]."""
  vectors, labels = [], []
  for label, name in enumerate(captions.CLASSES):
    for steps in np.linspace(-32, 32, 9 if sprites.ROTATION[name] else 1):
      *_, mask, _, _ = sprites.coverage(name, 0.5, 0.5, 0.3, float(steps), 80)
      mask = np.pad(mask, 20)
      for blur in BLURS:
        soft = ndimage.gaussian_filter(mask, blur * np.sqrt(mask.sum()))
        vectors.append(normalize(soft))
        labels.append(label)
  return np.array(vectors, np.float32), np.array(labels)


class ShapesDetector:
  """Detector of the shapes set (protocol: fluid.evals.detectors).

  Args:
    image_size: side of the images that it will be called with.
  """

  def __init__(self, image_size: int):
    if image_size < 16:
      raise config.ConfigError(
        f"the shapes detector needs images of at least 16 pixels, not {image_size}"
      )
    limit = max(1, image_size // WORKING_SIZE)
    self.factor = max(f for f in range(1, limit + 1) if image_size % f == 0)
    self.image_size = image_size
    self.size = image_size // self.factor
    self.unit = self.size / 32  # pixels per pixel of a 32-pixel image
    self.rim = max(1, round(2 * self.unit))  # width of a blurred edge outside the core
    self.names = tuple(sprites.COLORS)
    self.palette = np.array([sprites.COLORS[c] for c in self.names], np.float32)
    axis = np.linspace(-1, 1, self.size, dtype=np.float32)
    x, y = (a.ravel() for a in np.meshgrid(axis, axis))
    self.surface = np.stack([np.ones_like(x), x, y, x * y], 1)  # [S*S, 4]

  def __call__(self, images: np.ndarray):
    images = np.asarray(images)
    if images.shape[-3:] != (self.image_size, self.image_size, 3):
      raise ValueError(
        f"detector made for images of {self.image_size} pixels, got {images.shape}"
      )
    if images.ndim == 4:
      return [self._detect(image) for image in images]
    return self._detect(images)

  def _detect(self, image):
    s, f = self.size, self.factor
    pixels = image.reshape(s, f, s, f, 3).mean((1, 3), dtype=np.float32).reshape(-1, 3)
    ground = self._background(pixels)
    offset = pixels - ground  # [S*S, 3]
    # A pixel belongs to the core of the nearest colour, background included.
    error = (self.palette**2).sum(1) - 2 * pixels @ self.palette.T  # less pixels^2
    ground_error = ((ground - 2 * pixels) * ground).sum(1)
    nearest = np.where(error.min(1) < ground_error, error.argmin(1), -1)
    nearest = nearest.reshape(s, s)

    found, free = {}, np.ones((s, s), bool)
    # Strong contrasts first: half-covered pixels at the rim of a black object look
    # grey, so black claims them before grey is looked for.
    for c in np.argsort(-((self.palette - ground.mean(0)) ** 2).sum(1)):
      core = nearest == c
      if core.sum() < 0.4 * MIN_AREA * self.unit**2:
        continue
      near = free & ndimage.binary_dilation(core, iterations=self.rim)
      toward = self.palette[c] - ground
      alpha = (offset * toward).sum(1) / (toward**2).sum(1)
      # A pale copy of the colour is the same object: its body has alpha 1.
      level = np.clip(np.quantile(alpha[core.ravel()], 0.6), PALE, 1)
      alpha = np.clip(alpha / level, 0, 1)
      rest = np.linalg.norm(offset - (level * alpha)[:, None] * toward, axis=1)
      alpha = np.where(near & (rest < RESIDUAL).reshape(s, s), alpha.reshape(s, s), 0)
      free &= alpha < 0.15
      for name, detection in self._objects(alpha, core):
        found.setdefault(name, []).append([*detection, self.names[c]])
    return found

  def _background(self, pixels):
    """Smooth surface [S*S, 3] through the pixels that may be background."""
    low, high = pixels.min(1), pixels.max(1)
    level = pixels.mean(1)
    weight = (
      (level > BRIGHTNESS[0]) & (level < BRIGHTNESS[1]) & (high - low < SPREAD)
    ).astype(np.float32)
    fit = np.full_like(pixels, 174.0)
    for _ in range(2):
      if weight.sum() < 0.1 * len(pixels):
        break
      basis = self.surface * weight[:, None]
      gram = basis.T @ self.surface + 1e-3 * np.eye(4, dtype=np.float32)
      fit = self.surface @ np.linalg.solve(gram, basis.T @ pixels)
      weight = (np.abs(pixels - fit).max(1) < 40).astype(np.float32)
    return fit

  def _objects(self, alpha, core):
    """Yields (class, [x1, y1, x2, y2, score]) of the objects in a mask [S, S]."""
    vectors, labels = templates()
    parts, count = ndimage.label(alpha > 0.5)
    if not count:
      return
    for i, window in enumerate(ndimage.find_objects(parts), 1):
      part = parts[window] == i
      area = part.sum()
      if not MIN_AREA * self.unit**2 < area < MAX_SHARE * alpha.size:
        continue
      if (core[window] & part).sum() < 0.3 * area:
        continue
      y1, x1 = (max(w.start - 1, 0) for w in window)
      y2, x2 = (w.stop + 1 for w in window)
      # Soft rim of this part, nothing of its neighbours.
      own = ndimage.binary_dilation(parts[y1:y2, x1:x2] == i, np.ones((3, 3)))
      similarity = vectors @ normalize(alpha[y1:y2, x1:x2] * own)
      best = int(similarity.argmax())
      body = np.quantile(alpha[window][part], 0.6)
      solid = np.interp(body, (FAINT, 0.8), (0, 1))
      score = float(np.interp(similarity[best], *SCORE) * solid)
      if score > 0.05:
        corners = [window[1].start, window[0].start, window[1].stop, window[0].stop]
        box = [float(v * self.factor) for v in corners]
        yield captions.CLASSES[labels[best]], [*box, score]
