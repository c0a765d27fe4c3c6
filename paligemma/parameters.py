"""Every parameter of every tower, once: its name, its axes and what it is.

A name is that of the stacked layout, whose first axis L is the layer. Where
each layer has a parameter of its own, the number of the layer is in the name
(llm/layers/3/mlp/linear), and the axes are the same without L.

Axes: L layers, D width, F hidden units of the MLP, N heads, K key/value heads,
H head dim, V vocabulary, P positions of patches, T positions of text, C
colours, h and w pixels of a patch, M features that the head of the image tower
reads, E features that a head returns; y and x the grid of positions and Z the
values of a patch in NaFlex; Q prototypes; W width of an image tower beside D; I
inputs, O outputs and R rank of an adapter. A number is an axis of so many
parts: keys and values, gate and up.

Names and shapes are those of big_vision: models/vit.py, models/ppp/gemma.py and
models/proj/image_text/{two_towers,text_transformer,naflex_vit}.py.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator

from paligemma import variants

# What a parameter is.
MATRIX = "matrix"
TABLE = "vocabulary table"
PATCHES = "patch embedding"
DENSE = "matrix without adapter, in full precision"
ADAPTER = "adapter"
BIAS = "bias"
SCALE = "scale of a norm"
POSITION = "position embedding"
TOKEN = "learned token"
LOGIT = "temperature or bias of logits"
LOSS_MATRIX = "matrix of a head of a loss"

# Tables of "img/...", "txt/..." and "llm/...": name, axes, kind, axes that its
# product sums over, adapters beside it (one for each part), which models have
# it. The first axis of layers, "L", is omitted.
_LLM = (
  ("embedder/input_embedding", "V D", TABLE, "D"),
  ("final_norm/scale", "D", SCALE),
)
_QKV = "attn/q attn/k attn/v"
_LLM_LAYER = (
  ("attn/q_einsum/w", "N D H", MATRIX, "D", "attn/q", "grouped"),
  ("attn/kv_einsum/w", "2 K D H", MATRIX, "D", "attn/k attn/v", "grouped"),
  ("attn/qkv_einsum/w", "3 N D H", MATRIX, "D", _QKV, "fused"),
  ("attn/attn_vec_einsum/w", "N H D", MATRIX, "N H", "attn/out"),
  ("mlp/gating_einsum", "2 D F", MATRIX, "D", "mlp/gate mlp/up"),
  ("mlp/linear", "F D", MATRIX, "F", "mlp/down"),
  ("pre_attention_norm/scale", "D", SCALE),
  ("pre_ffw_norm/scale", "D", SCALE),
  ("post_attention_norm/scale", "D", SCALE, "", "", "post_norms"),
  ("post_ffw_norm/scale", "D", SCALE, "", "", "post_norms"),
)
_IMG = (
  ("embedding/kernel", "h w C D", PATCHES, "h w C"),
  ("embedding/bias", "D", BIAS),
  ("pos_embedding", "1 P D", POSITION),
  ("cls", "1 1 D", TOKEN, "", "", "tok"),
  ("Transformer/encoder_norm/scale", "D", SCALE),
  ("Transformer/encoder_norm/bias", "D", BIAS),
  ("MAPHead_0/probe", "1 1 D", TOKEN, "", "", "map"),
  ("pre_logits/kernel", "D M", DENSE, "D", "", "rep_size"),
  ("pre_logits/bias", "M", BIAS, "", "", "rep_size"),
  ("head/kernel", "M E", MATRIX, "M", "head"),
  ("head/bias", "E", BIAS),
)
_MHA = "MultiHeadDotProductAttention_0"
_TXT = (
  ("Embed_0/embedding", "V D", TABLE, "D"),
  ("pos_embedding", "1 T D", POSITION),
  ("Encoder_0/encoder_norm/scale", "D", SCALE),
  ("Encoder_0/encoder_norm/bias", "D", BIAS),
  ("MAPHead_0/probe", "1 1 D", TOKEN, "", "", "map"),
  ("head/kernel", "D E", MATRIX, "D", "head"),
  ("head/bias", "E", BIAS),
)
# In the place of the rows of these names.
_NAFLEX = (
  ("embedding/kernel", "Z D", PATCHES, "Z", "", "naflex"),
  ("pos_embedding", "y x D", POSITION, "", "", "naflex"),
)
_VIT_LAYER = (
  ("LayerNorm_0/scale", "D", SCALE),
  ("LayerNorm_0/bias", "D", BIAS),
  (f"{_MHA}/query/kernel", "D N H", MATRIX, "D", "attn/q"),
  (f"{_MHA}/query/bias", "N H", BIAS),
  (f"{_MHA}/key/kernel", "D N H", MATRIX, "D", "attn/k"),
  (f"{_MHA}/key/bias", "N H", BIAS),
  (f"{_MHA}/value/kernel", "D N H", MATRIX, "D", "attn/v"),
  (f"{_MHA}/value/bias", "N H", BIAS),
  (f"{_MHA}/out/kernel", "N H D", MATRIX, "N H", "attn/out"),
  (f"{_MHA}/out/bias", "D", BIAS),
  ("LayerNorm_1/scale", "D", SCALE),
  ("LayerNorm_1/bias", "D", BIAS),
  ("MlpBlock_0/Dense_0/kernel", "D F", MATRIX, "D", "mlp/up"),
  ("MlpBlock_0/Dense_0/bias", "F", BIAS),
  ("MlpBlock_0/Dense_1/kernel", "F D", MATRIX, "F", "mlp/down"),
  ("MlpBlock_0/Dense_1/bias", "D", BIAS),
)
_DEC = (
  ("Embed_0/embedding", "V D", TABLE, "D"),
  ("pos_embedding", "1 T D", POSITION),
  ("tokens", "1 4 D", TOKEN),
  ("decoder_norm/scale", "D", SCALE),
  ("decoder_norm/bias", "D", BIAS),
  ("head/kernel", "D V", MATRIX, "D"),
  ("head/bias", "V", BIAS),
)
_DISTILL = (
  ("mask_token", "1 1 D", TOKEN),
  ("centers", "2 Q", TOKEN),
  *(
    (f"{head}/{name}", axes, LOSS_MATRIX, axes[0])
    for head in ("pooled", "patches")
    for name, axes in (
      ("hidden_0", "D F"),
      ("hidden_1", "F O"),
      ("features", "F E"),
      ("prototypes", "E Q"),
    )
  ),
)

# Prefix of the layers of a tower, and what joins the number of a layer to it.
LAYERS = {
  "llm": ("llm/layers", "/"),
  "img": ("img/Transformer/encoderblock", "_"),
  "txt": ("txt/Encoder_0/encoderblock", "_"),
  "dec": ("dec/decoderblock", "_"),
}
# Heads that losses alone need: in runs, but not in what is made of them.
LOSS_HEADS = ("dec", "distill")

# Size of a tower -> its letter. Shapes show no other field of a tower.
_SIZES = {"width": "D", "depth": "L", "mlp_dim": "F", "num_heads": "N"}
SIZES = {
  "img": _SIZES | {"patch_size": "h"},
  "txt": _SIZES | {"vocab_size": "V", "text_len": "T"},
  "llm": _SIZES | {"num_kv_heads": "K", "head_dim": "H", "vocab_size": "V"},
}

EMBEDDING = "llm/embedder/input_embedding"
FINAL_NORM = "llm/final_norm/scale"
TEXT_EMBEDDING = "txt/Embed_0/embedding"
TEXT_POSITIONS = "txt/pos_embedding"
SECOND_TEXT_POSITIONS = "txt/Encoder_0/pos_embedding"  # of some old files
TEXT_NORM = "txt/Encoder_0/encoder_norm/scale"
TEMPERATURE, LOGIT_BIAS = "t", "b"
MASK_TOKEN, CENTERS = "distill/mask_token", "distill/centers"
DECODER_EMBEDDING = "dec/Embed_0/embedding"
DECODER_HEAD = "dec/head/kernel"
PATCH_KERNEL = "img/embedding/kernel"
POSITIONS = "img/pos_embedding"
HEAD_KERNEL, HEAD_BIAS = "img/head/kernel", "img/head/bias"

# Regexes that match the names of parameters in both layouts.
HEAD = r"img/head/.*"
POOLING = r"img/MAPHead_0/.*"
# Of the cross attention: what is computed for each token of the image.
CROSS_KEYS = r"dec/.*/MultiHeadDotProductAttention_1/(key|value)/.*"
# What a tower that pools computes once: its one query, and what is behind it.
POOLED = (
  r"(img|txt)/((head|pre_logits)/.*|"
  r"MAPHead_0/(.*/(query|out)|MlpBlock_0/.*)/.*)"
)
ATTENTION = r"llm/layers/(\d+/)?attn/.*"
LORA = "lora_"  # prefix of the second to last part of an adapter's name
ADAPTERS = rf"(.*/)?{LORA}\w+/[ab]"


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A parameter, or one of every layer.

  Attributes:
    name: "llm/layers/attn/kv_einsum/w".
    axes: ("L", "2", "K", "D", "H").
    kind: One of the kinds above.
    summed: The axes over which its product sums, ("D",); none: it is added.
    targets: The adapters beside it, one of each part: ("llm/attn/k",
      "llm/attn/v").
    when: Which models have it. "": all with its tower. "grouped", "fused":
      those with fewer key/value heads than heads, or as many. "post_norms":
      Gemma 2. "lora": with adapters. "map", "tok", "rep_size": towers with such
      a pooling or head. "naflex": image towers for any aspect ratio. "dec": a
      SigLIP with a decoder, see models/text_decoder.py. "distill": with heads
      of self-distillation, see models/distillation.py.
  """

  name: str
  axes: tuple[str, ...]
  kind: str
  summed: tuple[str, ...] = ()
  targets: tuple[str, ...] = ()
  when: str = ""

  @property
  def tower(self) -> str:
    return self.name.partition("/")[0]

  @property
  def part_axes(self) -> tuple[str, ...]:
    """The axes of one part of one layer: without L and numbers."""
    return tuple(x for x in self.axes if x != "L" and not x.isdigit())

  @property
  def order(self) -> tuple[int, ...]:
    """The indices in `part_axes` of the inputs, then of the outputs."""
    outputs = [x for x in self.part_axes if x not in self.summed]
    return tuple(map(self.part_axes.index, (*self.summed, *outputs)))

  @property
  def num_parts(self) -> int | None:
    """The size of its axis of parts, the first behind L; None without one."""
    number = self.axes[self.axes[0] == "L"]
    return int(number) if number.isdigit() else None

  @property
  def summed_axes(self) -> tuple[int, ...]:
    """`summed` as indices from the last axis, so for both layouts."""
    return tuple(map(self.axis, self.summed))

  def axis(self, letter: str) -> int:
    """Returns the index of an axis from the last, so for both layouts."""
    return self.axes.index(letter) - len(self.axes)


