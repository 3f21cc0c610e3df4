"""Emoji in six styles: 20,000 real captioned drawings from Iconify's npm packages.

  @iconify-json/noto               Noto Emoji         Apache 2.0      3,729 drawings
  @iconify-json/twemoji            Twitter Emoji      CC BY 4.0       3,988
  @iconify-json/openmoji           OpenMoji           CC BY-SA 4.0    4,544
  @iconify-json/fluent-emoji       Fluent Emoji       MIT             3,126
  @iconify-json/fluent-emoji-flat  Fluent Emoji Flat  MIT             3,145
  @iconify-json/emojione           Emoji One          CC BY 4.0       1,834

Any other package of coloured icons can be named; fluid.data.icons draws them.

A caption is 'bear, fluent emoji': name and style. What is held out is pairs of these:
each name and each style of the split val is in the split train, in other company. The
skin tones and persons of one drawing, and drawings that are the same under two names,
are on one side.
"""

import collections
import dataclasses
import functools
import pathlib
import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fluid import config
from fluid.config import ConfigError
from fluid.data import BadExample, emoji, icons, stored
from fluid.data.listed import VAL_EVERY

PACKAGES = (
  "noto@1.2.9",
  "twemoji@1.2.5",
  "openmoji@1.2.29",
  "fluent-emoji@1.2.7",
  "fluent-emoji-flat@1.2.6",
  "emojione@1.2.3",
)
SMALLEST = 16  # Pixels a side.
_PACKAGE = re.compile(r"([a-z0-9][a-z0-9-]*)@([0-9][A-Za-z0-9.+-]*)")
_TONES = re.compile(r"\b(?:(?:medium )?(?:light|dark)|medium) skin tone\b")


@dataclasses.dataclass(frozen=True)
class IconifyConfig(config.Part):
  """Drawings of Iconify's packages with their names and styles.

  Attributes:
    path: folder of the packages, as `npm pack` or `npm install --prefix` lays them
      there; those that are not there are fetched by npm. Drawn images are kept in it.
    packages: NAME@VERSION in @iconify-json, separated by commas.
  """

  kind = "iconify"

  path: str = config.place()
  packages: str = ",".join(PACKAGES)

  def check(self, name):
    packages = self.packages.split(",")
    for package in packages:
      if not _PACKAGE.fullmatch(package):
        raise ConfigError(
          f"config key '{name}packages' has {package!r}; write NAME@VERSION of a "
          f"package in {icons.SCOPE}, like {PACKAGES[0]}, with commas between several"
        )
    if len({package.partition("@")[0] for package in packages}) < len(packages):
      raise ConfigError(f"config key '{name}packages' has one twice: {self.packages}")

  def make(self, *, split: str, image_size: int, seed: int = 0) -> "Iconify":
    """The source of a split."""
    del seed  # Nothing here is random.
    packages = self.packages.split(",")
    return Iconify(
      split=split, image_size=image_size, path=self.path, packages=packages
    )


class Iconify:
  """Drawings of all packages, styles mixed: a part of the split has some of each.

  Attributes:
    licenses: style -> its licence, as the package's info says: title, spdx, url.
  """

  def __init__(
    self, *, split: str, image_size: int, path: str, packages: Sequence[str] = PACKAGES
  ):
    stored.check_split("iconify", split)
    if not path:
      raise ConfigError(
        "source 'iconify' needs config key 'data.source.path': the folder of its "
        "packages, which npm fetches into it"
      )
    if image_size < SMALLEST:
      raise ConfigError(f"source 'iconify' needs data.image_size >= {SMALLEST}")
    sets = [icons.opened(pathlib.Path(path), p, image_size) for p in packages]
    self._files = [s.parts for s in sets]
    self.licenses = {s.style: s.info["license"] for s in sets}
    # Set, row in it, and drawing: an id is the place in this list.
    rows = [(n, row, d) for n, s in enumerate(sets) for row, d in enumerate(s.drawings)]
    styles = [sets[n].style for n, _, _ in rows]
    held = held_out([d.name for _, _, d in rows], styles, [d.look for _, _, d in rows])
    mixed = lambda i: (zlib.crc32(f"{rows[i][2].name}, {styles[i]}".encode()), i)
    self._ids = sorted(np.flatnonzero(held == (split == "val")).tolist(), key=mixed)
    if not self._ids:
      raise ConfigError(
        f"source 'iconify' has no drawing for split '{split}': name more packages in "
        f"config key 'data.source.packages' than {', '.join(packages)}"
      )
    self._rows = [rows[i] for i in self._ids]
    self._styles = [styles[i] for i in self._ids]

  def __len__(self) -> int:
    return len(self._ids)

  def caption(self, index: int) -> str:
    """'NAME, STYLE', without the image."""
    _, _, drawing = self._rows[self._place(index)]
    return f"{drawing.name}, {self._styles[index].replace('-', ' ')}"

  def __getitem__(self, index: int) -> dict[str, Any]:
    number, row, drawing = self._rows[self._place(index)]
    style = self._styles[index]
    parts = self._images[number]
    part, place = divmod(row, len(parts[0]))
    image = parts[part][place]  # [S, S, 3]
    if not image.any():  # As what cannot be drawn is kept; any other has some white.
      raise BadExample(f"icon {style}:{drawing.icon} cannot be drawn, or is all black")
    license_ = self.licenses[style]
    return {
      "image": image.copy(),
      "caption": self.caption(index),
      "id": self._ids[index],
      "handed": bool(emoji.HANDED.search(drawing.name)),
      "meta": {
        "name": drawing.name,
        "style": style,
        "icon": f"{style}:{drawing.icon}",
        "license": license_.get("spdx") or license_["title"],
      },
    }

  def _place(self, index: int) -> int:
    if not 0 <= index < len(self):
      raise IndexError(f"example {index} of {len(self)}")
    return index

  @functools.cached_property
  def _images(self) -> list[list[np.ndarray]]:
    """Parts of each package, uint8 [_PART, S, S, 3]; read where they are asked for."""
    return [[np.load(part, mmap_mode="r") for part in own] for own in self._files]

  def __getstate__(self):
    return {k: v for k, v in self.__dict__.items() if k != "_images"}


def held_out(
  names: Sequence[str], styles: Sequence[str], looks: Sequence[int]
) -> np.ndarray:
  """Which drawings are validation -> bool [N].

  By hash, a pair in VAL_EVERY of group of names (see `group`) and style is. Not so
  where nothing of a name or of a style would be left to train on, and not where
  training shows the same: `looks` are equal for drawings of a style that are.
  """
  pairs = [(group(name), style) for name, style in zip(names, styles)]
  held = {p for p in pairs if zlib.crc32(", ".join(p).encode()) % VAL_EVERY == 0}
  needed = collections.defaultdict(set)
  for name, style, pair in zip(names, styles, pairs):
    needed["name", name].add(pair)
    needed["style", style].add(pair)
  for _, own in sorted(needed.items()):
    if own <= held:
      held.discard(min(own))
  looks_of = list(zip(styles, looks))
  while True:
    seen = {look for look, pair in zip(looks_of, pairs) if pair not in held}
    shown = {pair for look, pair in zip(looks_of, pairs) if look in seen} & held
    if not shown:
      return np.array([pair in held for pair in pairs], bool)
    held -= shown


def group(name: str) -> str:
  """What names of nearly the same drawing share, skin tones among them."""
  return emoji.group(_TONES.sub("", name))
