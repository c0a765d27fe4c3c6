"""Programs that may reorder sums, and know it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma import reordered


def observing():
  """A program that doubles, and a list of what it saw when it was traced."""
  found = []

  def double(x):
    found.append(reordered.is_allowed())
    return 2 * x

  return reordered.Program(double), found


def test_it_is_allowed_while_a_program_is_traced_and_never_after():
  program, found = observing()
  assert program(3) == 6
  assert program(5) == 10
  assert found == [True]
  assert not reordered.is_allowed()
  assert program.num_compiled() == 1


def test_an_error_ends_it():
  def fail():
    raise ValueError("no")

  with pytest.raises(ValueError, match="no"):
    reordered.Program(fail)()
  assert not reordered.is_allowed()


def test_another_jit_says_how_it_is_compiled():
  program, found = observing()
  assert jax.jit(lambda x: program(x) + program(3))(5) == 16
  assert jax.jit(lambda: program(7))() == 14
  assert jax.eval_shape(program, 1).shape == ()
  assert found and not any(found)


def test_arguments_of_jit_are_passed_on():
  program = reordered.Program(lambda x, n: x * n, static_argnames="n")
  for n in (2, 3, 2):
    assert program(5, n=n) == 5 * n
  assert program.num_compiled() == 2


def test_nan_and_inf_stay_what_they_are():
  x = jnp.array([[1.0, jnp.nan, 2.0], [1.0, -jnp.inf, 2.0]])

  def look(x):
    return jnp.isnan(x), jnp.max(x, 1), jnp.sum(x, 1), jnp.exp(x)

  found, expected = reordered.Program(look)(x), jax.jit(look)(x)
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_array_equal(ours, theirs)
