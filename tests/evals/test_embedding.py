"""Images of a source embedded, and ranks of what is near."""

import dataclasses
import re

import numpy as np
import pytest

import paligemma
from paligemma import init, parameters, tree
from paligemma.data import pairs
from paligemma.evals import embedding
from paligemma.evals.evaluator import Evaluator
from paligemma.models import naflex

RNG = np.random.default_rng(0)


def unit(*shape):
  z = RNG.standard_normal(shape).astype(np.float32)
  return z / np.linalg.norm(z, axis=-1, keepdims=True)


@pytest.mark.parametrize("block", [2**24, 100])
def test_ranks_are_those_of_a_sorted_list(block, monkeypatch):
  monkeypatch.setattr(embedding, "_BLOCK", block)
  queries, searched = unit(41, 7), unit(31, 7)
  belong = [
    RNG.choice(31, RNG.integers(1, 5), replace=False) for _ in range(41)
  ]
  found = embedding.ranks(queries, searched, belong)
  for i, (query, own) in enumerate(zip(queries, belong, strict=True)):
    order = np.argsort(-(searched @ query), kind="stable").tolist()
    assert found.rank[i] == min(order.index(j) for j in own)
    assert found.nearest[i] == order[0]
    near = searched[order[0]] @ query
    assert found.similarity[i] == pytest.approx(near, abs=1e-6)
  assert len(set(found.rank.tolist())) > 8


def test_of_equally_near_ones_the_first_comes_first():
  searched = np.eye(2, dtype="f4")[[0, 1, 1, 1, 0]]
  near = np.float32([[0, 1]])
  ranks = [
    embedding.ranks(near, searched, [own]).rank[0] for own in ([1], [3, 2])
  ]
  assert ranks == [0, 1]
  assert embedding.ranks(near, searched, [[4]]).rank[0] == 4


def test_what_is_not_a_number_is_never_near():
  z = unit(3, 5)
  broken = np.full_like(z, np.nan)
  assert (embedding.ranks(broken, z, [[0], [1], [2]]).rank == 3).all()
  assert (embedding.ranks(z, broken, [[0], [1], [2]]).rank == 3).all()


def keep(example, rng):
  return {**example, "seen": example["suffix"]}


@pytest.fixture(scope="module")
def evaluator(examples, alone):
  return Evaluator("x", examples, alone, batch_size=4)


def embed(evaluator, siglip, mesh, **options):
  return embedding.embed_images(
    evaluator, *siglip, mesh, read=keep, answer_key="suffix", **options
  )


def test_images_are_those_of_embed_images(
  evaluator, siglip, one_device, examples
):
  said = []
  found = embed(
    evaluator, siglip, one_device, progress=lambda *x: said.append(x)
  )
  expected = paligemma.embed_images(*siglip, [x["image"] for x in examples])
  np.testing.assert_allclose(found.z, expected, atol=1e-6)
  assert said == [(0, 11), (4, 11), (8, 11), (11, 11)]
  assert [x["seen"] for x in found.examples] == [x["suffix"] for x in examples]
  assert not any("image" in x for x in found.examples)
  assert len(set(found.digests)) == 11 and not found.errors


def test_limit_devices_and_programs(
  evaluator, siglip, one_device, eight_devices
):
  whole = embed(evaluator, siglip, one_device)
  programs = embedding._embed._cache_size()
  few = embed(dataclasses.replace(evaluator, limit=7), siglip, one_device)
  np.testing.assert_array_equal(few.z, whole.z[:7])
  assert embedding._embed._cache_size() == programs
  spread = dataclasses.replace(evaluator, batch_size=8)
  spread = embed(spread, siglip, eight_devices)
  np.testing.assert_allclose(spread.z, whole.z, atol=1e-6)
  assert spread.digests == whole.digests


class Damaged(list):
  def __getitem__(self, index):
    if index in (3, 10):
      raise ValueError(f"x.jsonl:{index + 1}: no image")
    return super().__getitem__(index)


def test_bad_examples(evaluator, siglip, one_device, examples):
  damaged = dataclasses.replace(evaluator, source=Damaged(examples))
  with pytest.raises(ValueError, match=r"^x.jsonl:4: no image$"):
    embed(damaged, siglip, one_device)
  skipping = dataclasses.replace(damaged, on_bad="skip")
  found = embed(skipping, siglip, one_device)
  whole = embed(evaluator, siglip, one_device)
  good = [i for i in range(11) if i not in (3, 10)]
  np.testing.assert_array_equal(found.z, whole.z[good])
  assert found.errors == {3: "x.jsonl:4: no image", 10: "x.jsonl:11: no image"}
  skipping = dataclasses.replace(skipping, source=Damaged(examples[:4]))
  skipping = dataclasses.replace(skipping, source=Nothing(examples))
  message = 'evaluator "x": none of 11 examples can be used, one of them: gone'
  with pytest.raises(ValueError, match=re.escape(message)):
    embed(skipping, siglip, one_device)


class Nothing(list):
  def __getitem__(self, index):
    raise ValueError("gone")


def test_a_naflex_reads_patches(evaluator, siglip_tok, siglip, one_device):
  model, _ = siglip
  sizes = {x: getattr(model.txt, x) for x in parameters.SIZES["txt"]}
  sizes = {x: sizes[x] for x in sizes if x not in ("vocab_size", "text_len")}
  model = model.clone(img=naflex.Model(patch_size=7, grid=3, **sizes))
  rng = np.random.default_rng(5)
  params = tree.unflatten(
    {
      name: rng.normal(0, 0.5, leaf.shape).astype(np.float32)
      for name, leaf in init.shapes(model, None).items()
    }
  )
  patches = pairs.Pairs(
    siglip_tok,
    res=0,
    text_len=9,
    train=False,
    texts="plain",
    patch_size=7,
    max_patches=9,
  )
  other = dataclasses.replace(evaluator, preprocess=patches, limit=3)
  found = embed(other, (model, params), one_device)
  images = [x["image"] for x in evaluator.source[:3]]
  expected = paligemma.embed_images(model, params, images)
  np.testing.assert_allclose(found.z, expected, atol=1e-6)
  assert len(set(found.digests)) == 3
