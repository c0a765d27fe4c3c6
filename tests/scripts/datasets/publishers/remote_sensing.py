"""Questions about pictures from above, as their publisher ships them."""

from tests.scripts.datasets.publishers.made import (
  COUNT,
  Made,
  picture,
  plain,
  text,
)


def _rsvqa(start, folder, end, splits, left_out):
  """Every fifth is not active, and has neither a question nor an answer."""
  files, lines = {}, {}
  kinds = {
    "comp": ("no", "yes"),
    "count": ("0", "17"),
    "presence": ("yes", "no"),
    "area": ("0m2", "more than 1000m2"),
    "rural_urban": ("rural", "urban"),
  }
  for split, file in splits.items():
    questions, replies, lines[split] = [], [], []
    for i in range(3 * COUNT):
      if i % 5 == 2:
        gone = {"id": i, "date_added": 1.5, "active": False, "people_id": 0}
        questions.append(gone)
        replies.append(gone)
        continue
      kind = list(kinds)[i % 7 % 5]
      image = f"{folder}/{i // 8}{end}"
      files[image] = picture(end, i // 8)
      asked, reply = text(f"{kind}?", i), kinds[kind][i % 2]
      questions.append(
        {
          "id": i,
          "img_id": i // 8,
          "people_id": 0,
          "type": kind,
          "question": asked,
          "date_added": 1576000000.5,
          "answers_ids": [i + 7],
          "active": True,
        }
      )
      replies.append(
        {"id": i + 7, "question_id": i, "answer": reply, "active": True}
      )
      if kind not in left_out:
        lines[split].append(
          {
            "image": plain(image),
            "question": asked,
            "question_type": kind,
            "answers": [reply],
            "question_id": i,
          }
        )
    name = f"{start}_split_{file}_{{}}.json"
    files[name.format("questions")] = {"questions": questions}
    files[name.format("answers")] = {"answers": replies}
  return Made(files, lines)


def rsvqa_lr():
  splits = {x: x for x in ("train", "val", "test")}
  return _rsvqa("LR", "Images_LR", ".tif", splits, ("count",))


def rsvqa_hr():
  splits = {x: x for x in ("train", "val", "test")} | {"test_2": "test_phili"}
  return _rsvqa("USGS", "Data", ".png", splits, ("area", "count"))
