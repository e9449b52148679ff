"""Edits of weights of language models and pipelines: data, undone to the bit, stacked, saved in small files.

edit = prune(model, scores, share=0.01)                  # the top hundredth of each row, by any locator's scores
with edit.applied(model): ...                            # inside, the weights are edited; outside, they never were
edit.budget(model)                                       # weights changed, share, ||dW||_F
edit.save("cut.safetensors"); PartEdit.load("cut.safetensors", model)
with tuned(model) as tuning: ...; edit = tuning.delta()  # train weights, keep what it did as an edit
negate(model, task_vector(model, items, loss), items, others, loss).edit
"""

from interp.intervene.weights.base import PartEdit, Stack
from interp.intervene.weights.budget import Budget
from interp.intervene.weights.forget import Aim, Forgetting, negate, rewrite_outputs, task_vector
from interp.intervene.weights.kinds import Delta, LowRank, MeanAblate, OutputVectors, ProjectOut, Prune
from interp.intervene.weights.places import parameter, parameters
from interp.intervene.weights.ranking import (
    prune,
    prune_to_norm,
    prune_units,
    pruned,
    to_norm,
    top_masks,
    top_units,
)
from interp.intervene.weights.tuning import Tuning, part_delta, substituted, tuned
from interp.intervene.weights.whole import ModelDelta, Scaled, difference

__all__ = [
    "Aim",
    "Budget",
    "Delta",
    "Forgetting",
    "LowRank",
    "MeanAblate",
    "ModelDelta",
    "OutputVectors",
    "PartEdit",
    "ProjectOut",
    "Prune",
    "Scaled",
    "Stack",
    "Tuning",
    "difference",
    "negate",
    "parameter",
    "parameters",
    "part_delta",
    "prune",
    "prune_to_norm",
    "prune_units",
    "pruned",
    "rewrite_outputs",
    "substituted",
    "task_vector",
    "to_norm",
    "top_masks",
    "top_units",
    "tuned",
]
