"""Writes a model as two programs that run without this project, in JAX alone.

    python -m scripts.export --ckpt runs/digits --tokenizer tokenizer.model \
      --out runs/digits-stablehlo --batch_size 1 --text_len 32
    python runs/digits-stablehlo/run.py "caption en" photo.jpg

One program reads the prompt and the picture, the other appends a token; both
are StableHLO of fixed shapes, for CPUs, CUDA and TPUs. Weights and tokenizer
are beside them, with run.py, which needs jax, flatbuffers, numpy, Pillow and
sentencepiece, a manifest, a model card, and for Gemma its NOTICE.
"""

from etils import epath

from paligemma import io, quantization
from paligemma.checkpoints.lora import adapters
from paligemma.data import tokenizer as tokenizer_lib
from paligemma.lora import apply as lora
from scripts.exports import stablehlo
from trainers import command_line, run_card
from trainers.tasks import next_token


def export(
  ckpt: epath.PathLike,
  tokenizer: epath.PathLike,
  out: epath.PathLike,
  *,
  adapter: epath.PathLike | None = None,
  dtype: str | None = None,
  quantize: str | None = None,
  **sizes: int,
) -> str:
  """Writes the folder `out`; returns what to print about it.

  Arguments are the options of the command line; `--help` explains them.

  Raises:
    ValueError: the checkpoint or the tokenizer cannot be read or exported.
  """
  stablehlo.check(out, ckpt, **sizes)
  llm = {"scan": False}  # as decoding reads layers
  model, params = io.load(ckpt, dtype, quantize=quantize, llm=llm)
  if adapter is not None:
    model, params = adapters.load_adapter(adapter, model, params)
  if lora.lora_of(model) is not None:
    model, params = lora.merge_lora(model, params)
  tok = tokenizer_lib.Tokenizer(tokenizer, plain=model.img is None)
  next_token.check_tokenizer(tok, model, str(tokenizer))
  about = run_card.of(ckpt, adapter)
  stablehlo.save(out, model, params, tok, about=about, **sizes)
  return f"wrote {out}: try python {out}/run.py"


def main() -> None:
  parser = command_line.parser(__doc__)
  parser.add_argument("--ckpt", required=True)
  parser.add_argument("--tokenizer", required=True, help="SentencePiece file")
  parser.add_argument("--out", required=True, help="a new folder")
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
