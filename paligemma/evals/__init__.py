"""Evaluators: a source, a model and its parameters in, named numbers out.

evaluator.run(model, params, mesh, output_dir=..., rng=..., progress=...)
  -> {name: value}
"""

from paligemma.evals.generate import Generate
from paligemma.evals.perplexity import Perplexity

__all__ = ["Generate", "Perplexity"]
