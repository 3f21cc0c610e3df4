"""Names of published weights: every spelling is read, and what does not fit is said."""

import dataclasses
import re
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from fluid import tokenizers as tokenizers_lib
from fluid import trees
from fluid.console import cli
from fluid.convert import __main__ as command
from fluid.convert import family, names, tokenizers
from fluid.convert.weights import Weights
from fluid.errors import ConfigError

# Small relatives of every family: what a spelling does does not depend on the size.
SMALL = {"width": 8, "groups": 4, "multipliers": (1, 2), "blocks": 2, "vocab": 6}
SMALL |= {"channels": 3, "z_channels": 5, "scales": (1, 8)}
SPELLINGS = [
  (k, i) for k, f in tokenizers.FAMILIES.items() for i in range(len(f.spellings))
]


def small(kind) -> family.Family:
  entry = tokenizers.FAMILIES[kind]
  fields = {field.name for field in dataclasses.fields(entry.config)}
  changes = {k: v for k, v in SMALL.items() if k in fields}
  return entry.change(changes | {"image_size": 16})


def published(entry: family.Family, spelling: names.Spelling):
  """-> (our random weights, the same as their authors would write them)."""
  gen = np.random.default_rng(0)
  shapes = trees.paths(entry.abstract(entry.config, entry.options))
  given = entry.given(entry.config)
  ours = {
    k: gen.normal(size=v.shape).astype(np.float32)
    for k, v in shapes.items()
    if k not in given
  }
  theirs: dict = {}
  for name, array in ours.items():
    if spelling.layout is names.torch and name.endswith("kernel"):
      array = array.transpose(3, 2, 0, 1)
    source = spelling.source(name, entry.config)
    whole, _, part = source.partition("[")
    place = int(part.partition("/")[0]) if part else 0
    theirs.setdefault(whole, {})[place] = array
  head = f"{spelling.sections[0]}." if spelling.sections[0] else ""
  join = lambda parts: np.concatenate([parts[i] for i in range(len(parts))])
  return ours, {head + k: join(v) for k, v in theirs.items()}


@pytest.mark.parametrize("kind, number", SPELLINGS)
def test_every_spelling_is_read_whole(kind, number, tmp_path):
  entry = small(kind)
  spelling = entry.spellings[number]
  ours, theirs = published(entry, spelling)
  safetensors.numpy.save_file(theirs, tmp_path / "w.safetensors")
  fields = dataclasses.fields(entry.config)
  changes = {f.name: getattr(entry.config, f.name) for f in fields} | entry.options
  out, unchanged = tmp_path / "out", tokenizers.FAMILIES[kind]
  found = family.convert(unchanged, tmp_path / "w.safetensors", out, changes)
  found = trees.paths(found)
  for name, array in ours.items():
    np.testing.assert_array_equal(found[name], array)
  again = tokenizers_lib.load(str(tmp_path / "out"))
  assert again.config == dataclasses.replace(entry.config, path="")
  jax.tree.map(np.testing.assert_array_equal, trees.paths(again.variables), found)


def test_names_of_published_files_are_asked_for():
  """One of each kind, as their authors' files have them at the published sizes."""
  expected = {
    ("sd_vae", 0): {
      "decoder.up_blocks.0.upsamplers.0.conv.weight",
      "decoder.up_blocks.2.resnets.0.conv_shortcut.bias",
      "encoder.mid_block.attentions.0.to_out.0.weight",
      "encoder.mid_block.attentions.0.group_norm.bias",
      "encoder.down_blocks.0.downsamplers.0.conv.weight",
      "encoder.conv_norm_out.weight",
    },
    ("sd_vae", 1): {"encoder.mid_block.attentions.0.proj_attn.weight"},
    ("sd_vae", 2): {
      "decoder.mid.attn_1.proj_out.bias",
      "encoder.down.3.block.1.norm1.bias",
    },
    ("kl16", 0): {"encoder.down.4.attn.1.q.weight", "decoder.up.3.upsample.conv.bias"},
    ("llamagen_vq", 0): {
      "decoder.conv_blocks.0.attn.2.q.bias",
      "decoder.conv_blocks.3.upsample.conv.weight",
      "encoder.conv_blocks.4.res.0.nin_shortcut.weight",
      "encoder.mid.1.norm.bias",
    },
    ("maskgit_vq", 0): {
      "encoder.ResBlock_11.GroupNorm_1.scale",
      "decoder.ResBlock_2.Conv_0.kernel",
      "decoder.Conv_5.bias",
      "quantizer.codebook",
    },
    ("maskgit_vq", 1): {
      "encoder.down.2.block.0.nin_shortcut.weight",
      "decoder.up.4.upsample_conv.bias",
      "decoder.mid.1.norm2.weight",
    },
    ("var_vq", 0): {
      "decoder.up.4.attn.2.qkv.weight[0/3]",
      "encoder.mid.attn_1.qkv.bias[2/3]",
      "quantize.quant_resi.qresi_ls.3.weight",
    },
  }
  for (kind, number), wanted in expected.items():
    entry = tokenizers.FAMILIES[kind]
    shapes = trees.paths(entry.abstract(entry.config, entry.options))
    spelling = entry.spellings[number]
    assert wanted <= {spelling.source(name, entry.config) for name in shapes}


