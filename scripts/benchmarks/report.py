"""Lines for a reader of what was measured."""

from collections.abc import Mapping
from typing import Any

_UNITS = {
  "examples_per_s": "examples/s",
  "tokens_per_s": "tokens/s",
  "images_per_s": "images/s",
}


def describe(result: Mapping[str, Any]) -> str:
  """Several lines of what `measure` of train, decode or data returned."""
  (figure,) = _UNITS.keys() & result.keys()
  unit, ours = _UNITS[figure], result[figure]
  lines = [
    f"{result['what']} on {result['hardware']}",
    _row("ours", ours["dtype"], unit, ours),
    f"  at the floor         {ours['floor']:10.2f} {unit}",
  ]
  if result.get("mfu"):
    lines.append(f"  {result['mfu']:.1%} of the peak FLOPs of the devices")
  if "loss_difference" in result:
    lines.append(
      f"  losses {', '.join(f'{loss:.4f}' for loss in result['losses'])}, at "
      f"most {result['loss_difference']:.1e} from the plain form"
    )
  if peer := result.get("peer"):
    lines.append(
      f"{peer['version']}: ours is {peer['ratio_to_best']:.2f} x, the floor "
      f"{peer['floor_to_best']:.2f} x"
    )
    lines += [_row("peer", n, unit, each) for n, each in peer[figure].items()]
    for about in ("loss_difference", "equal_tokens"):
      for name, value in peer.get(about, {}).items():
        lines.append(f"  {about} {name}: {value:.2g}")
  for count, rate in result.get("workers", {}).items():
    lines.append(_row("workers", count, unit, rate))
  for what, rows in result.get("growth", {}).items():
    lines.append(f"growth with {what}, the first row being 1:")
    for row in rows:
      cells = (f"{k} {v:.4g} ({v / rows[0][k]:.2f} x)" for k, v in row.items())
      lines.append(f"  {', '.join(cells)}")
  return "\n".join(lines)


def _row(who, dtype, unit, spread):
  return (
    f"  {who:<8} {dtype:<12}{spread['median']:10.2f} {unit} "
    f"({spread['min']:.2f} to {spread['max']:.2f})"
  )