def _row(tower, name, axes, kind, summed="", targets="", when=""):
  return Parameter(
    name,
    tuple(axes.split()),
    kind,
    tuple(summed.split()),
    tuple(f"{tower}/{target}" for target in targets.split()),
    when,
  )


def _rows() -> Iterator[Parameter]:
  tables = {
    "llm": (_LLM, _LLM_LAYER),
    "img": (_IMG, _VIT_LAYER),
    "txt": (_TXT, _VIT_LAYER),
  }
  for tower, (whole, of_layer) in tables.items():
    for name, axes, *rest in of_layer:
      yield _row(tower, f"{LAYERS[tower][0]}/{name}", f"L {axes}", *rest)
    for name, *rest in whole:
      yield _row(tower, f"{tower}/{name}", *rest)
  # A block with one norm and without adapters.
  for tower in ("img", "txt"):
    for name, axes, kind, *rest in _VIT_LAYER:
      if not name.startswith("LayerNorm_1"):
        name = f"{tower}/MAPHead_0/{name}"
        yield _row(tower, name, axes, kind, *rest[:1], when="map")
  # A block with two attentions, the second one to the tokens of the image.
  for name, axes, kind, *rest in _VIT_LAYER:
    rows = [(name, axes, "".join(rest[:1]))]
    if name.startswith("LayerNorm_1"):
      rows.append((name.replace("_1", "_2"), axes, ""))
    elif name.startswith(_MHA):
      of_image = name.endswith(("key/kernel", "value/kernel"))
      found = (x.replace("D", "W") if of_image else x for x in rows[0][1:])
      rows.append((name.replace(_MHA, f"{_MHA[:-1]}1"), *found))
    for name, axes, summed in rows:
      name = f"{LAYERS['dec'][0]}/{name}"
      yield _row("dec", name, f"L {axes}", kind, summed, when="dec")
  for name, axes, kind, *rest in _DEC:
    yield _row("dec", f"dec/{name}", axes, kind, *rest, when="dec")
  for name, axes, kind, *rest in _DISTILL:
    yield _row("distill", f"distill/{name}", axes, kind, *rest, when="distill")
  yield _row("", TEMPERATURE, "1", LOGIT)
  yield _row("", LOGIT_BIAS, "1", LOGIT)


