"""All that follows from a config before anything is allocated."""

from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from configs import common
from paligemma import init, tree
from paligemma.decoding import decode
from paligemma.models import paligemma as paligemma_model
from paligemma.planning import flops
from paligemma.training import optimizers, sharding
from trainers import inputs, report, schedule, state
from trainers.step import make_step

Shapes = dict[str, jax.ShapeDtypeStruct]


class Plan:
  """Mesh, model, data sizes, shapes and places, optimizer and step of a run.

  Attributes:
    config: ml_collections.ConfigDict, as configs/transfers/forkme.py makes it.
    mesh: mesh of the devices, those of all processes.
    model: paligemma Model.
    sources: list of (source, weight), the training data; None if not opened.
    sizes: dict of batch_size, examples_per_epoch and total_steps.
    trainable, frozen: name -> jax.ShapeDtypeStruct with sharding.
    optimizer: optax transformation.
    learning_rates: regex -> function from a step to the learning rate.
    state: TrainState of jax.ShapeDtypeStruct.
    flops_per_step: int, see paligemma/planning/flops.py, if all the
      text is supervised.

  Raises:
    ValueError: a value of the config does not fit the rest.
  """

  def __init__(
    self,
    config: ConfigDict,
    *,
    devices: Sequence[jax.Device] | None = None,
    examples_per_epoch: int | None = None,
  ):
    """Draws conclusions from a config.

    Args:
      config: see above.
      devices: those to run on, default all; of a topology, to compile alone.
      examples_per_epoch: int, stands in for the data, which is then not opened.
    """
    self.config = common.complete(config)
    self.mesh = sharding.make_mesh(**config.mesh, devices=devices)
    self.model = paligemma_model.make(**config.model.to_dict())
    self.sources = None
    if examples_per_epoch is None:
      self.sources = inputs.make_sources(config)
      examples_per_epoch = inputs.examples_per_epoch(self.sources)
    self.sizes = {
      "batch_size": config.batch_size,
      "examples_per_epoch": examples_per_epoch,
    }
    self.total_steps = schedule.steps(config, "total", **self.sizes)
    self.sizes["total_steps"] = self.total_steps
    self.trainable, self.frozen = state.abstract_params(
      self.model,
      res=config.res,
      trainable=config.trainable,
      frozen_dtype=config.frozen_dtype,
      mesh=self.mesh,
      sharding_rules=config.sharding,
    )
    mults = config.weight_decay_mults
    self.optimizer, self.learning_rates = optimizers.make(
      list(self.trainable),
      total_steps=self.total_steps,
      optimizer=config.optimizer,
      optimizer_args=config.optimizer_args,
      learning_rate=config.learning_rate,
      learning_rate_mults=config.learning_rate_mults,
      schedule=self._schedule(),
      weight_decay=config.weight_decay,
      weight_decay_mults=optimizers.MATRICES if mults is None else mults,
      clip_norm=config.clip_norm,
    )
    self.state = state.abstract_state(
      self.optimizer,
      self.trainable,
      mesh=self.mesh,
      ema=config.ema_decay is not None,
    )
    self._shapes = init.shapes(self.model, config.res)
    self.flops_per_step = self.count_flops()

  def count_flops(self, supervised: float | None = None) -> int:
    """Operations of a step with so many supervised tokens, see flops.py."""
    return flops.train_step(
      self.model,
      self._shapes,
      self.trainable,
      batch_size=self.config.batch_size,
      res=self.config.res,
      text_len=self.config.text_len,
      frames=self.config.frames,
      supervised=supervised,
    )

  def _schedule(self):
    """The schedules of the config with their durations in steps."""
    return [
      (regex, arguments and schedule.in_steps(arguments, **self.sizes))
      for regex, arguments in self.config.schedule
    ]

  def step_arguments(self) -> tuple[state.TrainState, Shapes, Shapes]:
    """Shapes and places of what the step takes: state, frozen and batch."""
    batch = inputs.abstract_batch(self.config, self.mesh)
    return self.state, self.frozen, batch

  def compile_step(self, **options: Any) -> jax.stages.Compiled:
    """The step compiled for this mesh; its first argument is reused.

    Args:
      **options: of XLA, see jax.stages.Lowered.compile.
    """
    step = make_step(
      self.model,
      self.optimizer,
      seed=self.config.seed,
      label_smoothing=self.config.label_smoothing,
      accumulate_steps=self.config.accumulate_steps,
      ema_decay=self.config.ema_decay,
    )
    places = jax.tree.map(lambda leaf: leaf.sharding, self.state)
    everywhere = sharding.replicated(self.mesh)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(places, everywhere))
    with jax.set_mesh(self.mesh):
      lowered = jitted.lower(*self.step_arguments())
    return lowered.compile(compiler_options=options)

  def decode_arguments(self) -> tuple[Shapes, Shapes]:
    """Shapes and places of what decoding takes: params, all frozen; prompts."""
    _, params = state.abstract_params(
      self.model,
      res=self.config.res,
      trainable=(),
      frozen_dtype=self.config.frozen_dtype,
      mesh=self.mesh,
      sharding_rules=self.config.sharding,
    )
    return params, inputs.abstract_prompts(self.config, self.mesh)

  def compile_decode(
    self, max_decode_len: int, **options: Any
  ) -> jax.stages.Compiled:
    """Greedy decoding of prompts of text_len tokens, compiled alike."""

    def generate(params, batch):
      return decode.generate(
        self.model,
        tree.unflatten(params),
        batch,
        max_decode_len=max_decode_len,
        prompt_buckets=(),
      )

    with jax.set_mesh(self.mesh):
      lowered = jax.jit(generate).lower(*self.decode_arguments())
    return lowered.compile(compiler_options=options)

  def describe(self, compiled: jax.stages.Compiled) -> str:
    """The table that stands at the start of a run."""
    return "\n".join(
      [
        report.parameter_table(
          self.trainable,
          self.frozen,
          self.state.opt_state,
          rules=self.config.trainable,
        ),
        f"mesh: {dict(self.mesh.shape)}, batch {self.config.batch_size}, "
        f"{self.sizes['examples_per_epoch']} examples per epoch, "
        f"{self.total_steps} steps, {self.flops_per_step:.3g} FLOPs per step "
        "at most",
        report.memory_line(compiled),
      ]
    )
