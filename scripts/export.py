"""Writes a model as two programs that run without this project.

    python -m scripts.export --ckpt runs/digits --tokenizer tokenizer.model \
      --out runs/digits-stablehlo --batch_size 1 --text_len 32
    python runs/digits-stablehlo/run.py "caption en" photo.jpg

One program reads the prompt and the picture, the other appends a token. As
StableHLO they run on CPUs, CUDA and TPUs with jax, flatbuffers, numpy, Pillow
and sentencepiece; as ONNX, with --format onnx, where that runs. The folder
holds a tokenizer, a manifest, a model card, and of Gemma its NOTICE.
"""

from etils import epath

from paligemma import io, quantization
from paligemma.checkpoints import formats
from paligemma.checkpoints.lora import adapters
from paligemma.data import tokenizer as tokenizer_lib
from paligemma.lora import apply as lora
from paligemma.models import siglip
from scripts.exports import onnx, programs, stablehlo
from trainers import command_line, run_card
from trainers.tasks import next_token

FORMATS = {"stablehlo": stablehlo, "onnx": onnx}


def export(
  ckpt: epath.PathLike,
  tokenizer: epath.PathLike,
  out: epath.PathLike,
  *,
  format: str = "stablehlo",
  adapter: epath.PathLike | None = None,
  dtype: str | None = None,
  quantize: str | None = None,
  **sizes: int,
) -> str:
  """Writes the folder `out`; returns what to print about it.

  Arguments are the options of the command line; `--help` explains them.

  Raises:
    ValueError: the checkpoint or the tokenizer cannot be read or exported, or
      a package is missing.
  """
  FORMATS[format].check()
  if epath.Path(out).exists():
    raise ValueError(f"{out}: exists already, expected a new name")
  for name, size in sizes.items():
    if size < 1:
      raise ValueError(f"{name} is {size}, expected at least 1")
  if isinstance(io.model_of(formats.open(ckpt))[0], siglip.Model):
    raise ValueError(
      f"{ckpt}: holds a SigLIP, which compares and does not answer, expected a "
      "PaliGemma or a Gemma"
    )
  llm = {"scan": False}  # as decoding reads layers
  model, params = io.load(ckpt, dtype, quantize=quantize, llm=llm)
  if adapter is not None:
    model, params = adapters.load_adapter(adapter, model, params)
  if lora.lora_of(model) is not None:
    model, params = lora.merge_lora(model, params)
  tok = tokenizer_lib.Tokenizer(tokenizer, plain=model.img is None)
  next_token.check_tokenizer(tok, model, str(tokenizer))
  made = programs.make(model, params, tok, **sizes)
  FORMATS[format].save(out, made, run_card.of(ckpt, adapter))
  return f"wrote {out}; its README.md says how to run it"


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("--ckpt", required=True)
  parser.add_argument("--tokenizer", required=True, help="SentencePiece file")
  parser.add_argument("--out", required=True, help="a new folder")
  parser.add_argument("--format", choices=FORMATS, default="stablehlo")
  parser.add_argument("--adapter", help="LoRA weights to merge, as of predict")
  parser.add_argument("--batch_size", type=int, default=1)
  parser.add_argument("--text_len", type=int, default=32, help="of a prompt")
  parser.add_argument(
    "--max_decode_len", type=int, default=64, help="most tokens of an answer"
  )
  parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
  parser.add_argument("--quantize", choices=quantization.KINDS)
  print(export(**vars(parser.parse_args())))


if __name__ == "__main__":
  command_line.run(main)
