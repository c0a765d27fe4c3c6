"""The published data sets, as their publishers ship them.

A data set is a declaration, `data_set.DataSet`: which files it needs, where
they come from, its splits with their published counts, and for each split a
function that reads records and one that makes the fields of an example. The
modules hold the data sets of one form each; `catalog` lists all.
"""
