"""Conversions end whole or not at all, and the check finds what differs."""

import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

import paligemma
from paligemma import quantization, tree
from paligemma.checkpoints import npz
from paligemma.data import chat
from scripts import convert
from tests.same_trees import assert_same

ROOT = pathlib.Path(__file__).parents[2]
SOURCE = ROOT / "paligemma/assets/tiny.npz"
TOKENIZER = ROOT / "paligemma/assets/tiny_tokenizer.model"
FORMATS = {"npz": "model.npz", "huggingface": "folder", "orbax": "folder"}


def run(monkeypatch, *arguments):
  monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
  convert.main()


@pytest.mark.parametrize("format", FORMATS)
def test_there_and_back_is_the_same_file(tmp_path, format):
  there = tmp_path / FORMATS[format]
  said = convert.convert(SOURCE, there, format=format)
  assert "32 parameters" in said
  assert "sliding_window=None" in said
  assert said.endswith(f"wrote {there}")
  convert.convert(there, tmp_path / "back.npz")
  assert npz.fingerprint(tmp_path / "back.npz") == npz.fingerprint(SOURCE)
  convert.convert(tmp_path / "back.npz", tmp_path / "again.npz")
  again = (tmp_path / "again.npz").read_bytes()
  assert again == (tmp_path / "back.npz").read_bytes()


@pytest.mark.parametrize("variant", ["siglip_b16_256", "siglip2_b16_naflex"])
def test_a_siglip_there_and_back(variant, tmp_path, monkeypatch, capsys):
  sizes = {"width": 12, "depth": 1, "mlp_dim": 8, "num_heads": 2}
  txt = {**sizes, "vocab_size": 31, "num_classes": 12}
  model, params = paligemma.load(
    variant, load_weights=False, img=sizes, txt=txt
  )
  paligemma.save(tmp_path / "x.npz", model, params)
  there, back = tmp_path / "hf", tmp_path / "back.npz"
  run(monkeypatch, tmp_path / "x.npz", there, "--format", "huggingface")
  run(monkeypatch, there, back, "--check")
  out = capsys.readouterr().out
  assert "text tower: pool_type=last, text_len=64" in out
  assert ", max difference 0.0e+00" in out
  count = len(tree.flatten(params))
  assert f"{count} tensors: DST is SRC in its dtypes, bit for bit" in out
  assert npz.fingerprint(back) == npz.fingerprint(tmp_path / "x.npz")


def test_check_reports_every_tensor(tmp_path, monkeypatch, capsys):
  arguments = [SOURCE, tmp_path / "half.npz", "--dtype", "bfloat16", "--check"]
  run(monkeypatch, *arguments)
  out = capsys.readouterr().out
  for name, leaf in npz.open(SOURCE).leaves.items():
    (line,) = (x for x in out.splitlines() if x.startswith(f"{name} "))
    assert "x".join(map(str, leaf.shape)) in line
    assert "float16 -> bfloat16" in line
  assert "logits of one fixed input: max |logit| 32." in out
  assert out.endswith("32 tensors: DST is SRC in its dtypes, bit for bit\n")


def test_check_finds_a_changed_number(tmp_path):
  flat = npz.load(SOURCE)
  flat["img/head/bias"][5] += 0.25
  npz.save(tmp_path / "changed.npz", flat)
  report, exact = convert.check(SOURCE, tmp_path / "changed.npz")
  assert not exact
  (line,) = (x for x in report.splitlines() if x.startswith("img/head/bias"))
  assert " 2.5e-01 " in line
  assert report.endswith("32 tensors: DST DIFFERS from SRC, bit for bit")


def test_what_a_file_does_not_say_is_noted(tmp_path):
  model, params = paligemma.load(SOURCE)
  capped = model.clone(llm=model.llm.clone(final_logits_softcap=30.0))
  paligemma.save(tmp_path / "capped", capped, params, format="orbax")
  npz.save(tmp_path / "plain.npz", npz.load(SOURCE))
  report, exact = convert.check(tmp_path / "capped", tmp_path / "plain.npz")
  assert exact
  assert "note: final_logits_softcap=30.0 in SRC, DST loads with None" in report
  assert "max difference 0.0e+00" not in report


