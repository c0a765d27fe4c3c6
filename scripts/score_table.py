"""Scores as aligned text, and as JSON values."""

from collections.abc import Mapping
from typing import Any

from paligemma import messages


def estimates(scores: Mapping[str, Any]) -> str:
  """Lines of {name: bootstrap.Estimate}."""
  rows = [("metric", "value", "95% interval")]
  for name, found in scores.items():
    rows.append((name, number(found.value), interval(found)))
  return "\n".join(messages.aligned(rows))


def comparisons(scores: Mapping[str, Any]) -> str:
  """Lines of {name: bootstrap.Comparison}."""
  rows = [("metric", "A", "B", "A - B", "95% interval", "A > B", "p")]
  for name, found in scores.items():
    wins, p = found.a_is_larger, found.p_value
    rows.append(
      (
        name,
        number(found.a),
        number(found.b),
        number(found.difference),
        interval(found),
        "" if wins is None else f"{wins:.1%}",
        "" if p is None else f"{p:.4f}",
      )
    )
  return "\n".join(messages.aligned(rows))


def as_json(scores: Mapping[str, Any]) -> dict[str, Any]:
  """{name: {field: value}}."""
  return {name: found._asdict() for name, found in scores.items()}


def number(value: float) -> str:
  return f"{value:.0f}" if value == round(value) else f"{value:.4f}"


def interval(found) -> str:
  if found.low is None:
    return ""
  return f"[{found.low:.4f}, {found.high:.4f}]"
