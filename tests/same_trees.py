"""Whether two trees of parameters are the same, bit for bit."""

import numpy as np

from paligemma import tree


def assert_same(found, expected):
  """Names, dtypes and values; the error names the first that differs."""
  found, expected = tree.flatten(found), tree.flatten(expected)
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    assert found[name].dtype == array.dtype, name
    np.testing.assert_array_equal(found[name], array, err_msg=name)
