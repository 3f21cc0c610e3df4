"""A closed unpickler: torch's tensors and plain containers, and never a call.

A pickle is a program that may call whatever it can import. This one imports nothing: of
torch's globals there are stand-ins that describe tensors, and any other global (the
argparse.Namespace of a training script, numpy's scalars, a callback) is `Inert`, which
takes every argument and does nothing. A file that names what only serves to run code is
refused, since nobody should go on with it.

Written after torch's documentation of the format (torch.serialization); no torch here.
"""

import pickle
from typing import Any

import ml_dtypes
import numpy as np

# torch's storage class -> the dtype of its elements.
STORAGES = {
  "DoubleStorage": np.dtype("<f8"),
  "FloatStorage": np.dtype("<f4"),
  "HalfStorage": np.dtype("<f2"),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "LongStorage": np.dtype("<i8"),
  "IntStorage": np.dtype("<i4"),
  "ShortStorage": np.dtype("<i2"),
  "CharStorage": np.dtype("i1"),
  "ByteStorage": np.dtype("u1"),
  "BoolStorage": np.dtype("?"),
  "ComplexFloatStorage": np.dtype("<c8"),
}

# What these modules offer runs code, reaches the system, or leads to what does. The
# list decides what is refused; that nothing is ever called does not rest on it.
_RUNS = frozenset(
  "os posix nt subprocess sys importlib runpy ctypes multiprocessing pickle _pickle "
  "marshal shelve shutil socket pty webbrowser builtins __builtin__ operator _operator "
  "timeit pdb bdb pydoc tempfile io _io urllib ftplib smtplib".split()
)
# Of the builtins, those that a pickle has good reason to name.
_PLAIN = frozenset(
  "set frozenset list dict tuple slice range bytes bytearray complex int float bool "
  "str object type NotImplementedType ellipsis".split()
)


class Inert:
  """Stands for a global that is not known: made of anything, holds nothing.

  It also swallows what a pickle may do to an object after it is made, so that no
  opcode reaches an attribute of a class or instance.
  """

  def __new__(cls, *args, **kwargs):
    del args, kwargs
    return object.__new__(cls)

  def __init__(self, *args, **kwargs):
    del args, kwargs

  def __setstate__(self, *state):
    del state

  append = extend = add = update = __setitem__ = lambda self, *args: None


class Storage(Inert):
  """A typed run of numbers in the file, by key.

  Attributes:
    dtype, key, size: of the elements, the record's name, the number of elements.
  """

  def __init__(self, dtype: np.dtype, key: str, size: int):
    self.dtype, self.key, self.size = dtype, key, size


class Tensor(Inert):
  """torch._utils._rebuild_tensor_v2: a view of a storage, in elements."""

  def __init__(self, storage, offset, shape, strides, *rest):
    del rest
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or len(shape) != len(strides):
      raise pickle.UnpicklingError("a tensor is not a view of a storage")
    # A negative one would reach memory outside the storage.
    if not all(type(n) is int and n >= 0 for n in numbers):
      raise pickle.UnpicklingError(f"a tensor has offset, shape, strides {numbers}")
    self.storage, self.offset = storage, offset
    self.shape, self.strides = tuple(shape), tuple(strides)

  @property
  def end(self) -> int:
    """Elements of the storage that are needed."""
    if 0 in self.shape:
      return 0
    return self.offset + 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides))

  def of(self, data: np.ndarray) -> np.ndarray:
    """The tensor as an array of its own; data: the storage [size] or more.

    Raises:
      ValueError: the storage is too small.
    """
    if self.end > len(data):
      raise ValueError(f"a tensor needs {self.end} numbers of a storage of {len(data)}")
    if 0 in self.shape:
      return np.zeros(self.shape, data.dtype)
    strides = [s * data.itemsize for s in self.strides]
    view = np.lib.stride_tricks.as_strided(data[self.offset :], self.shape, strides)
    return np.array(view)


class _Parameter(Inert):
  """torch._utils._rebuild_parameter: the tensor itself."""

  def __new__(cls, data, *rest):
    del rest
    return data


class _Dict(dict):
  """collections.OrderedDict without the attributes that a state dict carries."""

  def __setstate__(self, *state):
    del state


class _Module(dict):
  """A module of a TorchScript archive, which is its attributes and no code."""

  def __setstate__(self, state):
    if isinstance(state, dict):
      self.update(state)


class _Type(Inert):
  """A storage class."""

  def __init__(self, name: str):
    self.name = name


_KNOWN: dict[tuple[str, str], Any] = {
  ("collections", "OrderedDict"): _Dict,
  ("torch._utils", "_rebuild_tensor_v2"): Tensor,
  ("torch._utils", "_rebuild_parameter"): _Parameter,
} | {("torch", name): _Type(name) for name in STORAGES}


class RunsCode(pickle.UnpicklingError):
  """The pickle asks for something that runs code."""


class Unpickler(pickle.Unpickler):
  """Gives dicts, lists, tuples, numbers and strings, `Tensor` and `Inert`.

  Raises:
    RunsCode: see there. Every other error means a file that is damaged.
  """

  def find_class(self, module, name):
    if (module, name) in _KNOWN:
      return _KNOWN[module, name]
    top = module.partition(".")[0]
    if top == "__torch__":
      return _Module
    plain = top in ("builtins", "__builtin__") and name in _PLAIN
    if top in _RUNS and not plain:
      raise RunsCode(f"it asks for {module}.{name}")
    return Inert

  def persistent_load(self, pid):
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
      raise pickle.UnpicklingError(f"a persistent id is {pid!r:.60}")
    _, kind, key, _, size = pid[:5]
    if not isinstance(kind, _Type) or type(size) is not int:
      return Inert()  # Of a type that numpy has no numbers for, such as quantised ones.
    return Storage(STORAGES[kind.name], str(key), size)
