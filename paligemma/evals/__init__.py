"""Evaluators: a source, a model and its parameters in, named numbers out.

evaluator.run(model, params, mesh, output_dir=..., rng=..., progress=...)
  -> {name: value}
"""

from paligemma.evals.evaluator import Recorded
from paligemma.evals.few_shot import FewShot
from paligemma.evals.generate import Generate
from paligemma.evals.perplexity import Perplexity
from paligemma.evals.retrieval import Retrieval
from paligemma.evals.zero_shot import ZeroShot

__all__ = ["FewShot", "Generate", "Perplexity", "Retrieval", "ZeroShot"]

# Those that write predictions.
PREDICT = (Generate, Recorded)
