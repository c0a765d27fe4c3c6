"""InfographicVQA: questions about infographics.

Fields: image, question, answers (a list).

Some prompts have 51 tokens, more than text_len: they are cut, as in big_vision.

The test server's ANLS, which is the published score, differs in details from
that of this metric: metric="anls" gives both.
"""

from ml_collections import ConfigDict

from configs.transfers import stvqa


def get_config(argument: str | None = None) -> ConfigDict:
  """That of ST-VQA with more label smoothing."""
  return stvqa.get_config(argument, name="infovqa", label_smoothing=0.4)
