"""GenEval's 553 prompts, drawn again from the numbers that its authors drew.

Ghosh et al. (arXiv 2310.11513): six tags over COCO's 80 classes and ten colours; one
generator of seed 43 serves all, and a record that comes twice stands once.
"""

import functools
import hashlib
import json
from collections.abc import Iterator

import numpy as np

from fluid.evals.geneval import COLORS, RELATIONS

SEED = 43
_DRAWS = 100  # Of each tag but the first.
# Of evaluation_metadata.jsonl and generation_prompts.txt.
METADATA_SHA256 = "5c48e081"
PROMPTS_SHA256 = "55b6e365"
_NUMBERS = {2: "two", 3: "three", 4: "four"}

# COCO's classes in its order, as GenEval spells them.
COCO = tuple(
  name.strip()
  for name in """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
    fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow,
    elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee,
    skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl,
    banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake,
    chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    computer mouse, tv remote, computer keyboard, cell phone, microwave, oven,
    toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier,
    toothbrush
  """.split(",")
)


def _article(words: str) -> str:
  return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(name: str) -> str:
  return f"{name}es" if name.endswith("s") else f"{name}s"


def _things(*things: str) -> list[dict]:
  return [{"class": thing, "count": 1} for thing in things]


def _records() -> Iterator[dict]:
  rng = np.random.default_rng(SEED)
  n = len(COCO)
  different = lambda n, k: np.asarray(rng.choice(n, k, replace=False))
  pair = lambda: (COCO[i] for i in different(n, 2))
  # Nobody is asked for in colours: numbers skip the first class.
  coloured = lambda k: [COCO[i] for i in (different(n - 1, k) + 1) % n]
  for i in different(n, n):
    yield {"tag": "single_object", "include": _things(COCO[i]), "prompt": COCO[i]}
  for _ in range(_DRAWS):
    a, b = pair()
    prompt = f"{_article(a)} and {_article(b)}"
    yield {"tag": "two_object", "include": _things(a, b), "prompt": prompt}
  for _ in range(_DRAWS):
    name = COCO[rng.choice(n)]
    count = int(rng.integers(2, 4, endpoint=True))
    yield {
      "tag": "counting",
      "include": [{"class": name, "count": count}],
      "exclude": [{"class": name, "count": count + 1}],
      "prompt": f"{_NUMBERS[count]} {_plural(name)}",
    }
  for _ in range(_DRAWS):
    name, color = coloured(1)[0], COLORS[rng.choice(len(COLORS))]
    include = [{"class": name, "count": 1, "color": color}]
    prompt = _article(f"{color} {name}")
    yield {"tag": "colors", "include": include, "prompt": prompt}
  for _ in range(_DRAWS):
    a, b = pair()
    relation = RELATIONS[rng.choice(len(RELATIONS))]
    include = _things(b, a)
    include[1]["position"] = [relation, 0]
    prompt = f"{_article(a)} {relation} {_article(b)}"
    yield {"tag": "position", "include": include, "prompt": prompt}
  for _ in range(_DRAWS):
    names = coloured(2)
    colors = [COLORS[i] for i in rng.choice(len(COLORS), 2, replace=False)]
    yield {
      "tag": "color_attr",
      "include": [
        {"class": name, "count": 1, "color": color}
        for name, color in zip(names, colors)
      ],
      "prompt": " and ".join(_article(f"{c} {n}") for n, c in zip(names, colors)),
    }


@functools.cache
def geneval() -> tuple[dict, ...]:
  """GenEval's lines of metadata, each with its 'prompt'."""
  found: dict[str, dict] = {}
  for record in _records():
    words = record["prompt"]
    if record["tag"] == "single_object":
      words = _article(words)
    record["prompt"] = f"a photo of {words}"
    found.setdefault(json.dumps(record), record)
  return tuple(found.values())


def files() -> dict[str, str]:
  """The texts of evaluation_metadata.jsonl and generation_prompts.txt."""
  lines = geneval()
  return {
    "evaluation_metadata.jsonl": "".join(f"{json.dumps(line)}\n" for line in lines),
    "generation_prompts.txt": "".join(f"{line['prompt']}\n" for line in lines),
  }


def sha256(text: str) -> str:
  """The first digits of a text's hash, as many as above."""
  return hashlib.sha256(text.encode()).hexdigest()[: len(METADATA_SHA256)]
