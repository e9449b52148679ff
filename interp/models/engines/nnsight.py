"""The nnsight engine: taps run inside an nnsight trace, here or (`interp.models.remote`) where the model is.

nnsight leaves a controller on every module it wraps, so the engine wraps a *twin*: a second module tree over the same
tensors. The subject's own module, and every other engine over it, stay as they are. A model that was wrapped already
is used as it is, with the edits that it carries.

nnsight runs the source of a `with` block in step with the forward pass; the block is in `walk` below. What the engine
cannot do it refuses: it has no resume, takes no KV cache and no mask of its own.

Importing nnsight gives every object in the process a `.save` and patches `Tensor.backward`. When this module is what
imports it, both are undone; who wants them imports nnsight first. `nnsight.save(x)` always works.
"""

from __future__ import annotations

import copy
import copyreg
import os
import sys
import weakref
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from interp.errors import EngineError, InterpError, MissingResource, UsageError
from interp.models.batch import Batch
from interp.models.engines.base import Frame, Rows, Taps, Trace
from interp.models.engines.program import Program, Stop
from interp.models.engines.twin import twin
from interp.models.sites import Site

if TYPE_CHECKING:
    from interp.models.engines.resume import Checkpoint
    from interp.models.subject import CausalLM

WRAPPERS = ("NNsight", "TransformersModel", "LanguageModel")
"""nnsight's classes that hold a whole language model."""


def library() -> Any:
    """nnsight, imported without its marks on the process."""
    if "nnsight" in sys.modules:
        return sys.modules["nnsight"]
    # PyTorch ships no types for its patched self; what matters is that the very same function comes back.
    backward = torch.Tensor.backward
    import nnsight
    from nnsight._c import unmount

    torch.Tensor.backward = backward  # type: ignore[method-assign]
    if unmount is not None and hasattr(object, "save"):
        unmount("save")
    return nnsight


def api_key() -> str:
    """The key of NDIF from the environment.

    Raises:
        MissingResource: there is none.
    """
    key = os.environ.get("NDIF_API_KEY", "")
    if not key:
        raise MissingResource(
            "NDIF_API_KEY is not set, and a remote run needs it: get a key from ndif.us and export NDIF_API_KEY=..., "
            "or rehearse the run here with remote='local'"
        )
    return key


def wrap(module: nn.Module, tokenizer: Any = None) -> Any:
    """An nnsight model over a module: `TransformersModel` where there is a tokenizer, else `NNsight`."""
    nnsight = library()
    if tokenizer is None:
        return nnsight.NNsight(module)
    # Its own copy, since the wrapper turns padding to the left; and the module's own device, since a pipeline would
    # move the weights to the first GPU it finds.
    where = {} if getattr(module, "hf_device_map", None) else {"device": next(module.parameters()).device}
    return nnsight.TransformersModel(
        module, tokenizer=copy.deepcopy(tokenizer), task="text-generation", **where
    )


def is_wrapped(model: Any) -> bool:
    """Whether an object is a language model wrapped by nnsight; nnsight is not imported to tell."""
    return any(c.__name__ in WRAPPERS and c.__module__.startswith("nnsight.") for c in type(model).__mro__)


