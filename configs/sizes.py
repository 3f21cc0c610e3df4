"""The ladder: layers, width, heads. Paper sizes (arXiv 2410.13863, Table 2) and toys."""

PAPER = {
    '166M': (12, 768, 12),
    '369M': (16, 1024, 16),
    '665M': (20, 1280, 16),
    '1.1B': (24, 1536, 16),
    '3.1B': (32, 2304, 24),
    '10.5B': (34, 4096, 64),
}

# Same shape rules at laptop scale; a decade in parameters from first to last.
TOY = {
    'xs': (2, 64, 2),
    's': (3, 96, 3),
    'm': (4, 128, 4),
    'l': (5, 192, 6),
    'xl': (6, 256, 8),
}

SIZES = PAPER | TOY
