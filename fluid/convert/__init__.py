"""Published weights, read from their authors' files and written as parts of this code.

`containers` reads files and knows nothing of models; `names` has the language of the
tables that say which tensor becomes which parameter; a `family.Family` is a row of such
a table, with the published sizes. `python -m fluid.convert` is the command.
"""
