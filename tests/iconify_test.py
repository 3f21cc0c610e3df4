"""fluid.data.iconify, icons: format, what is held out, what is kept, who fetches."""

import concurrent.futures
import functools
import io
import itertools
import json
import pickle
import sys
import tarfile
import threading
import time

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from fluid import config
from fluid.config import identity
from fluid.data import BadExample, examples, iconify, icons, make_source
from fluid.data.iconify import IconifyConfig
from fluid.text.learned import LearnedConfig

SIZE = 16
NAMES = [f"{a} {b}" for a in ("red", "old", "big") for b in ("bear", "cup", "bus")]
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255)


def body(color, d="M0 0h32v32H0z"):
  return f'<path fill="{color}" d="{d}"/>'


def package(name, **content):
  """Files of a package, as npm has them."""
  info = {"name": name.title(), "author": {"name": "A. Painter"}}
  info |= {"license": {"title": "CC BY 4.0", "spdx": "CC-BY-4.0", "url": "https://x"}}
  found = {"icons.json": {"prefix": name} | content, "info.json": info}
  found["package.json"] = {"name": f"@iconify-json/{name}", "version": "1.0.0"}
  return {file: json.dumps(value).encode() for file, value in found.items()}


def pack(folder, name, **content):
  """Writes what `npm pack` writes."""
  path = folder / f"iconify-json-{name}-1.0.0.tgz"
  with tarfile.open(path, "w:gz") as tar:
    for file, data in package(name, **content).items():
      member = tarfile.TarInfo(f"package/{file}")
      member.size = len(data)
      tar.addfile(member, io.BytesIO(data))
  return path


