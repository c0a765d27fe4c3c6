import jax.numpy as jnp
import jaxtyping
import pytest

from paligemma.decoding import samplers
from paligemma.models.attention import reference
from paligemma.training import losses
from tests import typecheck

ONES = jnp.ones((2, 3), jnp.int32)


@pytest.mark.parametrize(
  "call",
  [
    lambda: samplers.score(ONES, ONES, 1.0),
    lambda: reference.soft_cap(ONES, 1.0),
    lambda: losses.next_token(jnp.ones((2, 5, 7)), ONES, ONES),
  ],
)
def test_wrong_types_and_shapes_are_found(call):
  with pytest.raises(jaxtyping.TypeCheckError):
    call()


def test_a_test_can_do_without():
  with typecheck.off():
    reference.soft_cap(ONES, 1.0)
