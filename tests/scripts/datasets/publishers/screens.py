"""Captions of screens of apps, as their publishers ship them."""

from tests.scripts.datasets.publishers.made import (
  COUNT,
  HEIGHT,
  Made,
  jpeg,
  packed,
  pictures,
  plain,
  table,
  tarred,
  text,
)

SPLITS = ("train", "dev", "test")


def screen2words():
  """The five captions of a screen are not side by side; lists vary in ends."""
  files, lines = {}, {}
  for k, split in enumerate(SPLITS):
    screens = range(100 * k, 100 * k + COUNT)
    end = ("\n", "\r\n", "\n\n")[k]
    start = "\ufeff" if split == "dev" else ""
    files[f"screen2words/split/{split}_screens.txt"] = start + "".join(
      f"{i}{end}" for i in screens
    )
    lines[split] = [
      {
        "image": packed(f"combined/{i}.jpg"),
        "captions": [text(f"a page {n}", i) for n in range(5)],
      }
      for i in screens
    ]
  rows = [
    {"screenId": i, "summary": text(f"a page {n}", i)}
    for n in range(5)
    for i in range(300)
  ]
  files["screen2words/screen_summaries.csv"] = table(rows)
  names = [
    x["image"].removeprefix("images/")
    for found in lines.values()
    for x in found
  ]
  files["unique_uis.tar.gz"] = tarred(pictures([*names, "combined/99999.jpg"]))
  return Made(files, lines)


def widgetcap():
  """Elements at any depth, some partly or all beyond the screen."""
  leaf = {"bounds": [144, 640, 720, 1280]}
  nodes = {
    "0": [0, 0, 1440, 2560],
    "0.0": [0, 84, 1440, 2392],
    "0.1": [-20, -7, 99, 30],
    "0.1.0": [144, 640, 720, 1280],
    "0.2": [1400, 2500, 1500, 2600],
    "0.2.0.0": [5, 5, 6, 6],
  }
  bounds = {name: {"bounds": box} for name, box in nodes.items()}
  root = {
    **bounds["0"],
    "class": "x",
    "children": [
      bounds["0.0"],
      {**bounds["0.1"], "children": [bounds["0.1.0"], None]},
      {
        **bounds["0.2"],
        "children": [{**leaf, "children": [bounds["0.2.0.0"]]}],
      },
    ],
  }
  view = {"activity_name": "x", "activity": {"root": root, "added": []}}
  height, width = HEIGHT * 4, 70  # of 1440 x 2560
  files, lines, rows = {}, {}, []
  for k, split in enumerate(SPLITS):
    lines[split], screens = [], range(100 * k, 100 * k + 6)
    for screen in screens:
      files[f"combined/{screen}.jpg"] = jpeg(k, (height, width))
      files[f"combined/{screen}.json"] = view
      for n in range(4):
        node = list(nodes)[(screen + n) % len(nodes)]
        captions = [text("go back", screen + n), "back, now", '"b"'][
          : 1 + n % 3
        ]
        rows.append(
          {"screenId": screen, "nodeId": node, "captions": "|".join(captions)}
        )
        x0, y0, x1, y1 = (x * height / 2560 for x in nodes[node])
        lines[split].append(
          {
            "image": plain(f"combined/{screen}.jpg"),
            "captions": captions,
            "bbox": [y0 / height, x0 / width, y1 / height, x1 / width],
          }
        )
    end = "\r\n" if split == "dev" else "\n"
    files[f"widget-caption/split/{split}.txt"] = end.join(map(str, screens))
  rows.append({"screenId": 99999, "nodeId": "0.7", "captions": "of no split"})
  files["widget-caption/widget_captions.csv"] = table(rows, "\n")
  return Made(files, lines)
