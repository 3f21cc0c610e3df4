"""fluid.text: ids, masks, and what a prompt may not be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluid import config, text
from fluid.data import emoji, shapes
from fluid.text import tokenization
from fluid.text.classes import ClassesConfig
from fluid.text.learned import LearnedConfig

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
    text.load(LearnedConfig(), str(tmp_path))
  with pytest.raises(config.ConfigError, match="text.path.*a folder: name the file"):
    text.load(LearnedConfig(path=str(tmp_path)))
  damaged = tmp_path / "text.model"
  damaged.write_bytes(vocabulary.path.read_bytes()[:100])
  with pytest.raises(config.ConfigError, match="damaged"):
    text.load(LearnedConfig(), str(tmp_path))
  with pytest.raises(config.ConfigError, match="text.kind.*learned"):
    config.from_config_dict({"text": {"kind": "t6"}})
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


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
  path = tmp_path_factory.mktemp("classes") / ClassesConfig.FILE
  ClassesConfig().fit(shapes.Shapes(), 0, path)
  return text.load(ClassesConfig(), path.parent)


def test_classes_go_by_name_and_by_number(classes):
  names = list(shapes.Shapes().classes)
  assert classes.names == names and classes.size == len(names) == 6
  ids, mask = classes.encode([*names, "0", " 5 "], 1)
  assert ids.dtype == np.int32 and mask.dtype == bool
  assert ids[:, 0].tolist() == [*range(6), 0, 5]
  assert mask.shape == ids.shape and mask.all()
  assert classes.decode(ids) == [*names, names[0], names[5]]
  assert classes.count(names[2]) == 1


@pytest.mark.parametrize(
  "prompt, message",
  [
    ("6", "class id 6 is out of range: there are 6"),
    ("-1", "conditioned on classes"),
    ("a red circle", "classes, not on text: 'a red circle' is none of single_object"),
    ("Counting", "none of"),  # Names are exact.
    ("²", "none of"),
    ("", "classes, not on text: '' is none of"),
  ],
)
def test_what_is_no_class_is_refused(classes, prompt, message):
  with pytest.raises(text.PromptError, match=message) as error:
    classes.encode(["counting", prompt])
  assert "\n" not in str(error.value)


def test_an_unnamed_class_of_a_bad_example_is_no_error(classes):
  """fluid.prepare encodes '' in the place of what it skips."""
  ids, mask = classes.encode(["", "counting"], 1, on_unknown="keep", on_long="cut")
  assert ids[:, 0].tolist() == [0, classes.names.index("counting")] and mask.all()


def test_sources_without_classes_are_refused(tmp_path):
  path = tmp_path / ClassesConfig.FILE
  with pytest.raises(config.ConfigError, match="source has no classes"):
    ClassesConfig().fit(object(), 0, path)
  assert not hasattr(emoji.Emoji, "classes") and not path.exists()
  with pytest.raises(config.ConfigError, match="text.vocab_size' is 5, .* 6 classes"):
    ClassesConfig(vocab_size=5).fit(shapes.Shapes(), 0, path)
  with pytest.raises(config.ConfigError, match="no class names .*fluid.prepare"):
    text.load(ClassesConfig(), tmp_path)
  with pytest.raises(config.ConfigError, match="'text.length' must be 1, not 2"):
    config.from_config_dict({"text": {"kind": "classes", "length": 2}})


def test_the_file_of_an_encoder_is_found_and_copied(classes, vocabulary, tmp_path):
  text.copy(LearnedConfig(), vocabulary.path, tmp_path)
  origin = vocabulary.path.parent
  for where in ((tmp_path, origin), (tmp_path / "nowhere", tmp_path), (tmp_path,)):
    found = text.load(LearnedConfig(), *where)
    assert found.path.parent == tmp_path and found.known == vocabulary.known
  assert text.load(LearnedConfig(path=str(vocabulary.path)), tmp_path).path == (
    vocabulary.path
  )
