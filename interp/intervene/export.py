"""Interventions as edits of an nnsight model, for notebooks: `edited = interp.to_nnsight(ablate("L1H2"), model)`.

Every trace of the edited model then runs under the intervention, with the same taps as `model.apply` and the same
logits; a plain call of its module does not, for nnsight replays edits in traces only. The edits read the ids and the
mask that a trace feeds. What covers every position needs no more; what depends on a batch (the answer's position, the
span of a role, donors taken from examples) is exported for one batch, and its traces have to feed that batch.
"""

from __future__ import annotations

from typing import Any

import torch

from interp.errors import EngineError, InterpError, UsageError
from interp.intervene.base import Intervention
from interp.models.batch import Batch
from interp.models.engines.base import Frame
from interp.models.engines.nnsight import NnsightEngine, wrap
from interp.models.engines.program import Program
from interp.models.engines.twin import twin
from interp.models.sites import Site
from interp.models.subject import CausalLM


def to_nnsight(
    intervention: Intervention, subject: CausalLM, *, batch: Batch | None = None, model: Any = None
) -> Any:
    """An nnsight model whose traces run under an intervention.

    Args:
        intervention: anything that lowers to taps; `+` composes.
        subject: the model; its own module is left as it is.
        batch: the batch that traces will feed, for an intervention that depends on it. Feed `batch.ids` as
            `input_ids`, with `attention_mask=batch.mask` and `position_ids=batch.positions`.
        model: an nnsight model of the subject, edited before or not; default a new wrapper over the same weights.

    Returns:
        the edited `nnsight.TransformersModel` (`NNsight` where there is no tokenizer); `model` stays unedited.

    Raises:
        UsageError: the intervention depends on a batch and none is given.
        EngineError: the subject's weights are elsewhere.
    """
    model = _wrapped(subject) if model is None else model
    exported = _Exported(intervention, subject, batch)
    with model.edit() as (_, edited):
        program = exported.program(edited.inputs)
        program.prepare(edited)
        for stop in program.stops:
            program.reach(edited, stop)
        exported.end(program, edited)
    return edited


def _wrapped(subject: CausalLM) -> Any:
    if isinstance(subject.engine, NnsightEngine):
        if subject.engine.remote:
            raise EngineError(
                f"{subject.name} is on a server, and an edit needs its weights here: interp.load(...)"
            )
        return subject.engine.model
    return wrap(twin(subject.hf, "nnsight"), subject.tokens.hf if subject.has_tokens else None)


class _Exported:
    """An intervention, and what is needed to lower it for whatever a trace feeds."""

    def __init__(self, intervention: Intervention, subject: CausalLM, batch: Batch | None):
        self.intervention, self.subject, self.batch = intervention, subject, batch
        if batch is not None:
            self.taps: Any = intervention.lower(subject, batch)
            return
        probe = Batch.of_ids([[0, 0]], device=subject.device)
        advice = "export it for one: to_nnsight(..., batch=model.batch(examples))"
        try:
            for site, columns in intervention.touches(subject, probe).items():
                if not bool(columns.all()):
                    raise UsageError(f"which positions it cuts at {site} depends on the batch")
            # Runs that its references need are made here, and not inside a trace.
            with subject.apply(intervention):
                subject.run(probe, keep=1)
        except InterpError as error:
            raise UsageError(
                f"{intervention} cannot be exported: {error} (tried on bare ids; if it needs examples, {advice})"
            ) from error

    def program(self, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Program:
        """What the edit does in the pass that has these inputs."""
        batch = _fed(*inputs)
        if self.batch is None:
            taps = self.intervention.lower(self.subject, batch)
        else:
            self._check(batch, self.batch)
            taps, batch = self.taps, self.batch
        return Program(self.subject, taps, None, Frame(batch, width=batch.width, forwards=1))

    @staticmethod
    def _check(fed: Batch, batch: Batch) -> None:
        real = batch.mask.bool()
        same = fed.ids.shape == batch.ids.shape and torch.equal(fed.mask.bool(), real)
        if not same or not torch.equal(fed.ids[real], batch.ids[real]):
            raise UsageError(
                f"this edit was exported for a batch of {len(batch)} x {batch.width} tokens, and the trace feeds "
                f"another one ({len(fed)} x {fed.width}); export it again for that"
            )

    @staticmethod
    def end(program: Program, model: Any) -> None:
        """Edits of the logits come after the pass."""
        if Site("logits") in program.taps:
            program.finish(model)
        program.check_fired()


def _fed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Batch:
    """The batch that a call of a language model feeds."""
    if kwargs.get("past_key_values") is not None:
        raise EngineError(
            "an exported edit holds for one pass over whole prompts; generate with model.apply(...) and model.generate"
        )
    ids = args[0] if args else kwargs.get("input_ids")
    if ids is None:
        raise UsageError("an exported edit needs token ids: trace text or input_ids, not embeddings")
    mask = kwargs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask.to(ids.dtype)
    if mask.ndim != 2:
        raise UsageError(
            "an exported edit reads the padding from a mask of rows by tokens; give no other one"
        )
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    last = torch.full((ids.shape[0],), ids.shape[1] - 1, device=ids.device)
    return Batch(ids, mask, positions, ids.shape[1] - mask.sum(1), last, (), False)
