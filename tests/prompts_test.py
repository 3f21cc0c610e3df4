"""GenEval's own prompts are regenerated to the byte."""

from fluid.evals import geneval, prompts


def test_hashes():
  texts = prompts.files()
  found = {name: prompts.sha256(text) for name, text in texts.items()}
  assert found == {
    "evaluation_metadata.jsonl": prompts.METADATA_SHA256,
    "generation_prompts.txt": prompts.PROMPTS_SHA256,
  }


def test_records():
  lines = prompts.geneval()
  by_tag = {tag: [x for x in lines if x["tag"] == tag] for tag in geneval.TAGS}
  assert {t: len(x) for t, x in by_tag.items()} == {
    "single_object": 80, "two_object": 99, "counting": 80, "colors": 94,
    "position": 100, "color_attr": 100,
  }  # fmt: skip
  counts = [line["include"][0]["count"] for line in by_tag["counting"]]
  assert [counts.count(k) for k in (2, 3, 4)] == [26, 28, 26]
  for line in lines:
    for clause in line["include"]:
      assert clause["class"] in prompts.COCO
      assert not ("color" in clause and clause["class"] == "person")
