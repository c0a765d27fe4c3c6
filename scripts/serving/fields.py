"""What all requests in JSON have in common."""

from typing import Any

import pydantic


class Strict(pydantic.BaseModel):
  """Fields of exactly these names and types; null is as if left out."""

  model_config = pydantic.ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False
  )

  @pydantic.model_validator(mode="before")
  @classmethod
  def _without_nulls(cls, data: Any) -> Any:
    if isinstance(data, dict):
      return {name: x for name, x in data.items() if x is not None}
    return data
