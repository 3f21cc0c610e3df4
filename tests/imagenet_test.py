"""fluid.data.imagenet: folders of classes in every layout."""

import functools

import numpy as np
import pytest
from scipy import io

from fluid import config, prepare
from fluid.config import identity
from fluid.data import BadExample, records
from fluid.data.imagenet import ImageNetConfig
from fluid.text.classes import Classes, ClassesConfig
from fluid.text.learned import LearnedConfig
from tests.caches import Tokenizer
from tests.sources import (
  VAL,
  WNIDS,
  kaggle,
  open_source,
  read_all,
  refused,
  save,
  write_imagenet,
)


@pytest.fixture
def imagenet(tmp_path):
  return write_imagenet(tmp_path)


def open_imagenet(path, split="train", **fields):
  return open_source(ImageNetConfig(path=str(path), **fields), split)


def shown(source):
  """Classes as the images say."""
  return [round(source[i]["image"][8, 8, 0] / 60) for i in range(len(source))]


def told(source):
  return [source.classes.index(source.label(i)) for i in range(len(source))]


def kit(folder):
  """The development kit's: numbers are not in the order of folders."""
  order = [WNIDS[2], WNIDS[0], WNIDS[3], WNIDS[1], "n00001740"]
  kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
  rows = [(i, wnid, "") for i, wnid in enumerate(order, 1)]
  folder.mkdir(parents=True, exist_ok=True)
  io.savemat(folder / "meta.mat", {"synsets": np.array(rows, kind)[:, None]})
  lines = "".join(f"{order.index(WNIDS[k]) + 1}\n" for k in VAL)
  (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)


def tiny(folder):
  lines = [
    f"ILSVRC2012_val_{n:08}.JPEG\t{WNIDS[k]}\t0\t32\t44\t62\n"
    for n, k in enumerate(VAL, 1)
  ]
  (folder / "val" / "val_annotations.txt").write_text("".join(lines))


def in_order(folder):
  (folder / "val.csv").write_text("".join(f'"{WNIDS[k]}"\n' for k in VAL))


def by_folder(folder):
  for n, k in enumerate(VAL, 1):
    name = f"ILSVRC2012_val_{n:08}.JPEG"
    (folder / "val" / WNIDS[k]).mkdir(exist_ok=True)
    (folder / "val" / name).rename(folder / "val" / WNIDS[k] / name)


@pytest.mark.parametrize(
  "give",
  [kit, kaggle, tiny, in_order, by_folder, lambda f: kit(f / IN_KIT)],
  ids=["kit", "kaggle", "tiny", "in_order", "by_folder", "kit_beside"],
)
def test_imagenet_in_every_layout(imagenet, give):
  give(imagenet)
  train = open_imagenet(imagenet, num_classes=4)
  val = open_imagenet(imagenet, "val", num_classes=4)
  found = read_all((train, val))
  assert train.classes == val.classes == WNIDS
  assert told(train) == shown(train) == [0, 0, 1, 1, 2, 2, 3, 3]
  assert told(val) == shown(val) == (sorted(VAL) if give is by_folder else VAL)
  assert found[0]["caption"] == "n01440764"
  assert found[0]["meta"] == {
    "file_name": "n01440764/n01440764_10026.JPEG", "wnid": "n01440764",
  }  # fmt: skip


IN_KIT = "ILSVRC2012_devkit_t12/data"


def test_kaggles_archive_and_nested_folders(imagenet, tmp_path):
  inner = tmp_path / "archive/ILSVRC/Data/CLS-LOC"
  inner.mkdir(parents=True)
  for split in ("train", "val"):
    (imagenet / split).rename(inner / split)
  (inner / "train" / WNIDS[1]).rename(inner / "images")
  (inner / "train" / WNIDS[1]).mkdir()
  (inner / "images").rename(inner / "train" / WNIDS[1] / "images")
  kaggle(tmp_path / "archive")
  names = dict(zip(WNIDS, ("tench, Tinca tinca", "crane", "kit fox", "crane")))
  lines = [f"{wnid} {name}\n" for wnid, name in reversed(names.items())]
  (tmp_path / "archive/LOC_synset_mapping.txt").write_text("".join(lines))
  train, val = (open_imagenet(tmp_path / "archive", s) for s in ("train", "val"))
  assert told(train) == shown(train) and told(val) == shown(val) == VAL
  assert train.classes == [
    "tench, Tinca tinca", "crane (n02012849)", "kit fox", "crane (n03126707)",
  ]  # fmt: skip
  # As the encoder of classes, and as one of captions, takes them.
  ClassesConfig().fit(train, len(train), tmp_path / "classes.txt")
  found = Classes(tmp_path / "classes.txt")
  labels = [ClassesConfig().prompt(val, i, val[i]) for i in range(len(val))]
  assert found.encode(labels)[0][:, 0].tolist() == VAL
  assert LearnedConfig().prompt(val, 0) == "kit fox"


