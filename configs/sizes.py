"""The ladder: layers, width, heads. Paper sizes (arXiv 2410.13863) and toys."""

PAPER = {
  "166M": (12, 768, 12),
  "369M": (16, 1024, 16),
  "665M": (20, 1280, 16),
  "1.1B": (24, 1536, 16),
  "3.1B": (32, 2304, 24),
  "10.5B": (34, 4096, 64),
}

# The same shape at laptop scale: more than a decade in parameters from xxs to l.
# Configs take the first where no size is given: xxs, which came later, stays last.
TOY = {
  "xs": (2, 40, 2),
  "s": (3, 64, 2),
  "m": (3, 96, 3),
  "l": (4, 128, 4),
  "xl": (6, 192, 6),
  "xxs": (2, 24, 2),
}

SIZES = PAPER | TOY
