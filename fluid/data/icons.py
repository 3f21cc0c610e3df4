"""Iconify's npm packages of icons: fetched by npm, read, drawn by resvg, and kept.

Icons that a set has withdrawn ('hidden') are left out; an alias counts where it turns
or mirrors what it stands for. Pixels are resvg's (package resvg-py), on white, drawn
once into the folder of the packages. The format:
https://iconify.design/docs/types/iconify-json.html.
"""

import contextlib
import dataclasses
import importlib
import io
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from PIL import Image

from fluid import config, files
from fluid.config import ConfigError
from fluid.console.progress import Progress
from fluid.data import BadExample

SCOPE = "@iconify-json"
# Drawn larger and averaged: resvg leaves the edges of clips and masks hard.
_LARGER = 3
_PART = 512  # Drawings in a file.
_INDEX = "drawings.json"
_PLACED = {"left": 0, "top": 0, "width": 16, "height": 16}
_TURNED = {"rotate": 0, "hFlip": False, "vFlip": False}
_TONE = re.compile(r"-(?:(?:medium-)?(?:light|dark)|medium)$")


class Drawing(NamedTuple):
  """An icon of a package.

  Attributes:
    icon: its key in the package.
    name: what it shows, in the words of all styles.
    look: hash of its SVG; drawings with the same one look the same.
  """

  icon: str
  name: str
  look: int


@dataclasses.dataclass(frozen=True)
class Package:
  """A drawn package: drawing i is row i % _PART of file i // _PART."""

  style: str
  info: dict[str, Any]
  drawings: list[Drawing]
  parts: list[pathlib.Path]


def opened(folder: pathlib.Path, package: str, size: int) -> Package:
  """A package with its pixels; parts of them that are not there are drawn."""
  style, version = package.split("@")
  drawn = folder / f"{style}-{version}-{size}px"
  content: dict[str, Any] = {}
  try:
    kept = json.loads((drawn / _INDEX).read_text("utf-8"))
    info, drawings = kept["info"], [Drawing(*row) for row in kept["drawings"]]
  except (OSError, ValueError, KeyError, TypeError):  # Not there, or torn.
    content, info = _read(folder, style, version)
    drawings = drawings_of(content)
    files.write_json(drawn / _INDEX, {"info": info, "drawings": drawings})
  starts = range(0, len(drawings), _PART)
  rows = {drawn / f"{i // _PART:03d}.npy": drawings[i : i + _PART] for i in starts}
  missing = {p: own for p, own in rows.items() if not _is_whole(p, len(own), size)}
  if missing:
    author, license_ = info["author"]["name"], info["license"]
    logging.warning(
      "drawing %s at %d pixels, once: %s by %s, license %s (%s)",
      *(package, size, info["name"], author, license_["title"], license_.get("url")),
    )
    content = content or _read(folder, style, version)[0]
    progress = Progress(f"draw {package}", len(drawings), "icons", logging.warning)
    progress.skip(len(drawings) - sum(map(len, missing.values())))
    # Processes that start together share the parts: what another one draws now is left
    # to the end, and waited for.
    for wait, path in itertools.product((False, True), rows):
      with files.turn(path.with_suffix(".lock"), wait=wait) as ours:
        if not ours or path not in missing:
          continue
        own = missing.pop(path)
        if _is_whole(path, len(own), size):
          progress.skip(len(own))
        else:
          _draw(content, own, size, path, progress)
  return Package(style, info, drawings, list(rows))


def _is_whole(path: pathlib.Path, count: int, size: int) -> bool:
  try:
    return np.load(path, mmap_mode="r").shape == (count, size, size, 3)
  except (OSError, ValueError, EOFError):
    return False


def _draw(content, drawings: list[Drawing], size: int, path, progress) -> None:
  """Draws a part into a file; what cannot be drawn is all zeros."""
  pixels = np.zeros((len(drawings), size, size, 3), np.uint8)
  for row, drawing in enumerate(drawings):
    with contextlib.suppress(BadExample):
      pixels[row] = pictured(content, drawing.icon, size)
    progress.add()
  with files.replacing(path) as scratch, scratch.open("wb") as f:
    np.save(f, pixels)


def drawings_of(content: dict[str, Any]) -> list[Drawing]:
  """Icons of a set that are drawings of their own, by key.

  Names are spelled alike in all sets: of 'hand-dark' and its four sisters as
  'hand dark skin tone', of 'flag-for-chile' as 'flag chile'.
  """
  aliases = content.get("aliases", {})
  turned = [k for k, alias in aliases.items() if alias.keys() - {"parent", "hidden"}]
  keys = {*content["icons"], *turned}
  out: dict[str, Drawing] = {}
  for key in sorted(keys):
    properties = resolved(content, key)
    if properties is None or properties.get("hidden"):
      continue
    name = re.sub(r"^flag-for-", "flag-", key)
    if f"{_TONE.sub('', key)}-medium-dark" in keys and _TONE.search(key):
      name += "-skin-tone"
    name = name.replace("-", " ")
    look = json.dumps([properties[k] for k in ("body", *_PLACED, *_TURNED)])
    out.setdefault(name, Drawing(key, name, zlib.crc32(look.encode())))
  return list(out.values())


