"""Which evaluation has a file for a server, and how it is written."""

from collections.abc import Sequence

from etils import epath

from paligemma import disk
from paligemma.evals import predictions
from paligemma.evals.predictions import Record
from scripts.submissions import (
  aokvqa,
  chartqa,
  evalai_vqa,
  nocaps,
  rrc,
  vizwiz,
)
from scripts.submissions.submission_format import Format

# (transfer, evaluator) -> the file for it.
FORMATS: dict[tuple[str, str], Format] = {
  ("aokvqa_da", "test"): aokvqa.FORMAT,
  ("aokvqa_mc", "test"): aokvqa.FORMAT,
  ("chartqa", "test_augmented"): chartqa.FORMAT,
  ("chartqa", "test_human"): chartqa.FORMAT,
  ("cococap", "nocaps"): nocaps.FORMAT,
  ("docvqa", "test"): rrc.DOCUMENTS,
  ("infovqa", "test"): rrc.DOCUMENTS,
  ("stvqa", "test"): rrc.SCENES,
  ("textvqa", "test"): evalai_vqa.FORMAT,
  ("vizwizvqa", "test"): vizwiz.FORMAT,
  ("vqav2", "test"): evalai_vqa.FORMAT,
}


def write(
  form: Format,
  records: Sequence[Record],
  path: epath.PathLike,
  expected: int | None = None,
) -> list[str]:
  """Writes the file of a server.

  Args:
    form: Of the file.
    records: As predictions.read returns them.
    path: To write.
    expected: Published number of answers; None: not published.

  Returns:
    Why the server may refuse it, a line each.

  Raises:
    ValueError: A record lacks what the server reads.
  """
  answered = [x for x in records if not predictions.is_bad(x)]
  try:
    entries = [form.entry(x) for x in answered]
  except KeyError as error:
    raise ValueError(
      f"{path}: the predictions have no {error}, which the server needs; "
      "scripts.prepare writes it into the data"
    ) from None
  disk.write(path, form.text(entries))
  problems = []
  missing = len(records) if expected is None else expected
  if missing := missing - len(entries):
    bad = [x["error"] for x in records if predictions.is_bad(x)]
    first = f", the first: {bad[0]}" if bad else ""
    problems.append(
      f"{path}: {len(entries):,} answers, {abs(missing):,} too "
      f"{'few' if missing > 0 else 'many'}{first}"
    )
  asked = [tuple(entry.values())[:-1] for entry in entries]
  if twice := len(asked) - len({*asked}):
    problems.append(f"{path}: {twice:,} questions are answered twice")
  return problems