def test_another_resolution(tmp_path, monkeypatch, capsys):
  run(monkeypatch, SOURCE, tmp_path / "a.npz", "--res", 112, "--check")
  assert npz.load(tmp_path / "a.npz")["img/pos_embedding"].shape == (1, 64, 128)
  assert "bit for bit" in capsys.readouterr().out


def test_two_towers(tmp_path, monkeypatch, capsys):
  flat = npz.load(SOURCE)
  for tower in ("img", "llm"):
    part = {n: x for n, x in flat.items() if n.startswith(tower)}
    npz.save(tmp_path / f"{tower}.npz", part)
  decoder = ("--decoder", tmp_path / "llm.npz")
  run(monkeypatch, tmp_path / "img.npz", tmp_path / "both.npz", *decoder)
  assert "in no file" not in capsys.readouterr().out
  found = npz.load(tmp_path / "both.npz")
  assert_same(found, flat)


def test_a_hugging_face_folder_with_its_tokenizer(tmp_path, monkeypatch):
  arguments = ("--format", "huggingface", "--tokenizer", TOKENIZER)
  run(monkeypatch, SOURCE, tmp_path / "folder", *arguments)
  written = tmp_path / "folder/tokenizer.model"
  assert written.read_bytes() == TOKENIZER.read_bytes()


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantized(tmp_path, monkeypatch, capsys, kind):
  first, second = tmp_path / "a.npz", tmp_path / "b.npz"
  run(monkeypatch, SOURCE, first, "--quantize", kind, "--check")
  out = capsys.readouterr().out
  (line,) = (x for x in out.splitlines() if x.startswith("llm/layers/mlp/lin"))
  assert f"float16 -> {kind}" in line and "0.0e+00" not in line
  assert out.endswith("32 tensors: DST is SRC in its dtypes, bit for bit\n")
  expected = tree.flatten(paligemma.load(SOURCE, quantize=kind)[1])
  found = npz.load(first)
  assert found.keys() == expected.keys()
  for name, array in found.items():
    np.testing.assert_array_equal(array, expected[name])
  run(monkeypatch, first, second, "--check")
  (line,) = (
    x
    for x in capsys.readouterr().out.splitlines()
    if x.startswith("llm/layers/mlp/linear ")
  )
  assert "->" not in line and "0.0e+00" in line
  assert second.read_bytes() == first.read_bytes()
  convert.convert(SOURCE, tmp_path / "orbax", format="orbax", quantize=kind)
  convert.convert(tmp_path / "orbax", tmp_path / "c.npz")
  assert npz.load(tmp_path / "c.npz").keys() == expected.keys()


def test_check_finds_a_changed_scale(tmp_path):
  convert.convert(SOURCE, tmp_path / "a.npz", quantize="int4")
  flat = npz.load(tmp_path / "a.npz")
  flat["llm/layers/mlp/linear/scale"][1, 0, 3] *= 2
  npz.save(tmp_path / "b.npz", flat)
  report, exact = convert.check(SOURCE, tmp_path / "b.npz")
  assert not exact and report.endswith("DIFFERS from SRC, bit for bit")


def test_what_cannot_be_quantized(tmp_path, monkeypatch):
  convert.convert(SOURCE, tmp_path / "a.npz", quantize="int8")
  for kind, reason in (
    ("int8", r"form for int8: of bitsandbytes, its int8 rounds what matrices"),
    ("int4", r"form for int4: of bitsandbytes, it has no 4-bit integers; give"),
    ("nf4", r"attn_vec_einsum/w: nf4 has a scale for every 32 inputs here, bu"),
  ):
    with pytest.raises(ValueError, match=reason):
      convert.convert(
        SOURCE, tmp_path / "folder", format="huggingface", quantize=kind
      )
  nf4 = ("--format", "huggingface", "--quantize", "nf4", "--check")
  with pytest.raises(ValueError, match="can of one in nf4; leave --check out"):
    run(monkeypatch, SOURCE, tmp_path / "folder", *nf4)
  with pytest.raises(ValueError, match="is int8 in the files, expected int4"):
    convert.convert(tmp_path / "a.npz", tmp_path / "b.npz", quantize="int4")
  assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_quantized_file_to_hugging_face(tmp_path):
  convert.convert(SOURCE, tmp_path / "a.npz", quantize="int4")
  convert.convert(tmp_path / "a.npz", tmp_path / "b", format="huggingface")
  name = "llm/layers/mlp/linear"
  pair = paligemma.load(tmp_path / "a.npz")[1]["llm"]["layers"]["mlp"]["linear"]
  np.testing.assert_array_equal(
    tree.flatten(paligemma.load(tmp_path / "b")[1])[name],
    quantization.dequantize(pair, np.float32),
  )


