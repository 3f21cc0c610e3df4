"""Mask2Former against transformers' own outputs, and against slow numpy."""

import hashlib
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fluid import config
from fluid.evals import detectors
from fluid.evals.detectors import mask2former, swin
from fluid.parallel import sharding

FIXTURE = pathlib.Path(__file__).parent / "data/mask2former"


@pytest.fixture(scope="module")
def network():
  return mask2former.load(str(FIXTURE))


@pytest.fixture(scope="module")
def expected():
  return dict(np.load(FIXTURE / "expected.npz"))


def close(found, wanted, tolerance=1e-4):
  assert found.shape == wanted.shape
  assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def test_every_part_equals_transformers(network, expected):
  """59 x 75 pixels: maps of no whole windows, the last smaller than one."""
  net, params = network

  @jax.jit
  def run(p, x):
    maps = net.backbone(swin.under(p, "model.pixel_level_module.encoder"), x)
    levels, features = net.pixels(p, maps)
    return maps, levels, features, net.decode(p, levels, features)

  maps, levels, features, (classes, masks) = run(
    params, expected["image"].astype(np.float32)
  )
  for i, x in enumerate(maps):
    close(x, expected[f"map{i}"])
  for i, x in enumerate(levels):
    close(x, expected[f"level{i}"])
  close(features, expected["features"])
  close(classes, expected["classes"])
  close(masks, expected["masks"])