@pytest.mark.parametrize(
  "kind, millions",
  [("sd_vae", 83.653863), ("llamagen_vq", 72), ("llamagen_vq8", 70), ("var_vq", 109)],
)
def test_published_sizes_have_the_published_number_of_parameters(kind, millions):
  entry = tokenizers.FAMILIES[kind]
  shapes = trees.paths(entry.abstract(entry.config, entry.options))
  wanted = [v.size for k, v in shapes.items() if k not in entry.given(entry.config)]
  digits = len(str(millions).partition(".")[2])
  assert round(sum(wanted) / 1e6, digits) == millions


def test_what_does_not_fit_is_one_line_with_names_and_shapes(tmp_path):
  entry = small("taming_vq")
  _, theirs = published(entry, entry.spellings[0])
  theirs = {k.removeprefix("state_dict."): v for k, v in theirs.items()}
  theirs["loss.discriminator.main.0.weight"] = np.zeros(3, np.float32)  # Skipped.
  del theirs["encoder.conv_in.bias"]
  theirs["decoder.conv_in.bias"] = np.zeros(7, np.float32)
  theirs["encoder.extra.weight"] = np.zeros((2, 3), np.float32)
  file = tmp_path / "w.safetensors"
  safetensors.numpy.save_file(theirs, file)
  with pytest.raises(ConfigError) as e:
    family.convert(entry, file, tmp_path / "out")
  message = str(e.value)
  assert (
    message.startswith(f"{file} is no taming_vq of these sizes") and "\n" not in message
  )
  for part in (
    "1 missing: params/encoder/conv_in/bias (8,) (encoder.conv_in.bias)",
    "1 of other shapes: params/decoder/conv_in/bias is (16,), in the file (7,)",
    "1 left over: encoder.extra.weight (2, 3)",
    "key=value",
  ):
    assert part in message
  assert not (tmp_path / "out").exists()


def test_sources_are_parts_sums_and_layers_and_used_once():
  gen = np.random.default_rng(0)
  file = {f"blocks.{i}.w": gen.normal(size=(4, 3)).astype("f4") for i in range(2)}
  file |= {"qkv": np.arange(6.0), "a": np.ones((2, 3)), "b": np.zeros((1, 3))}
  weights = Weights({k: (lambda v=v: v) for k, v in file.items()})
  rows: tuple[names.Row, ...] = (
    ("layers/kernel", "blocks.*.w"),
    ("([qkv])", lambda c, q: f"qkv[{'qkv'.index(q)}/3]"),
    ("both", "a + b"),
  )
  shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
  shapes = {"layers/kernel": shape(2, 3, 4), "both": shape(3, 3), "one": shape(2)}
  shapes |= dict.fromkeys("qkv", shape(2))
  given: dict = {"one": 1.0}
  fill = lambda rows, shapes: names.fill(
    shapes, weights, [names.Spelling(rows)], config=None, given=given
  )
  found = fill(rows, shapes)
  np.testing.assert_array_equal(found["layers/kernel"][1], file["blocks.1.w"].T)
  np.testing.assert_array_equal([found[k] for k in "qkv"], [[0, 1], [2, 3], [4, 5]])
  np.testing.assert_array_equal(found["both"].sum(1), [3, 3, 0])
  np.testing.assert_array_equal(found["one"], [1, 1])
  assert all(v.dtype == np.float32 for v in found.values())
  del shapes["v"]
  with pytest.raises(ConfigError, match=re.escape("1 left over: 2 rows of qkv (6,)")):
    fill(rows, shapes)
  shapes["again"] = shape(2)
  twice = (*rows, ("again", "qkv[1/3]"))
  with pytest.raises(ConfigError, match=re.escape("1 used twice: qkv[1/3]")):
    fill(twice, shapes)
  # Rows of a table, whatever axes of size one come before them.
  file["table"] = np.arange(10.0).reshape(1, 5, 2)
  weights, given = Weights({"table": lambda: file["table"]}), {}
  rows = (("first", "table[0:2]"), ("rest", "table[2:]"), ("some", "table[2:4]"))
  shapes = {"first": shape(2, 2), "rest": shape(3, 2)}
  found = fill(rows, shapes)
  np.testing.assert_array_equal(np.concatenate([*found.values()]), file["table"][0])
  with pytest.raises(ConfigError, match=re.escape("1 rows of table (1, 5, 2)")):
    fill(rows, {"first": shape(2, 2), "some": shape(2, 2)})
  with pytest.raises(ConfigError, match="from table.0:9. .it has 5 rows"):
    fill((("first", "table[0:9]"),), {"first": shape(9, 2)})


