"""Charts, diagrams, exams and book covers, as their publishers ship them."""

from tests.scripts.datasets.publishers.made import (
  COUNT,
  Made,
  jpeg,
  packed,
  picture,
  pictures,
  plain,
  table,
  text,
  with_mark,
  zipped,
)


def chartqa():
  """Labels are texts, also numbers; charts have several questions."""
  files, lines = {}, {}
  for kind in ("human", "augmented"):
    for split in ("train", "val", "test"):
      records, name = [], f"{split}_{kind}"
      lines[name] = []
      for i in range(COUNT):
        chart = ("41699051005347.png", "two_col_104.png", "OECD_A_001.png")[
          i % 3
        ]
        path = f"ChartQA Dataset/{split}/png/{chart}"
        label = ["57%", "0.08", "[Yes, No]", "2,000", text("Grün", i)][i % 5]
        records.append(
          {"imgname": chart, "query": text(kind, i), "label": label}
        )
        files[path] = picture(".png", i % 3)
        lines[name].append(
          {
            "image": plain(path),
            "question": text(kind, i),
            "answer": label,
            "imgname": chart,
          }
        )
      files[f"ChartQA Dataset/{split}/{name}.json"] = records
  return Made(files, lines)


def science_qa():
  """Splits are in one file, in any order; every third has no picture."""
  problems, lines = {}, {"train": [], "val": [], "test": []}
  archives = {split: {} for split in lines}
  for i in range(5 * COUNT):
    split = list(lines)[i % 3]
    hint = ["", text("A hint", i), None][i % 4 % 3]
    problem = {
      "question": text("Which is it?", i),
      "choices": [text("a", i), "b", "c", "d", "e"][: 2 + i % 4],
      "answer": i % 2,
      "hint": hint,
      "image": None if i % 5 == 4 else "image.png",
      "task": "closed choice",
      "grade": "grade2",
      "subject": "natural science",
      "topic": "biology",
      "category": "x",
      "skill": "y",
      "lecture": text("A lecture", i) * (i % 2),
      "solution": text("It is", i) * (i % 3),
      "split": split,
    }
    problems[str(i + 1)] = problem
    if problem["image"] is None:
      continue
    name = f"{split}/{i + 1}/image.png"
    archives[split][name] = picture(".png", i)
    kept = ("question", "choices", "answer", "lecture", "solution")
    lines[split].append(
      {
        "image": packed(name),
        **{key: problem[key] for key in kept},
        "hint": hint or "N/A",
        "question_id": str(i + 1),
      }
    )
  files = {f"{x}.zip": zipped(content) for x, content in archives.items()}
  return Made({"data/scienceqa/problems.json": problems, **files}, lines)


def ai2d():
  """Diagrams of one to three questions; letters are drawn over some."""
  files, lines = {}, {"train": [], "test": []}
  tests = [i for i in range(COUNT * 2) if i % 2]
  for i in sorted(range(2 * COUNT), key=lambda i: f"{i}.png.json"):
    name, questions = f"{i}.png", {}
    for n in range(1 + i % 3):
      asked = text(f"Which? {n}", i)
      letters = i % 4 == 0 and n == 0
      texts = [text("x", i), "y", "z", "none"]
      questions[asked] = {
        "abcLabel": letters,
        "answerTexts": texts,
        "correctAnswer": (i + n) % 4,
        "questionId": f"{name}-{n}",
      }
      image = f"ai2d/images/{name}"
      lines["test" if i in tests else "train"].append(
        {
          "image": packed(f"letters/{name}") if letters else plain(image),
          "question": asked,
          "choices": texts,
          "answer": texts[(i + n) % 4],
          "question_id": f"{name}-{n}",
        }
      )
    files[f"ai2d/questions/{name}.json"] = {
      "imageName": name,
      "questions": questions,
    }
    rectangles = [[[4, 5], [24, 25]], [[1, 1], [2, 2]], [[30, 20], [60, 40]]]
    files[f"ai2d/annotations/{name}.json"] = {
      "imageConsts": {"I0": {}},
      "text": {
        f"T{n}": {
          "rectangle": rectangle,
          "replacementText": "ABC"[n],
          "value": "leaf",
        }
        for n, rectangle in enumerate(rectangles[: 1 + i % 3])
      },
    }
    files[f"ai2d/images/{name}"] = jpeg() if i == 0 else picture(".png", i)
  # Without the ends of names, and with a line that has no end.
  files["ai2d_test_ids.csv"] = "\r\n".join(map(str, reversed(tests)))
  return Made(files, lines)


def ocrvqa():
  """Books with several questions; numbers begin with zeros; GIFs."""
  books, images = {}, []
  lines = {"train": [], "val": [], "test": []}
  for i in range(3 * COUNT):
    name = f"0{i:08d}X" if i % 2 else f"{i:010d}"
    end = (".jpg", ".gif", ".jpg", ".png")[i % 4]
    questions = ["Who wrote it?", text("Is it a cookbook?", i), "Which year?"]
    given = ["A. Barn", "No", text("19", i)]
    count = 1 + i % 3
    books[name] = {
      "imageURL": f"http://ecx.images-amazon.com/images/I/5{i}%2B.{end[1:]}",
      "questions": questions[:count],
      "answers": given[:count],
      "title": text("Red", i),
      "authorName": "" if i % 5 == 0 else "A. Barn",
      "genre": "Art",
      "split": 1 + i % 3,
    }
    # Those who pass the pictures on name all of them .jpg.
    path = f"images/{name}{'.jpg' if i % 8 == 1 else end}"
    images.append(path)
    lines[list(lines)[i % 3]] += [
      {"image": plain(path), "question": question, "answer": answer}
      for question, answer in zip(questions[:count], given[:count], strict=True)
    ]
  return Made({"dataset.json": with_mark(books), **pictures(images)}, lines)


def mmvp():
  """A table with a mark at its start, which would be part of a name."""
  rows, lines = [], []
  for i in range(1, COUNT + 1):
    asked, options = text("Is it open?", i), '(a) Open, "or" (b) Closed'
    rows.append(
      {
        "Index": i,
        "Question": asked,
        "Options": options,
        "Correct Answer": "(a)" if i % 2 else "(b)",
      }
    )
    lines.append(
      {
        "image": plain(f"MMVP Images/{i}.jpg"),
        "question": f"{asked} {options}",
        "answer": "(a)" if i % 2 else "(b)",
        "pair": (i + 1) // 2,
      }
    )
  files = pictures(f"MMVP Images/{i}.jpg" for i in range(1, COUNT + 1))
  files["Questions.csv"] = "\ufeff" + table(rows)
  return Made(files, {"test": lines})
