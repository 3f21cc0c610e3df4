"""fluid.data.webdataset: layouts of tar shards, their index, and what is damaged."""

import gzip
import os
import pathlib
import tarfile

import numpy as np
import pytest

from configs import fluid as paper
from fluid import config
from fluid.data import BadExample, images, make_source, webdataset
from fluid.text.classes import ClassesConfig
from fluid.text.learned import LearnedConfig
from tests.shards import SIZE, png, sample, source_of, write_tar


def test_layout_of_img2dataset_and_kinds_of_names(tmp_path):
  """What img2dataset leaves in a folder, GNU's and PAX's long names, hidden files."""
  long = "a folder/" + "ü" * 150
  for shard, form in enumerate(
    (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
  ):
    members = [("./._000000000.jpg", b"?"), ("__meta__/a.json", b"{}")]
    for n in range(shard * 2, shard * 2 + 2):
      key = f"{n:09d}" if form == tarfile.USTAR_FORMAT else f"{long}{n}"
      fields = {"caption": f"json {n}", "key": key, "url": "http://x/y", "width": 3}
      members += [(f"{key}.a.png", b"other"), (f"{key}.JPG", png(n))]
      members += [(f"{key}.json", fields), (f"{key}.txt", f"text {n}\n".encode())]
    write_tar(tmp_path / f"{shard:05d}.tar", members, format=form)
    (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
    (tmp_path / f"{shard:05d}.parquet").write_bytes(b"")
  source = source_of("webdataset", "val", val=str(tmp_path / "*"))
  found = [source.caption(i) for i in range(len(source))]
  assert found == [f"text {n}" for n in range(6)]
  named = source_of("webdataset", train=str(tmp_path / "*"), caption="caption")
  assert named.caption(0).startswith("json ")
  meta = source[4]["meta"]
  assert meta == {"key": f"{long}4", "url": "http://x/y", "width": 3}
  np.testing.assert_array_equal(
    source[4]["image"], images.square(images.read(png(4)), SIZE)
  )


@pytest.mark.parametrize(
  "name, fields, files, captions",
  [
    ("cc12m", {"caption": "alt text"}, {"txt": b"alt text"}, ["alt text"]),
    (
      "datacomp",
      {"uid": "0a1b", "caption": "alt text", "clip_b32_similarity_score": 0.3},
      {"txt": b"alt text"},
      ["alt text"],
    ),
    (
      "laion_coco",
      {"caption": "alt text", "top_caption": "a cat", "all_captions": ["a cat", "b"]},
      {"txt": b"alt text"},
      ["a cat"],
    ),
    ("text_to_image_2m", {"prompt": "a cat in a hat"}, {}, ["a cat in a hat"]),
  ],
)
def test_public_sets_by_name(tmp_path, name, fields, files, captions):
  """As img2dataset writes them, with the columns that these lists have."""
  fields = fields | {"key": "000000000", "status": "success", "error_message": None}
  fields |= {"url": "http://x/y.jpg", "width": 12, "height": 10, "exif": "{}"}
  members = [("000000000.jpg", png(0))]
  members += [(f"000000000.{ending}", content) for ending, content in files.items()]
  write_tar(tmp_path / "00000.tar", [*members, ("000000000.json", fields)])
  data = config.from_config_dict(paper.get_config(f"data={name}")).data
  place = str(tmp_path / "{00000..00000}.tar")
  changes = {"image_size": SIZE, "source.val": place}
  example = make_source(config.replaced(data, changes), "val")[0]
  assert example["captions"] == captions and example["meta"]["width"] == 12
  expected = images.square(images.read(png(0)), SIZE)
  np.testing.assert_array_equal(example["image"], expected)


def test_the_index_is_kept(tmp_path, monkeypatch):
  tars = [tmp_path / f"{n}.tar" for n in range(2)]
  for n, tar in enumerate(tars):
    write_tar(tar, [m for i in range(n * 40, n * 40 + 40) for m in sample(i)])
  fields = {"train": str(tmp_path / "*.tar"), "index": str(tmp_path / "index")}
  scanned = []
  scan = webdataset._scan
  monkeypatch.setattr(webdataset, "_scan", lambda p: scanned.append(p) or scan(p))

  def read():
    scanned.clear()
    webdataset._index.cache_clear()  # As another start.
    sources = [source_of("webdataset", split, **fields) for split in ("train", "val")]
    found = [s[i]["meta"]["number"] for s in sources for i in range(len(s))]
    assert 0 < len(sources[1]) < len(found) / 4
    return [pathlib.Path(p).name for p in scanned], sorted(found)

  assert read() == (["0.tar", "1.tar"], list(range(80)))
  assert read() == ([], list(range(80)))
  write_tar(tars[1], [m for i in range(100, 140) for m in sample(i)])
  os.utime(tars[1], (1, 1))
  assert read() == (["1.tar"], [*range(40), *range(100, 140)])
  for file in (tmp_path / "index").iterdir():
    file.write_bytes(file.read_bytes()[:100])
  assert read()[0] == ["0.tar", "1.tar"]


def test_damaged_tars(tmp_path, caplog):
  """All before the damage is read, one line says so; what is no tar is refused."""
  whole = tmp_path / "a.tar"
  write_tar(whole, [m for n in range(4) for m in sample(n)])
  content = whole.read_bytes()
  with tarfile.open(whole) as tar:
    last = tar.getmembers()[-2]

  def read(content):
    caplog.clear()
    whole.write_bytes(content)
    webdataset._index.cache_clear()
    source = source_of("webdataset", "val", val=str(whole))
    found = []
    for i in range(len(source)):
      try:
        found.append(source[i]["meta"]["number"])
      except BadExample as e:
        found.append((e.kind, str(e)))
    said = [r.getMessage() for r in caplog.records]
    assert len(said) <= 1
    return found, "".join(said)

  assert read(content) == ([0, 1, 2, 3], "")
  for cut in (last.offset_data + 9, last.offset_data + last.size - 1):
    found, said = read(content[:cut])
    assert found[:3] == [0, 1, 2] and found[3][0] == "image"
    assert "00003.png ends after" in found[3][1] and str(whole) in found[3][1]
    assert "1 of 1 shards are damaged" in said and "nobody knows how many" in said
  found, said = read(content[: last.offset])
  assert found == [0, 1, 2] and "without the mark of an end" in said
  found, said = read(content[: last.offset + 99])
  assert found == [0, 1, 2] and "without the mark of an end" in said
  hole = bytearray(content)
  hole[last.offset : last.offset + 512] = b"\xff" * 512
  assert read(bytes(hole))[0] == [0, 1, 2] and "where more follows" in read(hole)[1]
  hole[last.offset : last.offset + 512] = bytes(512)
  assert read(bytes(hole))[0] == [0, 1, 2] and "where more follows" in read(hole)[1]
  for wrong in (
    b"",
    b"no tar" * 200,
    content[:100],
    gzip.compress(content),
  ):
    with pytest.raises(config.ConfigError, match="shard .*a.tar is no tar") as e:
      read(wrong)
    assert "\n" not in str(e.value)


def test_names_that_are_no_utf8_end_no_shard(tmp_path, caplog):
  parts = [m for n in range(3) for m in ((f"é{n}.png", png(n)), (f"é{n}.txt", b"it"))]
  write_tar(tmp_path / "a.tar", parts, encoding="latin1", format=tarfile.GNU_FORMAT)
  source = source_of("webdataset", "val", val=str(tmp_path / "a.tar"))
  assert [source[i]["caption"] for i in range(len(source))] == ["it"] * 3
  assert not caplog.records


def test_classes(tmp_path):
  """As tars of ImageNet have them: KEY.cls, or a field of KEY.json."""
  cls = [b"2", b"0\n", b"7", b"cat", None]
  parts = []
  for i, number in enumerate(cls):
    parts += [(f"{i}.png", png(i)), (f"{i}.json", {"label": i % 3, "text": f"a {i}"})]
    parts += [(f"{i}.cls", number)] if number else []
  write_tar(tmp_path / "a.tar", parts)
  fields = {"val": str(tmp_path / "a.tar"), "classes": 3}
  source = source_of("webdataset", "val", label="cls", **fields)
  prompts = ClassesConfig()
  prompts.fit(source, len(source), tmp_path / "classes.txt")
  assert prompts.open(tmp_path / "classes.txt").names == ["0", "1", "2"]
  assert [source.label(0), source.caption(1)] == ["2", "0"]
  assert source[0]["meta"] == {"key": "0", "label": 0, "text": "a 0"}
  for i, said in enumerate((7, None, None), 2):
    with pytest.raises(BadExample, match=f"'{i}' of .*a.tar has label {said}, of 3 cl"):
      source[i]
  both = source_of("webdataset", "val", label="label", caption="text", **fields)
  assert [both.label(4), both.caption(4)] == ["1", "a 4"]
  with pytest.raises(config.ConfigError, match="x.label' and 'x.classes' go together"):
    webdataset.WebDatasetConfig(label="cls").check("x.")


def test_samples_without_their_parts(tmp_path):
  parts = [
    ("a.png", png(0)), ("a.txt", b"a caption"),
    ("b.txt", b"no image"),
    ("c.png", png(1)), ("c.json", {"text": "elsewhere"}),
    ("d.png", png(2)), ("d.json", b"{"),
    ("e.png", png(3)), ("e.json", [1]),
    ("f.png", png(3)), ("f.txt", b"\xff\xfe\xfd"),
    ("g.png", b"no image"), ("g.txt", b"g"),
    ("h.png", png(4)), ("h.txt", b" \n"),
    ("i.png", png(4)), ("i.json", {"caption": 7}),
    ("j.png", png(5)), ("j.json", {"caption": ["", None, "the second"]}),
    ("j.png", png(6)), ("j.txt", b"of the same key"),
    ("k.png", png(6)), ("k.json", b"[" * 100_000),
  ]  # fmt: skip
  write_tar(tmp_path / "a.tar", parts)
  source = source_of("webdataset", "val", val=str(tmp_path / "a.tar"))
  wrong = {
    1: ("image", "sample 'b' of .*a.tar has no image, only txt"),
    2: ("caption", "'c'.* has no caption.*fields text.*data.source.caption"),
    3: ("caption", "json of sample 'd' .* is damaged"),
    4: ("caption", "json of sample 'e' .* is no object"),
    5: ("caption", "'f'.* is not UTF-8"),
    6: ("image", "image of sample 'g' .* cannot be read"),
    7: ("caption", "'h'.* has no caption"),
    8: ("caption", "caption of sample 'i' .* is 7, no text"),
    11: ("caption", "json of sample 'k' .* is damaged"),
  }
  assert len(source) == 12
  assert source.captions(0) == ["a caption"] and source.captions(9) == ["the second"]
  assert source.captions(10) == ["of the same key"]
  for i in range(len(source)):
    if i not in wrong:
      source[i]
      continue
    kind, message = wrong[i]
    with pytest.raises(BadExample, match=message) as e:
      source[i]
    assert e.value.kind == kind and "\n" not in str(e.value)
  # A vocabulary is made of the captions that there are.
  LearnedConfig(vocab_size=20).fit(source, len(source), tmp_path / "text.model")
  with pytest.raises(config.ConfigError, match="'x', which is missing|names x"):
    source_of("webdataset", "val", train=str(tmp_path / "a.tar"), val="x")
  (tmp_path / "b.tar").mkdir()
  for folder in (tmp_path / "b.tar", tmp_path):
    with pytest.raises(config.ConfigError, match=f"{folder}, which is a folder: name"):
      source_of("webdataset", "val", train="a.tar", val=str(folder))
  with pytest.raises(config.ConfigError, match="'data.source.train' is empty"):
    source_of("webdataset")
  write_tar(tmp_path / "a.tar", [])
  with pytest.raises(config.ConfigError, match="holds no examples"):
    source_of("webdataset", train=str(tmp_path / "a.tar"))
