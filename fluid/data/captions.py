"""The grammar of the shapes set: GenEval's six tags over eight shapes, eleven colours.

`describe` draws one metadata dict in GenEval's schema,
`{tag, include: [{class, count[, color][, position]}], [exclude], prompt}`; the source
draws images that satisfy it and the evaluation scores samples against it, so captions,
images and scores cannot drift apart.
"""

import numpy as np

from fluid import config

# Class -> its nouns, the canonical one first; (singular, plural).
NOUNS = {
  "circle": (("circle", "circles"), ("disc", "discs")),
  "square": (("square", "squares"), ("box", "boxes")),
  "triangle": (("triangle", "triangles"),),
  "star": (("star", "stars"),),
  "cross": (("cross", "crosses"), ("plus", "pluses")),
  "ring": (("ring", "rings"), ("hoop", "hoops")),
  "diamond": (("diamond", "diamonds"), ("rhombus", "rhombuses")),
  "heart": (("heart", "hearts"),),
}
CLASSES = tuple(NOUNS)

# GenEval's ten colours and grey -> their words.
COLOR_WORDS = {
  "red": ("red",),
  "orange": ("orange",),
  "yellow": ("yellow",),
  "green": ("green",),
  "blue": ("blue",),
  "purple": ("purple", "violet"),
  "pink": ("pink",),
  "brown": ("brown",),
  "black": ("black",),
  "white": ("white",),
  "grey": ("grey", "gray"),
}
COLORS = tuple(COLOR_WORDS)

TAGS = (
  "single_object",
  "two_object",
  "counting",
  "colors",
  "position",
  "color_attr",
)
RELATIONS = {
  "left of": ("left of", "to the left of"),
  "right of": ("right of", "to the right of"),
  "above": ("above", "over"),
  "below": ("below", "under"),
}
NUMBERS = {2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4")}
PREFIXES = ("a photo of ", "a picture of ", "")
JOINTS = ("and", "next to")

# One colour per shape (9 % of the pairs), each colour at most once: both halves of a
# held-out pair are well known from other pairs, only their combination is new.
HELDOUT = frozenset(
  (name, COLORS[(3 * i + 3) % len(COLORS)]) for i, name in enumerate(CLASSES)
)


def palette(name: str, *, heldout: bool = False) -> tuple[str, ...]:
  """Colours in which class `name` may appear (held-out: only the withheld one)."""
  return tuple(c for c in COLORS if ((name, c) in HELDOUT) == heldout)


def describe(
  tag: str,
  rng: np.random.Generator,
  *,
  heldout: bool = False,
  canonical: bool = False,
) -> dict:
  """Draws metadata of `tag`, GenEval's schema.

  Args:
    tag: one of TAGS.
    rng: source of every choice.
    heldout: named colours come from the withheld colour-shape pairs.
    canonical: GenEval's own wording ("a photo of ..."), no synonyms, and no colours
      where the tag does not ask for them; otherwise half of the position captions
      name colours too.
  """
  if tag not in TAGS:
    raise config.ConfigError(f"unknown tag '{tag}'; choose from {', '.join(TAGS)}")

  def pick(options):
    return options[int(rng.integers(len(options)))]

  def word(options):
    # Half of the time canonical, so that evaluation prompts are well covered.
    return options[0] if canonical or rng.random() < 0.5 else pick(options)

  def phrase(item):
    noun = word(NOUNS[item["class"]])
    if item["count"] > 1:
      return f"{word(NUMBERS[item['count']])} {noun[1]}"
    color = word(COLOR_WORDS[item["color"]]) if "color" in item else ""
    words = f"{color} {noun[0]}".strip()
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

  pair = tag in ("two_object", "position", "color_attr")
  named = tag in ("colors", "color_attr") or (
    tag == "position" and not canonical and rng.random() < 0.5
  )
  first = pick(CLASSES)
  include = [{"class": first, "count": 1}]
  if pair:
    other = pick([c for c in CLASSES if c != first])
    include.append({"class": other, "count": 1})
  if named:
    used = []
    for item in include:
      free = [c for c in palette(item["class"], heldout=heldout) if c not in used]
      item["color"] = pick(free)
      used.append(item["color"])

  meta = {"tag": tag, "include": include}
  prefix = word(PREFIXES)
  if tag == "counting":
    count = pick(tuple(NUMBERS))
    include[0]["count"] = count
    meta["exclude"] = [{"class": first, "count": count + 1}]
  if tag == "position":
    # As in GenEval the target is listed first and spoken last.
    relation = pick(tuple(RELATIONS))
    include[1]["position"] = [relation, 0]
    words = [phrase(include[1]), word(RELATIONS[relation]), phrase(include[0])]
  elif pair:
    words = [phrase(include[0]), word(JOINTS), phrase(include[1])]
  else:
    words = [phrase(include[0])]
  meta["prompt"] = prefix + " ".join(words)
  return meta


def geneval_prompts(
  n_per_tag: int, seed: int = 0, *, heldout: bool = False
) -> list[dict]:
  """Evaluation prompts in GenEval's schema, `n_per_tag` of each tag.

  With heldout, only the tags that name colours, in withheld colour-shape pairs. No
  prompt appears twice while a tag still has unseen ones (it has at least 8).
  """
  rng = np.random.default_rng([seed, 71])
  out = []
  for tag in ("colors", "color_attr") if heldout else TAGS:
    seen = set()
    for _ in range(n_per_tag):
      for _ in range(50):
        meta = describe(tag, rng, heldout=heldout, canonical=True)
        if meta["prompt"] not in seen:
          break
      seen.add(meta["prompt"])
      out.append(meta)
  return out
