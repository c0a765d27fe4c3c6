"""What is said about the weights that a run starts from."""

import pytest
from ml_collections import ConfigDict

import paligemma
from paligemma.models import paligemma as paligemma_model
from trainers import start

TINY = "paligemma/assets/tiny.npz"


@pytest.fixture(scope="module")
def model():
  return paligemma_model.make("paligemma_tiny")


def test_random(model):
  config = ConfigDict({"init": ""})
  assert start.describe_source(config, model) == "initial weights: random"


def test_npz_leaves_all_to_the_config(model):
  said = start.describe_source(ConfigDict({"init": TINY}), model)
  assert said == f"initial weights: {TINY}: big_vision npz, 32 parameters"


def test_what_the_config_overrules_is_named(model, tmp_path):
  loaded, params = paligemma.load(TINY, llm=dict(final_logits_softcap=7.0))
  paligemma.save(tmp_path / "capped", loaded, params, format="orbax")
  config = ConfigDict({"init": str(tmp_path / "capped")})
  first, *notes = start.describe_source(config, model).splitlines()
  assert "Orbax, 32 parameters" in first
  assert notes == [
    "note: final_logits_softcap is 7.0 in the files and None in this run; "
    "config.model.llm.final_logits_softcap changes it"
  ]
