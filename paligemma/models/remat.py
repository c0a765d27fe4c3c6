"""Rematerialisation by name, the same for both towers."""

import flax.linen as nn
import jax

POLICIES = (
  "none",
  "block_inputs",
  "nothing_saveable",
  "everything_saveable",
  "dots_saveable",
  "dots_with_no_batch_dims_saveable",
)


def remat(block, policy, *, scan, static_argnums=()):
  """Wraps a block so that its activations are recomputed in the backward pass.

  Args:
    block: linen module class.
    policy: "none" keeps all activations; "block_inputs" only the input of the
      block, and where layers are scanned that in the compute dtype, see
      layer_scan.scan_layers, the one that sees to it that parameters which are
      split over devices (FSDP) are gathered once per layer and pass; another of
      POLICIES names what jax.checkpoint_policies keeps.
    scan: bool, whether the block is the body of a scan, which already keeps
      the compiler from merging the recomputation with the first computation.
    static_argnums: positions of Python values in __call__, self being 0.

  Returns:
    The class itself or its wrapped form.

  Raises:
    ValueError: the policy is not one of POLICIES.
  """
  if policy not in POLICIES:
    raise ValueError(
      f'unknown remat_policy "{policy}", expected one of {", ".join(POLICIES)}'
    )
  if policy == "none":
    return block
  if policy == "block_inputs":
    policy = "nothing_saveable"
  return nn.remat(
    block,
    policy=getattr(jax.checkpoint_policies, policy),
    prevent_cse=not scan,
    static_argnums=static_argnums,
  )
