import json

import numpy as np
import pytest
from PIL import Image

from fluid import metrics_of
from fluid.data import shapes
from fluid.errors import ConfigError
from fluid.evals import detectors, geneval, prompts, sets


def box(x, y, score=0.95, color=None, size=10):
  return [x, y, x + size, y + size, score, color]


def single(tag="single_object", count=1, **clause):
  return {"tag": tag, "include": [{"class": "dog", "count": count, **clause}]}


def test_reference_verdicts_and_reasons(fixtures):
  cases = json.loads((fixtures / "geneval_goldens.json").read_text())
  for case in cases:
    got = geneval.score(case["objects"], case["meta"])
    assert got == (case["correct"], case["reason"]), case["name"]


@pytest.mark.parametrize(
  "tag, score, correct",
  [
    ("single_object", 0.3, False),
    ("single_object", 0.31, True),
    ("counting", 0.9, False),
    ("counting", 0.91, True),
  ],
)
def test_thresholds_are_strict_and_depend_on_the_tag(tag, score, correct):
  assert geneval.score({"dog": [box(0, 0, score)]}, single(tag))[0] == correct


def test_counting_is_exact_through_exclude():
  meta = single("counting", 2) | {"exclude": [{"class": "dog", "count": 3}]}
  dogs = [box(20 * i, 0) for i in range(3)]
  assert geneval.score({"dog": dogs[:2]}, meta) == (True, "")
  assert geneval.score({"dog": dogs}, meta) == (False, "expected dog<3, found 3")


def test_at_most_sixteen_objects_a_class_are_kept():
  meta = {"tag": "counting", "exclude": [{"class": "dog", "count": 17}]}
  dogs = [box(20 * i, 0) for i in range(40)]
  assert geneval.score({"dog": dogs}, meta)[0]
  meta["exclude"][0]["count"] = 16
  assert geneval.score({"dog": dogs}, meta)[1] == "expected dog<16, found 16"


def test_color_of_the_most_confident_box_counts():
  dogs = [box(0, 0, 0.5, "red"), box(50, 0, 0.9, "blue")]
  meta = single("colors", color="red")
  assert geneval.score({"dog": dogs}, meta) == (
    False,
    "expected red dog>=1, found 0 red; and 1 blue",
  )
  assert geneval.score({"dog": dogs[::-1]}, single("colors", color="blue"))[0]


def test_all_pairs_of_boxes_must_hold_the_relation():
  meta = {
    "tag": "position",
    "include": [
      {"class": "cat", "count": 1},
      {"class": "dog", "count": 2, "position": ["right of", 0]},
    ],
  }
  cat = {"cat": [box(100, 100)]}
  assert geneval.score(cat | {"dog": [box(200, 100), box(200, 120)]}, meta)[0]
  verdict, reason = geneval.score(cat | {"dog": [box(200, 100), box(0, 100)]}, meta)
  assert not verdict and reason == "expected dog right of target, found left of target"


def test_relations_by_angle():
  # Points (boxes without size): a component holds above half of the distance, 30 deg.
  origin = [0, 0, 0, 0]
  for degrees, wanted in ((0, {"right of"}), (29, {"right of"}), (31, {"right of"})):
    x, y = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    wanted = wanted | ({"below"} if degrees > 30 else set())
    got = geneval.relative_position([x, y, x, y], origin)
    assert set(got) == wanted
    assert set(geneval.relative_position(origin, [x, y, x, y])) == {
      {"right of": "left of", "below": "above"}[r] for r in wanted
    }


def test_overall_is_the_mean_of_tags_and_order_does_not_matter():
  rows = [
    {"tag": "colors", "prompt": i, "correct": i < 3} for i in range(4) for _ in range(5)
  ]
  rows += [{"tag": "position", "prompt": 0, "correct": False}] * 2
  got = geneval.summarize(rows)
  assert got["colors"] == 0.75 and got["position"] == 0.0
  assert got["overall"] == 0.375  # The mean over images would be 0.68.
  assert got["overall_lo"] < 0.375 < got["overall_hi"]
  shuffled = [rows[i] for i in np.random.RandomState(0).permutation(len(rows))]
  again = geneval.summarize(shuffled)
  assert {k: again[k] for k in ("colors", "position", "overall")} == {
    k: got[k] for k in ("colors", "position", "overall")
  }


def test_interval_covers_the_binomial_spread():
  rng = np.random.RandomState(1)
  rows = [
    {"tag": "colors", "prompt": i, "correct": rng.rand() < 0.5} for i in range(400)
  ]
  got = geneval.summarize(rows)
  width = got["overall_hi"] - got["overall_lo"]
  assert width == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)


