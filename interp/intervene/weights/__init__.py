"""Edits of weights of language models and pipelines: data, undone to the bit, stacked, saved in small files.

edit = prune(model, scores, share=0.01)                  # the top hundredth of each row, by any locator's scores
with edit.applied(model): ...                            # inside, the weights are edited; outside, they never were
edit.budget(model)                                       # weights changed, share, ||dW||_F
edit.save("cut.safetensors"); PartEdit.load("cut.safetensors", model)
"""

from interp.intervene.weights.base import PartEdit, Stack
from interp.intervene.weights.budget import Budget
from interp.intervene.weights.kinds import Delta, LowRank, MeanAblate, OutputVectors, ProjectOut, Prune
from interp.intervene.weights.places import parameter, parameters
from interp.intervene.weights.whole import ModelDelta, Scaled, difference

__all__ = [
    "Budget",
    "Delta",
    "LowRank",
    "MeanAblate",
    "ModelDelta",
    "OutputVectors",
    "PartEdit",
    "ProjectOut",
    "Prune",
    "Scaled",
    "Stack",
    "difference",
    "parameter",
    "parameters",
]
