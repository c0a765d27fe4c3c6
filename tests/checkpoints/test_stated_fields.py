"""What files may state of a model, and one line when it is something else."""

import dataclasses

import pytest

from paligemma import variants
from paligemma.checkpoints import stated_fields

GOOD = {
  "norm_eps": 1e-6,
  "query_scale": 0.0625,
  "post_norms": True,
  "attn_logits_softcap": 50,
  "final_logits_softcap": None,
  "sliding_window": 4096,
}


def test_what_models_have_passes():
  stated_fields.check(
    "x", {"num_classes": 7, "pool_type": "none"}, GOOD, {}, {}
  )
  for tower, table in (("img", variants.VIT), ("llm", variants.GEMMA)):
    for variant in table.values():
      stated = {
        k: v
        for k, v in dataclasses.asdict(variant).items()
        if k not in stated_fields.SIZES
      }
      stated_fields.check(
        "x", **{"img": {}, "llm": {}, "txt": {}, "metadata": {}, tower: stated}
      )


@pytest.mark.parametrize(
  "field, value, expected",
  [
    ("norm_eps", 0.0, "a number > 0"),
    ("norm_eps", float("nan"), "a number > 0"),
    ("attn_logits_softcap", 2**31, "a number > 0 or null"),
    ("attn_logits_softcap", True, "a number > 0 or null"),
    ("query_scale", "depth", '"head_dim" or "width_per_head"'),
    ("post_norms", 1, "true or false"),
    ("sliding_window", 0, "a number of positions or null"),
    ("sliding_window", 7.0, "a number of positions or null"),
  ],
)
def test_what_no_model_has_is_named(field, value, expected):
  with pytest.raises(ValueError) as error:
    stated_fields.check("a/b", {}, GOOD | {field: value}, {}, {})
  assert str(error.value).startswith(f"a/b: {field} is {value!r}, expected ")
  assert str(error.value).endswith(expected)


def test_a_misspelt_field():
  message = r'a/b: unknown decoder field "norm_epz".*Did you mean "norm_eps"'
  with pytest.raises(ValueError, match=message):
    stated_fields.check("a/b", {}, {"norm_epz": 1e-6}, {}, {})
