"""The figures of a study, and two of its modules under names that notebooks use."""

import sys

from analysis.report import study
from analysis.report.figures import FIGURES, Study, published

__all__ = ["FIGURES", "Study", "published", "study"]
__path__: list[str] = []  # analysis.figures.study: the same module, not a second one
sys.modules |= {f"{__name__}.study": study, f"{__name__}.published": published}
