"""The same batches whatever the processes, workers, threads and restarts."""

import ast
import io
import json
import pathlib
import re

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from paligemma import tree
from paligemma.data import batches, preprocess, sources, text_ops

EXAMPLES = 13
RES, TEXT_LEN = 5, 23


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  """JSONL whose i-th image is uniformly i and whose answer is the i-th loc."""
  folder = tmp_path_factory.mktemp("data")
  with (folder / "data.jsonl").open("w") as file:
    for i in range(EXAMPLES):
      data = io.BytesIO()
      Image.new("L", (7, 3), i).save(data, "PNG")
      (folder / f"{i}.png").write_bytes(data.getvalue())
      fields = {
        "image": f"{i}.png",
        "prefix": "what digit",
        "suffix": f"<loc{i:04d}>",
        "loose": [f"<seg{j:03d}>" for j in range(100)],
      }
      file.write(json.dumps(fields) + "\n")
  return folder / "data.jsonl"


@pytest.fixture
def source(path):
  return sources.Jsonl(path)


@pytest.fixture
def bad_source(path, tmp_path):
  """The same with a truncated image on line 4."""
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  lines[3]["image"] = str(tmp_path / "truncated.png")
  (tmp_path / "truncated.png").write_bytes(
    (path.parent / "3.png").read_bytes()[:50]
  )
  bad = tmp_path / "bad.jsonl"
  bad.write_text("\n".join(map(json.dumps, lines)))
  return sources.Jsonl(bad, path.parent)


@pytest.fixture
def rows(tokenizer):
  return preprocess.Preprocess(
    tokenizer, RES, TEXT_LEN, train=True, texts="plain"
  )


@pytest.fixture
def prompts(tokenizer):
  return preprocess.Preprocess(
    tokenizer, RES, TEXT_LEN, train=False, texts="plain"
  )


@pytest.fixture
def random_rows(tokenizer):
  ops = (
    text_ops.Choice("loose"),
    text_ops.Format("{prefix} {loose}"),
  )
  return preprocess.Preprocess(
    tokenizer, RES, TEXT_LEN, train=True, texts="plain", ops=ops
  )


def take(iterator, n):
  return [next(iterator) for _ in range(n)]


def numbers(batch):
  """Which examples a batch holds, read off its images."""
  return [round((x + 1) * 127.5) for x in batch["image"][:, 0, 0, 0].tolist()]


