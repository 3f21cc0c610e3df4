"""What a run is made of: frozen dataclasses with their defaults."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Model:
  """One cell of the grid at one size.

  Attributes:
    head: 'categorical' (discrete tokens) or 'diffusion' (continuous tokens).
    order: 'raster' (causal, next token) or 'random' (bidirectional, masked tokens).
    size: the name of this size in configs/sizes.py; for tables only.
    layers, width, heads: of the trunk.
    mlp_ratio: hidden width of the MLP over the width.
    aligner_layers: trainable transformer blocks over the text (0 to N; paper: 6).
    text_drop: share of examples trained without their text, for guidance.
    mask: distribution of the masked fraction (random order): 'cosine' (MaskGIT;
      unconfirmed for Fluid), 'arccos', 'uniform' or 'truncated_normal' (MAR).
    mask_min: smallest masked fraction; MAR's truncated normal has 0.7.
    head_layers, head_width: residual blocks of the diffusion head and their width
      (0: the trunk's width; unconfirmed).
    head_batch_mul: noise draws per token and step (MAR's diffusion batch multiplier).
    diffusion_steps: length of the training noise schedule.
    residual_init: factor on the initial weights of what writes to the residual stream
      (attention outputs, second MLP layers); 1 is MAR, 0.1 starts nearer to identity.
    tie_embeddings: categorical head shares its output matrix with the token embedding.
    dtype: of activations; parameters, softmax, norms and losses stay float32.
    attention: kernel: 'xla', 'splash' (TPU), 'cudnn' (GPU), or 'auto' by the platform.
    remat: 'none', 'block' (save only block inputs) or 'dots' (save matmul outputs).
    scan: scan over layers (one compiled block) instead of unrolling them.
  """

  head: str = "diffusion"
  order: str = "random"
  size: str = ""
  layers: int = 12
  width: int = 768
  heads: int = 12
  mlp_ratio: int = 4
  aligner_layers: int = 6
  text_drop: float = 0.1
  mask: str = "cosine"
  mask_min: float = 0.0
  head_layers: int = 6
  head_width: int = 0
  head_batch_mul: int = 4
  diffusion_steps: int = 1000
  residual_init: float = 1.0
  tie_embeddings: bool = True
  dtype: str = "bfloat16"
  attention: str = "auto"
  remat: str = "block"
  scan: bool = True


@dataclasses.dataclass(frozen=True)
class Text:
  """Text encoder: `kind` names an entry of fluid.text.ENCODERS.

  Attributes:
    path: SentencePiece model file ('' lets prepare train one beside the data).
    vocab_size: upper limit of a vocabulary that is trained.
    length: tokens per prompt, padding included.
    width: of the (learned or frozen) text embeddings.
  """

  kind: str = "learned"
  path: str = ""
  vocab_size: int = 512
  length: int = 32
  width: int = 256


@dataclasses.dataclass(frozen=True)
class Data:
  """Where examples come from.

  Attributes:
    source: entry of fluid.data.SOURCES.
    image_size: pixels per side.
    source_args: further arguments of the source.
    num_train, num_val: examples taken of each split (0: all there are).
    cache: folder of cached tokens that fluid.prepare writes and fluid.train reads.
    seed: of the source (what the images are) and of the order they are drawn in.
    workers: grain worker processes; 0 reads in threads of this process.
    max_bad: share of examples that may be damaged (records, images, captions) and are
      skipped; one more stops the work, naming file and key.
  """

  source: str = "shapes"
  image_size: int = 32
  source_args: dict[str, Any] = dataclasses.field(default_factory=dict)
  num_train: int = 0
  num_val: int = 0
  cache: str = ""
  seed: int = 0
  workers: int = 0
  max_bad: float = 0.01


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Architecture and training of a tokenizer (fluid.tokenizers).

  Attributes:
    kind: entry of fluid.tokenizers.TOKENIZERS, 'vae' or 'vq'.
    path: folder with config.json and weights.safetensors.
    width, multipliers, blocks: encoder/decoder channels, per-level multipliers (one
      level more halves the resolution once more) and residual blocks per level.
    channels: latent channels (vae) or codebook width (vq).
    z_channels: width between encoder and the 1x1 convolution (0: `channels`).
    attention: 'none', 'mid' (SD VAE) or 'deep' (also at the lowest resolution: VQGAN).
    stem: pixels are folded stem x stem into channels at both ends; 1 for published
      weights, more for speed. Pixels per latent: stem * 2**(len(multipliers) - 1).
    patch: latents are grouped patch x patch into one token (vae).
    kl_weight: weight of the KL term, counted as in latent diffusion (vae).
    vocab, cosine: codebook entries; look them up by cosine, on the unit sphere (vq).
    commitment, codebook_decay: weight of the pull of latents to their codes, and of
      the past in the moving averages that make the codes (vq).
    l2_weight, edge_weight: of squared error and edge error; absolute error has 1.
    steps, batch, lr, warmup: training; AdamW, linear warm-up, cosine decay to 0.
    ema: decay of the averaged weights, which are the ones kept.
  """

  kind: str = "vae"
  path: str = ""
  width: int = 32
  multipliers: tuple[int, ...] = (1, 2, 2)
  blocks: int = 1
  channels: int = 4
  z_channels: int = 0
  attention: str = "none"
  stem: int = 1
  patch: int = 2
  kl_weight: float = 1e-6
  vocab: int = 512
  cosine: bool = False
  commitment: float = 0.25
  codebook_decay: float = 0.97
  l2_weight: float = 1.0
  edge_weight: float = 0.5
  steps: int = 2000
  batch: int = 64
  lr: float = 1e-3
  warmup: int = 100
  ema: float = 0.998


@dataclasses.dataclass(frozen=True)
class Optim:
  """AdamW and its schedule (defaults: paper-facts, partly unconfirmed).

  Attributes:
    schedule: after the linear warm-up, 'constant', 'cosine' or 'wsd'
      (constant, then linear to zero over the last `decay_fraction` of the steps).
    max_skipped: steps whose loss or gradient is not finite that a run may skip (the
      state stays as it was); 0 stops at the first.
  """

  lr: float = 1e-4
  schedule: str = "constant"
  warmup: int = 65_000
  decay_fraction: float = 0.2
  b1: float = 0.9
  b2: float = 0.95
  weight_decay: float = 0.02
  clip: float = 3.0
  ema: float = 0.9999
  max_skipped: int = 0


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Device mesh; at most one axis may be -1 (what is left of the devices).

  Attributes:
    data: copies of the parameters; each takes its share of the batch.
    fsdp: shards of parameters, optimizer and EMA; each takes its share of the batch.
    model: shards of heads, MLP and vocabulary (tensor parallelism).
    slice: TPU slices (or hosts without a fast link between them). Parameters are
      copied to each, so that only gradients cross the slow links.
  """

  data: int = -1
  fsdp: int = 1
  model: int = 1
  slice: int = 1


@dataclasses.dataclass(frozen=True)
class Sample:
  """How images are drawn.

  Attributes:
    guidance: w of u + w (c - u); 1 switches guidance off.
    guidance_schedule: 'linear' (grows with the share of tokens decoded) or 'constant'.
    temperature: of the logits (categorical) or of the noise added (diffusion).
    steps: decoding steps of the random order; raster takes one per token.
    solver: of the diffusion head: 'ancestral' (DDPM, as MAR), 'ddim' or 'dpmpp'
      (DPM-Solver++ 2M); the last two are deterministic and need fewer steps.
    diffusion_steps: reverse steps of the diffusion head.
    diffusion_steps_last: the same for the last tokens decoded, to which the steps of
      the tokens before fall in four stages (0: all as the first).
    guidance_from, guidance_to: shares of decoded tokens between which guidance acts;
      outside, the unconditional pass is saved (raster: in the head only).
    clip: bound on the continuous tokens implied at each reverse step (0: none, as MAR);
      about 4 standard deviations keeps a young network's chain from running away.
    batch: prompts per compiled call.
  """

  guidance: float = 3.0
  guidance_schedule: str = "linear"
  temperature: float = 1.0
  steps: int = 64
  solver: str = "ancestral"
  diffusion_steps: int = 100
  diffusion_steps_last: int = 0
  guidance_from: float = 0.0
  guidance_to: float = 1.0
  clip: float = 0.0
  batch: int = 64


@dataclasses.dataclass(frozen=True)
class Init:
  """Parameters a new run starts from, instead of random ones.

  Attributes:
    workdir: of the run that has them ('' for none).
    step: a saved step (-1: the newest).
    weights: 'ema' or 'raw'.
    match: regular expression; parameters whose whole name it fits are taken ('trunk/.*'
      puts a new head on an old trunk), the others are drawn.
  """

  workdir: str = ""
  step: int = -1
  weights: str = "ema"
  match: str = ".*"


@dataclasses.dataclass(frozen=True)
class Run:
  """A whole run. `evals` maps an entry of fluid.evals.EVALS to its arguments.

  Attributes:
    accum: microbatches a step's batch is split into.
    log_every, eval_every, checkpoint_every: in steps; 0 switches off (evaluation and
      checkpoint still happen once, after the last step).
    keep: newest checkpoints kept.
    profile_steps: 'first:last' steps to trace into workdir/profile ('' for none).
    tensorboard: write event files through clu (imports tensorflow).
  """

  model: Model = Model()
  text: Text = Text()
  data: Data = Data()
  tokenizer: Tokenizer = Tokenizer()
  optim: Optim = Optim()
  mesh: Mesh = Mesh()
  sample: Sample = Sample()
  init: Init = Init()
  evals: dict[str, Any] = dataclasses.field(default_factory=dict)
  seed: int = 0
  steps: int = 1_000_000
  batch: int = 2048
  accum: int = 1
  log_every: int = 100
  eval_every: int = 10_000
  checkpoint_every: int = 1_000
  keep: int = 3
  profile_steps: str = ""
  tensorboard: bool = False
