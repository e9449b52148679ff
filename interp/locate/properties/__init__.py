"""The properties that Wu et al. (2024, arXiv 2404.15574) claim of retrieval heads, one call each.

`sparse`, `universal`, `intrinsic`, `dynamic` and `causal` measure one claim on the model that is given. Each returns a
`Property`: tidy tables, one sentence of numbers, and a figure. None of them decides whether the claim holds.

Example:
    heads = interp.RetrievalHeads().fit(model, interp.task("niah", n=64))
    found = sparse(heads)
    print(found.summary)
    found.figure().show()
"""

from interp.locate.properties.activity import dynamic
from interp.locate.properties.base import Property
from interp.locate.properties.inheritance import intrinsic
from interp.locate.properties.necessity import causal
from interp.locate.properties.sparsity import sparse
from interp.locate.properties.universality import universal

__all__ = ["Property", "causal", "dynamic", "intrinsic", "sparse", "universal"]
