"""Rows in parts: the same result, and no row leaves its device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma import parts, sharding


@pytest.mark.parametrize(
  ("rows", "at_once", "expected"),
  [(6, 6, 1), (6, 5, 2), (6, 2, 3), (6, 1, 6), (6, 0, 6), (7, 6, 7)],
)
def test_count(rows, at_once, expected):
  assert parts.count(rows, at_once) == expected


def test_rows_of_one_device():
  assert parts.local_rows(24) == 24
  with jax.set_mesh(sharding.make_mesh(data=4, model=2)):
    assert jax.jit(lambda: parts.local_rows(24))() == 6
    assert parts.count(24, 2) == 3
    # What the devices do not share equally is not spread.
    assert parts.local_rows(7) == 7


@pytest.mark.parametrize("num_parts", [1, 2, 3])
def test_map_rows(num_parts):
  x = np.arange(24.0).reshape(12, 2)
  numbers = []

  def double(part):
    number, x, rows = part
    numbers.append(number)
    return 2 * x + rows["a"][:, None] + number * 0

  out = parts.map_rows(double, (x, {"a": np.arange(12.0)}), num_parts)
  np.testing.assert_array_equal(out, 2 * x + np.arange(12.0)[:, None])
  assert len(numbers) == 1


def test_scan_rows_hands_on_its_carry():
  def add(carry, part):
    number, x = part
    return carry + x.sum(), x * 0 + number

  total, numbers = parts.scan_rows(add, jnp.zeros(()), (jnp.arange(6.0),), 3)
  assert total == 15
  np.testing.assert_array_equal(numbers, [0, 0, 1, 1, 2, 2])


def test_no_row_leaves_its_device():
  mesh = sharding.make_mesh(data=4, model=2)
  place = sharding.batch_sharding(mesh)
  x = jax.device_put(np.arange(48.0).reshape(24, 2), place)

  def double(x):
    return parts.map_rows(lambda part: 2 * parts.spread(part[1]), (x,), 3)

  with jax.set_mesh(mesh):
    compiled = jax.jit(double, out_shardings=place).lower(x).compile()
    np.testing.assert_array_equal(compiled(x), 2 * np.asarray(x))
  program = compiled.as_text()
  for exchange in ("all-gather", "all-to-all", "collective-permute"):
    assert exchange not in program
