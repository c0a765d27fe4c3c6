"""Data sets of other formats, each in a module with `read(entries.Request)`.

Everywhere here `where` is a place in the data set, "a.csv:12", with which the
one line of a ValueError begins. `problems` is an entries.Problems, which counts
what is corrected.
"""
