"""Whether a server's engine gives the answers of this project, greedily.

    python -m scripts.compare_served runs/digits-hf --data digits/test.jsonl

CKPT is a Hugging Face folder with its tokenizer, as scripts.convert writes it.
It is loaded here and by vLLM or SGLang, whichever is installed beside this
project, and both answer the "prefix" of every line about its "image". Prints
how many answers are equal, and the first that differ. The dtype is bfloat16 in
both, unless --dtype says otherwise: sums in another order then change some
answers, which is no error.
"""

import importlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath
from PIL import Image

import paligemma
from paligemma import io, messages
from paligemma.checkpoints import formats
from paligemma.data import pictures, sources
from paligemma.data import tokenizer as tokenizer_lib
from paligemma.models import paligemma as paligemma_model
from trainers import command_line

_SHOWN = 5  # answers that differ


def compare(
  ckpt: epath.PathLike,
  data: epath.PathLike,
  *,
  engine: str | None = None,
  dtype: str = "bfloat16",
  limit: int | None = None,
  max_decode_len: int = 32,
) -> dict[str, Any]:
  """Answers the examples twice.

  Arguments are the options of the command line; `--help` explains them.

  Returns:
    {"engine": its name, "same": number of equal answers, "answers": [{"where",
    "prefix", "here", "there"}, ...]}.

  Raises:
    ValueError: no engine is installed, the folder holds no whole PaliGemma or
      is of another format, or a mistake in the data.
  """
  name = _find(engine)
  if formats.detect(ckpt) != "Hugging Face":
    raise ValueError(
      f"{ckpt}: is a {formats.detect(ckpt)}, expected a Hugging Face folder; "
      "write one with scripts.convert --format huggingface --tokenizer ..."
    )
  model, params = io.load(ckpt, dtype)
  paligemma_model.check_whole(model, str(ckpt))
  source = sources.Jsonl(data)
  count = min(len(source), limit or len(source))
  examples = [source[i] for i in range(count)]
  prompts = [example["prefix"] for example in examples]
  images = [pictures.pixels(example["image"]) for example in examples]
  here = paligemma.generate(
    model,
    params,
    tokenizer_lib.Tokenizer(ckpt),
    images,
    prompts,
    max_decode_len=max_decode_len,
  )
  del params  # the engine takes what memory there is
  asked = [Image.fromarray(image) for image in images]
  there = ENGINES[name](str(ckpt), dtype, asked, prompts, max_decode_len)
  answers = [
    {"where": example["_where"], "prefix": prompt, "here": a, "there": b}
    for example, prompt, a, b in zip(
      examples, prompts, here, there, strict=True
    )
  ]
  same = sum(x["here"] == x["there"] for x in answers)
  return {"engine": name, "same": same, "answers": answers}


def describe(found: Mapping[str, Any]) -> str:
  """Lines on what `compare` returned."""
  answers = found["answers"]
  lines = [
    f"{x['where']}: {messages.shown(x['prefix'])}: here "
    f"{messages.shown(repr(x['here']))}, {found['engine']} "
    f"{messages.shown(repr(x['there']))}"
    for x in answers
    if x["here"] != x["there"]
  ]
  more = len(lines) - _SHOWN
  lines[_SHOWN:] = [f"and {more} more"] if more > 0 else []
  total = len(answers)
  return "\n".join(
    [*lines, f"{found['engine']}: {found['same']} of {total} answers equal"]
  )


def _find(engine):
  wanted = [engine] if engine else list(ENGINES)
  for name in wanted:
    if importlib.util.find_spec(name) is not None:
      return name
  raise ValueError(
    f"{' and '.join(wanted)}: not installed beside this project, which needs a "
    "GPU; see docs/export.md"
  )


def _ask_vllm(
  ckpt: str,
  dtype: str,
  images: Sequence[Image.Image],
  prompts: Sequence[str],
  max_tokens: int,
) -> list[str]:
  """Answers by vllm.LLM, which lays the prompt out itself."""
  vllm = importlib.import_module("vllm")
  llm = vllm.LLM(model=ckpt, dtype=dtype, limit_mm_per_prompt={"image": 1})
  asked = [
    {"prompt": prompt, "multi_modal_data": {"image": image}}
    for image, prompt in zip(images, prompts, strict=True)
  ]
  greedy = vllm.SamplingParams(temperature=0.0, max_tokens=max_tokens)
  return [x.outputs[0].text for x in llm.generate(asked, greedy)]


def _ask_sglang(
  ckpt: str,
  dtype: str,
  images: Sequence[Image.Image],
  prompts: Sequence[str],
  max_tokens: int,
) -> list[str]:
  """Answers by sglang.Engine."""
  sglang = importlib.import_module("sglang")
  engine = sglang.Engine(model_path=ckpt, dtype=dtype)
  try:
    found = engine.generate(
      prompt=[f"<image>{prompt}" for prompt in prompts],
      sampling_params={"temperature": 0.0, "max_new_tokens": max_tokens},
      image_data=list(images),
    )
  finally:
    engine.shutdown()
  return [x["text"] for x in found]


ENGINES: Mapping[str, Callable[..., list[str]]] = {
  "vllm": _ask_vllm,
  "sglang": _ask_sglang,
}


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("ckpt", metavar="CKPT")
  parser.add_argument("--data", required=True, metavar="X.jsonl")
  parser.add_argument(
    "--engine", choices=ENGINES, help="default: what is there"
  )
  parser.add_argument("--dtype", default="bfloat16")
  parser.add_argument("--limit", type=int, help="the first examples only")
  parser.add_argument("--max_decode_len", type=int, default=32)
  parser.add_argument("--json", action="store_true", help="a line per answer")
  options = vars(parser.parse_args())
  with_json = options.pop("json")
  found = compare(**options)
  if with_json:
    print("\n".join(map(json.dumps, found["answers"])))
  print(describe(found))


if __name__ == "__main__":
  command_line.run(main)
