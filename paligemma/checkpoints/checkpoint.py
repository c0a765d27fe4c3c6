"""An opened checkpoint, the same for every format."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from paligemma.checkpoints import stated_fields
from paligemma.checkpoints.leaves import Leaf


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A checkpoint that was opened but not read.

  Attributes:
    path: Of the file or folder.
    format: A name for messages: "big_vision npz", "Hugging Face", ...
    leaves: By big_vision's names, "img/..." and "llm/...", or "img/...",
      "txt/...", "t" and "b" of a SigLIP, in scan or loop layout. Every tensor
      of the files is used exactly once, but for `ignored`.
    img: Fields of vit.Model that the files state and shapes cannot tell.
    llm: The same of gemma.Model: soft caps, window, query scale, epsilon.
      Fields that are absent are taken from the variant of the same sizes.
    txt: The same of text_tower.Model.
    ignored: Names of tensors that are no parameters of the model, such as
      buffers, or the pooling head of SigLIP in a PaliGemma.
    created: Names of leaves that are in no file, such as the head between two
      towers that were never trained together.
    metadata: What the files say beside the towers, as JSON holds it, see
      stated_fields.METADATA. Model.metadata keeps it, `save` writes it again.
    compute_dtype: What the model computes in; None: the files do not say.

  Raises:
    ValueError: `img`, `llm`, `txt` or `metadata` state what no model can have.
  """

  path: str
  format: str
  leaves: Mapping[str, Leaf]
  img: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  llm: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  txt: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  ignored: tuple[str, ...] = ()
  created: tuple[str, ...] = ()
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  compute_dtype: str | None = None

  def __post_init__(self):
    stated_fields.check(self.path, self.img, self.llm, self.txt, self.metadata)

  def describe(self) -> str:
    """One line: what the checkpoint is, and what was decided about it."""
    parts = [f"{self.path}: {self.format}, {len(self.leaves)} parameters"]
    for tower in ("img", "txt", "llm"):
      stated = getattr(self, tower)
      if stated:
        listed = ", ".join(f"{k}={v}" for k, v in sorted(stated.items()))
        parts.append(f"{tower} as the files say: {listed}")
    if self.ignored:
      parts.append(f"left out: {', '.join(_grouped(self.ignored))}")
    if self.created:
      parts.append(f"in no file: {', '.join(self.created)}")
    return "; ".join(parts)


def _grouped(names):
  """The names, several of one module as one: "txt/Encoder_0/... (18)"."""
  modules = ["/".join(name.split("/")[:2]) for name in names]
  sizes = collections.Counter(modules)
  return dict.fromkeys(
    name if sizes[module] == 1 else f"{module}/... ({sizes[module]})"
    for name, module in zip(names, modules, strict=True)
  )
