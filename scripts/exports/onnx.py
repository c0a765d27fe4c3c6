"""Programs as ONNX, by jax2onnx, with the weights in them.

    prefill.onnx     image, text        -> logits and the cache, by name
    step.onnx        token, cache       -> the same
    tokenizer.model  text -> ids
    manifest.json    format, shapes, dtypes, versions, preprocessing

jax2onnx 0.17.1 asks for an older orbax-checkpoint than this project:

    pip install --no-deps jax2onnx
    pip install onnx onnx-ir onnxruntime

It converts what is written out in primitives alone: a function that is called
twice, such as a layer that is recomputed, ends it with "Supplied output value
cannot have a producer".
"""

import importlib.util
from importlib import metadata

import jax
import numpy as np
from etils import epath
from jax.extend import core

from paligemma import disk, io
from paligemma.checkpoints import model_card
from scripts.exports.programs import Programs, write

_PACKAGES = ("jax2onnx", "onnx", "onnxruntime")
_CALLS = ("jit", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")
# What says nothing to ONNX, or that numbers are read as bits, which is so in
# gathers alone (models/cpu.py), and any dtype can be gathered.
_IDENTITIES = ("name", "optimization_barrier", "bitcast_convert_type")
_USE = """\
```python
import numpy as np
import onnxruntime
import sentencepiece

tok = sentencepiece.SentencePieceProcessor("tokenizer.model")
prefill, step = map(onnxruntime.InferenceSession, ("prefill.onnx", "step.onnx"))
_, *cache = [x.name for x in prefill.get_outputs()]
ids = [tok.bos_id(), *tok.encode(PROMPT)]
inputs = {"text": np.zeros(TEXT, np.int32)}
inputs["text"][:, : len(ids)] = ids
IMAGE
logits, *values = prefill.run(None, inputs)
answer = [logits.argmax(axis=-1).astype(np.int32)]
while len(answer) < LENGTH and answer[-1][0] != tok.eos_id():
  given = dict(zip(cache, values), token=answer[-1])
  logits, *values = step.run(None, given)
  answer.append(logits.argmax(axis=-1).astype(np.int32))
ids = [int(tokens[0]) for tokens in answer]
print(tok.decode([i for i in ids if i != tok.eos_id()]))
```"""
_IMAGE = """\
# In [-1, 1], prepared as manifest.json says.
inputs["image"] = np.load("image.npy").astype(np.float32)"""


def check() -> None:
  """Raises a ValueError if a package is missing."""
  missing = [x for x in _PACKAGES if importlib.util.find_spec(x) is None]
  if missing:
    raise ValueError(
      f"ONNX is written with jax2onnx, missing: {', '.join(missing)}; pip "
      "install --no-deps jax2onnx; pip install onnx onnx-ir onnxruntime"
    )


def save(
  out: epath.PathLike, programs: Programs, about: model_card.About | None
) -> None:
  """Writes the folder, which appears when it is complete.

  Args:
    out: Folder to make.
    programs: From programs.make, in float32.
    about: For the model card.

  Raises:
    ValueError: The model computes in another dtype, or is quantized.
  """
  dtypes = {str(x.dtype) for x in programs.params.values()}
  if dtypes | {io.computes_in(programs.model)} != {"float32"}:
    raise ValueError(
      f"{out}: the parameters are {', '.join(sorted(dtypes))}, but ONNX is "
      "written in float32 alone; give --dtype float32, and no --quantize"
    )
  cache, params = list(programs.cache), dict(programs.params)
  inputs = list(programs.inputs)

  def prefill(*arrays):
    given = dict(zip(inputs, arrays, strict=True))
    logits, found = programs.prefill(params, given)
    return logits, *(found[name] for name in cache)

  def step(token, *arrays):
    given = dict(zip(cache, arrays, strict=True))
    logits, found = programs.step(params, token, given)
    return logits, *(found[name] for name in cache)

  sees, sizes = programs.image is not None, programs.sizes
  use = _USE.replace("TEXT", f"({sizes['batch_size']}, {sizes['text_len']})")
  use = use.replace("LENGTH", str(sizes["max_decode_len"]))
  use = use.replace("PROMPT", r'"caption en\n"' if sees else '"Once upon"')
  use = use.replace("IMAGE\n", f"{_IMAGE}\n" if sees else "")
  given = {"token": programs.token, **programs.cache}
  names = ["logits", *cache]
  with disk.folder(out) as folder:
    _convert(prefill, programs.inputs, names, folder / "prefill.onnx")
    _convert(step, given, names, folder / "step.onnx")
    write(
      folder,
      programs,
      about,
      name=epath.Path(out).name,
      format="paligemma onnx",
      version=1,
      library="onnx",
      use=use,
      **{name: metadata.version(name) for name in _PACKAGES},
    )


def _convert(function, shapes, output_names, path):
  import jax2onnx

  traced = jax.make_jaxpr(function)(*shapes.values())
  jax2onnx.to_onnx(
    lambda *arrays: _evaluate(traced.jaxpr, traced.consts, arrays),
    list(shapes.values()),
    return_mode="file",
    output_path=str(path),
    input_names=list(shapes),
    # Of the step, inputs have the names of the cache already.
    output_names=[f"next/{x}" if x in shapes else x for x in output_names],
  )


def _evaluate(jaxpr, consts, arrays):
  """Runs the equations of a jaxpr, those of the functions it calls included."""
  found = dict(zip(jaxpr.constvars, consts, strict=True))
  found.update(zip(jaxpr.invars, arrays, strict=True))

  def read(variable):
    is_literal = isinstance(variable, core.Literal)
    return variable.val if is_literal else found[variable]

  for equation in jaxpr.eqns:
    values, params = list(map(read, equation.invars)), equation.params
    kind = equation.primitive.name
    called = params.get("jaxpr") or params.get("call_jaxpr")
    if kind in _CALLS:
      closed = getattr(called, "jaxpr", called)
      values = _evaluate(closed, getattr(called, "consts", ()), values)
    elif kind == "platform_index":
      values = [np.int32(0)]  # of the CPU, which is named first
    elif kind == "cond" and isinstance(values[0], np.int32):
      branch = params["branches"][values[0]]
      values = _evaluate(branch.jaxpr, branch.consts, values[1:])
    elif kind not in _IDENTITIES:
      values = equation.primitive.bind(*values, **params)
      if not equation.primitive.multiple_results:
        values = [values]
    found.update(zip(equation.outvars, values, strict=True))
  return tuple(map(read, jaxpr.outvars))
