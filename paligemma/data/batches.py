"""Sources -> shuffled, mixed and sharded batches, the same for every run.

Example i of global batch k depends only on the seed, not on the number of
processes, workers or threads. The concatenation of the processes' batches is
the batch of a single process.
"""

import dataclasses
import functools
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from paligemma import messages, registry
from paligemma.data import preprocess as preprocess_lib
from paligemma.data import sources as sources_lib

Batch = dict[str, np.ndarray]

ON_BAD = {
  "stop": "raise the error",
  "skip": "replace it by zeros with _mask False",
}

_log = logging.getLogger(__name__)


class TrainBatches(grain.DatasetIterator):
  """Endless iterator over local batches; see `train`."""

  def __init__(self, dataset, read, identity):
    super().__init__()
    self._dataset = dataset
    self._read = read
    self._identity = identity
    self._next_batch = 0
    self._reader = None

  def __next__(self) -> Batch:
    self.start_prefetch()
    try:
      batch = next(self._reader)
    except Exception as error:
      self._stop()  # a failed reader would end silently at the next call
      _raise(error)
    self._next_batch += 1
    return batch

  def start_prefetch(self) -> None:
    """Starts reading ahead before the first batch is requested."""
    if self._reader is None:
      self._reader = self._read(self._dataset[self._next_batch :])
      self._reader.start_prefetch()

  def get_state(self) -> dict[str, Any]:
    """Returns the position and what identifies the data, as JSON values.

    It is the same for all processes, num_workers and process_count.
    """
    return {"next_batch": self._next_batch, **self._identity}

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues at the batch that followed when the state was taken.

    If its batch size was another one, that is the batch with the example that
    followed; earlier examples of that batch are repeated.

    Raises:
      ValueError: The seed, the weights or the sizes of the sources differ, so
        examples would not be those of that run.
    """
    for key, value in self._identity.items():
      if key != "batch_size" and state.get(key) != value:
        raise ValueError(
          f"data state was saved with {key} {state.get(key)}, this run has "
          f"{value}; restore the former value or start a new run"
        )
    self._stop()
    examples = state["next_batch"] * state["batch_size"]
    self._next_batch = examples // self._identity["batch_size"]

  def close(self) -> None:
    """Ends worker processes and threads."""
    self._stop()
    super().close()

  def _stop(self):
    if self._reader is not None:
      self._reader.close()
      self._reader = None


@dataclasses.dataclass(frozen=True)
class EvaluationBatches:
  """The same local batches each time it is iterated over; see `evaluation`."""

  dataset: grain.MapDataset
  read: Callable[[grain.MapDataset], grain.DatasetIterator]

  def __len__(self) -> int:
    return len(self.dataset)

  def __iter__(self) -> Iterator[Batch]:
    reader = self.read(self.dataset)
    try:
      yield from reader
    except Exception as error:
      _raise(error)
    finally:
      reader.close()


def train(
  sources: Sequence[tuple[sources_lib.Source, float]],
  preprocess: preprocess_lib.Preprocess | Sequence[preprocess_lib.Preprocess],
  *,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
  num_threads: int = 2,
  on_bad: str = "stop",
) -> TrainBatches:
  """Returns an endless, resumable iterator over shuffled batches.

  Every source is reshuffled after each of its epochs; in a mixture, sources
  have epochs of different lengths.

  Args:
    sources: (source, weight) pairs; the share of a source among the examples is
      its weight over the sum of weights, evenly spread.
    preprocess: Makes the arrays of an example, one for all sources or one for
      each. Its rng depends on the seed, the source and the position. An example
      also has "_index", its index in the source, and "_epoch", the number of
      completed epochs of the source, for ops that draw without replacement.
    batch_size: GLOBAL number of examples.
    seed: In [0, 2**32).
    process_index, process_count: Which host of how many this is.
    num_workers: Processes that prepare batches ahead, each on one core; or 0.
    num_threads: Without workers, threads of this process that do so; each holds
      one batch. 0 prepares a batch when it is requested.
    on_bad: Key of ON_BAD: what to do with an example that cannot be used.
      "skip" logs a line; steps, shards and resumption are the same as without
      bad examples.

  Returns:
    Iterator over the arrays of `preprocess`, stacked over the batch_size /
    process_count examples of this process, with `_mask` bool[B], False for a
    skipped example. `get_state` and `set_state` make it resumable bit for bit;
    grain.checkpoint.CheckpointSave and CheckpointRestore accept it.
  """
  _check(batch_size, process_index, process_count, on_bad)
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed is {seed}, expected it in [0, 2**32)")
  if not sources:
    raise ValueError("no source to train on, expected (source, weight) pairs")
  if not isinstance(preprocess, Sequence):
    preprocess = [preprocess] * len(sources)
  datasets = []
  pairs = zip(sources, preprocess, strict=True)
  for i, ((source, weight), prepare) in enumerate(pairs):
    if weight <= 0:
      raise ValueError(f"weight of {source} is {weight}, expected more than 0")
    # Not seed + i, which grain uses for epochs: shuffles would repeat.
    shuffle_seed, rng_seed = np.random.SeedSequence((seed, i)).generate_state(2)
    datasets.append(
      grain.MapDataset.range(len(source))
      .shuffle(seed=int(shuffle_seed))
      .repeat()
      .map_with_index(functools.partial(_numbered, len(source)))
      .random_map(
        functools.partial(_read_numbered, source, prepare, on_bad),
        seed=int(rng_seed),
      )
    )
  weights = [float(weight) for _, weight in sources]
  examples = grain.MapDataset.mix(datasets, weights)
  dataset = _local_batches(examples, batch_size, process_index, process_count)
  identity = {
    "seed": seed,
    "batch_size": batch_size,
    "weights": weights,
    "examples": [len(source) for source, _ in sources],
  }
  return TrainBatches(dataset, _reader(num_workers, num_threads), identity)


def evaluation(
  source: sources_lib.Source,
  preprocess: preprocess_lib.Preprocess,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
  num_threads: int = 2,
  limit: int | None = None,
  on_bad: str = "stop",
) -> EvaluationBatches:
  """Returns an iterable over every example once, in order.

  All processes get the same number of batches; the last one is padded.

  Args:
    preprocess: Makes the arrays of an example; for example i its rng is
      default_rng(i), so that all evaluations are the same.
    limit: Use only the first `limit` examples. Default None: all.
    batch_size, process_index, process_count, num_workers, num_threads, on_bad:
      As of `train`.

  Returns:
    Iterable, with a length, over the stacked arrays of `preprocess`, with
    `_mask` bool[B], False for padding and skipped examples; `_index` int64[B],
    the index in the source, -1 for padding; and `_error` str[B], what is wrong
    with an example, "" for good ones and padding.
  """
  _check(batch_size, process_index, process_count, on_bad)
  if limit is not None and limit < 1:
    raise ValueError(f"limit is {limit}, expected at least 1 example, or None")
  count = min(len(source), limit or len(source))
  num_batches = -(-count // batch_size)
  examples = grain.MapDataset.range(num_batches * batch_size).map(
    functools.partial(_read_or_pad, source, preprocess, on_bad, count)
  )
  dataset = _local_batches(examples, batch_size, process_index, process_count)
  return EvaluationBatches(dataset, _reader(num_workers, num_threads))


def _numbered(num_examples, position, index):
  return {"_index": int(index), "_epoch": position // num_examples}


def _read_numbered(source, preprocess, on_bad, numbered, rng):
  index = numbered["_index"]
  return _read(source, preprocess, on_bad, index, rng, numbered)[0]


def _read_or_pad(source, preprocess, on_bad, num_examples, index):
  if index < num_examples:
    rng = np.random.default_rng(index)
    arrays, error = _read(source, preprocess, on_bad, index, rng)
  else:
    arrays, error, index = _padding(preprocess), "", -1
  return {**arrays, "_index": np.int64(index), "_error": np.array(error)}


def _read(source, preprocess, on_bad, index, rng, more_fields=()):
  """Returns the arrays of an example and what is wrong with it, or ""."""
  try:
    arrays = preprocess({**source[index], **dict(more_fields)}, rng)
  except ValueError as error:
    if on_bad == "stop":
      raise
    message = messages.one_line(error)
    _log.warning("skipped a bad example: %s", message)
    return _padding(preprocess), message
  return {**arrays, "_mask": np.True_}, ""


def _padding(preprocess):
  return {**preprocess.padding(), "_mask": np.False_}


def _check(batch_size, process_index, process_count, on_bad):
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"process_index is {process_index}, expected it in [0, {process_count})"
    )
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f"batch_size is {batch_size}, expected a positive multiple of the "
      f"{process_count} processes"
    )
  registry.lookup(ON_BAD, on_bad, "on_bad")


def _local_batches(examples, batch_size, process_index, process_count):
  # Blocks of local size, assigned to the processes in turn.
  local = batch_size // process_count
  blocks = examples.batch(local, drop_remainder=True, batch_fn=_stack)
  return blocks[process_index::process_count]


def _stack(examples):
  return {key: np.stack([x[key] for x in examples]) for key in examples[0]}


def _raise(error):
  """Raises an error of the data without the notes that grain adds to it."""
  if type(error) is ValueError:
    raise ValueError(str(error)) from None
  raise error


def _reader(num_workers, num_threads):
  """Returns a function that iterates over a MapDataset, reading ahead."""
  # grain 0.2.18 reads this flag of its own even if flags are not parsed, as in
  # a notebook (google/grain#1355). This makes it find the default.
  flags.FLAGS["grain_enable_multiprocess_worker_profiling"].present = True
  if num_workers:
    num_threads = 0  # a worker reads ahead by itself
  threads = grain.ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=num_threads
  )
  workers = grain.MultiprocessingOptions(num_workers=num_workers)
  return lambda dataset: iter(
    dataset.to_iter_dataset(threads).mp_prefetch(workers, _leave_interrupts)
  )


def _leave_interrupts(index, count):
  """Ignores Ctrl-C in workers; the main process ends them."""
  del index, count
  signal.signal(signal.SIGINT, signal.SIG_IGN)