def adapter(name: str, target: str) -> str:
  """Returns the path of the adapter beside a matrix, without /a or /b."""
  module = re.sub(r"(/\w+_einsum)?/\w+$", "", name)
  return f"{module}/{LORA}{target.rpartition('/')[2]}"


ROWS = {row.name: row for row in _rows()}
NAFLEX = {f"img/{name}": _row("img", f"img/{name}", *x) for name, *x in _NAFLEX}
# Target of an adapter -> its path.
TARGETS = {
  target: adapter(row.name, target)
  for row in ROWS.values()
  for target in row.targets
}


def _adapter_rows() -> Iterator[Parameter]:
  for target, path in TARGETS.items():
    layer = "" if target.endswith("/head") else "L "
    yield _row("", f"{path}/a", f"{layer}I R", ADAPTER, "I", when="lora")
    yield _row("", f"{path}/b", f"{layer}R O", ADAPTER, "R", when="lora")


ROWS |= {row.name: row for row in _adapter_rows()}


def _last(*kinds: str) -> dict[str, None]:
  """Returns the last names of parameters of some kinds, in order."""
  rows = (row for row in ROWS.values() if row.kind in kinds)
  return dict.fromkeys(row.name.rpartition("/")[2] for row in rows)


# Last names of biases and scales, and of nothing else.
VECTORS = frozenset(_last(BIAS, SCALE))
# Matches the names of parameters with weight decay: matrices but adapters.
DECAYED = rf".*/({'|'.join(_last(MATRIX, TABLE, PATCHES, DENSE))})"


