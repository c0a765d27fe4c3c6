"""Checkpoints as JAX's array serialization, which big_vision uses, writes."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.experimental.array_serialization import serialization

from paligemma.checkpoints.orbax import big_vision

RNG = np.random.default_rng(0)
FLAT = {
  "img/head/bias": np.zeros(3, np.float32),
  "llm/layers/attn/w": RNG.normal(size=(2, 5)).astype(ml_dtypes.bfloat16),
}


@pytest.fixture
def workdir(tmp_path):
  for step in ("000000003", "000000010-tmp"):
    folder = tmp_path / f"checkpoint.bv-{step}"
    arrays = {f"params/{name}": x for name, x in FLAT.items()}
    arrays |= {"opt/count": np.int32(7), "chrono/steps": np.float32(3)}
    manager = serialization.GlobalAsyncCheckpointManager()
    manager.serialize_with_paths(
      [jnp.asarray(x) for x in arrays.values()],
      [str(folder / name.replace("/", "~")) for name in arrays],
      on_commit_callback=lambda: None,
    )
    manager.wait_until_finished()
  (tmp_path / "checkpoint.bv-LAST").write_text("000000010-tmp")
  return tmp_path


def test_the_last_one_and_a_given_one(workdir):
  for path, step in (
    (workdir, "000000010-tmp"),
    (workdir / "checkpoint.bv-000000003", "000000003"),
  ):
    found = big_vision.open(path)
    assert found.path == str(workdir / f"checkpoint.bv-{step}")
    assert found.ignored == ("chrono~steps", "opt~count")
    assert found.leaves.keys() == FLAT.keys()
    for name, leaf in found.leaves.items():
      assert leaf.dtype == FLAT[name].dtype
      np.testing.assert_array_equal(leaf.read(), FLAT[name])


def test_nothing_there(workdir, tmp_path):
  (workdir / "checkpoint.bv-LAST").write_bytes(b"\xff../x")
  for path in (workdir, tmp_path / "absent"):
    with pytest.raises(ValueError, match=r"expected a workdir with .*bv-LAST"):
      big_vision.open(path)


def test_corrupt(workdir):
  folder = workdir / "checkpoint.bv-000000003"
  (folder / "params~img~head~bias" / "0").unlink()
  with pytest.raises(ValueError, match=r"img/head/bias: .* is missing"):
    big_vision.open(folder).leaves["img/head/bias"].read()
  (folder / "params~img~head~bias" / ".zarray").write_text("{")
  with pytest.raises(ValueError, match=r"img/head/bias: cannot be read"):
    big_vision.open(folder)
  (folder / "params~img~head~bias").rename(folder / "params~vit~w")
  (folder / "params~vit~w" / ".zarray").unlink()
  with pytest.raises(ValueError, match=r"vit/w: cannot be read.*not exist"):
    big_vision.open(folder)
