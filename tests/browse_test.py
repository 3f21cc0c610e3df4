"""fluid.data.browse: what the page shows is what the cache and the source hold."""

import base64
import html.parser
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from analysis.report import page
from fluid import config, prepare, text, tokenizers
from fluid.data import browse, make_source, records
from fluid.data.browse import html as pages
from fluid.data.browse.tally import Tally
from fluid.data.folder import FolderConfig
from fluid.sampling import to_uint8
from fluid.text.classes import ClassesConfig
from fluid.text.learned import LearnedConfig
from fluid.tokenizers import store
from fluid.tokenizers.vae import VAEConfig
from fluid.tokenizers.vq import VQConfig

HOSTILE = "<script>alert('1')</script>\"><img src=x onerror=alert(2)>&amp;\u202eevil"
LENGTH = 8
SMALL = {"stem": 4, "width": 8, "multipliers": (1,)}
KINDS = {
  "discrete": VQConfig(**SMALL, vocab=16),
  "continuous": VAEConfig(**SMALL, channels=2, patch=1),
}


class Page(html.parser.HTMLParser):
  """What a browser makes of a page: tags with their attributes, texts, images."""

  def __init__(self, content):
    super().__init__()
    self.tags, self.words, self.marked, self._kinds = [], [], [], []
    self.feed(content)
    self.text = " ".join(self.words)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag == "span":
      self._kinds.append(dict(attrs).get("class"))

  def handle_endtag(self, tag):
    if tag == "span":
      self._kinds.pop()

  def handle_data(self, data):
    self.words.append(data)
    if self._kinds and self._kinds[-1] in ("cut", "unknown"):
      self.marked.append((self._kinds[-1], data.strip()))

  def images(self, alt):
    for tag, attrs in self.tags:
      if tag == "img" and attrs["alt"] == alt:
        data = base64.b64decode(attrs["src"].partition("base64,")[2])
        yield np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Folders of images, a split each; two tokenizers of random weights."""
  root = tmp_path_factory.mktemp("browse")
  rng = np.random.default_rng(0)
  for split, rows in (("train", 20), ("val", 4)):
    lines = []
    (root / "images" / split).mkdir(parents=True)
    for i in range(rows):
      size = 20 + i, 40
      image = Image.fromarray(rng.integers(0, 256, (4, 4, 3)).astype(np.uint8))
      image.resize(size).save(root / "images" / split / f"{i}.png")
      told = {0: HOSTILE, 1: ["a cat", "two"], 2: " ".join(f"w{n}" for n in range(12))}
      line = {"file_name": f"{i}.png", "text": told.get(i, f"cat w{i % 12} \u200d")}
      lines.append(line | {"width": size[0], "height": size[1], "say": HOSTILE})
    if split == "train":
      lines[3]["text"] = None
      lines[4]["file_name"] = "../x.png"
    else:
      lines[3]["text"] = "a zebra"
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (root / "images" / split / "metadata.jsonl").write_text(text)
  for name, part in KINDS.items():
    init = jax.jit(part.make(16).init)(jax.random.key(0))
    store.save(str(root / name), part.make(16, jax.tree.map(np.asarray, init)), {})
  return root


def run_of(root, kind, **data):
  part = config.replaced(KINDS[kind], {"path": str(root / kind)})
  data = {"cache": str(root / f"{kind}-cache"), "max_bad": 0.2} | data
  source = FolderConfig(path=str(root / "images"))
  return config.Run(
    data=config.Data(source=source, image_size=16, **data),
    tokenizer=part,
    text=LearnedConfig(vocab_size=100, length=LENGTH),
  )


def see(run, root, **options):
  path = browse.browse(run, root / "page.html", log=str, **options)
  return Page(path.read_text("utf-8"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_shows_what_was_prepared(root, kind):
  run = run_of(root, kind)
  metadata = prepare.prepare(run, batch=4, log=str)
  found = browse.look(run, "train", 64, 0, str)
  cache, source = (
    records.Records(run.data.cache, "train"),
    make_source(run.data, "train"),
  )
  good = [i for i in range(20) if i not in (3, 4)]
  stored = [cache[i] for i in good]
  tokenizer = tokenizers.load(run.tokenizer.path)
  tokens = np.stack([e.get("tokens", e.get("mean")) for e in stored])
  again = to_uint8(
    tokenizer.decode(tokens.astype(np.int32 if kind[0] == "d" else "f4"))
  )
  seen = see(run, root)
  np.testing.assert_array_equal(
    np.stack(list(seen.images("source"))), [source[i]["image"] for i in good]
  )
  decoded = np.stack(list(seen.images("tokens, decoded"))).astype(int)
  assert np.abs(decoded - again).max() <= 1
  vocabulary = text.load(run.text, run.data.cache)
  for example, record in zip([e for e in found.examples if not e.bad], stored):
    assert example.ids == record["text_ids"]
    assert example.said.replace("\u202e", "\\u202e") in seen.words
    assert example.said == vocabulary.decode([record["text_ids"]])[0]
  # Sums over all of it, by the records themselves.
  assert found.lengths == [len(e["text_ids"]) for e in stored]
  assert found.sizes == [(20 + i, 40) for i in good]
  assert dict(found.rejects) == metadata["splits"]["train"]["skipped"]
  assert "outside the folder" in seen.text and "write its caption" in seen.text
  if kind == "discrete":
    np.testing.assert_array_equal(
      found.tokens.codes, np.bincount(tokens.ravel(), minlength=16)
    )
    codes, images = found.top
    assert codes[0] == found.tokens.codes.argmax() and len(images) == len(codes)
    assert f"{(found.tokens.codes > 0).sum()} of 16 codes are used" in seen.text
  else:
    flat = tokens.reshape(-1, 2).astype(float)
    std = np.stack([e["std"] for e in stored]).reshape(-1, 2).astype(float)
    wanted = [flat.mean(0), flat.std(0), (std**2).mean(0) ** 0.5]
    np.testing.assert_allclose(found.tokens.moments, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("split", ["train", "val"])
def test_captions_are_marked_and_do_nothing(root, split):
  run = run_of(root, "discrete")
  prepare.prepare(run, batch=4, log=str)
  seen = see(run, root, split=split)
  assert not {"script", "iframe", "link", "a", "object"} & {t for t, _ in seen.tags}
  for _, attrs in seen.tags:
    assert not [k for k in attrs if k.startswith("on") or k in ("href", "srcset")]
    assert attrs.get("src", "data:image/png").startswith("data:image/png")
  policy = [a["content"] for t, a in seen.tags if "http-equiv" in a]
  assert policy[0].startswith("default-src 'none'")
  assert HOSTILE.replace("\u202e", "\\u202e") in seen.text.replace("\n", "")
  assert "\u202e" not in seen.text
  assert ("\u200d" in seen.text) == (split == "train")  # It holds emoji together.
  # Of twelve words seven are left of a length of eight.
  cut = [word for kind, word in seen.marked if kind == "cut"]
  assert cut == [f"w{n}" for n in range(7, 12)]
  unknown = [word for kind, word in seen.marked if kind == "unknown"]
  # In the caption, and in what its ids say again.
  assert unknown == (["zebra", "⁇"] if split == "val" else [])


def test_a_source_is_shown_before_it_is_prepared(root):
  run = run_of(root, "discrete", cache="")
  seen, source = see(run, root, n=5, seed=3), make_source(run.data, "train")
  drawn = sorted(np.random.default_rng(3).choice(20, 5, replace=False).tolist())
  good = [i for i in drawn if i not in (3, 4)]
  images = list(seen.images("source"))
  np.testing.assert_array_equal(images, [source[i]["image"] for i in good])
  assert len(list(seen.images("tokens, decoded"))) == len(good)
  assert "No cache is named" in seen.text and "no text vocabulary" in seen.text
  assert "18 captions" not in seen.text and "words, of 20 captions" in seen.text
  whole = browse.look(run, "train", 20, 0, str)
  assert whole.rejects == {"caption": 1, "image": 1} and len(whole.reasons) == 2


def test_what_is_left_out_counts_nowhere(root, tmp_path):
  """Neither filtered nor equal images are in sums, and each is shown as what it is."""
  images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
  rows = [(0, "a cat")] * 3 + [(1, "x"), (2, "a dog")]
  for split in ("train", "val"):
    lines = []
    (tmp_path / split).mkdir()
    for row, (which, caption) in enumerate(rows):
      Image.fromarray(images[which]).save(tmp_path / split / f"{row}.png")
      line = {"file_name": f"{row}.png", "text": caption, "width": 16, "height": 16}
      lines.append(json.dumps(line) + "\n")
    (tmp_path / split / "metadata.jsonl").write_text("".join(lines))
  changes = {"data.source.path": str(tmp_path), "data.cache": str(tmp_path / "cache")}
  changes |= {"data.dedupe": True, "data.filter.min_words": 2}
  run = config.replaced(run_of(root, "discrete"), changes)
  metadata = prepare.prepare(run, batch=4, log=str)
  found = browse.look(run, "train", 64, 0, str)
  assert found.rejects == {"words": 1, "duplicate": 2}
  assert dict(found.rejects) == metadata["splits"]["train"]["filtered"]
  kept = [records.Records(run.data.cache, "train")[i] for i in (0, 4)]
  assert (found.scanned, found.used) == (5, 2)
  assert found.lengths == [len(e["text_ids"]) for e in kept] and len(found.sizes) == 2
  tokens = np.concatenate([e["tokens"] for e in kept])
  np.testing.assert_array_equal(found.tokens.codes, np.bincount(tokens, minlength=16))
  assert [e.bad for e in found.examples] == ["", "duplicate", "duplicate", "words", ""]
  text = see(run, root).text
  assert "example 2: one before it has the same image" in text
  assert f"by {len(tokens)} tokens of 2 examples" in text


def test_what_cannot_be_shown_is_said(root, tmp_path):
  run = run_of(root, "discrete")
  prepare.prepare(run, batch=4, log=str)
  said = lambda **changes: see(config.replaced(run, changes), tmp_path).text
  source = FolderConfig(path=str(tmp_path / "none"))
  assert "metadata.jsonl" in said(**{"data.source": source})
  assert "another config (data.seed differ)" in said(**{"data.seed": 5})
  assert "no tokenizer in" in said(**{"tokenizer.path": str(tmp_path)})
  assert "Shown is the source" in said(**{"data.cache": str(tmp_path / "no")})
  classes = {"data.cache": "", "text": ClassesConfig()}
  nothing = {"data.cache": "", "data.source": source}
  for changes, match in ((classes, "has no classes"), (nothing, "metadata.jsonl")):
    with pytest.raises(config.ConfigError, match=match) as error:
      said(**changes)
    assert "\n" not in str(error.value)
  with pytest.raises(config.ConfigError, match="is a folder"):
    browse.browse(run, tmp_path)


def test_codes_used_alike_have_their_number_as_perplexity():
  tally = Tally()
  tally.add({"tokens": np.arange(12).reshape(3, 4) % 6}, 32)
  used, perplexity = tally.use()
  assert (used, len(tally.codes)) == (6, 32) and perplexity == pytest.approx(6)
  assert Tally().moments is None


def test_bars_are_as_high_as_their_values():
  seen = Page(page.bars([1, 4, 0, 2], ["a", "b<", "c", "d"], "of <all>"))
  heights = [float(a["height"]) for t, a in seen.tags if t == "rect"]
  np.testing.assert_allclose(np.array(heights) / heights[1], [0.25, 1, 0, 0.5])
  assert "b<: 4" in seen.words and "of <all>" in seen.words
  assert page.bars([], [], "nothing")


def test_long_texts_end():
  assert "characters more" in pages.shown("x" * 5000)
  assert len(pages.marked("y" * 10**6, 8, None)) < 3000