def assert_equal(ours, theirs):
  assert len(ours) == len(theirs)
  for a, b in zip(ours, theirs, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      assert a[key].dtype == b[key].dtype
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_train_batch(source, rows):
  batch = next(batches.train([(source, 1)], rows, batch_size=3, seed=0))
  shapes = {key: (value.shape, value.dtype) for key, value in batch.items()}
  assert shapes == {
    "image": ((3, RES, RES, 3), np.float32),
    "text": ((3, TEXT_LEN + 1), np.int32),
    "mask_ar": ((3, TEXT_LEN + 1), np.int32),
    "mask_input": ((3, TEXT_LEN + 1), np.bool_),
    "mask_loss": ((3, TEXT_LEN + 1), np.int32),
    "_mask": ((3,), np.bool_),
  }
  assert batch["_mask"].all()
  # Image and answer still belong together.
  answers = batch["text"][batch["mask_loss"] == 1].reshape(3, 2)[:, 0]
  first_loc = rows.tokenizer.loc_id(0)
  np.testing.assert_array_equal(answers - first_loc, numbers(batch))


def test_every_epoch_is_a_new_permutation(source, rows):
  iterator = batches.train([(source, 1)], rows, batch_size=1, seed=0)
  order = [numbers(next(iterator))[0] for _ in range(3 * EXAMPLES)]
  epochs = [order[i : i + EXAMPLES] for i in range(0, len(order), EXAMPLES)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(EXAMPLES))
  assert len({tuple(epoch) for epoch in [*epochs, range(EXAMPLES)]}) == 4


def test_batch_larger_than_the_data(source, rows):
  one = sources.Slice(source, "[7:8]")
  data = batches.train([(one, 1)], rows, batch_size=3, seed=0)
  assert [numbers(batch) for batch in take(data, 2)] == [[7, 7, 7]] * 2


def test_seed_alone_decides(source, random_rows):
  def first(seed):
    data = batches.train(
      [(source, 1)], random_rows, batch_size=5, seed=seed, num_threads=3
    )
    return take(data, 6)

  runs = [first(0), first(0), first(1)]
  assert_equal(runs[0], runs[1])
  assert [numbers(b) for b in runs[0]] != [numbers(b) for b in runs[2]]


def test_random_ops_differ_between_epochs(source, random_rows):
  def texts(batch):
    order = np.argsort(numbers(batch))
    return batch["text"][order].tolist()

  iterator = batches.train(
    [(source, 1)], random_rows, batch_size=EXAMPLES, seed=0
  )
  assert texts(next(iterator)) != texts(next(iterator))


@pytest.mark.parametrize("process_count", [2, 3])
def test_processes_together_read_the_batch_of_one(
  source, random_rows, process_count
):
  def read(**sharding):
    data = batches.train(
      [(source, 1)], random_rows, batch_size=6, seed=3, **sharding
    )
    return take(data, 5)

  parts = [
    read(process_index=i, process_count=process_count)
    for i in range(process_count)
  ]
  together = [
    {key: np.concatenate([part[key] for part in step]) for key in step[0]}
    for step in zip(*parts, strict=True)
  ]
  assert_equal(together, read())


@pytest.mark.parametrize(
  "sharding",
  [
    {},
    {"num_threads": 0},
    {"num_workers": 1},
    {"process_index": 1, "process_count": 2},
  ],
  ids=str,
)
def test_examples_know_their_index_and_epoch(source, tokenizer, sharding):
  """In a mixture, of which the second source comes round more often."""
  low, high = sources.Slice(source, "[:7]"), sources.Slice(source, "[7:]")
  ops = (text_ops.Format("{_index}", "{_epoch}"),)
  numbered = preprocess.Preprocess(
    tokenizer, RES, TEXT_LEN, train=True, texts="plain", ops=ops
  )
  data = batches.train(
    [(low, 1), (high, 3)], numbered, batch_size=8, seed=5, **sharding
  )
  data.set_state(data.get_state() | {"next_batch": 2})
  rounds = {number: [] for number in range(EXAMPLES)}
  for batch in take(data, 12):
    for number, row, loss in zip(
      numbers(batch), batch["text"], batch["mask_loss"], strict=True
    ):
      words = [
        tokenizer.decode(row[loss == kind].tolist()).strip() for kind in (0, 1)
      ]
      index, epoch = map(int, words)
      assert index == (number if number < 7 else number - 7)
      rounds[number].append(epoch)
  data.close()
  # 8 rows a batch, of which 2 are low: the two batches that were left out
  # held 4 of 7 low ones and both rounds of the 6 high ones.
  if "process_count" in sharding:
    assert all(sorted(set(r)) == r for r in rounds.values())
    assert {r for n in range(7, 13) for r in rounds[n]} == set(range(2, 14))
    return
  for number in range(7):
    first = rounds[number][0]
    assert first in (0, 1)
    assert rounds[number] == list(range(first, first + len(rounds[number])))
  for number in range(7, 13):
    assert rounds[number] == list(range(2, 14))


def test_mixture_keeps_its_weights(source, rows):
  low = sources.Slice(source, "[:4]")
  high = sources.Slice(source, "[4:]")
  data = batches.train([(low, 3), (high, 1)], rows, batch_size=8, seed=0)
  for batch in take(data, 5):
    assert sum(number < 4 for number in numbers(batch)) == 6


def test_sources_of_a_mixture_are_shuffled_apart(source, rows):
  data = batches.train([(source, 1), (source, 1)], rows, batch_size=26, seed=0)
  order = numbers(next(data))
  assert sorted(order[::2]) == sorted(order[1::2]) == list(range(EXAMPLES))
  assert order[::2] != order[1::2]


def test_resumption_is_exact(source, random_rows):
  def make(**sharding):
    return batches.train(
      [(source, 2), (sources.Slice(source, "[:5]"), 1)],
      random_rows,
      batch_size=4,
      seed=7,
      **sharding,
    )

  uninterrupted = take(make(), 9)
  iterator = make()
  take(iterator, 4)
  state = json.loads(json.dumps(iterator.get_state()))
  take(iterator, 3)
  iterator.set_state(state)
  assert_equal(take(iterator, 5), uninterrupted[4:])
  fresh = make(num_threads=0)
  fresh.set_state(state)
  assert fresh.get_state() == state
  assert_equal(take(fresh, 5), uninterrupted[4:])
  second = make(process_index=1, process_count=2)
  second.set_state(state)
  np.testing.assert_array_equal(
    next(second)["text"], uninterrupted[4]["text"][2:]
  )


def test_workers_change_nothing(source, random_rows):
  """Two worker processes that start in the middle, against none."""

  def make(num_workers):
    return batches.train(
      [(source, 1)],
      random_rows,
      batch_size=4,
      seed=1,
      num_workers=num_workers,
    )

  alone = make(0)
  take(alone, 4)
  iterator = make(2)
  iterator.set_state(alone.get_state())
  assert_equal(take(iterator, 3), take(alone, 3))
  assert iterator.get_state() == alone.get_state()
  iterator.close()


def test_errors_in_workers_are_one_line(bad_source, rows):
  iterator = batches.train(
    [(bad_source, 1)], rows, batch_size=EXAMPLES, seed=0, num_workers=1
  )
  expected = r"^\S+bad\.jsonl:4: truncated or damaged image of 50 bytes$"
  with pytest.raises(ValueError, match=expected) as info:
    next(iterator)
  assert not getattr(info.value, "__notes__", [])
  iterator.close()


def test_state_of_other_data_is_refused(source, rows):
  def make(examples="[:]", batch_size=4, seed=0, weight=1):
    part = sources.Slice(source, examples)
    return batches.train(
      [(part, weight)], rows, batch_size=batch_size, seed=seed
    )

  state = make().get_state()
  for other, message in [
    (make("[1:]"), r"saved with examples \[13\], this run has \[12\];"),
    (make(batch_size=2), "saved with batch_size 4, this run has 2;"),
    (make(seed=5), "saved with seed 0, this run has 5;"),
    (make(weight=2), r"saved with weights \[1\.0\], this run has \[2\.0\];"),
  ]:
    with pytest.raises(ValueError, match=message):
      other.set_state(state)


def test_grain_checkpoint_in_orbax(source, rows, tmp_path):
  def make():
    return batches.train([(source, 1)], rows, batch_size=4, seed=0)

  iterator = make()
  take(iterator, 3)
  with ocp.CheckpointManager(tmp_path) as manager:
    data = grain.checkpoint.CheckpointSave(iterator)
    manager.save(3, args=ocp.args.Composite(data=data))
  expected = take(iterator, 2)
  resumed = make()
  with ocp.CheckpointManager(tmp_path) as manager:
    data = grain.checkpoint.CheckpointRestore(resumed)
    manager.restore(3, args=ocp.args.Composite(data=data))
  assert_equal(take(resumed, 2), expected)


def test_bad_example_stops_and_says_where(bad_source, rows):
  iterator = batches.train([(bad_source, 1)], rows, batch_size=13, seed=0)
  for _ in range(2):  # an error does not turn into the end of the data
    with pytest.raises(ValueError, match=r"bad\.jsonl:4: truncated or"):
      next(iterator)


def test_bad_example_can_be_skipped(source, bad_source, rows, caplog):
  def first(source, **options):
    data = batches.train([(source, 1)], rows, batch_size=13, seed=0, **options)
    return next(data)

  good, skipped = first(source), first(bad_source, on_bad="skip")
  place = numbers(good).index(3)
  assert skipped["_mask"].tolist() == [i != place for i in range(13)]
  for key in good:
    assert not skipped[key][place].any()
    kept = skipped["_mask"]
    np.testing.assert_array_equal(skipped[key][kept], good[key][kept])
  assert re.search(r"skipped a bad example: \S+bad\.jsonl:4: ", caplog.text)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_evaluation_sees_every_example_once(source, prompts, num_threads):
  data = batches.evaluation(
    source, prompts, batch_size=5, num_threads=num_threads
  )
  assert len(data) == 3
  first = list(data)
  assert [b["_index"].tolist() for b in first] == [
    [0, 1, 2, 3, 4],
    [5, 6, 7, 8, 9],
    [10, 11, 12, -1, -1],
  ]
  assert first[2]["_mask"].tolist() == [True] * 3 + [False] * 2
  assert numbers(first[1]) == [5, 6, 7, 8, 9]
  assert not first[2]["image"][3:].any()
  assert first[0]["_index"].dtype == np.int64
  assert first[0]["_mask"].dtype == np.bool_
  assert_equal(first, list(data))


def test_evaluation_over_processes(source, prompts):
  def read(**sharding):
    return list(batches.evaluation(source, prompts, batch_size=10, **sharding))

  parts = [read(process_index=i, process_count=2) for i in range(2)]
  assert [len(part) for part in parts] == [2, 2]
  together = [
    {key: np.concatenate([a[key], b[key]]) for key in a}
    for a, b in zip(*parts, strict=True)
  ]
  assert_equal(together, read())


def test_evaluation_in_workers(source, random_rows):
  def read(num_workers):
    return list(
      batches.evaluation(
        source, random_rows, batch_size=5, num_workers=num_workers
      )
    )

  assert_equal(read(1), read(0))


@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (7, 7), (99, 13)])
def test_evaluation_limit(source, prompts, limit, expected):
  data = batches.evaluation(source, prompts, batch_size=5, limit=limit)
  seen = np.concatenate([batch["_index"] for batch in data])
  np.testing.assert_array_equal(seen[seen >= 0], np.arange(expected))
  assert len(data) == -(-expected // 5)


def test_evaluation_is_repeatable_for_random_ops(source, random_rows):
  data = batches.evaluation(source, random_rows, batch_size=5)
  assert_equal(list(data), list(data))


def test_evaluation_stops_at_a_bad_example(bad_source, prompts):
  data = batches.evaluation(bad_source, prompts, batch_size=3)
  with pytest.raises(ValueError, match=r"bad\.jsonl:4: truncated or"):
    list(data)


def test_bad_arguments(source, rows):
  def fails(match, given=((source, 1),), batch_size=4, **options):
    with pytest.raises(ValueError, match=match):
      batches.train(given, rows, batch_size=batch_size, seed=0, **options)

  fails(
    "batch_size is 4, expected a positive multiple of the 3", process_count=3
  )
  fails("batch_size is 0", batch_size=0)
  fails(
    r"process_index is 2, expected it in \[0, 2\)",
    process_index=2,
    process_count=2,
  )
  fails("no source to train on", given=[])
  fails(r"weight of \S+data.jsonl is 0, expected more", given=[(source, 0)])
  fails('on_bad "skp", .* Did you mean "skip"', on_bad="skp")
  with pytest.raises(ValueError, match="limit is 0, expected at least 1"):
    batches.evaluation(source, rows, batch_size=4, limit=0)
  with pytest.raises(ValueError, match=r"batch_size is 4, .* the 3 processes"):
    batches.evaluation(source, rows, batch_size=4, process_count=3)
  with pytest.raises(ValueError, match="seed is -1, expected it in"):
    batches.train([(source, 1)], rows, batch_size=4, seed=-1)


def test_the_data_room_imports_no_jax():
  """What a worker runs is NumPy; only grain itself brings jax along."""
  files = [pathlib.Path(tree.__file__)]
  files += pathlib.Path(batches.__file__).parent.glob("*.py")
  assert len(files) > 10
  for file in files:
    for node in ast.walk(ast.parse(file.read_text())):
      names = [alias.name for alias in getattr(node, "names", [])]
      if isinstance(node, ast.Import | ast.ImportFrom):
        roots = {n.split(".")[0] for n in [*names, getattr(node, "module", "")]}
        assert not roots & {"jax", "flax", "tensorflow", "torch"}, file
