"""The one way through the layers of a tower: blocks of one kind, by scan.

Axes: L layer, B batch, T token, D width.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.core.scope import LazyRng
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from paligemma import parameters, registry
from paligemma.models import microbatch
from paligemma.models.attention.masks import Mask
from paligemma.models.linear import PRODUCT

REMAT_POLICIES = (
  *("none", "products", "products_unrolled", "block_inputs", "auto"),
)


@flax.struct.dataclass
class Call:
  """The arguments that all blocks of a stack share.

  Attributes:
    mode: "train" (dropout is on), "eval", "prefill" (keys and values are also
      written to the front of a new cache) or "extend" (they are appended to the
      cache, all of which is attended to).
    mask: Which keys a query attends to. Default: all.
    window: See Mask.dense; one number per layer for a stack, that of its layer
      for a block. Default: no bound.
    cache_size: Number of positions of the cache that "prefill" makes.
    cache_index: Position of the cache that "extend" writes to.
    context: Other tokens that all blocks attend to, such as those of an image.
    context_mask: Which of them a query attends to. Default: all.
  """

  mode: str = flax.struct.field(pytree_node=False, default="eval")
  mask: Mask | None = None
  window: Int[Array, "*L"] | None = None
  cache_size: int | None = flax.struct.field(pytree_node=False, default=None)
  cache_index: Int[Array, ""] | None = None
  context: Float[Array, "B S C"] | None = None
  context_mask: Mask | None = None

  @property
  def train(self) -> bool:
    return self.mode == "train"


@dataclasses.dataclass(frozen=True)
class Stack:
  """Blocks of one kind, each applied to the output of the one before.

  Attributes:
    block: Module without a parent, called with (x, Call); it returns x and a
      dict of named intermediates [B, ...]. Its `config` has the number of
      layers, `depth`; `dtype`, in which they compute; `scan`, whether their
      parameters are stacked on a leading axis, as they are trained, or separate
      as in some checkpoints; and `remat_policy`, what the backward pass stores
      of a layer. "none" stores all that it needs, "products" the results of
      matrix products and of attention, from which the rest costs little, and
      "block_inputs" only the input of the layer, from which it computes the
      layer again. Of stacked layers that is the input in the compute dtype, and
      parameters that are split over devices are gathered once per layer and
      pass, see `scan_layers`. "products_unrolled" is "products" without a loop
      over layers, on GPUs 1.06 times as fast with 1.8 times the memory, as XLA
      else copies results into the stack of those of all layers. "auto" is
      "block_inputs"; trainers make it the fastest that fits.
    tower: A key of parameters.LAYERS, which names the parameters.
    tokens_at_once: How many tokens of a device go through a layer at once in
      `scan_layers`, at most (but at least one example).
  """

  block: nn.Module
  tower: str
  tokens_at_once: int

  def __post_init__(self) -> None:
    policies = dict.fromkeys(REMAT_POLICIES)
    registry.lookup(policies, self.config.remat_policy, "remat_policy")

  @property
  def config(self) -> nn.Module:
    return self.block.config

  @property
  def inputs_alone(self) -> bool:
    """Whether the backward pass computes whole layers again."""
    return self.config.remat_policy in ("block_inputs", "auto")

  def __call__(
    self, owner: nn.Module, x: Float[Array, "B T D"], call: Call
  ) -> tuple[Float[Array, "B T D"], list[dict[str, Array]]]:
    """Runs all layers, and draws their parameters first if there are none.

    The layers use parameters, cache, random numbers and intermediates of module
    `owner`.

    Returns:
      The output of the last layer, and the named intermediates of every layer.
    """
    config = self.config
    first, *_ = self._names()[0]
    if owner.is_initializing() and not owner.has_variable("params", first):
      self._write(owner, "params", self._draw(owner, x, call))
    layers = {"window": call.window}
    if call.train and owner.has_rng("dropout"):
      layers["rng"] = jax.random.split(owner.make_rng("dropout"), config.depth)
    written = [
      name
      for name in ("cache", "intermediates")
      if owner.is_mutable_collection(name)
    ]

    def run(variables, x, layer, shared, number):
      rngs = {}
      mask, context, context_mask = shared
      if "rng" in layer:
        rngs["dropout"] = jax.random.fold_in(layer["rng"], number)
      (x, named), new = self.block.apply(
        variables,
        x,
        call.replace(
          mask=mask,
          window=layer["window"],
          context=context,
          context_mask=context_mask,
        ),
        rngs=rngs,
        mutable=written,
        capture_intermediates="intermediates" in written,
      )
      return x, (named, new)

    shared = call.mask, call.context, call.context_mask
    variables = {"params": self._read(owner, "params")}
    if call.mode == "extend":
      variables["cache"] = self._read(owner, "cache")
    if config.scan and self.inputs_alone and not written:
      batch, length, _ = x.shape
      number = microbatch.find_number(batch, self.tokens_at_once // length)
      x, (named, _) = scan_layers(
        run,
        variables,
        x,
        layers,
        shared,
        dtype=config.dtype,
        num_microbatches=number,
      )
    else:
      x, named, new = self._run_plainly(run, variables, x, layers, shared)
      for name, value in new.items():
        self._write(owner, name, value)
    if config.scan:
      named = [_layer(named, i) for i in range(config.depth)]
    return x, named

  def _run_plainly(self, run, variables, x, layers, shared):
    """Stores what autodiff does, products, or the float32 inputs of layers."""

    def step(x, layer):
      variables, layer = layer
      x = microbatch.split_batch(x)
      return run(variables, x, layer, shared, 0)

    if self.config.remat_policy != "none":
      saved = jax.checkpoint_policies.save_only_these_names(PRODUCT)
      policy = None if self.inputs_alone else saved
      step = jax.checkpoint(
        step, policy=policy, prevent_cse=not self.config.scan
      )
    if self.config.scan:
      unroll = self.config.remat_policy == "products_unrolled"
      x, (named, new) = jax.lax.scan(
        step, x, (variables, layers), unroll=unroll
      )
      return x, named, new
    named, new = [], {}
    for i in range(self.config.depth):
      of_layer = {name: value[i] for name, value in variables.items()}
      x, (one, written) = step(x, (of_layer, _layer(layers, i)))
      named.append(one)
      for name, value in written.items():
        new.setdefault(name, []).append(value)
    return x, named, new

  def _draw(self, owner, x, call):
    """Draws parameters as Flax does for modules of these names."""
    block, call = self.block, call.replace(window=None)
    if self.config.scan:
      block = nn.scan(
        type(block),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=self.config.depth,
      )(self.config, parent=None)
    drawn = []
    for names in self._names():
      rng = LazyRng.create(owner.scope.rngs["params"], *names)
      drawn.append(block.init({"params": rng}, x, call)["params"])
    return drawn[0] if self.config.scan else drawn

  def _names(self):
    """The path of the variables of the stack, or of those of every layer."""
    stem, joint = parameters.LAYERS[self.tower]
    name = stem.rpartition("/")[2]
    if self.config.scan:
      return [(name,)]
    return [f"{name}{joint}{i}".split("/") for i in range(self.config.depth)]

  def _read(self, owner, collection):
    """Returns the variables of the stack, or a list of those of every layer."""
    found = []
    for first, *rest in self._names():
      value = owner.get_variable(collection, first)
      found.append(functools.reduce(operator.getitem, rest, value))
    return found[0] if self.config.scan else found

  def _write(self, owner, collection, values):
    """Stores what `_read` reads."""
    values = [values] if self.config.scan else values
    for (first, *rest), value in zip(self._names(), values, strict=True):
      for name in rest:
        value = {**owner.get_variable(collection, first, {}), name: value}
      owner.put_variable(collection, first, value)


def _layer(tree, i):
  return jax.tree.map(lambda x: x[i], tree)


def _in_dtype(params, dtype):
  """Converts matrices; norms, biases and quantized matrices stay."""

  def convert(path, p):
    keeps = path[-1].key in parameters.VECTORS
    keeps |= not jnp.issubdtype(p.dtype, jnp.floating)  # quantized
    return p if keeps else p.astype(dtype)

  return jax.tree_util.tree_map_with_path(convert, params)


def unstack(
  params: PyTree[ArrayLike], depth: int, dtype: str
) -> dict[str, PyTree[Array]]:
  """Copies the parameters of each layer out of those that are stacked.

  Args:
    params: [L, ...].
    depth: L.
    dtype: Of the matrices in the copy.

  Returns:
    The layers as "0", "1", ..., the names in a tower whose `scan` is False.
  """
  params = _in_dtype(params, dtype)
  apart = {str(i): _layer(params, i) for i in range(depth)}
  # Or XLA would take the slices where they are used: in a loop, each time.
  return jax.lax.optimization_barrier(apart)


def scan_layers(
  block: Callable[..., tuple[Array, Any]],
  params: PyTree[ArrayLike],
  x: Float[ArrayLike, "B T D"],
  layers: PyTree[ArrayLike],
  shared: PyTree[ArrayLike],
  *,
  dtype: str,
  num_microbatches: int,
) -> tuple[Float[Array, "B T D"], PyTree[Array]]:
  """Applies `block` once per layer to the output of the layer before.

  The backward pass stores nothing but the input of every layer, rounded to
  `dtype`, and computes each layer again from it: the value is exact, and the
  gradient is that at the rounded inputs. In float32 it is the exact gradient,
  as of jax.checkpoint around each layer. Only parameters that are
  differentiated get a gradient. Matrices are converted to `dtype` before the
  layers run, while they are still split over devices, and so are their
  gradients after it.

  Args:
    block: Function of (params, x, layer, shared, number) that returns (x, out).
      `params` and `layer` are those of one layer, and `number` is the index of
      the microbatch, for its random numbers: they are numbered through over
      devices, so what is drawn depends on how many there are. `out` is a tree
      of intermediates [B, ...], which cannot be differentiated.
    params: [L, ...].
    x: The input of the first layer.
    layers: [L, ...], not differentiated.
    shared: [B, ...], the same for all layers.
    dtype: Compute dtype.
    num_microbatches: How many microbatches go through a layer one by one, which
      bounds its memory; divides the examples of a device.

  Returns:
    The output of the last layer, and `out` of all layers, [L, B, ...].

  Raises:
    ValueError: A gradient is asked for through `out`.
  """
  params = _in_dtype(params, dtype)
  return _scan(block, dtype, num_microbatches, params, x, layers, shared)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _scan(block, dtype, num_microbatches, params, x, layers, shared):
  y, (_, out) = _forward(
    block, None, num_microbatches, params, x, layers, shared
  )
  return y, out


def _forward(block, kept_dtype, num_microbatches, params, x, layers, shared):
  def step(x, layer):
    index, layer = layer
    kept = None if kept_dtype is None else x.astype(kept_dtype)

    def on_device(of_layer, arrays):
      params, index, layer = of_layer

      def one_microbatch(_, arrays):
        number, x, shared = arrays
        taken = _take(params, index, number)
        return (), block(taken, x, layer, shared, number)

      return microbatch.scan_microbatches(
        one_microbatch, (), arrays, num_microbatches
      )

    of_layer = (*_to_share(params, index, len(x)), layer)
    _, (x, out) = microbatch.on_each_device(on_device, of_layer, (x, shared))
    return x, (kept, out)

  return jax.lax.scan(step, x, (_indices(params), layers))


def _scan_fwd(block, dtype, num_microbatches, params, x, layers, shared):
  differentiated, fixed = (
    jax.tree.map(
      lambda p, wanted=wanted: p.value if p.perturbed == wanted else None,
      (params, shared),
    )
    for wanted in (True, False)
  )
  params, x, layers, shared = jax.tree.map(
    lambda p: p.value, (params, x, layers, shared)
  )
  y, (kept, out) = _forward(
    block, dtype, num_microbatches, params, x, layers, shared
  )
  return (y, out), (differentiated, fixed, kept, layers)


def _scan_bwd(block, dtype, num_microbatches, residuals, cotangents):
  del dtype
  dy, of_out = cotangents
  zero = jax.custom_derivatives.SymbolicZero
  if not all(isinstance(x, zero) for x in jax.tree.leaves(of_out)):
    raise ValueError(
      "the named outputs of blocks have no gradient, as blocks are computed "
      'again in the backward pass; set remat_policy to "none"'
    )
  (trained, followed), (frozen, shared), kept, layers = residuals
  sums = jax.tree.map(
    lambda p: jax.ShapeDtypeStruct(p.shape[1:], jnp.float32), trained
  )
  if isinstance(dy, zero):
    dy = jnp.zeros(dy.shape, dy.dtype)

  def add(total, more):
    return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, more)

  def step(carry, layer):
    dy, by_shared = carry
    index, kept, layer = layer

    def on_device(of_layer, arrays):
      params, index, layer = of_layer

      def one_microbatch(total, arrays):
        number, kept, dy, followed, shared = arrays
        trained, frozen = _take(params, index, number)

        def run(trained, x, followed):
          params, merged = jax.tree.map(
            lambda t, f: f if t is None else t,
            (trained, followed),
            (frozen, shared),
            is_leaf=lambda p: p is None,
          )
          return block(params, x, layer, merged, number)[0]

        _, pull_back = jax.vjp(run, trained, kept.astype(dy.dtype), followed)
        grads, *by_arrays = pull_back(dy)
        if num_microbatches > 1:
          grads = add(total, grads)
        return grads, by_arrays

      zeros = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), sums)
      return microbatch.scan_microbatches(
        one_microbatch, zeros, arrays, num_microbatches
      )

    of_layer = (*_to_share((trained, frozen), index, len(dy)), layer)
    grads, (dx, more) = microbatch.on_each_device(
      on_device, of_layer, (kept, dy, followed, shared), sums
    )
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, trained)
    return (dx, add(by_shared, more)), grads

  indices = _indices((trained, frozen))
  first = dy, jax.tree.map(jnp.zeros_like, followed)
  (dx, by_shared), grads = jax.lax.scan(
    step, first, (indices, kept, layers), reverse=True
  )
  return grads, dx, None, by_shared


_scan.defvjp(_scan_fwd, _scan_bwd, symbolic_zeros=True)


def _indices(params):
  return jnp.arange(len(jax.tree.leaves(params)[0]))


def _to_share(params, index, batch):
  """Returns all layers and an index, only one layer if devices gather it."""
  if microbatch.local_batch(batch) == batch:
    return params, index
  take = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=1)
  return jax.tree.map(lambda p: take(p, index), params), jnp.int32(0)


def _take(params, index, number):
  """Returns the parameters of a layer.

  `number` >> 31 is 0. XLA does not know that, and so does not copy them before
  the loop over microbatches.
  """
  index = index + (number >> 31)
  take = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)
  return jax.tree.map(lambda p: take(p, index), params)