def test_names_of_classes_in_order(imagenet):
  (imagenet / "classes.txt").write_text("tench\ncrane\nkit fox\nmachine\n")
  assert open_imagenet(imagenet).classes == ["tench", "crane", "kit fox", "machine"]
  (imagenet / "classes.txt").write_text(f"{WNIDS[1]}\tcrane\n")
  assert open_imagenet(imagenet).classes == [WNIDS[0], "crane", *WNIDS[2:]]
  lines = [
    f"{w},{name}\n" for w, name in zip(WNIDS, ("tench, fish", "crane", "a", "b"))
  ]
  (imagenet / "classes.txt").write_text("".join(reversed(lines)))
  assert open_imagenet(imagenet).classes == ["tench, fish", "crane", "a", "b"]
  (imagenet / "classes.txt").write_text("tench\n")
  line = "names 1 classes, but train has folders of 4"
  refused(config.ConfigError, line, lambda: open_imagenet(imagenet))


def test_numbers_as_folders_are_not_named_in_the_order_of_text(imagenet):
  for wnid, number in zip(WNIDS, ("1", "10", "2", "3")):
    (imagenet / "train" / wnid).rename(imagenet / "train" / number)
  (imagenet / "classes.txt").write_text("one\ntwo\nthree\nten\n")
  line = "names alone.* 10 is before 2: begin each line with its folder"
  refused(config.ConfigError, line, lambda: open_imagenet(imagenet))
  (imagenet / "classes.txt").write_text("1 one\n2 two\n3 three\n10 ten\n")
  assert open_imagenet(imagenet).classes == ["one", "ten", "two", "three"]


def test_labels_of_classes_with_spaces(tmp_path):
  for name, shade in (("cat", 0), ("golden retriever", 60)):
    save(tmp_path / "train" / name / "a.png", (shade, 10, 10))
  save(tmp_path / "val" / "my b.png", (60, 10, 10))
  save(tmp_path / "val" / "c.png", (0, 10, 10))
  said = (
    "file,class\nmy b.png,golden retriever\nc.png,cat\n",
    "cat\ngolden retriever\n",
  )
  for text in said:
    (tmp_path / "val" / "val.csv").write_text(text)
    val = open_imagenet(tmp_path, "val")
    assert told(val) == shown(val) == [0, 1]


def test_a_class_without_images_keeps_its_number_and_is_told(imagenet, caplog):
  for image in (imagenet / "train" / WNIDS[1]).iterdir():
    image.unlink()
  assert told(open_imagenet(imagenet, num_classes=4)) == [0, 0, 2, 2, 3, 3]
  assert (
    f"1 of 4 classes have no images in {imagenet}/train ({WNIDS[1]})" in caplog.text
  )


