"""What a model card says of base, licence, training and scores."""

import pytest
import yaml

import paligemma
from paligemma import io
from paligemma.checkpoints import model_card, presets
from paligemma.models import paligemma as paligemma_model


def documents(variant="paligemma_tiny", **about):
  return model_card.documents(
    "mine",
    io.model_fields(paligemma_model.make(variant)),
    12_345,
    model_card.About(**about) if about else None,
    library="transformers",
    use="Run it.",
  )


def head(text):
  first, head, _ = text.split("---\n", 2)
  assert first == ""
  return yaml.safe_load(head)


@pytest.mark.parametrize(
  ("base", "name", "licence"),
  [
    ("paligemma2_3b_pt_224", "google/paligemma2-3b-pt-224", "gemma"),
    ("w/paligemma2-3b-pt-224.b16.npz", "google/paligemma2-3b-pt-224", "gemma"),
    ("gemma2_instruct_2b_en", "google/gemma-2-2b-it", "gemma"),
    ("siglip2_b16_224", "google/siglip2-base-patch16-224", "apache-2.0"),
  ],
)
def test_base_and_licence(base, name, licence):
  found = documents(bases=(base,))
  assert head(found["README.md"])["base_model"] == [name]
  assert head(found["README.md"])["license"] == licence
  assert (("NOTICE" in found), f"`{name}`" in found["README.md"]) == (
    licence == "gemma",
    True,
  )


def test_of_two_bases_the_stricter_licence_counts():
  found = documents(bases=("siglip_so400m14_224", "gemma_2b_en"))
  assert head(found["README.md"])["license"] == "gemma"
  assert found["NOTICE"].startswith(
    "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms\n"
  )


def test_published_sizes_are_taken_for_published_weights():
  found = documents("paligemma2_3b")
  assert head(found["README.md"])["license"] == "gemma"
  assert "# mine\n\nPaliGemma 2 of 12,345 parameters" in found["README.md"]
  text = documents("gemma_2b")["README.md"]
  assert head(text)["pipeline_tag"] == "text-generation"


def test_an_unknown_base_has_no_licence():
  found = documents(bases=("runs/x.npz",))
  assert list(found) == ["README.md"]
  assert {"license", "base_model"}.isdisjoint(head(found["README.md"]))
  assert "their licence has to be stated here" in found["README.md"]


def test_training_and_scores():
  text = documents(
    datasets=("digits",),
    facts=(("steps", "7 | 9"),),
    scores=(("val/exact_match", "0.97", "0.95 to 0.98", "500"),),
    config={"res": 56},
  )["README.md"]
  assert head(text)["datasets"] == ["digits"]
  assert "| steps | 7 \\| 9 |" in text
  assert "| val/exact_match | 0.97 | 0.95 to 0.98 | 500 |" in text
  assert '```json\n{\n  "res": 56\n}\n```' in text


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_is_named_by_its_files(name):
  for stem in (name, *presets.get(name).stems):
    for end in ("", ".npz", ".bf16.npz", ".npz:img"):
      assert presets.named_by(f"/weights/{stem}{end}") == name
  assert presets.named_by("weights/other.npz") is None


def test_no_card_of_an_npz(tmp_path):
  model, params = paligemma.load("paligemma/assets/tiny.npz")
  paligemma.save(tmp_path / "a.npz", model, params)
  assert [x.name for x in tmp_path.iterdir()] == ["a.npz"]