# Modules in a pass now: nnsight would serve a pass within a pass to the outer one's taps, whichever wrapper began it.
_running: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class NnsightEngine:
    """Runs taps through nnsight.

    Args:
        subject: the model.
        model: it wrapped by nnsight already; default a wrapper of a twin, made at the first run.
        remote: run on NDIF (`True`), on the server at a URL, or through nnsight's rehearsal of a server (`"local"`).
            `interp.models.remote.remote_model` makes a subject for this.

    Raises:
        UsageError: `model` wraps another module than the subject's, or a remote run has no tokenizer.
        MissingResource: `remote=True` without `NDIF_API_KEY` in the environment.
    """

    name = "nnsight"

    def __init__(self, subject: CausalLM, model: Any = None, *, remote: bool | str = False):
        self.subject = subject
        self.remote = remote
        # Gradients do not come back from a server.
        self.capabilities = frozenset(
            {"rows", "attention", "weights"} if remote else {"rows", "attention", "weights", "grad"}
        )
        self._given = model
        self._made: Any = None
        if model is not None and model._module is not subject.hf:
            raise UsageError("that nnsight model wraps another module than this subject's")
        if remote is True:
            api_key()
        if remote and not (subject.has_tokens if model is None else hasattr(model, "to_model_key")):
            raise UsageError(
                "a remote run goes through nnsight's TransformersModel, which needs a tokenizer; "
                "load the model with one"
            )

    @property
    def model(self) -> Any:
        """The nnsight model that runs."""
        if self._given is not None:
            return self._given
        hf = self.subject.hf
        # A weight that was replaced, and not changed in place, is no longer shared.
        shared = self._made is not None and all(
            a is b for a, b in zip(hf.parameters(), self._made._module.parameters(), strict=True)
        )
        if not shared:
            self._made = wrap(
                twin(hf, "nnsight"), self.subject.tokens.hf if self.subject.has_tokens else None
            )
        kernel = hf.config._attn_implementation
        if self._made._module.config._attn_implementation != kernel:
            self._made._module.set_attn_implementation(kernel)
        return self._made

    def run(
        self,
        batch: Batch,
        taps: Taps,
        *,
        rows: Rows | None = None,
        keep: int | None = None,
        cache: Any = None,
        use_cache: bool = False,
        mask: Any = None,
        past: int = 0,
        start: Checkpoint | None = None,
        stop: int | None = None,
    ) -> Trace:
        """One forward pass over the batch.

        Args:
            batch: what is run.
            taps: what is watched and edited.
            rows: which attention rows to reduce.
            keep: logits of this many last columns; default the columns that predict answers.
            cache, use_cache, mask, past, start, stop: refused.
        """
        if cache is not None or use_cache or past:
            raise EngineError("engine 'nnsight' takes no KV cache: run without cache, use_cache and past")
        if mask is not None:
            raise EngineError("engine 'nnsight' takes no attention mask of its own: run without mask")
        if start is not None or stop is not None:
            raise EngineError("engine 'nnsight' cannot resume: run without start and stop")
        if self.remote and torch.is_grad_enabled():
            raise EngineError("engine 'nnsight' brings no gradients back from a server: run without grad")
        model = self.model
        if model._module in _running:
            raise EngineError("a tap ran the model it taps: compute what an edit needs before the pass")
        program = Program(self.subject, taps, rows, Frame(batch, width=batch.width, forwards=1))
        call = forward_arguments(batch, keep)
        _running.add(model._module)
        try:
            found = self._send(program, call) if self.remote else walk(model.trace(**call), model, program)
        finally:
            _running.discard(model._module)
        program.fired = {Site.parse(site): n for site, n in found["fired"].items()}
        program.check_fired()
        records = {Site.parse(site): kept for site, kept in found["records"].items()}
        return Trace(found["logits"], records, found["rows"])

    def _send(self, program: Program, call: dict[str, Any]) -> dict[str, Any]:
        nnsight = library()
        # Servers have no `interp`: its classes and functions go along as source.
        nnsight.register("interp")
        # Before Python 3.12 these hold a lock, which cannot be sent; the classes that go along have some.
        copyreg.pickle(cached_property, _reduce_cached)
        if self.remote is True:
            # nnsight read the environment when it was imported, which may be long ago.
            nnsight.schema.config.CONFIG.API.APIKEY = api_key()
        try:
            return walk(self.model.trace(**call, remote=self.remote), self.model, program)
        except InterpError:
            raise
        except Exception as error:
            told = " ".join(str(error).split()) or "no reason given"
            raise EngineError(
                f"the remote run of {self.subject.name} failed: {type(error).__name__}: {told}"
            ) from error


def _reduce_cached(given: cached_property[Any]) -> tuple[Any, ...]:
    return _cached, (given.func, given.attrname)


def _cached(function: Any, name: str) -> cached_property[Any]:
    made = cached_property(function)
    made.__set_name__(object, name)
    return made


def forward_arguments(batch: Batch, keep: int | None) -> dict[str, Any]:
    """What the model is called with: ids, mask and positions, so that no one else pads or counts."""
    return {
        "input_ids": batch.ids,
        "attention_mask": batch.mask,
        "position_ids": batch.positions,
        "use_cache": False,
        "logits_to_keep": batch.keep if keep is None else keep,
    }


def walk(tracer: Any, model: Any, program: Program) -> dict[str, Any]:
    """Run a program in a trace that is yet to be entered; returns what `Program.finish` kept.

    Raises:
        EngineError: the pass ended before it came to a stop.
    """
    nnsight = library()
    try:
        with tracer:
            program.prepare(model)
            for stop in program.stops:
                program.reach(model, stop)
            kept = nnsight.save(program.finish(model))
    except Exception as error:
        if type(error).__name__ != "OutOfOrderError":
            raise
        raise EngineError(_never(program.waiting)) from error
    return kept


def _never(stop: Stop | None) -> str:
    if stop is None:
        return "the pass ended without logits"
    what = ", ".join(f"{site} fired 0x" for site in stop.sites) or f"{stop.kind}[{stop.layer}] was not met"
    return f"taps must fire once in each of 1 forward passes, but {what} ({stop.path})"
