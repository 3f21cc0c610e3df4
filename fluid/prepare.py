"""Data set -> cached tokens and text that fluid.train reads.

  python -m fluid.prepare --config=configs/toy.py:tokens=continuous \\
    --config.data.cache=DIR --config.tokenizer.path=DIR2

Images are encoded once; records hold tokens, captions, text ids, the features of a
frozen text encoder and the source's meta, never pixels, which sources make again by
index. Started again, it goes on at the first missing shard, and ends at once where
nothing is missing. Many processes (--coordinator, --processes, --process, as of
fluid.train) deal the shards out by number, and write what one would write. An example
that cannot be used keeps its place in the records, says what is wrong, and is skipped
in training; more of them than data.max_bad end the work. One that data.filter or
data.dedupe leaves out keeps its place, too, and is never drawn; of these there may be
any number.
"""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fluid import config as config_lib
from fluid import files, remote, text, tokenizers
from fluid.config import identity
from fluid.console import cli
from fluid.console.progress import Progress
from fluid.data import (
  BadExample,
  Source,
  count,
  examples,
  kept_captions,
  make_source,
  packing,
  records,
  summary,
)
from fluid.durable import paths
from fluid.parallel import distributed
from fluid.parallel.preemption import Preempted, Preemption

SPLITS = ("train", "val")
VERSION = 1
# Changing either changes which record is in which file.
BATCH = 128
BATCHES_PER_SHARD = 32
# Runs and their lengths: of so many examples, spread over a split, one has to be usable
# and one to have the score that data.filter names. Neighbours lie in one row group, or
# one part of a tar.
_LOOKED_AT = 64, 16

CONFIG = cli.config_flag()


