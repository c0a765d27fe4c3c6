"""What follows from a config before anything is allocated."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax
from ml_collections import ConfigDict

from configs import common
from paligemma import init, messages, registry, tree
from paligemma.decoding import decode
from paligemma.lora import apply as lora
from paligemma.planning import memory
from paligemma.training import optimizers, sharding
from trainers import inputs, report, schedule, state, tasks, text_lengths
from trainers.state import Shapes
from trainers.step import make_step


@dataclasses.dataclass(frozen=True)
class Layout:
  """How much memory a step may take to be fast.

  Attributes:
    remat_policy: of the towers whose policy is "auto", see models/stack.py.
    frozen_sharding: "shard" or "replicate", see state.abstract_params.
  """

  remat_policy: str
  frozen_sharding: str


class Plan:
  """Mesh, model, sizes of the data, arrays, optimizer and step of a run.

  Attributes:
    config: complete.
    mesh: of the devices of all processes.
    task: of the config, see tasks/task.py.
    layouts: those that the config allows, the fastest first; the last needs the
      least memory.
    layout: the one of the least memory, or that of `with_layout`.
    model: Model of the config.
    sources: (source, weight) pairs to train on; None if not opened.
    sizes: batch_size, examples_per_epoch and total_steps.
    save_every: steps between two checkpoints.
    keep_period: checkpoints of its multiples are never removed; None: of none.
    trainable, frozen: shapes and shardings by name.
    optimizer: optax transformation.
    learning_rates: regex -> function from a step to the learning rate.
    state: TrainState of shapes and shardings.
    flops_per_step: see paligemma/planning/flops.py, if all text is supervised.
    pads_texts: whether texts are padded to one of several lengths.
    text_lengths: these, ascending, see text_lengths.py; before the data is
      checked, or without them, config.text_len alone.
    longest_text: the one of these that the longest text of the data needs.
  """

  def __init__(
    self,
    config: ConfigDict,
    *,
    devices: Sequence[jax.Device] | None = None,
    examples_per_epoch: int | None = None,
  ):
    """Plans a run.

    Args:
      config: of the run.
      devices: default all; those of a topology can only be compiled for.
      examples_per_epoch: instead of the data, which is then not opened.

    Raises:
      ValueError: a value of the config does not fit the rest.
    """
    self.config = common.complete(config)
    self.mesh = sharding.make_mesh(**config.mesh, devices=devices)
    self.task = tasks.of(config)
    known = dict.fromkeys(("auto", "replicate", "shard"))
    registry.lookup(known, config.frozen_sharding, "frozen_sharding")
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
    self.save_every = schedule.steps(config, "checkpoint", **self.sizes)
    self.keep_period = config.keep_every and config.keep_every * self.save_every
    if config.keep_every is not None and not self.keep_period > 0:
      raise ValueError(
        f"config.keep_every is {config.keep_every} with a checkpoint every "
        f"{self.save_every} steps, expected both above 0"
      )
    self.pads_texts = bool(
      "text_len" in config
      and config.train.text_buckets
      and not config.train.packing
    )
    self.longest_text = config.get("text_len")
    self.text_lengths = (self.longest_text,)
    model = self.task.make_model(config)
    least = config.frozen_sharding.replace("auto", "shard")
    self._lay_out(model, Layout("block_inputs", least))
    self.layouts = self._find_layouts(model)

  def with_layout(self, layout: Layout) -> Self:
    """Returns this plan with another layout."""
    plan = copy.copy(self)
    plan._lay_out(self.task.make_model(self.config), layout)
    return plan

  @property
  def _is_on_gpu(self):
    return self.mesh.devices.flat[0].platform in ("gpu", "cuda")

  def _find_layouts(self, model):
    """The layouts of a model as its config has it, once one is laid out."""
    whole = least = self.layout
    if self.mesh.shape["data"] > 1:
      must_shard = self.config.frozen_sharding == "shard"
      if must_shard or _bytes(self.frozen) <= _bytes(self.trainable):
        return (least,)  # what is split is gathered once a pass and layer
      whole = dataclasses.replace(least, frozen_sharding="replicate")
    policies = ()
    if any(x.remat_policy == "auto" for x in model.towers.values()):
      policies = (*["products_unrolled"] * self._is_on_gpu, "products")
    stores = (dataclasses.replace(whole, remat_policy=x) for x in policies)
    return tuple(dict.fromkeys((*stores, whole, least)))

  def _lay_out(self, model, layout):
    """Makes arrays and optimizer of a model, and the model itself."""
    config, self.layout = self.config, layout
    self.trainable, self.frozen = state.abstract_params(
      model,
      config,
      self.mesh,
      frozen_sharding=layout.frozen_sharding,
    )

    def lay_out(name, tower):
      # Nothing is kept of a frozen tower, so that its policy is all the same.
      trains = any(x.startswith(f"{name}/") for x in self.trainable)
      if trains and tower.remat_policy == "auto":
        return tower.clone(remat_policy=layout.remat_policy)
      return tower

    self.model = model.clone(
      **{name: lay_out(name, tower) for name, tower in model.towers.items()}
    )
    if lora.lora_of(self.model) is not None:
      self._check_adapters_alone_train()
    mults = config.weight_decay_mults
    self.optimizer, self.learning_rates = optimizers.make(
      list(self.trainable),
      total_steps=self.total_steps,
      optimizer=config.optimizer,
      optimizer_args=config.optimizer_args.to_dict(),
      learning_rate=config.learning_rate,
      learning_rate_mults=config.learning_rate_mults,
      schedule=[
        (regex, arguments and schedule.in_steps(arguments, **self.sizes))
        for regex, arguments in config.schedule
      ],
      weight_decay=config.weight_decay,
      weight_decay_mults=optimizers.MATRICES if mults is None else mults,
      clip_norm=config.clip_norm,
      scales_loss=any(
        tower.dtype == "float16" for tower in self.model.towers.values()
      ),
    )
    self.state = state.abstract_state(
      self.optimizer,
      self.trainable,
      mesh=self.mesh,
      ema=config.ema_decay is not None,
    )
    self._shapes = init.shapes(self.model, config.res)
    self.flops_per_step = self.count_flops()

  def _check_adapters_alone_train(self):
    """Raises for what a file of adapters would not hold."""
    others, _ = tree.partition(
      self.trainable,
      {name: not hit for name, hit in lora.is_adapter(self.trainable).items()},
    )
    if others:
      raise ValueError(
        "config.trainable matches, beside the adapters of config.model.lora, "
        f"{messages.listed(list(others), most=3)}, which a file of adapters "
        "does not hold; train the adapters alone, or set config.model.lora to "
        "None"
      )

  def least_bytes(self) -> float:
    """What a device surely holds during a step.

    Unless the policy is "block_inputs", that is half of what autodiff asks to
    keep, as XLA may store once what is there twice.
    """
    given, frozen, batch = self.step_arguments(self.longest_text)
    held = sum(map(memory.bytes_per_device, jax.tree.leaves((given, frozen))))
    if self.layout.remat_policy == "block_inputs":
      return held
    loss = self.task.make_loss(self.config, self.model)

    def kept(trainable, frozen, batch, rng):
      def of(trainable):
        return loss(tree.unflatten({**frozen, **trainable}), batch, rng)[0]

      return jax.vjp(of, trainable)[1]

    rng = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(self.mesh):
      stored = jax.eval_shape(kept, given.trainable, frozen, batch, rng)
    parts = self.mesh.shape["data"] * self.config.accumulate_steps
    return held + _bytes(stored) / 2 / parts

  def count_flops(
    self, supervised: float | None = None, text_len: int | None = None
  ) -> int:
    """FLOPs of a step with so many supervised tokens, see flops.py."""
    config = self._of_length(text_len)
    return self.task.count_flops(
      config, self.model, self._shapes, self.trainable, supervised
    )

  def step_arguments(
    self, text_len: int | None = None
  ) -> tuple[state.TrainState, state.Shapes, state.Shapes]:
    """Shapes and shardings of the arguments of the step."""
    batch = inputs.abstract_batch(self._of_length(text_len), self.mesh)
    return self.state, self.frozen, batch

  def _of_length(self, text_len):
    """The config with another length of texts; None: its own."""
    if text_len in (None, self.config.get("text_len")):
      return self.config
    config = self.config.copy_and_resolve_references()
    config.text_len = text_len
    return config

  def compile_step(
    self, text_len: int | None = None, **options: Any
  ) -> jax.stages.Compiled:
    """The step for texts of a length, default config.text_len, compiled with
    options of XLA; its first argument is donated."""
    return self.lower_step(text_len).compile(compiler_options=options)

  def lower_step(self, text_len: int | None = None) -> jax.stages.Lowered:
    """The step before it is compiled."""
    splits = self.task.is_additive
    step = make_step(
      self.task.make_loss(self.config, self.model),
      self.optimizer,
      seed=self.config.seed,
      accumulate_steps=self.config.accumulate_steps if splits else 1,
      ema_decay=self.config.ema_decay,
      teach_from=self.task.teach_from(self.config, self.total_steps),
    )
    shardings = (
      jax.tree.map(lambda leaf: leaf.sharding, self.state),
      sharding.replicated(self.mesh),
    )
    jitted = jax.jit(step, donate_argnums=0, out_shardings=shardings)
    with jax.set_mesh(self.mesh):
      return jitted.lower(*self.step_arguments(text_len))

  @property
  def served_model(self) -> Any:
    """The model with its decoder's layers apart, as decoding reads them."""
    return self.model.clone(llm=self.model.llm.clone(scan=False))

  def decode_arguments(self) -> tuple[Shapes, Shapes]:
    """Shapes and shardings of the parameters, all frozen, and of prompts.

    The layers of the decoder are apart, as `scripts.predict` loads them.
    """
    _, params = state.abstract_params(
      self.served_model, self.config, self.mesh, trainable=()
    )
    return params, inputs.abstract_batch(self.config, self.mesh, decodes=True)

  def compile_decode(
    self, max_decode_len: int, **options: Any
  ) -> jax.stages.Compiled:
    """Greedy decoding of prompts of text_len tokens, compiled likewise."""

    def generate(params, batch):
      return decode.generate(
        self.served_model,
        tree.unflatten(params),
        batch,
        max_decode_len=max_decode_len,
        prompt_buckets=(),
      )

    with jax.set_mesh(self.mesh):
      lowered = jax.jit(generate).lower(*self.decode_arguments())
    return lowered.compile(compiler_options=options)

  def describe(
    self, compiled: jax.stages.Compiled, *, verbose: bool = False
  ) -> str:
    """The tables that a run begins with, verbose: with every parameter."""
    table = report.parameter_table(
      self.trainable,
      self.frozen,
      self.state.opt_state,
      rules=self.config.trainable,
      verbose=verbose,
    )
    sizes = (
      f"mesh: {dict(self.mesh.shape)}, batch {self.config.batch_size}, "
      f"{self.sizes['examples_per_epoch']} examples per epoch, "
      f"{self.total_steps} steps, {self.flops_per_step:.3g} FLOPs per step "
      "at most"
    )
    if len(self.text_lengths) > 1:
      sizes += f"\n{text_lengths.describe(self.text_lengths)}"
    return "\n".join([table, sizes, report.memory_line(compiled)])


def _bytes(leaves):
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(leaves))
