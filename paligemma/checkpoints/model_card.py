"""README.md and NOTICE of an export: what the model is, is from, and scores.

README.md is a model card: the lines between "---" are those that the Hub of
Hugging Face reads (huggingface.co/docs/hub/model-cards). NOTICE is the text
file that section 3.1 of the Gemma Terms of Use asks for, with Gemma alone.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from paligemma import variants
from paligemma.checkpoints import presets

README, NOTICE = "README.md", "NOTICE"

_GEMMA_NOTICE = (
  "Gemma is provided under and subject to the Gemma Terms of Use found at "
  "ai.google.dev/gemma/terms"
)
# Licence on the Hub -> what a card says of it.
_LICENCES = {
  "gemma": """\
These weights are a derivative of Gemma. They may be used and passed on under
the [Gemma Terms of Use](https://ai.google.dev/gemma/terms) alone, with their
[prohibited uses](https://ai.google.dev/gemma/prohibited_use_policy), a copy of
the terms, and the file NOTICE.""",
  "apache-2.0": """\
The weights were made from weights under the
[Apache License 2.0](https://www.apache.org/licenses/LICENSE-2.0).""",
  "": """\
No published model is known to be the base of these weights: before they are
passed on, their licence has to be stated here and at the top.""",
}


@dataclasses.dataclass(frozen=True)
class About:
  """How a model came to be, as far as it is known.

  Attributes:
    bases: What training began with: names of presets, or paths.
    datasets: Names of what it was trained on.
    facts: (what, value) of its training.
    scores: (score, value, 95 % interval or "", examples).
    config: Of the run, as JSON values.
  """

  bases: tuple[str, ...] = ()
  datasets: tuple[str, ...] = ()
  facts: tuple[tuple[str, str], ...] = ()
  scores: tuple[tuple[str, str, str, str], ...] = ()
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def documents(
  name: str,
  fields: Mapping[str, Any],
  num_parameters: int,
  about: About | None,
  *,
  library: str,
  use: str,
) -> dict[str, str]:
  """Returns the texts of README.md and, for Gemma, NOTICE by file name.

  Args:
    name: Title of the card.
    fields: "img", "llm" and "txt" as in huggingface.write.save.
    num_parameters: Of the model.
    about: How it came to be. Default: unknown.
    library: What opens the folder, as the Hub names it.
    use: Markdown on how to run the model.
  """
  about = about or About()
  known = [presets.named_by(base) for base in about.bases]
  known = [presets.get(preset) for preset in known if preset]
  family, task, is_published = _family(fields)
  is_gemma = not all(preset.is_open for preset in known)
  if not known:
    is_gemma = is_published and fields.get("llm") is not None
  licence = "gemma" if is_gemma else "apache-2.0" if known else ""
  bases = dict.fromkeys(preset.hub_name for preset in known)
  head = {
    "base_model": list(filter(None, bases)),
    "datasets": list(about.datasets),
    "library_name": library,
    "license": licence,
    "pipeline_tag": task,
    "tags": ["paligemma", "jax"],
  }
  begun = ", ".join(f"`{base}`" for base in filter(None, bases))
  parts = [
    # Values of JSON are values of YAML.
    "---",
    *(f"{key}: {json.dumps(value)}" for key, value in head.items() if value),
    "---\n",
    f"# {name}\n",
    f"{family} of {num_parameters:,} parameters, "
    + (f"made from {begun} " if begun else "exported ")
    + "with paligemma, PaliGemma in JAX.\n",
    f"## Use\n\n{use.strip()}\n",
  ]
  if about.facts:
    parts.append(f"## Training\n\n{_table(('what', ''), about.facts)}\n")
  if about.config:
    config = json.dumps(about.config, indent=2, sort_keys=True)
    parts.append(
      "<details><summary>The whole config</summary>\n\n"
      f"```json\n{config}\n```\n\n</details>\n"
    )
  if about.scores:
    columns = ("score", "value", "95 % interval", "examples")
    parts.append(
      f"## Scores\n\n{_table(columns, about.scores)}\n\n"
      "Intervals are those of the bootstrap over examples.\n"
    )
  parts.append(f"## Licence\n\n{_LICENCES[licence]}\n")
  found = {README: "\n".join(parts)}
  if is_gemma:
    found[NOTICE] = (
      f"{_GEMMA_NOTICE}\n\nThe weights beside this file were modified: they "
      "were trained further or converted; README.md says from which.\n"
    )
  return found


def _family(fields):
  """The family, its task on the Hub, and whether its sizes are published."""
  img, llm = fields.get("img"), fields.get("llm")
  if llm is None:
    second = " 2" if "grid" in (img or {}) else ""
    return f"SigLIP{second}", "zero-shot-image-classification", False
  second = " 2" if llm["post_norms"] else ""
  nearest = variants.nearest(llm)
  sizes = variants.GEMMA[nearest]
  is_published = not nearest.endswith("_nano") and (
    (sizes.width, sizes.depth) == (llm["width"], llm["depth"])
  )
  if img is None:
    return f"Gemma{second}", "text-generation", is_published
  return f"PaliGemma{second}", "image-text-to-text", is_published


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  rows = [columns, ["---"] * len(columns), *rows]
  cells = ([str(cell).replace("|", "\\|") for cell in row] for row in rows)
  return "\n".join(f"| {' | '.join(row)} |" for row in cells)