def prepare(
  run: config_lib.Run,
  *,
  tokenizer: tokenizers.Tokenizer | None = None,
  splits: Sequence[str] = SPLITS,
  batch: int = BATCH,
  log: Callable[[str], None] = print,
  before: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
  """Fills the folder run.data.cache.

  One in a bucket is filled on the hosts; each shard is uploaded once it is complete.

  Args:
    run: its sections data, text and tokenizer are used.
    tokenizer: None loads run.tokenizer.path.
    splits: to write; an evaluation needs one.
    batch: images per call of the tokenizer, which is compiled for this shape alone.
    log: receives progress lines.
    before: called before each batch; what it raises ends the work, and shards that are
      complete stay.

  Returns:
    The content of metadata.json.

  Raises:
    ConfigError: no cache named, a cache of another config, a source, vocabulary or
      tokenizer that cannot be used, more bad examples than data.max_bad, or none left.
  """
  if not run.data.cache:
    raise config_lib.ConfigError(
      "config key 'data.cache' is empty: name the folder to write cached tokens to"
    )
  small = lambda name: not name.endswith(records.SHARD)
  with remote.Mirror(run.data.cache, small) as mirror:
    return _prepare(run, mirror, tokenizer, splits, batch, log, before)


def _prepare(
  told, mirror: remote.Mirror, tokenizer, splits, batch: int, log, before
) -> dict[str, Any]:
  cache = mirror.path
  run = config_lib.replaced(
    told,
    {"data.cache": str(cache), "tokenizer.path": paths.here(told.tokenizer.path)},
  )

  def lead(action):
    """Process 0 acts, and all have what it wrote."""

    def act():
      action()
      mirror.push()

    distributed.first(act)
    if jax.process_index():
      mirror.pull(lambda name: not name.endswith((records.SHARD, summary.ENDING)))

  digest = ""
  if tokenizer is None:
    tokenizer = tokenizers.load(run.tokenizer.path)
    digest = files.sha256(pathlib.Path(run.tokenizer.path) / "weights.safetensors")
  tokenizers.check_size(tokenizer, run.data.image_size, told.tokenizer.path)
  # Before the folder is touched: a config that no source accepts, or that finds nothing
  # in one, must leave no trace.
  # Of one whose texts are encoded by a given file, 'train' may not be at hand.
  opened = splits if run.text.path else dict.fromkeys((*splits, "train"))
  sources = {split: make_source(run.data, split) for split in opened}
  made_from = _identity(run, tokenizer.spec, digest, batch)
  new = not _begun(cache)
  done = () if new else records.read_metadata(cache)["splits"]
  for split in splits:
    if split not in done:  # Else its images may be gone.
      _look(run, split, sources[split])
  lead(functools.partial(_mend, mirror, made_from))
  metadata = _begin(mirror, made_from)  # Nothing is left to mend: this reads.
  if set(splits) <= set(metadata["splits"]):
    log(f"{told.data.cache} is complete: {_summary(metadata)}")
    return metadata

  def fit():
    try:
      _fit(run, sources.get("train"), log)
    except BaseException:
      if new:  # It holds nothing: another config may have the folder.
        mirror.remove(records.METADATA)
      raise

  lead(fit)
  vocabulary = text.load(run.text, run.data.cache)
  width = run.text.feature_width
  metadata |= {
    "tokens": tokenizer.spec.to_dict(),
    "tokenizer": told.tokenizer.path,
    "text": {
      "kind": run.text.kind,
      "vocab_size": vocabulary.size,
      "length": run.text.length,
      **({"features": width} if width else {}),
    },
  }
  for split in splits:
    if split not in metadata["splits"]:
      source = sources[split]
      shards = _write_split(
        run, split, source, tokenizer, vocabulary, batch, log, before, mirror
      )
      distributed.everyone(True)  # All shards are there.
      lead(functools.partial(_finish, run, metadata, split, shards, mirror))
  metadata = records.read_metadata(cache)
  log(f"{told.data.cache} is complete: {_summary(metadata)}")
  return metadata


def _identity(run, spec, digest: str, batch: int) -> dict[str, Any]:
  """What has to be equal for a cache to be continued or taken as done."""
  sections = {
    "text": {"file": run.text.digest()},
    "tokenizer": spec.to_dict() | {"weights": digest},
    "records": {"version": VERSION, "batch": batch, "shard": batch * BATCHES_PER_SHARD},
  }
  flat = {f"{s}.{k}": v for s, values in sections.items() for k, v in values.items()}
  return identity.of_cache(run) | flat


def _mend(mirror: remote.Mirror, made_from: dict[str, Any]) -> None:
  _begin(mirror, made_from)
  files.remove_scratch(mirror.path)


def _begin(mirror: remote.Mirror, made_from: dict[str, Any]) -> dict[str, Any]:
  """Metadata to go on from; a cache of something else is refused."""
  cache = mirror.path
  if not _begun(cache):
    cache.mkdir(parents=True, exist_ok=True)
    metadata = {"config": made_from, "splits": {}}
    records.write_metadata(cache, metadata)
    return metadata
  metadata = records.read_metadata(cache)
  there = identity.stored(metadata.get("config", {}))
  # A cache of before does not say what vouches for the files of its source.
  there = {k: v for k, v in made_from.items() if k.startswith(identity.FILES)} | there
  for key in identity.differences(there, made_from):
    raise config_lib.ConfigError(
      f"{cache} holds tokens of another config ({key} is {identity.said(there, key)} "
      f"there, {identity.said(made_from, key)} here): remove it, or name another "
      "folder in config key 'data.cache'"
    )
  for split, content in list(metadata["splits"].items()):
    shards = content["shards"]
    lost = [s["name"] for s in shards if mirror.size(s["name"]) != s["bytes"]]
    for name in lost:
      if mirror.size(name) is not None:  # Truncated; what is missing is written again.
        mirror.remove(name)
    if lost:
      del metadata["splits"][split]
  return metadata


def _begun(cache: pathlib.Path) -> bool:
  return (cache / records.METADATA).is_file()


def _finish(
  run: config_lib.Run,
  metadata: dict[str, Any],
  split: str,
  paths: list[pathlib.Path],
  mirror: remote.Mirror,
) -> None:
  """Writes what metadata.json says of a split whose shards are all there."""
  # Where other hosts have written shards, what they say of them is in the bucket.
  mirror.fetch([summary.place(p).name for p in paths if not summary.read(p)])
  metadata["splits"][split] = content = summary.describe(run.data, split, paths)
  _check_share(run, split, sum(content["skipped"].values()), content["count"], "")
  lost = sum(n for k in ("skipped", "filtered") for n in content.get(k, {}).values())
  if "filtered" in content and lost == content["count"]:
    raise config_lib.ConfigError(
      f"no example of split '{split}' is left: config section 'data.filter' leaves out "
      f"{_named(content['filtered'])}; lower its bounds"
    )
  records.write_metadata(run.data.cache, metadata)


def _fit(run: config_lib.Run, source: Source | None, log) -> None:
  """The text encoder of the cache: given by text.path, made, or already there."""
  cache = pathlib.Path(run.data.cache)
  if not run.text.install(cache):
    assert source is not None
    total = count(run.data, "train", source)
    log(f"prepare text: {run.text.kind} from {total} captions")
    # Words that no record has would only take up pieces.
    data, words = run.data, run.data.filter
    plain = data.captions == 1 and not (words.min_words or words.max_words)
    keep = None if plain else functools.partial(kept_captions, data=data)
    run.text.fit(source, total, cache / run.text.FILE, keep)


def _write_split(
  run, split, source, tokenizer, vocabulary, batch, log, before, mirror
) -> list[pathlib.Path]:
  """Writes this process's shards of a split that are missing; returns all paths.

  And beside each what it holds, of those too that were there without.
  """
  total = count(run.data, split, source)
  data = run.data
  if split != "train":
    data = dataclasses.replace(data, flips=False)  # Nobody draws from another split.
  size = batch * BATCHES_PER_SHARD
  progress = Progress(f"prepare {split}", total, "examples", log)
  paths, bad = [], []

  def pack(content):
    bad.extend(e for e in content if e.get("bad") in packing.BAD)
    if bad:
      last = f"; the last: id {bad[-1]['id']}, {bad[-1]['bad']}: {bad[-1]['why']}"
      _check_share(run, split, len(bad), total, last)
    return [packing.pack(e) for e in content]

  for start in range(0, total, size):
    stop = min(start + size, total)
    path = records.shard_path(run.data.cache, split, start // size)
    paths.append(path)
    if start // size % jax.process_count() != jax.process_index():
      progress.skip(stop - start)
      continue
    there, told = mirror.size(path.name), summary.read(path)
    if told and told["bytes"] == there:
      progress.skip(stop - start)
      continue
    seen: list[summary.Row] = []

    def rows(start=start, stop=stop, seen=seen):
      workers = run.data.workers
      for found in examples.read(source, run.text, start, stop, batch, workers, data):
        before()
        content = examples.encode(found, tokenizer, vocabulary, run.text.length, batch)
        yield from pack(content)
        seen.extend(map(summary.row, content))
        progress.add(len(found))

    if told or there is None:
      records.write_shard(path, rows())
    else:  # Written before there were summaries, or by one that ended just then.
      before()
      mirror.fetch([path.name])
      seen += map(summary.row, map(packing.unpack, records.read_shard(path)))
      progress.add(len(seen))
    summary.write(path, seen)
    mirror.push()
  return paths


def _check_share(run, split, bad: int, total: int, last: str) -> None:
  if bad > run.data.max_bad * total:
    raise config_lib.ConfigError(
      f"{bad} of {total} examples of split '{split}' cannot be used, more than config "
      f"key 'data.max_bad' ({run.data.max_bad:g}) allows{last}"
    )


def _look(run: config_lib.Run, split: str, source: Source) -> None:
  """Refuses a split of which nothing can be used, or a score that hardly any has.

  At once, rather than after hours, or with nearly all left out. Ends at the first that
  is as it should be; what one in a hundred is will be found, but for one time in thirty
  thousand.
  """
  runs, length = _LOOKED_AT
  total, score = count(run.data, split, source), run.data.filter.score
  if not total:
    raise config_lib.ConfigError(
      f"split '{split}' of source '{run.data.source.kind}' holds no examples, and "
      "training needs some: complete the set, or give the split files of its own"
    )
  starts = np.linspace(0, max(total - length, 0), runs).astype(int)
  places = np.unique(starts[:, None] + np.arange(length))
  wrong, keys = [], dict[str, None]()
  for index in (places := places[places < total]).tolist():
    try:
      meta = source[index]["meta"]
    except BadExample as e:
      wrong.append(e)
      continue
    if not score or score in meta:
      return
    keys |= dict.fromkeys(meta)
  seen = len(places) - len(wrong)
  if seen:
    raise config_lib.ConfigError(
      f"config key 'data.filter.score' is '{score}', which none of {seen} examples of "
      f"split '{split}', from all over it, has; their meta has "
      f"{', '.join(keys) or 'nothing'}: name one of these, or leave the filter out"
    )
  if wrong:
    raise config_lib.ConfigError(
      f"none of {len(wrong)} examples of split '{split}', from all over it, can be "
      f"used; the first: {config_lib.one_line(wrong[0])}"
    )


def _summary(metadata: dict[str, Any]) -> str:
  splits = metadata["splits"]
  line = ", ".join(f"{s['count']} {name}" for name, s in splits.items())
  if cut := sum(s["cut_captions"] for s in splits.values()):
    line += f"; {cut} captions cut at text.length"
  for what in ("skipped", "filtered"):
    if named := _named(*(s.get(what, {}) for s in splits.values())):
      line += f"; {what}: {named}"
  for split in splits.values():
    if "mirrored" in split:
      line += f"; {split['mirrored']} mirrored"
    if rest := split.get("unmirrored"):
      line += f", {rest} not, as left and right matter to them"
  return line


def _named(*counts: dict[str, int]) -> str:
  """Counts by reason, as text."""
  total: collections.Counter[str] = collections.Counter()
  for some in counts:
    total.update(some)
  return ", ".join(f"{n} {kind}" for kind, n in sorted(total.items()))


def main(argv: list[str]) -> None:
  del argv
  distributed.join_by_flags()
  with Preemption() as preemption:

    def before():
      # Each process by itself, as each has its own shards; a scheduler tells them all.
      if preemption.asked:
        raise Preempted(
          f"{preemption.reason}; shards that are complete are kept, and the same "
          "command goes on from there"
        )

    prepare(cli.read(CONFIG, buckets=True), log=distributed.say, before=before)


if __name__ == "__main__":
  distributed.define_flags()
  cli.run(main)