def test_a_cache_is_of_the_files_of_imagenet(tmp_path):
  """Of their names, sizes and classes, wherever they lie."""
  place = write_imagenet(tmp_path / "a").rename(tmp_path / "b")
  tiny(place)
  data = config.Data(
    source=ImageNetConfig(path=str(place)), image_size=16, cache=str(tmp_path / "cache")
  )
  run = config.Run(data=data, text=ClassesConfig())
  write = lambda: prepare.prepare(run, tokenizer=Tokenizer(), batch=4, log=str)
  made = write()
  assert write() == made
  # One of before says nothing of files: it is taken, and stays as it is.
  old = {k: v for k, v in made["config"].items() if not k.startswith("data.files.")}
  assert len(old) == len(made["config"]) - 2
  records.write_metadata(data.cache, made | {"config": old})
  assert write()["config"] == old
  records.write_metadata(data.cache, made)

  def differ(change):
    """Identities after a change, which is undone."""
    before = identity.of_cache(run)
    undo = change()
    found = identity.differences(before, identity.of_cache(run))
    undo()
    assert identity.of_cache(run) == before
    return [key.removeprefix("data.files.") for key in found]

  def written(path, content):
    def change():
      old = path.read_bytes() if path.exists() else None
      path.write_bytes(content)
      return path.unlink if old is None else lambda: path.write_bytes(old)

    return change

  def renamed(path, name):
    return lambda: functools.partial(path.rename(path.with_name(name)).rename, path)

  one, label = place / "train" / WNIDS[0], place / "val" / "val_annotations.txt"
  first = one / f"{WNIDS[0]}_27.JPEG"
  swapped = label.read_bytes().replace(WNIDS[0].encode(), WNIDS[1].encode(), 1)
  names = b"tench\ncrane\nkit fox\nmachine\n"
  for change, splits in (
    (written(first, b""), ["train"]),
    (written(first, first.read_bytes()), []),
    (renamed(first, "x.JPEG"), ["train"]),
    (written(one / "new.jpg", b""), ["train"]),
    (written(one / "notes.txt", b"more"), []),
    (written(place / "val" / "new.jpg", b""), ["val"]),
    (written(label, swapped), ["val"]),
    (written(place / "classes.txt", names), ["train", "val"]),
    (renamed(place, "c"), ["train", "val"]),
  ):
    assert differ(change) == splits
  moved = config.replaced(run, {"data.source.path": str(place.rename(tmp_path / "d"))})
  assert identity.of_cache(moved) == {
    k: made["config"][k] for k in identity.of_cache(moved)
  }
  (tmp_path / "d" / "val" / "new.jpg").touch()
  label = tmp_path / "d/val/val_annotations.txt"
  label.write_text(label.read_text() + f"new.jpg\t{WNIDS[0]}\n")
  with pytest.raises(config.ConfigError, match="another config .data.files.val is '"):
    prepare.prepare(moved, tokenizer=Tokenizer(), batch=4, log=str)


def test_imagenet_refuses_in_one_line(imagenet):
  of_val = lambda: open_imagenet(imagenet, "val")
  error = config.ConfigError
  refused(error, "nothing beside says the classes", of_val)
  kit(imagenet)
  (imagenet / "meta.mat").write_bytes(b"no")
  refused(error, "meta.mat has to explain", of_val)
  (imagenet / "meta.mat").unlink()
  refused(error, "meta.mat has to explain", of_val)
  (imagenet / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n")
  refused(error, "classes of 2 images, but .* has 5", of_val)
  kaggle(imagenet)
  text = (imagenet / "LOC_val_solution.csv").read_text()
  for wrong, match in (
    (text.replace("00000003,", "00000009,"), "not say the class of .*00000003.JPEG"),
    (text.replace("n03126707", "n9"), "names class n9, which train has not"),
  ):
    (imagenet / "LOC_val_solution.csv").write_text(wrong)
    refused(error, match, of_val)
  by_folder(imagenet)
  save(imagenet / "val" / "n9" / "x.JPEG")
  refused(error, "n9 is a class that train has not", of_val)
  counted = lambda: open_imagenet(imagenet, num_classes=1000)
  refused(error, "folders of 4 classes, but .*num_classes' is 1000", counted)
  refused(error, "no split 'test'", lambda: open_imagenet(imagenet, "test"))
  refused(error, "source.path' must", lambda: open_imagenet(imagenet / "none"))
  (imagenet / "empty" / "train").mkdir(parents=True)
  refused(error, "no folders of classes", lambda: open_imagenet(imagenet / "empty"))
  refused(error, "needs.*source.path", lambda: open_source(ImageNetConfig()))
  latin = imagenet / "train" / "z\udce9bre"
  latin.mkdir()
  refused(
    error, r"'.*z.udce9bre' is not UTF-8, .*: rename", lambda: open_imagenet(imagenet)
  )
  latin.rmdir()
  source = open_imagenet(imagenet)
  (imagenet / "train" / source[0]["meta"]["file_name"]).write_bytes(b"no")
  refused(BadExample, "n01440764_10026.JPEG cannot be read", lambda: source[0])
