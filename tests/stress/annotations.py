"""Prepares as many annotations as a large data set has: time and memory.

    python -m tests.stress.annotations 1000000 OUT

OUT must not exist. Writes a file of questions and one of answers in the form of
VQAv2, with so many entries each, and prepares them in one process. Prints the
seconds of the processor, which other programs do not lengthen much, and the
most memory that the process had. Ends with 1 if it took 1 GiB or more, or read
less than 20,000 examples a second.
"""

import json
import pathlib
import resource
import sys
import time

from scripts.datasets import folder

PICTURES = 1000
LEAST_PER_SECOND, MOST_GIB = 20_000, 1.0


def write(raw: pathlib.Path, count: int) -> int:
  """Writes the publisher's files; returns their size in bytes."""
  for i in range(PICTURES):
    path = raw / f"train2014/COCO_train2014_{i:012d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  words = ("yes", "no", "2", "red barn", "a dog", "left", "net", "skateboard")

  def question(i):
    return {
      "image_id": i % PICTURES,
      "question": f"What is number {i} of these, and where is it?",
      "question_id": i,
    }

  def annotation(i):
    answers = [
      {
        "answer": words[(i * n) % len(words)],
        "answer_confidence": "yes",
        "answer_id": n,
      }
      for n in range(1, 11)
    ]
    return {
      "question_type": "what is",
      "multiple_choice_answer": answers[0]["answer"],
      "answers": answers,
      "image_id": i % PICTURES,
      "answer_type": "other",
      "question_id": i,
    }

  size = 0
  for name, key, make in [
    ("OpenEnded_mscoco_train2014_questions", "questions", question),
    ("mscoco_train2014_annotations", "annotations", annotation),
  ]:
    path = raw / f"v2_{name}.json"
    with path.open("w") as file:
      file.write(f'{{"info": {{}}, "{key}": [')
      for i in range(count):
        file.write(f"{', ' * bool(i)}{json.dumps(make(i))}")
      file.write("]}")
    size += path.stat().st_size
  return size


def run(count: int, out: pathlib.Path) -> tuple[float, float, int]:
  """Returns seconds, GiB, and the bytes that were read."""
  size = write(out / "raw", count)
  start = time.process_time()
  folder.prepare("vqav2", out / "raw", out / "data", splits=["train"])
  seconds = time.process_time() - start
  kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return seconds, kib / 2**20, size


def main() -> None:
  count, out = int(sys.argv[1]), pathlib.Path(sys.argv[2])
  out.mkdir(parents=True)
  seconds, gib, size = run(count, out)
  print(
    f"{count:,} examples, {size / 1e9:.1f} GB: {seconds:.1f} s of one core, "
    f"{count / seconds:,.0f} examples/s, {gib:.2f} GiB"
  )
  sys.exit(count / seconds < LEAST_PER_SECOND or gib >= MOST_GIB)


if __name__ == "__main__":
  main()
