"""Memory that a device has to spare makes a step faster: how much is kept.

A step recomputes its layers in the backward pass, and gathers frozen weights
that are split over devices, only where it would not fit otherwise.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from paligemma import messages
from paligemma.planning import memory
from paligemma.planning.memory import GIB
from trainers.plan import Layout, Plan

# Of the memory of a device, what a step may need: evaluation, the next batch
# and fragments take some.
SHARE = 0.95


@dataclasses.dataclass(frozen=True)
class Tried:
  """A layout, and what was found.

  Attributes:
    layout: of the step.
    peak: bytes on each device, of the compiled step or at least.
    fits: whether that is little enough.
    compiled: whether it was; else it was too much by what it surely keeps, or
      the compiler refused it.
    problem: what else the compiler said, "" for nothing.
  """

  layout: Layout
  peak: float
  fits: bool
  compiled: bool
  problem: str = ""

  @property
  def verdict(self) -> str:
    return "taken" if self.fits else self.problem or "does not fit"

  def describe(self, usable: float) -> str:
    """One line for people."""
    least = "" if self.compiled else "at least "
    return (
      f"remat_policy {self.layout.remat_policy}, frozen_sharding "
      f"{self.layout.frozen_sharding}: {least}{self.peak / GIB:.2f} GiB "
      f"of {usable / GIB:.2f}, {self.verdict}"
    )


def usable_bytes() -> float | None:
  """Memory of the smallest device of all processes; None: that of the host."""
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  least = min(found.get("bytes_limit", 0) for found in stats)
  everywhere = multihost_utils.process_allgather(np.float32(least))
  return float(np.min(everywhere)) or None


def fit(
  plan: Plan,
  usable: float | None,
  compile_step: Callable[[Plan], jax.stages.Compiled],
) -> tuple[Plan, jax.stages.Compiled, list[Tried]]:
  """Compiles the step with the fastest of plan.layouts that fits.

  Args:
    plan: of the run.
    usable: bytes of each device. None, as of a CPU: the last layout is taken,
      which needs least.
    compile_step: compiles the step of a plan.

  Returns:
    The plan with this layout, its step, and what was tried if there was a
    choice. The last layout is taken untried, whether or not it fits.

  Raises:
    jax.errors.JaxRuntimeError: the last layout does not compile.
  """
  *faster, last = plan.layouts
  tried = []
  for layout in faster if usable else ():
    candidate = plan.with_layout(layout)
    compiled, peak, problem = None, candidate.least_bytes(), ""
    if peak <= usable:
      try:
        compiled = compile_step(candidate)
        peak = memory.of(compiled).peak
      except jax.errors.JaxRuntimeError as error:
        compiled, wanted = None, memory.wanted(error)
        peak = wanted or peak
        if wanted is None:
          problem = f"does not compile: {messages.shown(str(error))}"
    fits = compiled is not None and peak <= SHARE * usable
    tried.append(Tried(layout, peak, fits, compiled is not None, problem))
    if fits:
      return candidate, compiled, tried
  plan = plan.with_layout(last)
  return plan, compile_step(plan), tried
