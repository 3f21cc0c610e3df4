"""Frozen text encoders: published networks whose features the net reads.

Their weights are no parameters of the net and lie in no run: FILE says where they are
and what they hash to, so that features can be made again, by these weights and no
other. They are read when features are first asked for, and stay on the devices.

B prompts, T text tokens, E width of the features.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fluid import files
from fluid.config import ConfigError, rules
from fluid.convert import containers
from fluid.data import caption
from fluid.parallel import sharding
from fluid.text import weights
from fluid.text.base import TextConfig
from fluid.text.pieces import Pieces

DTYPES = ("bfloat16", "float32")


class Network(Protocol):
  """A network of known sizes; frozen and hashable, so it can be static in jit."""

  @property
  def width(self) -> int:
    """E."""

  @property
  def vocab(self) -> int:
    """Ids that its table has rows for."""

  def rows(self) -> weights.Rows:
    """Every parameter."""

  def __call__(self, params: dict, ids, mask, dtype) -> jax.Array:
    """Ids [B, T], mask [B, T] -> features [B, T, E] float32; dtype: of products."""


@dataclasses.dataclass(frozen=True)
class FrozenConfig(TextConfig):
  """What configs of frozen encoders share.

  Attributes:
    path: folder of the weights, with config.json and the vocabulary; or the file of
      weights in it.
    width: of its features; that of the weights, which is checked.
    dtype: of activations and matrices; norms, softmax and sums stay float32.
    SKIP: pattern of the tensors that a file may have beside the network's.
    VOCABULARY: name of the vocabulary's file.
    KNOWN: networks of published sizes.
  """

  FILE = "text.json"
  SKIP: ClassVar[str] = ""
  VOCABULARY: ClassVar[str] = ""
  KNOWN: ClassVar[tuple[Any, ...]] = ()

  width: int = 0
  dtype: str = "bfloat16"

  def check(self, name: str) -> None:
    rules.positive(self, name, "width", "length")
    rules.choice(f"{name}dtype", self.dtype, DTYPES)

  @property
  def feature_width(self) -> int:
    return self.width

  def prompt(self, source, index, example=None):
    return example["caption"] if example else caption(source, index)

  def described(self, path: pathlib.Path, content: dict[str, Any]) -> Any:
    """The Network of a config.json; ConfigError where that is another family's."""
    raise NotImplementedError

  def vocabulary(self, path: pathlib.Path) -> Pieces:
    """Of the file VOCABULARY."""
    raise NotImplementedError

  def where(self) -> pathlib.Path:
    """The folder or file of weights."""
    if not self.path:
      raise ConfigError(
        f"config key 'text.path' is empty: name the folder of a '{self.kind}' encoder"
      )
    return pathlib.Path(self.path)

  def open(self, path: pathlib.Path) -> "Frozen":
    """The encoder of a folder; its weights are only looked at by name.

    Raises:
      ConfigError: a file that is missing, damaged or another network's, or widths that
        do not fit.
    """
    folder = _folder(path)
    network = self._network(folder)
    if network.width != self.width:
      raise ConfigError(
        f"config key 'text.width' is {self.width}, but the encoder {folder} gives "
        f"features of {network.width}: set it to that"
      )
    vocabulary = self.vocabulary(folder / self.VOCABULARY)
    if vocabulary.size > network.vocab:
      raise ConfigError(
        f"the vocabulary in {folder} has {vocabulary.size} ids, but its weights have "
        f"{network.vocab} rows: take both from one checkpoint"
      )
    return Frozen(self, path, network, vocabulary)

  def load(self, folders):
    """The encoder; a FILE in one of the folders vouches for its weights."""
    found = next((f / self.FILE for f in folders if (f / self.FILE).is_file()), None)
    if found is None:
      return self.open(self.where())
    try:
      content = json.loads(found.read_text())
      there, sha256 = pathlib.Path(content["path"]), content["sha256"]
    except (ValueError, KeyError, TypeError) as e:
      raise ConfigError(
        f"{found} is damaged ({e}): run python -m fluid.prepare again"
      ) from e
    moved = not self.path or not pathlib.Path(self.path).exists()
    encoder = self.open(there if moved and there.exists() else self.where())
    encoder.sha256 = sha256
    return encoder

  def install(self, folder):
    """Writes FILE: where the weights are, and what they hash to."""
    where = os.path.abspath(self.where())
    content = {"kind": self.kind, "path": where, "sha256": self.digest()}
    files.write_json(folder / self.FILE, content)
    return True

  def digest(self):
    """Of weights and vocabulary; the same for any container that they come in."""
    return self.open(self.where()).digest()

  def vouched(self, prefix):
    """The hash of the weights; '' on a machine that only plans and has none."""
    try:
      return {f"{prefix}file": self.digest() if self.where().exists() else ""}
    except ConfigError:
      return {f"{prefix}file": ""}

  def shipped(self, folder):
    return os.path.relpath(self.where(), folder)

  def network(self):
    for known in self.KNOWN:
      if known.width == self.width:
        return known
    try:  # Where features are cached, the weights may be gone.
      return self._network(_folder(self.where()))
    except ConfigError:
      return None

  def _network(self, folder: pathlib.Path) -> Any:
    path = folder / "config.json"
    try:
      return self.described(path, json.loads(path.read_text("utf-8")))
    except OSError as e:
      raise ConfigError(
        f"no text encoder in {folder} (config.json is missing): name the folder of a "
        f"'{self.kind}' encoder in config key 'text.path'"
      ) from e
    except (ValueError, KeyError, TypeError) as e:
      if isinstance(e, ConfigError):
        raise
      raise ConfigError(f"{path} is damaged ({e!r}): download it again") from e