def test_colors_are_filled_in_where_they_are_missing():
  image = np.zeros((8, 8, 3), np.uint8)
  objects = {
    "dog": [box(0, 0), box(1, 1, color="red")],
    "cat": [box(2, 2, color="red")],
  }
  asked = []

  def classify(image, boxes, name, masks=None):
    asked.append((name, boxes, masks))
    return ["blue"] * len(boxes)

  got = geneval.add_colors(image, objects, classify)
  assert [d[5] for d in got["dog"]] == ["blue", "red"]
  assert asked == [("dog", [[0, 0, 10, 10]], None)]
  geneval.add_colors(image, objects, classify, {"dog": ["first", "second"], "cat": "x"})
  assert asked[1:] == [("dog", [[0, 0, 10, 10]], ["first"])]


def test_colours_are_asked_of_what_the_prompt_names_alone():
  class Detector:
    def detect_with_masks(self, images):
      for i in range(len(images)):
        yield {"dog": [box(i, 0)], "cat": [box(0, i)]}, {"dog": [i], "cat": [-i]}

  seen = []

  def classify(image, boxes, name, masks=None):
    seen.append((int(image[0, 0, 0]), name, masks))
    return ["red"] * len(boxes)

  images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones(
    (3, 2, 2, 3), np.uint8
  )
  lines = [single("colors", color="red"), single(), single("colors", color="blue")]
  got = geneval.detect(Detector(), images, lines, classify)
  assert seen == [(0, "dog", [0]), (2, "dog", [2])]
  assert [g["dog"][0][5] for g in got] == ["red", None, "red"]
  assert all(g["cat"][0][5] is None for g in got)


def test_detections_and_layout_are_read_back(tmp_path):
  found = [{"dog": [box(0, 1, 0.5, "red")]}, {}]
  geneval.write_detections(tmp_path / "d.jsonl", found)
  assert geneval.read_detections(tmp_path / "d.jsonl", 2) == found
  with pytest.raises(ConfigError, match="d.jsonl are of 2 images, but there are 3"):
    geneval.read_detections(tmp_path / "d.jsonl", 3)
  meta = [single(t) | {"prompt": p} for t, p in (("colors", "a"), ("position", "b"))]
  images = np.random.RandomState(0).randint(0, 256, (2, 3, 4, 4, 3)).astype(np.uint8)
  geneval.write_layout(tmp_path / "out", meta, images)
  assert json.loads((tmp_path / "out/00001/metadata.jsonl").read_text()) == meta[1]
  stored = Image.open(tmp_path / "out/00001/samples/0002.png")
  np.testing.assert_array_equal(np.asarray(stored), images[1, 2])
  assert len(list((tmp_path / "out").rglob("*.png"))) == 6
  geneval.write_layout(tmp_path / "out", meta, images)  # Over what was there.
  known = sets.open_set(tmp_path / "out")
  assert list(known.lines) == [meta[0]] * 3 + [meta[1]] * 3
  assert list(known.texts) == ["a"] * 3 + ["b"] * 3
  np.testing.assert_array_equal(np.stack(list(known.images))[4], images[1, 1])


def test_results_of_the_reference_evaluator(tmp_path):
  path = tmp_path / "results.jsonl"
  row = {"filename": "00000/samples/0000.png", "tag": "colors", "prompt": "a photo"}
  rows = [row | {"correct": c, "reason": "", "metadata": "{}"} for c in (True, False)]
  path.write_text("".join(f"{json.dumps(r)}\n" for r in rows))
  assert geneval.summarize(geneval.read_results(path))["colors"] == 0.5
  path.write_text('{"tag": "colors"}\n')
  with pytest.raises(ConfigError, match="line 1 is no result"):
    geneval.read_results(path)
  with pytest.raises(ConfigError, match="none.jsonl cannot be read .No such file"):
    geneval.read_results(tmp_path / "none.jsonl")


LINE = {"tag": "colors", "prompt": "a", "include": [{"class": "dog", "count": 1}]}
TWO = [*LINE["include"], {"class": "cat", "count": 1, "position": ["above", 1]}]


