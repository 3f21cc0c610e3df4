"""Image files are read as a viewer shows them, or refused with the reason."""

import io
import pathlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from fluid.data import images
from fluid.errors import REQUEUE, exit_code


def _bytes(image, kind="PNG", **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def test_what_people_have(fixtures):
  folder = fixtures.parent / "cases" / "data" / "modes"
  if not folder.is_dir():
    pytest.skip("no folder of cases beside the fixtures")
  read = lambda name: images.read(folder / name).astype(int)
  turned = read("e.jpg")
  top, bottom = turned[: len(turned) // 3], turned[-len(turned) // 3 :]
  assert top[..., 0].min() > 150 > top[..., 2].max()
  assert bottom[..., 2].min() > 150 > bottom[..., 0].max()
  assert np.abs(read("c.jpg") - [255, 0, 0]).max() < 8
  ramp = read("g16.png")
  assert ramp.min() == 0 and ramp.max() > 240 and len(np.unique(ramp)) > 30
  assert read("tiny.png").shape == (1, 1, 3) and read("wide.png").shape == (3, 400, 3)
  assert images.square(images.read(folder / "wide.png"), 8).shape == (8, 8, 3)
  for name in ("p.png", "la.png"):
    assert read(name).shape[-1] == 3
  for name in ("tr.png", "zero.png"):
    with pytest.raises(images.ImageError):
      images.read(folder / name)


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation(turn):
  """Each of the eight is undone: a picture is stored so that it looks the same."""
  upright = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 12
  stored = {
    1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
    5: upright.swapaxes(0, 1), 6: np.rot90(upright),
    7: upright[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(upright, -1),
  }[turn]  # fmt: skip
  exif = Image.Exif()
  exif[0x0112] = turn
  image = Image.fromarray(np.ascontiguousarray(stored))
  np.testing.assert_array_equal(images.read(_bytes(image, exif=exif)), upright)
  # Of broken tags beside it, too: this one's value lies beyond the end.
  torn = b"Exif\0\0II*\0\x08\0\0\0\2\0"
  for tag, kind, count, value in ((0x0112, 3, 1, turn), (0x829A, 5, 9, 1 << 20)):
    torn += struct.pack("<HHII", tag, kind, count, value)
  np.testing.assert_array_equal(images.read(_bytes(image, exif=torn)), upright)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_an_orientation_that_is_damaged_says_nothing(kind):
  image = Image.new("RGB", (6, 4), (200, 60, 30))
  whole = images.read(_bytes(image, kind))
  for torn in (b"no TIFF at all", b"MM\0*\0\0\0\x08\0\x05", b""):
    file = _bytes(image, kind, exif=b"Exif\0\0" + torn)
    np.testing.assert_array_equal(images.read(file), whole)


def test_transparency_is_white_in_every_mode():
  clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
  palette = Image.new("P", (4, 4), 1)
  palette.putpalette([0, 0, 0, 255, 0, 0])
  grey = Image.new("LA", (4, 4), (0, 0))
  for file in (_bytes(clear), _bytes(palette, transparency=1), _bytes(grey)):
    assert (images.read(file) == 255).all()


def test_the_first_frame_counts():
  frames = [Image.new("RGB", (5, 5), c) for c in ("red", "blue")]
  for kind in ("GIF", "WEBP", "TIFF"):
    options = {"lossless": True} if kind == "WEBP" else {}
    file = _bytes(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (images.read(file) == [255, 0, 0]).all()


def test_colour_profiles_are_applied():
  lab = ImageCms.createProfile("LAB")
  srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
  patch = Image.new("RGB", (4, 4), (200, 60, 30))
  plain = images.read(_bytes(patch, icc_profile=srgb.tobytes()))
  assert (plain == [200, 60, 30]).all()
  # Made of sRGB's: what it calls red is its blue, and the other way round.
  named = srgb.tobytes().replace("sRGB".encode("utf-16-be"), "xRGB".encode("utf-16-be"))
  swapped = named.replace(b"rXYZ", b"____").replace(b"bXYZ", b"rXYZ", 1)
  swapped = swapped.replace(b"____", b"bXYZ")
  read = images.read(_bytes(Image.new("RGB", (4, 4), (255, 0, 0)), icc_profile=swapped))
  assert np.abs(read[0, 0].astype(int) - [0, 0, 255]).max() < 3
  # A profile of another colour space than the pixels' says nothing about them.
  other = ImageCms.ImageCmsProfile(lab).tobytes()
  assert (images.read(_bytes(patch, icc_profile=other)) == [200, 60, 30]).all()
  with pytest.raises(images.ImageError, match="colour profile cannot be read"):
    images.read(_bytes(patch, icc_profile=b"no profile"))


def test_what_is_refused(monkeypatch, tmp_path):
  nan = _bytes(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF")
  with pytest.raises(images.ImageError, match="floats"):
    images.read(nan)
  wide = Image.fromarray(np.full((4, 4), 1 << 20, np.int32))
  with pytest.raises(images.ImageError, match="32 bits"):
    images.read(_bytes(wide, "TIFF"))
  noise = np.random.RandomState(0).randint(0, 256, (32, 32, 3), np.uint8)
  good = _bytes(Image.fromarray(noise))
  for damaged in (good[: len(good) // 2], b"no image", b""):
    with pytest.raises(images.ImageError) as e:
      images.read(damaged)
    assert " at 0x" not in str(e.value)  # It goes into records, which are the same.
  # As large as may be, by its header: it is the pixels that are missing.
  header = b"IHDR" + struct.pack(">IIBBBBB", 1 << 14, 1 << 14, 1, 0, 0, 0, 0)
  largest = good[:8] + struct.pack(">I", 13) + header
  largest += struct.pack(">I", zlib.crc32(header)) + good[33:]
  with pytest.raises(images.ImageError, match="truncated|broken"):
    images.read(largest)
  monkeypatch.setattr(images, "MOST_PIXELS", 1000)
  with pytest.raises(images.ImageError, match="32 x 32 pixels are too many"):
    images.read(good)
  with pytest.raises(FileNotFoundError):
    images.read(pathlib.Path(tmp_path / "none.png"))


def test_a_line_of_pixels_is_not_made_wide(monkeypatch):
  line = _bytes(Image.new("RGB", (100, 1)))
  monkeypatch.setattr(images, "MOST_PIXELS", 10_000)
  for how in ("adm", "torchvision"):
    with pytest.raises(images.ImageError, match="100 x 1 pixels would be 1600 x 16"):
      images.fitted(line, 16, how)
  assert images.fitted(line, 16, "square")["image"].shape == (16, 16, 3)


def test_what_the_machine_lacks_is_no_damage(monkeypatch):
  with pytest.raises(OSError, match="Input/output error: '/proc/self/mem'") as e:
    images.read("/proc/self/mem")  # Linux reads nothing at its first byte.
  assert not isinstance(e.value, images.ImageError)

  def full(image):
    raise MemoryError

  monkeypatch.setattr(images, "_rgb", full)
  with pytest.raises(OSError, match="Cannot allocate memory") as e:
    images.read(_bytes(Image.new("L", (4, 4))))
  assert exit_code(e.value) == REQUEUE


@pytest.mark.parametrize("how", images.FITS)
def test_every_fit_keeps_the_middle(how):
  """Of ramps along either axis: nothing is turned or shifted."""
  fit, size = images.FITS[how], 32
  for shape in ((32, 32), (50, 32), (32, 51), (64, 200), (301, 97), (7, 9), (1, 5)):
    ramp = np.linspace(0, 255, shape[1])[None, :, None] * np.ones((shape[0], 1, 3))
    for turn in (False, True):
      image = ramp.astype(np.uint8)
      image = image.swapaxes(0, 1) if turn else image
      got = fit(np.ascontiguousarray(image), size).astype(float)
      assert got.shape == (size, size, 3)
      got = got.swapaxes(0, 1) if turn else got
      # Columns are constant, rise, and the middle one is the picture's middle.
      assert np.ptp(got, 0).max() <= 1 and (np.diff(got[0, :, 0]) >= 0).all()
      if shape[1] > 8:
        assert abs(got[0, 15:17, 0].mean() - 127.5) < 255 / min(shape) + 2
  exact = np.random.RandomState(0).randint(0, 256, (size, size, 3)).astype(np.uint8)
  np.testing.assert_array_equal(fit(exact, size), exact)


def test_adm_halves_by_box_means():
  image = np.random.RandomState(0).randint(0, 256, (64, 128, 3)).astype(np.uint8)
  half = image.reshape(32, 2, 64, 2, 3).mean((1, 3))[:, 16:48]
  assert np.abs(images.adm(image, 32) - half).max() <= 1  # Each axis is rounded.
