"""The figures of a study: a new one is a function in this package and an entry below.

Each takes a `Study` and returns a Plot, or None where the study has no numbers for it.
"""

from collections.abc import Callable

from analysis.report.figures import (
  frontier,
  likelihood,
  loss,
  metrics,
  published,
  samples,
)
from analysis.report.study import Study
from analysis.report.style import Plot

# Name -> function; the numbers are those of the paper's figures and tables.
FIGURES: dict[str, Callable[[Study], Plot | None]] = {
  "val_loss_vs_size": loss.against_size,  # Fig. 5
  "val_loss_vs_compute": loss.against_compute,
  "val_loss_curves": loss.curves,  # Fig. 7
  "nats_vs_size": likelihood.against_size,
  "loss_known": likelihood.by_known,
  "frontier": frontier.allocation,
  "metrics_vs_size": metrics.against_size,  # Fig. 6
  "metrics_vs_steps": metrics.against_steps,  # Fig. 7
  "metrics_vs_compute": metrics.against_compute,  # Fig. 7
  "metrics_vs_loss": metrics.against_loss,  # Fig. 8
  "geneval_tags": metrics.tags,
  "sampling": metrics.sampling,  # guidance, temperature
  "aligner_depth": metrics.aligner_depth,
  "published": published.beside_ours,  # Table 1
  "seconds_per_image": published.seconds,  # Table 2
  "samples": samples.sheet,
}
