"""What to train next: from a fit to sizes, shapes and a sweep."""