@pytest.mark.parametrize(
  "read, content, said",
  [
    (geneval.read_detections, "{", "Expecting"),
    (geneval.read_detections, [], "no object of JSON"),
    (geneval.read_detections, {"dog": 3}, "not iterable"),
    (geneval.read_detections, {"dog": [[0, 0, 9, 9]]}, "dog has [0, 0, 9, 9]"),
    (geneval.read_detections, {"dog": [[0, 0, 9, 9, "1"]]}, "dog has [0, 0, 9"),
    (geneval.read_detections, {"dog": [[0, 0, 9, 9, 1, "red", 0]]}, "dog has [0, 0"),
    (geneval.read_detections, {"dog": [[0, 0, 9, np.nan, 1]]}, "dog has [0, 0, 9, nan"),
    (geneval.read_detections, {"dog": [[0, 0, 9, 9, 1, 7]]}, "dog has the colour 7"),
    (geneval.read_metadata, "a red circle", "Expecting"),
    (geneval.read_metadata, [LINE], "no object of JSON"),
    (geneval.read_metadata, {"prompt": "a"}, "no 'tag'"),
    (geneval.read_metadata, LINE | {"include": {}}, "include is {}"),
    (geneval.read_metadata, LINE | {"include": [{"class": "dog"}]}, "no 'count'"),
    (geneval.read_metadata, LINE | {"include": TWO}, "a position is ['above', 1]"),
    (geneval.read_results, {"tag": "colors"}, "no 'prompt'"),
  ],
)
def test_a_line_that_is_none_of_its_file_is_named(tmp_path, read, content, said):
  path = tmp_path / "file.jsonl"
  path.write_text("\n" + (content if isinstance(content, str) else json.dumps(content)))
  with pytest.raises(ConfigError) as e:
    read(path, 1) if read is geneval.read_detections else read(path)
  assert "file.jsonl line 2 is no" in str(e.value) and said in str(e.value)
  assert "it must have" in str(e.value) and "\n" not in str(e.value)


def test_metadata_of_all_prompts_is_read_as_it_is(tmp_path):
  lines = [*prompts.geneval(), *shapes.geneval_prompts(4)]
  path = tmp_path / "metadata.jsonl"
  path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
  assert geneval.read_metadata(path) == lines
  path.write_text("\n")
  with pytest.raises(ConfigError, match="is empty"):
    geneval.read_metadata(path)


def test_colours_that_detections_leave_open_are_looked_for(tmp_path, monkeypatch):
  """A file of a detector that knows none scores as one that names them."""
  loaded = []

  class Pixels:
    """The colour in the middle of the box."""

    def __init__(self, net):
      loaded.append(net)

    def __call__(self, image, boxes, name, masks=None):
      middles = [image[int(b[1] + b[3]) // 2, int(b[0] + b[2]) // 2] for b in boxes]
      return [{255: "red"}.get(int(m[0]), "blue") for m in middles]

  monkeypatch.setattr(detectors, "ClipColors", Pixels)
  monkeypatch.setattr(detectors.features, "load", lambda name: name)
  pixels = np.zeros((2, 3, 20, 20, 3), np.uint8)
  pixels[:, :2, :, :, 0] = 255  # Of three images of a prompt, two are red.
  lines = [
    single("colors", color="red") | {"prompt": "a red dog"},
    single("colors", color="blue") | {"prompt": "a blue dog"},
  ]
  geneval.write_layout(tmp_path / "out", lines, pixels)
  images = sets.open_set(tmp_path / "out")

  def scores(rows):
    (tmp_path / "found.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
    found = metrics_of.geneval_of(images, "mask2former", str(tmp_path / "found.jsonl"))
    return {r["metric"]: r["value"] for r in found}

  named = [
    {"dog": [box(0, 0, color=c)], "cat": [box(5, 5)]}
    for c in 2 * ("red", "red", "blue")
  ]
  want = scores(named)
  assert want["geneval/colors"] == 0.5 and not loaded
  for width in (5, 6):  # Without a colour, or null in its place.
    bare = [
      {k: [(d + [None])[:5] + [None] * (width - 5) for d in v] for k, v in r.items()}
      for r in named
    ]
    assert scores(bare) == want and loaded.pop() == "CLIP-L14" and not loaded


def test_chance_is_the_share_of_other_prompts_that_fit():
  """Half the prompts want red, half blue; all images fit: (n/2 - 1) / (n - 1)."""
  n = 20
  colors = ["red", "blue"] * (n // 2)
  objects = [{"circle": [[0, 0, 9, 9, 1.0, c]]} for c in colors]
  lines = [
    {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": c}]}
    for c in colors
  ]
  assert geneval.overall(objects, lines) == 1
  assert geneval.chance(objects, lines, draws=400) == pytest.approx(9 / 19, abs=0.03)


def test_images_that_are_not_square_are_judged_or_named(tmp_path, monkeypatch):
  line = single() | {"prompt": "a dog"}
  geneval.write_layout(tmp_path, [line], np.zeros((1, 2, 20, 30, 3), np.uint8))
  images = sets.open_set(tmp_path)
  with pytest.raises(ConfigError, match="20 x 30 pixels; the shapes detector"):
    metrics_of.geneval_of(images, "shapes", "")
  made = []

  def detector(size):
    made.append(size)
    return lambda images: [{"dog": [box(0, 0)]} for _ in images]

  monkeypatch.setitem(detectors.DETECTORS, "mask2former", detector)
  monkeypatch.setattr(detectors.features, "load", lambda name: name)
  monkeypatch.setattr(detectors, "ClipColors", lambda net: None)
  found = metrics_of.geneval_of(images, "mask2former", "")
  assert made == [(20, 30)] and found[-1]["value"] == 1
