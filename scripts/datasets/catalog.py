"""All published data sets that can be prepared, by name."""

from scripts.datasets import captions, documents, questions, refcoco
from scripts.datasets.data_set import DataSet

DATA_SETS: dict[str, DataSet] = dict(
  sorted(
    {
      **captions.DATA_SETS,
      **documents.DATA_SETS,
      **questions.DATA_SETS,
      **refcoco.DATA_SETS,
    }.items()
  )
)
