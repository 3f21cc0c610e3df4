"""fluid.text: ids, masks, and what a prompt may not be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluid import config, text
from fluid.text import tokenization

COLORS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "star")
CAPTIONS = [
  f"{p} {c} {s} above a {d} {e}"
  for p in ("A photo of a", "one")
  for c in COLORS
  for s in SHAPES
  for d in COLORS
  for e in SHAPES
]
# Enough words that 80 pieces cannot hold them all.
CAPTIONS += [f"blue s{a}{b}r a{b}o{a}e" for a in "tquare" for b in "gnloeh"]
WORDS = sorted({w for c in CAPTIONS for w in tokenization.words(c)})
SIZES = {"pieces": 80, "words": 200}


@pytest.fixture(scope="module", params=SIZES)
def vocabulary(request, tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "text.model"
  return text.train_vocabulary(CAPTIONS, path, SIZES[request.param])


def test_captions_survive_and_case_does_not_matter(vocabulary):
  ids, mask = vocabulary.encode(CAPTIONS, 48)
  assert vocabulary.decode(ids) == [c.lower() for c in CAPTIONS]
  upper, _ = vocabulary.encode([c.upper() for c in CAPTIONS], 48)
  np.testing.assert_array_equal(ids, upper)
  assert ids.dtype == np.int32 and mask.dtype == bool
  assert 3 < ids.max() < vocabulary.size


def test_mask_ends_with_eos_and_padding_is_zero(vocabulary):
  ids, mask = vocabulary.encode(["red star", ""], 10)
  for row, m in zip(ids, mask):
    n = m.sum()
    assert m[:n].all() and not m[n:].any()
    assert row[n - 1] == 1 and not row[n:].any() and (row[: n - 1] > 2).all()
  assert mask[1].sum() == 1  # The empty prompt is its end alone.


def test_size_decides_between_words_and_pieces(tmp_path):
  few = text.train_vocabulary(CAPTIONS, tmp_path / "few.model", SIZES["pieces"])
  all_ = text.train_vocabulary(CAPTIONS, tmp_path / "all.model", SIZES["words"])
  assert few.size <= 80 and all_.size == len(WORDS) + 3
  assert [all_.count(c) for c in CAPTIONS] == [len(c.split()) + 1 for c in CAPTIONS]
  assert any(few.count(c) > all_.count(c) for c in CAPTIONS)


def test_training_is_deterministic(vocabulary, tmp_path):
  size = SIZES["pieces"] if vocabulary.size <= 80 else SIZES["words"]
  again = text.train_vocabulary(CAPTIONS, tmp_path / "again.model", size)
  assert again.path.read_bytes() == vocabulary.path.read_bytes()
  assert again.known == vocabulary.known == frozenset(WORDS)


def test_too_long_names_prompt_and_counts(vocabulary):
  prompt = "red star above a blue square"
  n = vocabulary.count(prompt)
  assert n >= 7
  vocabulary.encode([prompt], n)  # Just fits.
  with pytest.raises(text.PromptError, match=f"{n} text tokens.*= {n - 1}.*red star"):
    vocabulary.encode([prompt], n - 1)
  ids, mask = vocabulary.encode([prompt], 4, on_long="cut")
  assert mask.all() and ids[0, -1] == 1


@pytest.mark.parametrize("prompt", ["a red bed", "a ☃ star", "red % star"])
def test_unknown_words_are_named(vocabulary, prompt):
  # 'bed' is made of letters the vocabulary has; only the list of words can tell.
  odd = [w for w in prompt.split() if w not in WORDS][0]
  with pytest.raises(text.PromptError, match=f"vocabulary: '{odd}'"):
    vocabulary.encode([prompt], 32)
  ids, _ = vocabulary.encode([prompt], 32, on_unknown="keep")
  assert (tokenization.UNK in ids) == (odd != "bed" or vocabulary.size > 80)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_any_text_gives_ids_or_one_clear_line(vocabulary, prompt):
  try:
    ids, mask = vocabulary.encode([prompt], 24)
  except text.PromptError as e:
    assert repr(prompt) in str(e) and "\n" not in str(e)
  else:
    assert set(tokenization.words(prompt)) <= vocabulary.known
    assert tokenization.UNK not in ids
    assert mask.sum() == (ids != 0).sum()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=12))
def test_known_words_round_trip(vocabulary, prompt):
  ids, _ = vocabulary.encode([" ".join(prompt)], 80)
  assert vocabulary.decode(ids) == [" ".join(prompt)]


def test_bad_files_are_one_clear_line(vocabulary, tmp_path):
  with pytest.raises(config.ConfigError, match="no text vocabulary.*prepare"):
    text.load(config.Text(), str(tmp_path))
  damaged = tmp_path / "text.model"
  damaged.write_bytes(vocabulary.path.read_bytes()[:100])
  with pytest.raises(config.ConfigError, match="damaged"):
    text.load(config.Text(), str(tmp_path))
  with pytest.raises(config.ConfigError, match="text.kind.*learned"):
    text.load(config.Text(kind="t6"), str(tmp_path))
  with pytest.raises(config.ConfigError, match="text.vocab_size"):
    text.train_vocabulary(CAPTIONS, tmp_path / "small.model", 8)


def test_bos_is_refused(tmp_path):
  import sentencepiece

  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CAPTIONS),
    model_prefix=str(tmp_path / "bos"),
    vocab_size=60,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  with pytest.raises(config.ConfigError, match="T5's order"):
    text.Vocabulary(tmp_path / "bos.model")
