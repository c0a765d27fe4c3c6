"""Answers are scored as by the official scorers that packages carry.

The packages are installed without what they depend on, which is much and old:
each scorer is one file, or one function, that needs none of it. They are

  salesforce-lavis: the official VQA evaluation of GT-Vision-Lab/VQA.
  anls: ANLS of Biten et al. on tidied texts.
  lmms-eval: the relaxed accuracy of pix2struct, the ANLS script of the Robust
    Reading Competition, and POPE.
"""

import ast
import contextlib
import importlib.metadata
import importlib.util
import io
import pathlib
import random
import types
import warnings

import pytest

from paligemma.metrics import anls, chartqa, pope, vqav2
from tests.metrics import adversarial_texts

NUMBER = 20_000


@pytest.fixture(scope="module")
def texts():
  return adversarial_texts.texts(seed=59, number=NUMBER)


@pytest.fixture(scope="module")
def near(texts):
  return adversarial_texts.near(texts, seed=61)


def located(package, path):
  """The path of a package's file; skips where the package is missing."""
  try:
    file = importlib.metadata.distribution(package).locate_file(path)
  except importlib.metadata.PackageNotFoundError:
    pytest.skip(f"{package} is not installed")
  return pathlib.Path(file)


def official(package, path):
  """A module of a package, without the package's own imports."""
  spec = importlib.util.spec_from_file_location(
    "official", located(package, path)
  )
  module = importlib.util.module_from_spec(spec)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # "\d" in plain strings
    spec.loader.exec_module(module)
  return module


def official_functions(package, path, *names):
  """Functions of a module, without its imports and their decorators."""
  file = located(package, path)
  body = [
    node
    for node in ast.parse(file.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name in names
  ]
  for function in body:
    function.decorator_list = []
  namespace = {}
  exec(compile(ast.Module(body, []), file, "exec"), namespace)
  return types.SimpleNamespace(**{name: namespace[name] for name in names})


@pytest.fixture(scope="module")
def vqa_eval():
  return official("salesforce-lavis", "lavis/common/vqa_tools/vqa_eval.py")


def test_vqa_table(vqa_eval):
  theirs = vqa_eval.VQAEval()
  table = theirs.contractions | theirs.manualMap
  assert len(table) == 132
  idle = {
    word
    for word, whole in table.items()
    if word == whole or word != word.lower()
  }
  kept = {w: table[w] for w in table if w not in idle}
  assert kept == vqav2.REPLACEMENTS
  assert len(idle) == 6
  assert sorted(theirs.punct) == sorted(vqav2.PUNCTUATION)
  assert tuple(theirs.articles) == vqav2.ARTICLES


def test_vqa_normalisation(vqa_eval, texts, near):
  theirs = vqa_eval.VQAEval()
  for text in texts + near:
    expected = theirs.processDigitArticle(theirs.processPunctuation(text))
    assert vqav2.normalize(text) == expected, repr(text)


def test_vqa_removes_no_more_than_32_points(vqa_eval):
  """Where we follow big_vision and not the official code."""
  text = "." * 40
  assert vqa_eval.VQAEval().processPunctuation(text) == "." * 8
  assert vqav2.normalize(text) == ""


def test_vqa_accuracy(vqa_eval):
  # Words that normalisation leaves alone: which side it applies to differs
  # between versions of the official code, leaving one out does not.
  words = ["red", "blue car", "2", "don't", ""]
  rng = random.Random(67)
  kinds = ["yes/no", "number", "other"]
  questions, results, examples = {}, {}, []
  for i in range(NUMBER):
    answers = rng.choices(words, weights=rng.choices(range(1, 9), k=5), k=10)
    questions[i] = {
      "answers": [{"answer": a, "answer_id": j} for j, a in enumerate(answers)],
      "answer_type": rng.choice(kinds),
      "question_type": "what",
    }
    results[i] = {"answer": rng.choice(words)}
    examples.append(
      {"suffix": answers, "answer_type": questions[i]["answer_type"]}
    )
  data = annotations(questions)
  theirs = vqa_eval.VQAEval(data, annotations(results), n=10)
  with contextlib.redirect_stdout(io.StringIO()):
    theirs.evaluate()

  metric = vqav2.VQAv2()
  rows = metric.rows([results[i]["answer"] for i in range(NUMBER)], examples)
  for i, row in enumerate(rows):
    assert 100 * row["acc"] == pytest.approx(theirs.evalQA[i])
  scores = metric.reduce(rows)
  assert 100 * scores["acc"] == pytest.approx(theirs.accuracy["overall"])
  for kind, accuracy in theirs.accuracy["perAnswerType"].items():
    found = scores[f"acc/{kind.replace('/', '')}"]
    assert 100 * found == pytest.approx(accuracy)


def annotations(rows):
  return types.SimpleNamespace(qa=rows, getQuesIds=lambda: list(rows))


def test_edit_distance(texts, near):
  theirs = official("anls", "anls/metrics/dist.py")
  for a, b in zip(texts, near, strict=True):
    assert anls.edit_distance(a, b) == theirs.levenshtein_distance(a, b)


def test_anls(texts, near):
  theirs = official("anls", "anls/metrics/dist.py")
  score = official_functions(
    "anls", "anls/metrics/score.py", "similatiry_function"
  ).similatiry_function
  score.__globals__["NL"] = theirs.normalized_levenshtein_distance
  half = 0
  for a, b in zip(texts, near, strict=True):
    if len(a) != len(a.upper()) or len(b) != len(b.upper()):
      continue  # they divide by the length of the upper case
    assert anls.anls(a, b) == pytest.approx(score(a, b, 0.5))
    half += theirs.normalized_levenshtein_distance(a, b) == 0.5
  assert half > 100


def test_anls_official(texts, near):
  theirs = official_functions(
    "lmms-eval", "lmms_eval/api/metrics.py", "anls", "levenshtein_distance"
  ).anls
  half = 0
  for i, (prediction, answer) in enumerate(zip(texts, near, strict=True)):
    answers = [answer, texts[i - 1]][: 1 + i % 2]
    expected = theirs(answers, [prediction])["anls"]
    assert anls.official(prediction, answers) == pytest.approx(expected)
    half += expected == 0.5
  assert half > 100


def test_chartqa(texts, near):
  theirs = official("lmms-eval", "lmms_eval/tasks/chartqa/utils.py")
  examples = [{"suffix": answer} for answer in near]
  rows = chartqa.ChartQA().rows(texts, examples)
  for prediction, answer, row in zip(texts, near, rows, strict=True):
    expected = theirs.relaxed_correctness(prediction, answer)
    assert row["relaxed_acc"] == expected, (prediction, answer)
  assert 1000 < sum(row["relaxed_acc"] for row in rows) < NUMBER - 1000


def test_pope():
  theirs = official("lmms-eval", "lmms_eval/tasks/pope/utils.py")
  rng = random.Random(71)
  said = rng.choices(["yes", "Yes", "no", "NO"], k=NUMBER)
  examples = [{"suffix": rng.choice(["yes", "no", "no"])} for _ in said]
  found = pope.POPE()(said, examples)
  results = [
    theirs.pope_process_results(
      {"answer": example["suffix"], "question_id": i}, [text]
    )["pope_accuracy"]
    for i, (text, example) in enumerate(zip(said, examples, strict=True))
  ]
  assert found["acc"] == pytest.approx(theirs.pope_aggregate_accuracy(results))
  for ours, name in (("precision",) * 2, ("recall",) * 2, ("f1", "f1_score")):
    expected = getattr(theirs, f"pope_aggregate_{name}")(results)
    assert found[ours] == pytest.approx(expected)
