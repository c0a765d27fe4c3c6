"""Evaluators: a source, a model and its parameters in, named numbers out.

run(model, params, mesh, *, output_dir=None, rng=None, progress=None)
  -> {name: value}
"""

from paligemma.evals.generate import Generate
from paligemma.evals.perplexity import Perplexity

EVALUATORS = {"generate": Generate, "perplexity": Perplexity}