def test_nothing_is_overwritten(tmp_path):
  (tmp_path / "a.npz").write_text("precious")
  with pytest.raises(ValueError, match=r"a\.npz: exists already, expected a n"):
    convert.convert(SOURCE, tmp_path / "a.npz")
  assert (tmp_path / "a.npz").read_text() == "precious"


@pytest.mark.parametrize("format", FORMATS)
def test_killed_it_leaves_nothing(tmp_path, format):
  killed = """
import os, signal, sys
from paligemma.checkpoints import leaves
from scripts import convert
read, count = leaves.Leaf.read, 0
def read_nine(*args, **kwargs):
  global count
  count += 1
  if count == 9:
    os.kill(os.getpid(), signal.SIGKILL)
  return read(*args, **kwargs)
leaves.Leaf.read = read_nine
convert.convert(*sys.argv[1:3], format=sys.argv[3])
"""
  target = tmp_path / FORMATS[format]
  command = [sys.executable, "-c", killed, SOURCE, target, format]
  done = subprocess.run(command, cwd=ROOT, check=False)
  assert done.returncode == -signal.SIGKILL
  assert not target.exists()
  convert.convert(SOURCE, target, format=format)
  expected = tree.flatten(paligemma.load(SOURCE)[1])
  for name, array in tree.flatten(paligemma.load(target)[1]).items():
    np.testing.assert_array_equal(array, expected[name])


def test_a_card_and_a_chat_template(tmp_path):
  sizes = {"width": 16, "depth": 1, "mlp_dim": 22, "head_dim": 10}
  model, params = paligemma.load(
    "gemma_instruct_2b_en",
    load_weights=False,
    llm={**sizes, "num_heads": 2, "vocab_size": 1792},
  )
  source = tmp_path / "gemma_instruct_2b_en.npz"
  paligemma.save(source, model, params)
  folder = tmp_path / "mine"
  convert.convert(source, folder, format="huggingface", tokenizer=TOKENIZER)
  card = (folder / "README.md").read_text()
  assert 'base_model: ["google/gemma-2b-it"]\n' in card
  assert "# mine\n" in card and "apply_chat_template" in card
  assert (folder / "NOTICE").read_text().startswith("Gemma is provided under")
  assert (folder / "chat_template.jinja").read_text() == chat.TEMPLATE


def test_a_folder_without_tokenizer_says_so(tmp_path):
  convert.convert(SOURCE, tmp_path / "a", format="huggingface")
  assert (
    "This folder holds no tokenizer" in (tmp_path / "a/README.md").read_text()
  )
  assert not (tmp_path / "a/NOTICE").exists()


def test_an_adapter_is_merged(tmp_path):
  model, params = paligemma.load(SOURCE)
  model, params = paligemma.enable_lora(model, params, rank=2)
  flat = tree.flatten(params)
  rng = np.random.default_rng(0)
  for name, x in flat.items():
    if name.endswith("/b"):
      flat[name] = rng.normal(0, 0.1, x.shape).astype(np.float32)
  params = tree.unflatten(flat)
  adapter = tmp_path / "adapter.safetensors"
  paligemma.save_adapter(adapter, model, params)
  convert.convert(SOURCE, tmp_path / "a.npz", adapter=adapter)
  merged = tree.flatten(paligemma.merge_lora(model, params)[1])
  assert_same(npz.load(tmp_path / "a.npz"), merged)
