"""Which metric fits the answers of a data set."""

from collections.abc import Iterable, Mapping

from paligemma.metrics.metric import Example

DEFAULT = "exact_match"


def choose(
  examples: Iterable[Example], answer_key: str, *, has_codec: bool = False
) -> tuple[str, str]:
  """Names the metric of answers with boxes or masks, else DEFAULT.

  Args:
    examples: after the ops, with or without images.
    answer_key: field with the answer or answers.
    has_codec: whether masks can be decoded; then examples that all have a
      "mask" need no answer.

  Returns:
    A name in METRICS; and why it was chosen, "" for answers without boxes.
  """
  total = count = boxes = codes = masks = 0
  for example in examples:
    total += 1
    masks += example.get("mask") is not None
    answer = example.get(answer_key)
    if not answer or (isinstance(answer, str) and answer.isspace()):
      continue  # no object, or nothing to tell from
    count += 1
    if isinstance(answer, str):
      boxes += "<loc" in answer
      codes += "<seg" in answer
    elif isinstance(answer, list | tuple):
      boxes += all(isinstance(x, Mapping) and "box" in x for x in answer)
  if 0 < masks == total and (has_codec or codes == count):
    return "segmentation", (
      "scored by the IoU of masks (metric segmentation), as the examples hold "
      "masks"
    )
  if not boxes:
    return DEFAULT, ""
  if boxes < count:
    return DEFAULT, (
      f"scored by {DEFAULT}, as {count - boxes} of {count} answers are without "
      "boxes; an evaluator for those with boxes alone would score these by "
      "average precision"
    )
  why = "as the answers hold boxes"
  if codes:
    why += '; their mask codes are not scored, for want of a "mask" beside each'
  return "detection", (
    f"scored by the average precision of boxes (metric detection), {why}"
  )
