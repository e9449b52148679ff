"""Editing facts in weights: ROME, MEMIT, the moments of keys they need, and edits as files.

moments = second_moments(model)                                   # one pass over text, kept in the cache
fact = Rewrite.of_text(model, "The capital of {} is", "France", "Rome", true="Paris")
edit = rome(model, fact, layer=8, moments=moments)
with model.apply(edit): ...                                       # or edit.applied(model): the weights themselves
edit.save("rome.safetensors"); FactEdit.load("rome.safetensors", model)
"""

from interp.intervene.facts.covariance import Moments, common_text, second_moments
from interp.intervene.facts.delta import FactEdit
from interp.intervene.facts.memit import Residuals, memit, residuals
from interp.intervene.facts.requests import Prefixes, Rewrite
from interp.intervene.facts.rome import rome
from interp.intervene.facts.values import Search

__all__ = [
    "FactEdit",
    "Moments",
    "Prefixes",
    "Residuals",
    "Rewrite",
    "Search",
    "common_text",
    "memit",
    "residuals",
    "rome",
    "second_moments",
]
