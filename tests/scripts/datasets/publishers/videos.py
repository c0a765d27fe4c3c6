"""Captions of videos and questions about them, as their publishers ship them.

A video is a byte or two; its ending tells it from other files.
"""

from tests.scripts.datasets.publishers.made import (
  COUNT,
  Made,
  packed,
  plain,
  text,
  zipped,
)

SPLITS = ("train", "val", "test")


def msrvtt_cap():
  """Twenty captions a video, in any order; splits share a file."""
  lines = {split: [] for split in SPLITS}
  files, archive = {}, {}
  parts = {"train": "train", "val": "validate", "test": "test"}
  for name, splits in [("train_val", ("train", "val")), ("test", ("test",))]:
    videos, sentences = [], []
    for i in range(COUNT * len(splits)):
      split = splits[i % len(splits)]
      number = i if name == "train_val" else 7010 + i
      video = f"video{number}"
      of = {"url": "https://x", "start time": 1.5, "category": 9}
      videos.append(
        {"video_id": video, "split": parts[split], "id": number, **of}
      )
      captions = [text(f"{video} {n}", i + n) for n in range(20)]
      lines[split].append({"video": plain(f"TrainValVideo/{video}.mp4")})
      lines[split][-1]["captions"] = captions
      if split == "test":
        lines[split][-1]["video"] = packed(f"TestVideo/{video}.mp4")
        archive[f"TestVideo/{video}.mp4"] = b"2"
      else:
        files[f"TrainValVideo/{video}.mp4"] = b"0"
      sentences += [
        {"caption": x, "video_id": video, "sen_id": 20 * i + n}
        for n, x in enumerate(captions)
      ]
    # Side by side are captions of different videos.
    sentences.sort(key=lambda x: x["sen_id"] % 20)
    whole = {"info": {}, "videos": videos, "sentences": sentences}
    files[f"{name}_videodatainfo.json"] = whole
  return Made({**files, "TestVideo.zip": zipped(archive)}, lines)


def _asked(lines, first, video):
  """Records of questions, two a video of video(number), and their lines."""
  records = []
  for i in range(COUNT):
    number = first + i // 2
    answer = ("dog", "naïve", "")[0 if i % 3 else 1]
    asked = text("what?", i)
    records.append(
      {"answer": answer, "id": i, "question": asked, "video_id": number}
    )
    lines.append(
      {"video": plain(video(number)), "question": asked, "answer": answer}
    )
  return records


def msrvtt_qa():
  files, lines = {}, {}
  for k, split in enumerate(SPLITS):
    lines[split] = []
    files[f"{split}_qa.json"] = _asked(
      lines[split], 7000 * k, lambda i: f"TrainValVideo/video{i}.mp4"
    )
    files |= {x["video"].removeprefix("../raw/"): b"x" for x in lines[split]}
  return Made(files, lines)


def msvd_qa():
  """Names of clips begin with - or _, and end in one of four ways."""
  ends = ("avi", "mp4", "mkv", "webm")

  def clip(i):
    return f"{'-_a'[i % 3]}4wsuPCj{i}_5_{i}"

  files, lines = {}, {}
  for k, split in enumerate(SPLITS):
    lines[split] = []
    files[f"{split}_qa.json"] = _asked(
      lines[split],
      1 + 700 * k,
      lambda i: f"YouTubeClips/{clip(i)}.{ends[i % 4]}",
    )
    files |= {x["video"].removeprefix("../raw/"): b"x" for x in lines[split]}
  files["youtube_mapping.txt"] = "".join(
    f"{clip(i)} vid{i}\r\n" for i in range(1, 1971)
  )
  return Made(files, lines)


def activitynet_cap():
  """Parts of videos, which overlap; times are of any precision."""
  files, lines = {}, {}
  for split, name in [("train", "train"), ("val", "val_1"), ("test", "val_2")]:
    videos, lines[split] = {}, []
    for i in range(COUNT):
      video = f"v_{'-_Q'[i % 3]}OlS{name}{i}"
      times = [[0, 19.86], [17.375 + i, 60.8]][: 1 + i % 2]
      texts = [text("A woman walks.", i) + " ", " She turns.\n"][: 1 + i % 2]
      videos[video] = {
        "duration": 82.73,
        "timestamps": times,
        "sentences": texts,
      }
      for (start, end), said in zip(times, texts, strict=True):
        path = f"clips/{video}_{start:.2f}_{end:.2f}.mp4"
        files[path] = b"x"
        lines[split].append({"video": plain(path), "captions": [said.strip()]})
    videos["v_none"] = {"duration": 1, "timestamps": [], "sentences": []}
    files[f"{name}.json"] = videos
  return Made(files, lines)


def activitynet_qa():
  """Answers are in another order, and of more questions."""
  files, lines = {}, {}
  for split in SPLITS:
    asked, replies, lines[split] = [], [], []
    for i in range(COUNT):
      video = f"{'-_Q'[i % 3]}k{split}{i // 4}"
      key = f"v_{video}_{i}"
      path = f"v_{video}.mkv" if i // 4 % 2 else f"{video}.mp4"
      files[path] = b"x"
      asked.append(
        {
          "video_name": video,
          "question": text("is it?", i),
          "question_id": key,
        }
      )
      answer = ("no", "2", text("café", i))[i % 3]
      replies.append({"answer": answer, "type": i % 9, "question_id": key})
      lines[split].append(
        {
          "video": plain(path),
          "question": text("is it?", i),
          "answer": answer,
        }
      )
    files[f"{split}_q.json"] = asked
    files[f"{split}_a.json"] = [
      *reversed(replies),
      {"answer": "x", "type": 1, "question_id": "v_other_1"},
    ]
  return Made(files, lines)


def vatex_cap():
  files, lines = {}, {}
  for split, name in [
    ("train", "vatex_training_v1.0"),
    ("val", "vatex_validation_v1.0"),
    ("test", "vatex_public_test_english_v1.1"),
  ]:
    records, lines[split] = [], []
    for i in range(COUNT):
      clip = f"{'-_P'[i % 3]}tf_2V{split}{i}_000122_000132"
      captions = [text(f"One {n}.", i + n) for n in range(10)]
      record = {"videoID": clip, "enCap": captions}
      records.append(record | ({} if split == "test" else {"chCap": ["一"]}))
      files[f"clips/{clip}.mp4"] = b"x"
      lines[split].append(
        {"video": plain(f"clips/{clip}.mp4"), "captions": captions}
      )
    files[f"{name}.json"] = records
  return Made(files, lines)
