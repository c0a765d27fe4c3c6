"""All published data sets that can be prepared, by name."""

from scripts.datasets import (
  captions,
  choices,
  documents,
  pairs,
  questions,
  refcoco,
  remote_sensing,
  screens,
  videos,
)
from scripts.datasets.data_set import DataSet

DATA_SETS: dict[str, DataSet] = dict(
  sorted(
    {
      **captions.DATA_SETS,
      **choices.DATA_SETS,
      **documents.DATA_SETS,
      **pairs.DATA_SETS,
      **questions.DATA_SETS,
      **refcoco.DATA_SETS,
      **remote_sensing.DATA_SETS,
      **screens.DATA_SETS,
      **videos.DATA_SETS,
    }.items()
  )
)
