"""Configs that come with the code: found from any folder, installed or not."""

import os
import pathlib

ROOT = pathlib.Path(__file__).parents[1]


def find(path: str) -> str:
  """`path` as it is; where nothing is there, the file of that name beside the code.

  Only for what is read: 'configs/toy.py' -> '/.../site-packages/configs/toy.py'.
  """
  if pathlib.PurePath(path).parts[:1] != ("configs",):
    return path
  ours = ROOT / path
  return str(ours) if ours.exists() and not os.path.exists(path) else path
