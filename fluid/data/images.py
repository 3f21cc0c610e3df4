"""One reader of image files, for training and for metrics alike.

What is read is what a viewer shows: turned by its EXIF orientation, in sRGB, its first
frame, transparency on white. Other pipelines take stored pixels as they are (PIL's
convert("RGB")); of plain 8-bit RGB files both are the same.
"""

import io
import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from fluid.errors import passing, raise_passing

# Extensions of what is taken for an image in a folder, in lower case.
ENDINGS = frozenset(
  (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
)
MOST_PIXELS = 1 << 28  # 16,384 squared; a larger image is refused before it is decoded.
# Pillow's own limit: it warns of more, once a file, and refuses what is twice as large.
Image.MAX_IMAGE_PIXELS = MOST_PIXELS
# What undoes an EXIF orientation.
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
  """An image that cannot be used, and why."""


def read(source: str | pathlib.Path | bytes) -> np.ndarray:
  """An image -> uint8 [H, W, 3], sRGB.

  16-bit grey is scaled to 8 bits. Colour profiles are applied; of CMYK without one,
  Pillow's formula is.

  Args:
    source: path, or what the file holds.

  Raises:
    FileNotFoundError: there is no such file.
    OSError: there is no memory, or the file system is away: nothing of the image.
    ImageError: truncated, no image, too large, or of floats, whose range nobody says.
  """
  file = io.BytesIO(source) if isinstance(source, bytes) else source
  try:
    with Image.open(file) as image:
      if image.width * image.height > MOST_PIXELS:
        raise ImageError(f"{image.width} x {image.height} pixels are too many")
      image.seek(0)
      return np.asarray(_rgb(_upright(image)))
  except (FileNotFoundError, ImageError):
    raise
  except UnidentifiedImageError as e:
    # Pillow's own words have the address of the bytes, which no two processes share.
    raise ImageError("it is no image of a known kind, or its header is damaged") from e
  except Exception as e:  # Pillow's decoders raise whatever a broken file provokes.
    raise_passing(e, "an image" if isinstance(source, bytes) else source)
    raise ImageError(str(e) or type(e).__name__) from e


def _upright(image: Image.Image) -> Image.Image:
  """As its EXIF turns it. Where that is damaged it says nothing, as in a viewer."""
  image.load()
  try:
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
  except Exception as e:  # Its parser raises whatever broken tags provoke.
    if passing(e):
      raise
    turn = None
  return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
  profile = image.info.get("icc_profile")
  if image.mode.startswith("I"):
    image, profile = _eight_bits(image), None
  if image.mode == "F":
    raise ImageError("its pixels are floats, whose range is not known: save 8 bits")
  if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return _in_srgb(Image.alpha_composite(white, image).convert("RGB"), profile)
  if image.mode == "P":
    image = image.convert("RGB")
  return _in_srgb(image, profile).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
  """Integers of 16 bits -> 8; of 32 bits only where they are no larger."""
  pixels = np.asarray(image).astype(np.int64)
  if pixels.min() < 0 or pixels.max() > 65535:
    raise ImageError("its pixels have 32 bits: save 8 or 16")
  return Image.fromarray(np.round(pixels / 257).astype(np.uint8))


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
  if not profile:
    return image
  try:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
  except (OSError, ImageCms.PyCMSError) as e:
    raise ImageError(f"its colour profile cannot be read ({e})") from e
  # One of another colour space than the pixels' says nothing about them.
  if space != {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}.get(image.mode):
    return image
  target = ImageCms.createProfile("sRGB")
  if "sRGB" in ImageCms.getProfileDescription(source):
    return image
  found = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
  assert found is not None  # It is where the image is changed in place.
  return found


def square(image: np.ndarray, size: int) -> np.ndarray:
  """The central square of uint8 [H, W, 3], resized to [size, size, 3].

  By Pillow's bicubic filter, which is antialiased.
  """
  found = Image.fromarray(image)
  side = min(found.size)
  left, top = (found.width - side) // 2, (found.height - side) // 2
  box = (left, top, left + side, top + side)
  return np.asarray(found.resize((size, size), Image.Resampling.BICUBIC, box))


def adm(image: np.ndarray, size: int) -> np.ndarray:
  """As ADM's training (guided-diffusion, image_datasets), and MAR's and LlamaGen's.

  Halved by box means while it is twice as large or more, the shorter side made `size`
  by the bicubic filter, then cropped.
  """
  found = Image.fromarray(image)
  while min(found.size) >= 2 * size:
    half = (found.width // 2, found.height // 2)
    found = found.resize(half, Image.Resampling.BOX)
  scale = size / min(found.size)
  sides = round(found.width * scale), round(found.height * scale)
  resized = _resized(found, sides, Image.Resampling.BICUBIC)
  top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
  return resized[top : top + size, left : left + size]


def torchvision(image: np.ndarray, size: int) -> np.ndarray:
  """torchvision's Resize(size) and CenterCrop(size) of a PIL image.

  The shorter side made `size` by the bilinear filter, the longer one cut down to whole
  pixels; the crop's corner rounds to even where it lies between two.
  """
  found = Image.fromarray(image)
  short, long = sorted(found.size)
  longer = int(size * long / short)
  sides = (size, longer) if found.width <= found.height else (longer, size)
  resized = _resized(found, sides, Image.Resampling.BILINEAR)
  top, left = (int(round((n - size) / 2)) for n in resized.shape[:2])
  return resized[top : top + size, left : left + size]


def _resized(
  image: Image.Image, sides: tuple[int, int], how: Image.Resampling
) -> np.ndarray:
  """uint8 [H, W, 3]. A line of pixels, made wide, would take gigabytes."""
  if math.prod(sides) > MOST_PIXELS:
    raise ImageError(
      f"{image.width} x {image.height} pixels would be {sides[0]} x {sides[1]} before "
      "the cut, which are too many; crop 'square' takes them as they are"
    )
  return np.asarray(image.resize(sides, how))


# Ways to make a square of any image; sources of files have one in their config.
FITS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
  "square": square,
  "adm": adm,
  "torchvision": torchvision,
}


def fitted(source: str | pathlib.Path | bytes, size: int, crop: str) -> dict[str, Any]:
  """What an example has of an image: it, [size, size, 3], and its 'size' before (W, H).

  Args:
    source: as of `read`, whose errors these are.
    crop: entry of FITS.
  """
  found = read(source)
  height, width = found.shape[:2]
  return {"image": FITS[crop](found, size), "size": (width, height)}
