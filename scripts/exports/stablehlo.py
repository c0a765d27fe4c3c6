"""Programs as StableHLO of jax.export, with weights beside them.

prefill.bin          } see programs.py
step.bin             }
weights.safetensors  params, by name
tokenizer.model      text -> ids
manifest.json        format, shapes, dtypes, versions, preprocessing
run.py               pictures and a prompt -> answers
"""

import importlib.util
import pathlib

import jax
import jax.export
from etils import epath

from paligemma import disk
from paligemma.checkpoints import model_card, safetensors
from scripts.exports.programs import Programs, write

PLATFORMS = ("cpu", "cuda", "tpu")
# What jax.export promises, docs.jax.dev/en/latest/export/export.html.
_PROMISE = (
  "jax and jaxlib released up to 6 months after, or up to 3 weeks before, the "
  "version that exported"
)
_RUNNER = pathlib.Path(__file__).with_name("run.py")
_USE = f"""\
```bash
pip install jax flatbuffers numpy pillow sentencepiece  # jax[cuda13], jax[tpu]
python run.py "caption en" photo.jpg
```

The programs are StableHLO of fixed shapes, see manifest.json. jax.export keeps
them running with

> {_PROMISE}."""


def check() -> None:
  """Raises a ValueError if a package is missing."""
  if importlib.util.find_spec("flatbuffers") is None:
    raise ValueError(
      'jax.export writes with flatbuffers, which is missing: pip install "'
      'paligemma[export]"'
    )


def save(
  out: epath.PathLike, programs: Programs, about: model_card.About | None
) -> None:
  """Writes the folder, which appears when it is complete.

  Args:
    out: Folder to make.
    programs: From programs.make.
    about: For the model card.
  """
  p = programs
  exported = {
    "prefill": _export(p.prefill, p.shapes, p.inputs),
    "step": _export(p.step, p.shapes, p.token, p.cache),
  }
  with disk.folder(out) as folder:
    for name, program in exported.items():
      (folder / f"{name}.bin").write_bytes(program.serialize())
    safetensors.save(folder / "weights.safetensors", programs.params)
    (folder / "run.py").write_bytes(_RUNNER.read_bytes())
    write(
      folder,
      programs,
      about,
      name=epath.Path(out).name,
      format="paligemma stablehlo",
      version=1,
      library="jax",
      use=_USE,
      jaxlib=jax.lib.__version__,
      calling_convention=exported["step"].calling_convention_version,
      runs_with=_PROMISE,
      platforms=PLATFORMS,
    )


def _export(function, *shapes):
  return jax.export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)