def test_what_is_read_is_held_once():
  """However the file's arrays have to be turned."""
  count, size = 16, 2**20
  shape = jax.ShapeDtypeStruct((256, 1024), np.float32)
  lazy = Weights({f"{i}.weight": lambda: np.ones((1024, 256)) for i in range(count)})
  one = names.Spelling(((r"(\d+/kernel)", r"\1"),))
  tracemalloc.start()
  try:
    names.fill({f"{i}/kernel": shape for i in range(count)}, lazy, [one], config=None)
    assert tracemalloc.get_traced_memory()[1] < (count + 4) * size
  finally:
    tracemalloc.stop()


def test_command_line(tmp_path, capsys):
  entry = small("var_vq")
  _, theirs = published(entry, entry.spellings[0])
  file, folder = str(tmp_path / "w.safetensors"), str(tmp_path / "out")
  safetensors.numpy.save_file(theirs, file)
  sizes = ["width=8", "groups=4", "multipliers=1,2", "vocab=6", "channels=3"]
  sizes += ["z_channels=5", "scales=1,8", "image_size=16"]
  run = lambda *args: command.main(["convert", *args])
  run("var_vq", file, folder, *sizes)
  assert f"{folder}: var_vq, " in capsys.readouterr().out
  spec = tokenizers_lib.load(folder).spec
  assert (spec.length, spec.scales) == (65, (1, 8))
  for args, message in (
    ((), "usage: .* KIND SOURCE FOLDER .*kinds: sd_vae, kl16"),
    (("var_vq", file, folder, "width"), "usage"),
    (("gan", file, folder), "unknown kind 'gan'; choose from sd_vae"),
    (("var_vq", file, folder), "is not empty: name another"),
    (("var_vq", file, "x", "widht=8"), "tokenizer.widht'; did you mean"),
    (("var_vq", file, "x", "image_size=a"), "'image_size' is 'a'; it must be like 256"),
    (("var_vq", file, "x", "image_size=128"), "'tokenizer.scales' ends with 16"),
    (("kl16", file, "x"), "no kl16 of these sizes; .* missing: .* left over: "),
    (("kl16", file + "x", "x"), "wx: cannot be read|safetensorsx: cannot be read"),
    (("kl16", file, file), "FOLDER is .*, which is a file"),
    (("kl16", file, f"{file}/x"), "FOLDER is .*w.safetensors, which is a file"),
    (("var_vq", file, "x", "width=8", "width=4"), "'width' is given twice"),
  ):
    with pytest.raises(ConfigError, match=message):
      run(*args)
  command.main(["convert", "var_vq", folder, str(tmp_path / "b"), f"like={file}"], "x")
  again = safetensors.numpy.load_file(tmp_path / "b" / "model.safetensors")
  assert again.keys() == theirs.keys()
  for name, array in again.items():
    np.testing.assert_array_equal(array, theirs[name])
  with pytest.raises(cli.UserError, match="needs like=FILE"):
    command.main(["convert", "var_vq", folder, str(tmp_path / "c"), "width=8"], "x")
  with pytest.raises(SystemExit) as e:
    cli.run(command.main, ["convert", "gan", file, "x"], words=True)
  assert e.value.code == 2 and "unknown kind" in capsys.readouterr().err
