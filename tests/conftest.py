"""Strict numerics for every test: 8 CPU devices, no silent rank promotion."""

import gc
import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Nearly all the time of the suite is compilation of functions that run once:
# without the compiler's optimizations it takes 4/7 of the processor time.
# Of a flag that is given twice the last counts: the environment can undo them.
os.environ["XLA_FLAGS"] = " ".join(
  [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    os.environ.get("XLA_FLAGS", ""),
  ]
)

# Workers and the processes that tests start share what one of them compiled.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _compiled = tempfile.TemporaryDirectory()
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax

# Tracing makes so many objects that at the default, 700, garbage
# collections take 6% of the processor time.
gc.set_threshold(20_000)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_threefry_partitionable", True)

import io  # noqa: E402

import jaxtyping  # noqa: E402
import pytest  # noqa: E402
import sentencepiece  # noqa: E402

from tests import typecheck  # noqa: E402

# Types and shapes of what computes on arrays are checked at every call.
jaxtyping.install_import_hook(
  ["paligemma.decoding", "paligemma.models", "paligemma.training"],
  f"{typecheck.__name__}.check",
)

from paligemma.data import tokenizer as tokenizer_lib  # noqa: E402


def pytest_collection_finish():
  """Spares what lives as long as the process from garbage collections."""
  gc.collect()
  gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
  """Keeps a process that runs many files from growing to several GiB."""
  yield
  jax.clear_caches()


@pytest.fixture(autouse=True)
def compilation_cache_stays_on():
  """A command that runs on several CPU devices turns the cache off."""
  yield
  jax.config.update("jax_enable_compilation_cache", True)


@pytest.fixture(scope="session")
def sentencepiece_model():
  """A small SentencePiece model without loc and seg pieces, as bytes."""
  words = "what digit is this answer en caption detect segment red blue circle"
  numbers = "zero one two three four five six seven eight nine 0123456789"
  lines = [f"{a} {b}" for a in words.split() for b in numbers.split()]
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_writer=model,
    vocab_size=400,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    user_defined_symbols=["\n"],
    byte_fallback=True,
    split_digits=True,
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    normalization_rule_name="identity",
    minloglevel=2,
  )
  return model.getvalue()


@pytest.fixture(scope="session")
def t5_model():
  """A small SentencePiece model as T5 has them: no bos, a dummy prefix."""
  words = "what digit is this answer caption segment red blue circle of a photo"
  lines = [f"{a} {b}" for a in words.split() for b in words.split()]
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_writer=model,
    vocab_size=90,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  return model.getvalue()


@pytest.fixture(scope="session")
def tokenizer(sentencepiece_model, tmp_path_factory):
  """The small model with loc and seg pieces appended."""
  path = tmp_path_factory.mktemp("tokenizer") / "small.model"
  path.write_bytes(sentencepiece_model)
  return tokenizer_lib.Tokenizer(path, add_loc_seg=True)
