"""What the benchmark runs against ours is the same training and decoding."""

import jax.numpy as jnp
import numpy as np
import pytest

from paligemma import tree
from paligemma.decoding import decode as decode_lib
from scripts.benchmarks import subject, train

pytest.importorskip("torch")
pytest.importorskip("transformers")

from scripts.benchmarks import peer

CONFIG = "tests/trainers/tiny_config.py:tune="
TABLE = "llm/embedder/input_embedding"
STEPS = 3


def padded_plan(plan, parameters):
  """Ours with the 64 rows that a Hugging Face folder adds to the table.

  Their loss counts them; each is the mean of the table.
  """
  table = parameters[TABLE]
  rows = -(-(len(table) + 1) // 64) * 64
  mean = table.mean(axis=0, keepdims=True)
  table = jnp.concatenate([table, jnp.repeat(mean, rows - len(table), axis=0)])
  plan.model = plan.model.clone(llm=plan.model.llm.clone(vocab_size=rows))
  return {**parameters, TABLE: table}


@pytest.mark.parametrize("tune", ["attention", "image", "full"])
def test_training(tune, agree):
  config = subject.read_config(CONFIG + tune, "float32")
  plan = subject.make_plan(config)
  batch = subject.batch(config, plan.model.llm.vocab_size)
  trainable, frozen = subject.trained_parameters(plan)
  parameters = {**trainable, **frozen}
  theirs = peer.trainers(config, plan.model, parameters, batch)
  padded = padded_plan(plan, parameters)
  trainable, frozen = (
    {name: padded[name] for name in part} for part in (trainable, frozen)
  )
  ours = train.reference_losses(plan, trainable, frozen, batch, STEPS)
  assert ours[0] > ours[-1] + 1e-2
  losses = theirs["float32"](STEPS)
  agree("benchmark: losses, float32", ours, losses, 1e-5)
  # Theirs keeps what trains in bfloat16 too, so that only the first is ours.
  losses = theirs["bfloat16"](1)
  agree("benchmark: first loss, bfloat16", ours[:1], losses, 1e-2)


def test_decoding():
  config = subject.read_config(CONFIG + "attention", "float32")
  plan = subject.make_plan(config)
  prompts = subject.prompts(subject.batch(config, plan.model.llm.vocab_size))
  params = subject.served_parameters(plan)
  model = plan.served_model
  theirs = peer.decoders(model, params, prompts, 5)["float32"]()
  nested = tree.unflatten(params)
  ours = decode_lib.generate(
    model, nested, prompts, max_decode_len=5, eos_id=-1
  )
  assert len(set(np.asarray(ours.tokens).ravel())) > 3
  np.testing.assert_array_equal(ours.tokens, theirs)


def test_what_the_peer_cannot_train_is_named():
  config = subject.read_config(CONFIG + "lora", "float32")
  plan = subject.make_plan(config)
  with pytest.raises(ValueError, match=r"rule .* matches none of"):
    peer.trainers(config, plan.model, {}, {})