def resolved(content: dict[str, Any], key: str) -> dict[str, Any] | None:
  """An icon with all its properties, also by an alias; None: it leads nowhere."""
  aliases: dict[str, dict[str, Any]] = content.get("aliases", {})
  chain: list[dict[str, Any]] = []
  while key not in content["icons"]:
    if key not in aliases or len(chain) > len(aliases):
      return None
    chain.append(aliases[key])
    key = aliases[key].get("parent", "")
  own = {k: v for k, v in content.items() if k in _PLACED}
  out = _PLACED | own | _TURNED | content["icons"][key]
  for alias in reversed(chain):
    flips = {k: out[k] != alias.get(k, False) for k in ("hFlip", "vFlip")}
    rotate = (out["rotate"] + alias.get("rotate", 0)) % 4
    out |= {k: v for k, v in alias.items() if k != "parent"} | flips
    out["rotate"] = rotate
  return out


def pictured(content: dict[str, Any], key: str, size: int) -> np.ndarray:
  """An icon of a set -> uint8 [S, S, 3], on white, its whole box shown.

  Raises:
    BadExample: it is not there, or its SVG cannot be drawn.
  """
  resvg = _resvg()
  if (icon := resolved(content, key)) is None:
    raise BadExample(f"there is no icon {key}")
  box = " ".join(str(icon[k]) for k in _PLACED)
  svg = (
    '<svg xmlns="http://www.w3.org/2000/svg" '
    'xmlns:xlink="http://www.w3.org/1999/xlink" '
    f'width="{_LARGER * size}" height="{_LARGER * size}" viewBox="{box}">'
    f"{icon['body']}</svg>"
  )
  try:
    png = resvg.svg_to_bytes(svg_string=svg, background="white", skip_system_fonts=True)
  except ValueError as e:
    raise BadExample(f"icon {key} cannot be drawn ({config.one_line(e)})") from e
  large = Image.open(io.BytesIO(bytes(png))).convert("RGB")
  image = np.asarray(large.reduce(_LARGER))
  # Iconify mirrors first, then turns by quarters, clockwise.
  image = image[:, ::-1] if icon["hFlip"] else image
  image = image[::-1] if icon["vFlip"] else image
  return np.rot90(image, -icon["rotate"])


def _resvg():
  try:
    return importlib.import_module("resvg_py")
  except ImportError as e:
    raise ConfigError("source 'iconify' needs a package: pip install resvg-py") from e


# --------------------------------------------------------------------- npm's packages


def _read(folder: pathlib.Path, style: str, version: str) -> tuple[dict, dict]:
  """icons.json and info.json of a package, which npm fetches where it is not there."""
  place = _found(folder, style, version) or _fetched(folder, style, version)
  try:
    if place.is_dir():
      read = lambda name: (place / name).read_bytes()
      content, info = json.loads(read("icons.json")), json.loads(read("info.json"))
    else:
      with tarfile.open(place) as tar:
        read = lambda name: _member(tar, f"package/{name}")
        content, info = json.loads(read("icons.json")), json.loads(read("info.json"))
    bodies = [icon["body"] for icon in content["icons"].values()]
    if not bodies or not info["license"]["title"] or not info["author"]["name"]:
      raise ValueError("it has no icons, or no license")
  except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as e:
    raise _damaged(place, e) from e
  except (tarfile.TarError, zlib.error) as e:
    raise _damaged(place, e) from e
  return content, info


def _member(tar: tarfile.TarFile, name: str) -> bytes:
  found = tar.extractfile(name)  # KeyError where there is none.
  return found.read() if found else b""


def _damaged(place: pathlib.Path, error: Exception) -> ConfigError:
  why = f"no {error}" if isinstance(error, KeyError) else config.one_line(error)
  return ConfigError(
    f"{place} is damaged, or no package of Iconify ({why}): remove it, and npm fetches "
    "it again"
  )


def _tarball(style: str, version: str) -> str:
  """The name that `npm pack` gives it."""
  return f"{SCOPE[1:]}-{style}-{version}.tgz"


def _found(folder: pathlib.Path, style: str, version: str) -> pathlib.Path | None:
  """A package in this folder: a tarball, or unpacked at this version."""
  if (tarball := folder / _tarball(style, version)).is_file():
    return tarball
  for place in (folder / "node_modules" / SCOPE / style, folder / SCOPE / style):
    try:
      if json.loads((place / "package.json").read_bytes())["version"] == version:
        return place
    except (OSError, ValueError, KeyError, TypeError):
      continue
  return None


def _fetched(folder: pathlib.Path, style: str, version: str) -> pathlib.Path:
  """The tarball of a package, by npm, which checks it against the registry's hash."""
  package, name = f"{SCOPE}/{style}@{version}", _tarball(style, version)
  npm = shutil.which("npm")
  remedy = f"run npm pack {package} where there is one, and put {name} into {folder}"
  if npm is None:
    raise ConfigError(
      f"source 'iconify' needs package {package}, which is not in {folder}, and there "
      f"is no npm to fetch it: install npm, or {remedy}"
    )
  folder.mkdir(parents=True, exist_ok=True)
  logging.warning("fetching %s into %s", package, folder)
  with tempfile.TemporaryDirectory(dir=folder, prefix=".npm-") as scratch:
    command = [npm, "pack", package, "--pack-destination", scratch]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not (pathlib.Path(scratch) / name).is_file():
      said = re.findall(r"(?m)^npm (?:error|ERR!) (.+)$", done.stderr)
      why = " ".join(said[:2]) or "it says nothing"
      raise ConfigError(
        f"npm cannot fetch {package} for source 'iconify' ({why}): mend that, name "
        f"another version in config key 'data.source.packages', or {remedy}"
      )
    os.replace(pathlib.Path(scratch) / name, folder / name)
  return folder / name
