"""A microscope and a scalpel for memory in neural networks.

Load a model, pose a task, trace it, intervene, measure the effect, locate a mechanism, sweep, plot. The names below
are the public face; each is imported when it is first used, so that `import interp` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from interp.intervene.ablate import ablate
    from interp.intervene.attack.embeddings import adversarial_embeddings
    from interp.intervene.attack.soft_prompt import soft_prompts
    from interp.intervene.attention import set_attention
    from interp.intervene.edit import WeightEdit
    from interp.intervene.export import to_nnsight
    from interp.intervene.facts.covariance import second_moments
    from interp.intervene.facts.delta import FactEdit
    from interp.intervene.facts.memit import memit
    from interp.intervene.facts.requests import Rewrite
    from interp.intervene.facts.rome import rome
    from interp.intervene.hide import hide
    from interp.intervene.patch import patch
    from interp.intervene.subspace import project_out
    from interp.intervene.trace import How, aggregate, trace_map, trace_maps
    from interp.intervene.weights import MeanAblate, OutputVectors, PartEdit, ProjectOut, Prune, Stack
    from interp.locate.channels.locator import Channels
    from interp.locate.circuits.path_patching import path_patch
    from interp.locate.compare import compare as compare_heads
    from interp.locate.duo import DuoGates
    from interp.locate.facts.context_heads import ContextHeads
    from interp.locate.facts.fact_mlps import FactMLPs
    from interp.locate.facts.flow import knockout_map
    from interp.locate.facts.prior_layers import PriorLayers
    from interp.locate.interop import read_heads, write_heads
    from interp.locate.memorization.nemo import NeMo
    from interp.locate.memorization.subspace import ContrastSubspace
    from interp.locate.memorization.wanda import WandaContrast
    from interp.locate.retrieval_heads import RetrievalHeads
    from interp.locate.screen import screen
    from interp.measure.known import known_to
    from interp.measure.memorization.detection import signals
    from interp.measure.memorization.extraction import Yardstick, extraction
    from interp.measure.memorization.recite import recite
    from interp.measure.scenarios import scenarios
    from interp.measure.sequential import Stop
    from interp.models.engines.base import Record
    from interp.models.load import load
    from interp.models.parts import parts
    from interp.models.pipeline import Pipeline
    from interp.models.sites import MLP, Head, Neuron, Site
    from interp.tasks.base import Example, Span, Task
    from interp.tasks.memorized import ImageItem, TextItem
    from interp.tasks.registry import task
    from interp.trace.passes import Prompts, Sequences

_PUBLIC = {
    "load": "interp.models.load:load",
    "task": "interp.tasks.registry:task",
    "Example": "interp.tasks.base:Example",
    "Span": "interp.tasks.base:Span",
    "Task": "interp.tasks.base:Task",
    "Site": "interp.models.sites:Site",
    "Head": "interp.models.sites:Head",
    "MLP": "interp.models.sites:MLP",
    "Neuron": "interp.models.sites:Neuron",
    "Record": "interp.models.engines.base:Record",
    "RetrievalHeads": "interp.locate.retrieval_heads:RetrievalHeads",
    "DuoGates": "interp.locate.duo:DuoGates",
    "Channels": "interp.locate.channels.locator:Channels",
    "circuits": "interp.locate.circuits",
    "FactMLPs": "interp.locate.facts.fact_mlps:FactMLPs",
    "ContextHeads": "interp.locate.facts.context_heads:ContextHeads",
    "PriorLayers": "interp.locate.facts.prior_layers:PriorLayers",
    "Stop": "interp.measure.sequential:Stop",
    "compare_heads": "interp.locate.compare:compare",
    "read_heads": "interp.locate.interop:read_heads",
    "write_heads": "interp.locate.interop:write_heads",
    "properties": "interp.locate.properties",
    "ablate": "interp.intervene.ablate:ablate",
    "hide": "interp.intervene.hide:hide",
    "patch": "interp.intervene.patch:patch",
    "path_patch": "interp.locate.circuits.path_patching:path_patch",
    "set_attention": "interp.intervene.attention:set_attention",
    "trace_map": "interp.intervene.trace:trace_map",
    "trace_maps": "interp.intervene.trace:trace_maps",
    "How": "interp.intervene.trace:How",
    "aggregate": "interp.intervene.trace:aggregate",
    "knockout_map": "interp.locate.facts.flow:knockout_map",
    "screen": "interp.locate.screen:screen",
    "project_out": "interp.intervene.subspace:project_out",
    "WeightEdit": "interp.intervene.edit:WeightEdit",
    "rome": "interp.intervene.facts.rome:rome",
    "memit": "interp.intervene.facts.memit:memit",
    "Rewrite": "interp.intervene.facts.requests:Rewrite",
    "FactEdit": "interp.intervene.facts.delta:FactEdit",
    "second_moments": "interp.intervene.facts.covariance:second_moments",
    "to_nnsight": "interp.intervene.export:to_nnsight",
    "Pipeline": "interp.models.pipeline:Pipeline",
    "parts": "interp.models.parts:parts",
    "Prompts": "interp.trace.passes:Prompts",
    "Sequences": "interp.trace.passes:Sequences",
    "ImageItem": "interp.tasks.memorized:ImageItem",
    "TextItem": "interp.tasks.memorized:TextItem",
    "WandaContrast": "interp.locate.memorization.wanda:WandaContrast",
    "NeMo": "interp.locate.memorization.nemo:NeMo",
    "ContrastSubspace": "interp.locate.memorization.subspace:ContrastSubspace",
    "PartEdit": "interp.intervene.weights:PartEdit",
    "Prune": "interp.intervene.weights:Prune",
    "ProjectOut": "interp.intervene.weights:ProjectOut",
    "MeanAblate": "interp.intervene.weights:MeanAblate",
    "OutputVectors": "interp.intervene.weights:OutputVectors",
    "Stack": "interp.intervene.weights:Stack",
    "signals": "interp.measure.memorization.detection:signals",
    "extraction": "interp.measure.memorization.extraction:extraction",
    "Yardstick": "interp.measure.memorization.extraction:Yardstick",
    "adversarial_embeddings": "interp.intervene.attack.embeddings:adversarial_embeddings",
    "soft_prompts": "interp.intervene.attack.soft_prompt:soft_prompts",
    "recite": "interp.measure.memorization.recite:recite",
    "known_to": "interp.measure.known:known_to",
    "scenarios": "interp.measure.scenarios:scenarios",
    "measure": "interp.measure",
    "atlas": "interp.atlas",
    "errors": "interp.errors",
    "plot": "interp.plot",
}
"""Where each public name lives: `module:attribute`, or a module alone."""

__all__ = [
    "MLP",
    "Channels",
    "ContextHeads",
    "ContrastSubspace",
    "DuoGates",
    "Example",
    "FactEdit",
    "FactMLPs",
    "Head",
    "How",
    "ImageItem",
    "MeanAblate",
    "NeMo",
    "Neuron",
    "OutputVectors",
    "PartEdit",
    "Pipeline",
    "PriorLayers",
    "ProjectOut",
    "Prompts",
    "Prune",
    "Record",
    "RetrievalHeads",
    "Rewrite",
    "Sequences",
    "Site",
    "Span",
    "Stack",
    "Stop",
    "Task",
    "TextItem",
    "WandaContrast",
    "WeightEdit",
    "Yardstick",
    "ablate",
    "adversarial_embeddings",
    "aggregate",
    "atlas",
    "circuits",
    "compare_heads",
    "errors",
    "extraction",
    "hide",
    "knockout_map",
    "known_to",
    "load",
    "measure",
    "memit",
    "parts",
    "patch",
    "path_patch",
    "plot",
    "project_out",
    "properties",
    "read_heads",
    "recite",
    "rome",
    "scenarios",
    "screen",
    "second_moments",
    "set_attention",
    "signals",
    "soft_prompts",
    "task",
    "to_nnsight",
    "trace_map",
    "trace_maps",
    "write_heads",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'interp' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    value = import_module(module)
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