class Frozen:
  """An encoder with its weights, which it reads once.

  Attributes:
    size: ids of the vocabulary.
    sha256: that `digest` has to be ('' for any).
  """

  def __init__(self, config: FrozenConfig, path, network: Any, vocabulary: Pieces):
    self.config, self.path, self.network = config, path, network
    self.vocabulary, self.size, self.sha256 = vocabulary, vocabulary.size, ""
    self._rows = network.rows()
    self._weights = containers.read(path)
    weights.check(self._rows, self._weights, config.SKIP, path)
    self._mesh: Any = None
    self._params: dict | None = None
    self._jit = jax.jit(functools.partial(features, network, dtype=config.dtype))

  def encode(self, prompts: Sequence[str], length: int, **kwargs):
    """As the vocabulary does (fluid.text.pieces)."""
    return self.vocabulary.encode(prompts, length, **kwargs)

  def count(self, prompt: str) -> int:
    """Text tokens of a prompt, its ends included."""
    return self.vocabulary.count(prompt)

  def decode(self, ids) -> list[str]:
    """Ids [B, T] -> normalised texts."""
    return self.vocabulary.decode(ids)

  def digest(self) -> str:
    """SHA-256 of the weights that are used, and of how prompts become ids."""
    vocabulary = _folder(self.path) / self.config.VOCABULARY
    return _digest(self.path, _stamp(self.path), vocabulary, self.network)

  def features(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Ids [B, T], mask [B, T] -> [B, T, E] bfloat16, zeros where the mask is False.

    Under a mesh (jax.set_mesh) the weights are sharded over it, and the rows.

    Raises:
      ConfigError: the weights are not those that were vouched for.
    """
    found = jax.sharding.get_mesh()
    mesh = None if found.empty else found
    if self._params is None or mesh != self._mesh:
      self._params, self._mesh = self._read(mesh), mesh
    rows = len(ids)
    fill = -rows % (sharding.batch_parts(mesh) if mesh else 1)
    # Rows that fill up are copies: a row without any token has no softmax.
    ids, mask = (np.concatenate([a, np.repeat(a[-1:], fill, 0)]) for a in (ids, mask))
    return sharding.to_host(self._jit(self._params, ids, mask))[:rows]

  def _read(self, mesh) -> dict:
    if self.sha256 and self.digest() != self.sha256:
      raise ConfigError(
        f"{self.path} holds another text encoder ({self.digest()[:12]}) than that of "
        f"this run ({self.sha256[:12]}): put that back, or name where it is in config "
        "key 'text.path'"
      )
    return weights.place(self._rows, self._weights, self.config.dtype, mesh, self.path)


def features(network, params, ids, mask, *, dtype) -> jax.Array:
  """Ids and mask [B, T] -> [B, T, E] bfloat16, zeros where the mask is False."""
  ids, mask = sharding.by_rows((ids, mask))
  found = network(params, ids, mask, jnp.dtype(dtype))
  return jnp.where(mask[..., None], found, 0).astype(jnp.bfloat16)


def _folder(path: pathlib.Path) -> pathlib.Path:
  return path.parent if path.is_file() else path


def _stamp(path: pathlib.Path) -> tuple:
  """Changes where a file beside the weights does."""
  stats = [(p.name, p.stat()) for p in sorted(_folder(path).iterdir()) if p.is_file()]
  return tuple((name, s.st_size, s.st_mtime_ns) for name, s in stats)


@functools.lru_cache
def _digest(path, stamp, vocabulary, network) -> str:
  """Kept, since reading an encoder of 10 GB takes its time, and many ask."""
  del stamp
  found = weights.digest(network.rows(), containers.read(path))
  return hashlib.sha256(found.encode() + vocabulary.read_bytes()).hexdigest()
