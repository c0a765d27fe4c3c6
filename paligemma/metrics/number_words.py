"""English number words, as answers to counting questions are written."""

_WORDS = (
  "zero one two three four five six seven eight nine ten eleven twelve thirteen"
  " fourteen fifteen sixteen seventeen eighteen nineteen twenty"
)


def numerals(largest: int) -> dict[str, str]:
  """{"none": "0", "zero": "0", "one": "1", ...} up to `largest`, at most 20."""
  words = _WORDS.split()[: largest + 1]
  return {"none": "0"} | {word: str(n) for n, word in enumerate(words)}