@functools.lru_cache(maxsize=2**14)
def find(name: str) -> Parameter | None:
  """Returns the row of a parameter, in either layout; None for other names."""
  for stem, joint in LAYERS.values():
    name = re.sub(rf"^{stem}{joint}\d+/", f"{stem}/", name)
  return ROWS.get(name)


def stays_float32(name: str) -> bool:
  """Returns whether a parameter stays float32 among half-precision matrices.

  In bfloat16 the patch and position embeddings alone shift image tokens by up
  to 0.4; norms, biases and adapters are too small to save memory.
  """
  row = find(name)
  if row is None:  # of a module alone, or the scale of a quantized matrix
    return name.rpartition("/")[2] in VECTORS
  return row.kind not in (MATRIX, TABLE, DENSE)


def has(tower: str, *, when: Iterable[str] = ()) -> dict[str, Parameter]:
  """Returns the parameters of tower "img", "txt" or "llm", by name.

  `when` has the values of Parameter.when that apply.
  """
  return {
    row.name: row
    for row in ROWS.values()
    if row.tower == tower and row.when in ("", *when)
  }


# Fields of a decoder that array shapes do not show.
STATED = tuple(
  field
  for field in variants.Gemma.__dataclass_fields__
  if field not in SIZES["llm"]
)