def bodies(colors):
  return {
    name.replace(" ", "-"): {"body": body(color, f"M{i} 0h9v32H{i}z")}
    for i, (name, color) in enumerate(zip(NAMES, colors))
  }


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Two styles: one packed, one unpacked as `npm install --prefix` does."""
  pytest.importorskip("resvg_py")
  monkeypatch.setattr(iconify, "VAL_EVERY", 3)
  monkeypatch.setattr(icons, "_PART", 4)
  monkeypatch.setenv("PATH", "")  # No npm, unless a test has one.
  pack(tmp_path, "flat", icons=bodies(["#f00"] * 9), width=32, height=32)
  place = tmp_path / "node_modules/@iconify-json/deep-flat"
  place.mkdir(parents=True)
  content = package("deep-flat", icons=bodies(["#00f"] * 9), width=32, height=32)
  for file, data in content.items():
    (place / file).write_bytes(data)
  return tmp_path


def opened(
  folder, split="train", size=SIZE, packages=("flat@1.0.0", "deep-flat@1.0.0")
):
  source = IconifyConfig(
    path=str(folder) if folder else "", packages=",".join(packages)
  )
  return make_source(config.Data(source=source, image_size=size), split)


def refused(match, make):
  with pytest.raises(config.ConfigError, match=match) as caught:
    make()
  assert "\n" not in str(caught.value)


def test_the_format(folder):
  """Defaults, boxes, aliases that turn and mirror, icons that are withdrawn."""
  left = body("#f00", "M0 0h16v32H0z")
  pack(
    folder,
    "odd",
    width=32,
    height=32,
    icons={
      "bear": {"body": left},
      "gone": {"body": left, "hidden": True},
      "wide": {"body": body("#00f", "M0 0h64v32H0z"), "width": 64},
      "moved": {"body": body("green", "M32 48h32v32H32z"), "left": 32, "top": 48},
      "use": {
        "body": f'<defs><g id="a">{left}</g></defs><use href="#a"/>'
        '<use xlink:href="#a" x="16"/>'
      },
      "torn": {"body": "<path"},
    },
    aliases={
      "ursa": {"parent": "bear"},  # A name, no drawing.
      "bear-right": {"parent": "bear", "hFlip": True},
      "bear-left": {"parent": "bear-right", "hFlip": True},
      "bear-top": {"parent": "bear", "rotate": 1},
      "bear-bottom": {"parent": "bear-top", "rotate": 2},
      "bear-left-again": {"parent": "bear-right", "vFlip": True, "rotate": 2},
      "half": {"parent": "bear", "width": 16, "height": 16},
      "gone-right": {"parent": "gone", "hFlip": True},
      "nowhere": {"parent": "nothing", "hFlip": True},
      "circle": {"parent": "circle", "hFlip": True},
    },
  )
  pack(folder, "plain", icons={"dot": {"body": body("#00f", "M0 0h16v16H0z")}})
  source = opened(folder, packages=("odd@1.0.0", "plain@1.0.0"))
  found, bad = {}, []
  for i in range(len(source)):
    try:
      found[source[i]["meta"]["icon"]] = source[i]["image"]
    except BadExample as e:
      bad.append(str(e))
      assert source.caption(i) == "torn, odd"
  assert len(bad) == 1 and "odd:torn cannot be drawn" in bad[0]

  def expect(icon, top, bottom, left, right):
    image, mid = found.pop(icon), SIZE // 2
    sides = {"top": (1, mid), "bottom": (-2, mid), "left": (mid, 1), "right": (mid, -2)}
    colors = dict(zip(sides, (top, bottom, left, right)))
    for side, color in colors.items():
      if color:
        assert tuple(image[sides[side]]) == color, (icon, side)

  for icon in ("bear", "bear-left", "bear-left-again"):
    expect(f"odd:{icon}", None, None, RED, WHITE)
  expect("odd:bear-right", None, None, WHITE, RED)
  expect("odd:bear-top", RED, WHITE, None, None)
  expect("odd:bear-bottom", WHITE, RED, None, None)
  expect("odd:wide", WHITE, WHITE, BLUE, BLUE)
  expect("odd:moved", *[GREEN] * 4)
  for icon in ("odd:use", "odd:half"):
    expect(icon, *[RED] * 4)
  expect("plain:dot", *[BLUE] * 4)  # 16 units, where nothing says otherwise.
  assert not found


def test_names_are_spelled_alike():
  tones = ("light", "medium-light", "medium", "medium-dark", "dark")
  keys = [
    "hand",
    "traffic-light",
    "flag-for-chile",
    "flag-chile",
    "wave-dark-skin-tone",
  ]
  keys += [f"hand-{tone}" for tone in tones]
  found = icons.drawings_of({"icons": {key: {"body": body("#f00")} for key in keys}})
  expected = {"hand", "traffic light", "flag chile", "wave dark skin tone"}
  expected |= {f"hand {tone.replace('-', ' ')} skin tone" for tone in tones}
  assert {d.name for d in found} == expected and len(found) == len(expected)
  one = {
    iconify.group(f"{who} running{tone}")
    for who in ("man", "woman")
    for tone in ("", " medium dark skin tone", " dark skin tone", " medium skin tone")
  }
  assert len(one) == 1 and iconify.group("man walking") not in one


def test_the_contract(folder):
  splits = {split: opened(folder, split) for split in ("train", "val")}
  ids, pairs = [], {}
  for split, source in splits.items():
    again = pickle.loads(pickle.dumps(source))
    pairs[split] = set()
    for i in range(len(source)):
      a, b = source[i], again[i]
      np.testing.assert_array_equal(a["image"], b["image"])
      assert a["image"].shape == (SIZE, SIZE, 3) and a["image"].dtype == np.uint8
      assert (
        a["caption"] == source.caption(i) == b["caption"] and a["meta"] == b["meta"]
      )
      assert a["meta"]["license"] == "CC-BY-4.0"
      name, style = a["caption"].split(", ")
      assert name in NAMES and style in ("flat", "deep flat")
      column = a["image"][:, (NAMES.index(name) + 4) // 2]
      assert {tuple(c) for c in column} == {RED if style == "flat" else BLUE}
      a["image"][:] = 7  # A caller may write to what it gets.
      assert (source[i]["image"] != 7).any()
      ids.append(a["id"])
      pairs[split].add((name, style))
    for i in (-1, len(source)):
      with pytest.raises(IndexError):
        source[i]
  assert sorted(ids) == list(range(2 * len(NAMES)))
  assert pairs["val"] and not pairs["val"] & pairs["train"]
  assert {n for n, _ in pairs["train"]} == set(NAMES)
  assert splits["val"].licenses["flat"]["url"] == "https://x"


TONES = ["", " dark skin tone", " medium light skin tone"]
WORDS = [f"{w}{t}" for w in ("bear", "man", "woman", "flag", "cup") for t in TONES]
PAIRS = st.sets(st.tuples(st.sampled_from(WORDS), st.sampled_from("abcd")), min_size=1)


@hypothesis.given(pairs=PAIRS, every=st.integers(1, 4), data=st.data())
@hypothesis.settings(deadline=None, max_examples=200)
def test_what_is_held_out_is_pairs_alone(pairs, every, data):
  """Each name and style is in training; nothing of a held pair is, by any name."""
  pairs = data.draw(st.permutations(sorted(pairs)))
  looks = [data.draw(st.integers(0, 60)) for _ in pairs]
  names, styles = zip(*pairs)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(iconify, "VAL_EVERY", every)
    held = iconify.held_out(names, styles, looks)
    order = np.random.default_rng(0).permutation(len(pairs))
    turned = iconify.held_out(
      *([of[i] for i in order] for of in (names, styles, looks))
    )
  np.testing.assert_array_equal(turned, held[order])
  rows = list(zip(held, names, styles, looks))
  train, val = ([r[1:] for r in rows if r[0] == which] for which in (False, True))
  assert {n for n, _, _ in train} == set(names)
  assert {s for _, s, _ in train} == set(styles)
  for said in (lambda n, s, x: (iconify.group(n), s), lambda n, s, x: (s, x)):
    assert not {said(*r) for r in train} & {said(*r) for r in val}


def test_a_twentieth_is_held_out():
  names = [f"thing{i}" for i in range(2000) for _ in range(3)]
  held = iconify.held_out(names, list("abc") * 2000, range(6000))
  assert 0.04 < held.mean() < 0.06


def test_any_number_of_workers_reads_the_same(folder):
  source = opened(folder)
  source[0]  # What is open does not go to the workers.
  read = functools.partial(examples.read, source, LearnedConfig(), 0, len(source), 4)
  found = [list(itertools.chain.from_iterable(read(workers))) for workers in (0, 4)]
  assert len(found[0]) == len(found[1]) == len(source)
  for a, b in zip(*found):
    np.testing.assert_array_equal(a.pop("image"), b.pop("image"))
    assert a == b


def test_what_is_drawn_is_kept(folder, monkeypatch):
  """Interrupted, it goes on at the first part that is missing or torn."""
  opened(folder)
  kept = lambda: [p for p in sorted(folder.glob("*px/*")) if p.suffix != ".lock"]
  parts = kept()
  assert [p.name for p in parts] == [
    "000.npy",
    "001.npy",
    "002.npy",
    "drawings.json",
  ] * 2
  before = {p: p.read_bytes() for p in parts}
  drawn = []
  draw = icons.pictured
  monkeypatch.setattr(
    icons, "pictured", lambda *args: drawn.append(args[1]) or draw(*args)
  )
  opened(folder, "val")
  assert not drawn
  parts[1].unlink()
  parts[4].write_bytes(before[parts[4]][:-1000])
  parts[7].write_bytes(b"{")
  opened(folder)
  assert len(drawn) == 8
  assert {p: p.read_bytes() for p in kept()} == before
  next(folder.glob("*.tgz")).unlink()
  opened(folder)
  assert len(drawn) == 8
  refused("there is no npm", lambda: opened(folder, size=32))


def test_processes_that_start_together_share_the_drawing(folder, monkeypatch):
  """Each drawing is made once, by one of them, and all have all."""
  draw, drawn = icons.pictured, []

  def slowly(*args):
    time.sleep(0.01)
    drawn.append((threading.get_ident(), args[1]))
    return draw(*args)

  monkeypatch.setattr(icons, "pictured", slowly)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:  # Locks are of open files.
    a, b = pool.map(lambda _: opened(folder), range(2))
  assert len(drawn) == 2 * len(NAMES) and len({who for who, _ in drawn}) == 2
  for i in range(len(a)):
    np.testing.assert_array_equal(a[i]["image"], b[i]["image"])


def test_npm_fetches_what_is_missing(folder, monkeypatch):
  tools = folder / "bin"
  tools.mkdir()
  packed = next(folder.glob("*.tgz")).rename(tools / "iconify-json-flat-1.0.0.tgz")
  npm = tools / "npm"
  monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")

  def script(text):
    npm.write_text(f"#!/bin/sh\n{text}\n")
    npm.chmod(0o755)

  script('echo "npm error code E404\nnpm error 404 no such thing" >&2; exit 1')
  refused(
    "cannot fetch @iconify-json/flat@1.0.0 .*no such thing", lambda: opened(folder)
  )
  script("exit 0")
  refused("cannot fetch .*says nothing", lambda: opened(folder))
  script(
    'test "$1 $2 $3" = "pack @iconify-json/flat@1.0.0 --pack-destination" '
    f'&& cp {packed} "$4"'
  )
  assert len(opened(folder)) > len(NAMES)
  assert (folder / packed.name).read_bytes() == packed.read_bytes()
  assert not list(folder.glob(".npm-*"))


def test_refusals(folder, monkeypatch):
  tarball = folder / "iconify-json-flat-1.0.0.tgz"
  refused(
    "deep-flat@2.0.0.*there is no npm.*npm pack @iconify-json/deep-flat@2.0.0",
    lambda: opened(folder, packages=("deep-flat@2.0.0",)),
  )
  refused("'data.source.path'", lambda: opened(""))
  refused("no split 'test'", lambda: opened(folder, "test"))
  refused("image_size >= 16", lambda: opened(folder, size=8))
  refused(
    "no drawing for split 'val'",
    lambda: opened(folder, "val", packages=("flat@1.0.0",)),
  )
  monkeypatch.setitem(sys.modules, "resvg_py", None)
  refused("pip install resvg-py", lambda: opened(folder, size=32))
  whole = tarball.read_bytes()
  for content in (whole[:300], b"", b"no tar at all"):
    tarball.write_bytes(content)
    refused(f"{tarball.name} is damaged.*remove it", lambda: opened(folder, size=32))
  for content in ({"icons": {}}, {"icons": {"a": {}}}, {}):
    pack(folder, "flat", **content)
    refused(f"{tarball.name} is damaged", lambda: opened(folder, size=32))


@pytest.mark.parametrize(
  "packages",
  ["", "noto", "Noto@1.0.0", "../noto@1", "noto@1.0,noto@2.0", "a@1, b@1"],
)
def test_wrong_packages_are_refused(packages):
  refused("source.packages", lambda: IconifyConfig(packages=packages).check("source."))


def test_versions_are_what_a_cache_is_made_from_and_the_folder_is_not():
  found = identity.identity(IconifyConfig(path="/somewhere"))
  assert found["kind"] == "iconify" and "path" not in found
  assert found["packages"].split(",") == list(iconify.PACKAGES)
