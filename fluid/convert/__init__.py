"""Published weights, read from their authors' files and written as parts of this code.

`containers` and `pickles` read files and know nothing of models.
"""
