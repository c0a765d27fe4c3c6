"""Files of answers, as the servers that know the hidden ones take them.

Each module is one format, which a few servers may share; `catalog` says which
split of which transfer has one.
"""
