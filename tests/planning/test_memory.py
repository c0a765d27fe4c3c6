import jax
import jax.numpy as jnp
import pytest

from paligemma.planning import memory
from paligemma.planning.memory import GIB

REFUSALS = {
  "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the "
  "total memory required for HLO temporaries (20.40G) exceeds available HBM "
  "(15.75G). HLO module: jit_step.": 20.4 * GIB,
  "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.5M of "
  "256.00M hbm. Exceeded hbm capacity by 256.5M.": 512.5 * 2**20,
  "RESOURCE_EXHAUSTED: something else": None,
  "INTERNAL: Used 20.40G of 15.75G hbm": None,
}


@pytest.mark.parametrize(("message", "expected"), REFUSALS.items())
def test_what_a_refused_program_wanted(message, expected):
  assert memory.wanted(RuntimeError(message)) == expected


def test_of_a_program():
  x = jax.ShapeDtypeStruct((2**18,), jnp.float32)  # 1 MiB
  kept = memory.of(jax.jit(lambda x: x + 1).lower(x).compile())
  assert (kept.arguments, kept.outputs, kept.peak) == (2**20, 2**20, 2**21)
  donated = jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile()
  assert memory.of(donated).outputs == 0
  product = jax.jit(lambda x: jnp.cumsum(x)[None] @ jnp.sin(x)[:, None])
  found = memory.of(product.lower(x).compile())
  assert found.temporaries >= 2**20
  assert found.peak == found.arguments + found.temporaries + found.outputs


def test_fits():
  names = ["v5e", "v5p", "v6e", "t4", "a100-40", "h100", "h200"]
  assert set(names) <= set(memory.fits(0))
  assert all(memory.fits(7.8 * GIB).values())
  found = memory.fits(20.4 * GIB)
  expected = [False, True, True, False, True, True, True]
  assert [found[name] for name in names] == expected
  assert memory.fits(15.75 * GIB)["v5e"]
  assert not memory.fits(15.76 * GIB)["v5e"]
