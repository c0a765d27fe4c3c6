"""VQAv2: a folder with a JSON file of questions and one of answers.

The layout of visualqa.org/download.html, which OK-VQA and VQA v1 share:
v2_OpenEnded_mscoco_train2014_questions.json, v2_mscoco_train2014_annotations
.json, and pictures train2014/COCO_train2014_000000000009.jpg.
"""

from scripts.imports import entries, files, folders

_KEPT = ("question_type", "answer_type", "multiple_choice_answer")


def read(request: entries.Request) -> entries.Entries:
  """Reads questions with the answers that ten people gave to each.

  A file of questions without one of answers, as that of the test split, is left
  out. The names of files tell the splits. Each line keeps question_id,
  image_id, question_type, answer_type and multiple_choice_answer. Pictures, or
  their folders such as train2014, lie in `images`, or beside the questions.
  """
  problems = request.problems
  root, found = folders.root_and_files(request.src, "questions.json")
  pairs = []
  for path in found:
    answers = next(root.rglob(_answers_name(path)), None)
    if answers is None:
      problems.note("files of questions without answers left out", str(path))
    else:
      pairs.append((path, answers))
  if not pairs:
    raise ValueError(
      f"{found[0]}: questions without answers, expected "
      f"{_answers_name(found[0])} in {root}"
    )
  for path, answers_path in pairs:
    content = files.read_json(path)
    questions = files.get(content, "questions", list, str(path))
    answers = _by_question(answers_path)
    for i, question in enumerate(questions):
      where = f"{path}: question number {i}"
      with problems:
        key = files.get(question, "question_id", (int, str), where)
        if key not in answers:
          raise ValueError(
            f"{where}: its question_id {key!r:.40} has no answer in "
            f"{answers_path}"
          )
        number = files.get(question, "image_id", int, where)
        kept = {k: answers[key][k] for k in _KEPT if k in answers[key]}
        yield entries.Entry(
          (_image(request.images or root, content, number),),
          where,
          entries.split_of(path.name),
          question=files.get(question, "question", str, where).strip(),
          answers=_answers(answers[key], where, problems),
          fields={"question_id": key, "image_id": number, **kept},
        )


def _answers_name(path):
  """ "v2_OpenEnded_x_questions.json" has its answers in "v2_x_annotations"."""
  name = path.name.replace("OpenEnded_", "").replace("MultipleChoice_", "")
  return name.replace("questions", "annotations")


def _by_question(path):
  content = files.read_json(path)
  annotations = files.get(content, "annotations", list, str(path))
  return {
    files.get(x, "question_id", (int, str), f"{path}: annotation number {i}"): x
    for i, x in enumerate(annotations)
  }


def _answers(fields, where, problems):
  found = [
    files.get(answer, "answer", str, where).strip()
    for answer in files.get(fields, "answers", list, where)
  ]
  if not all(found):
    problems.note("empty answers left out", where)
  return tuple(filter(None, found)) or None


def _image(folder, content, number):
  """Names of 2014 have a prefix, those of 2017 are the number alone."""
  kind = str(content.get("data_type", "mscoco"))
  kind = "COCO" if kind == "mscoco" else kind
  subset = str(content.get("data_subtype", ""))
  names = [f"{kind}_{subset}_{number:012d}.jpg", f"{number:012d}.jpg"]
  names.append(f"{kind}_{subset}_{number:012d}.png")  # of abstract scenes
  names += [f"{subset}/{name}" for name in names]
  options = [folder / name for name in names]
  return next((path for path in options if path.is_file()), options[0])
