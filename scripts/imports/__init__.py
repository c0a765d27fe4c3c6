"""Data sets of other formats, each in a module with `read(entries.Request)`.

Everywhere here `where` is the place that a message begins with, "a.csv:12", and
what is wrong is a ValueError of one line that begins so. `problems` is an
entries.Problems, which counts what is put right.
"""
