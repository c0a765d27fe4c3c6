"""What fits a free T4: models, resolutions and methods in one table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from paligemma import messages
from paligemma.planning import memory
from trainers import command_line

DEVICE = "T4"
BATCH_SIZES = {"paligemma_3b": 8, "paligemma2_3b": 8, "paligemma2_10b": 1}
RESOLUTIONS = (224, 448)
METHODS = ("attention", "lora", "qlora_int8", "qlora_int4")
_CONFIG = "configs/transfers/forkme.py"


def rows(
  measure: Callable[[ConfigDict], memory.Memory],
  *,
  batch_sizes: Mapping[str, int] = BATCH_SIZES,
  resolutions: Sequence[int] = RESOLUTIONS,
) -> Iterator[dict[str, Any]]:
  """Yields the figures of one training after the other.

  Args:
    measure: function from a config to the memory.Memory of its train step.
    batch_sizes: variant -> batch size.
    resolutions: of the images, in pixels.
  """
  for variant, batch_size in batch_sizes.items():
    for res in resolutions:
      for tune in METHODS:
        argument = (
          f"variant={variant},res={res},tune={tune},dtype=float16,"
          f"batch_size={batch_size}"
        )
        needed = measure(command_line.load_config(f"{_CONFIG}:{argument}"))
        yield {
          "variant": variant,
          "res": res,
          "tune": tune,
          "batch_size": batch_size,
          "argument_gib": needed.arguments / memory.GIB,
          "temp_gib": needed.temporaries / memory.GIB,
          "peak_gib": needed.peak / memory.GIB,
          "fits": memory.fits(needed.peak)[DEVICE],
        }


def describe(found):
  """The table as text; `found` is what `rows` yielded."""
  head = ("model", "res", "tune", "batch", "weights and state", "peak", "fits")
  lines = messages.aligned(
    [
      head,
      *(
        (
          row["variant"],
          str(row["res"]),
          row["tune"],
          str(row["batch_size"]),
          f"{row['argument_gib']:.2f} GiB",
          f"{row['peak_gib']:.2f} GiB",
          "yes" if row["fits"] else "no",
        )
        for row in found
      ),
    ]
  )
  usable = memory.USABLE_GIB[DEVICE]
  return "\n".join([*lines, f"{DEVICE}: {usable} GiB usable"])
