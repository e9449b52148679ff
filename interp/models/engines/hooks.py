"""The reference engine: plain torch hooks on the untouched Hugging Face module.

SDPA and flash kernels, the KV cache, `device_map`, quantised weights and GGUF keep working, since nothing of the model
is replaced: hooks are put on for one run and taken off after it, by an exception too. Every tap must fire exactly once
a forward pass, or the run fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from interp.errors import EngineError, UsageError
from interp.models.batch import Batch
from interp.models.engines.attention import AttentionCall, tapped_attention
from interp.models.engines.base import Frame, Rows, Taps, Trace
from interp.models.engines.resume import Checkpoint, Stopped, begun, check_range, stopped
from interp.models.engines.rows import reduce_rows
from interp.models.engines.visits import Visits, cut, narrow
from interp.models.families import Place
from interp.models.sites import KERNEL_KINDS, LINEAR, Site

if TYPE_CHECKING:
    from interp.models.subject import CausalLM

_OUTPUT = Place("", "out")


class Session(Visits):
    """Taps bound to one model: hooks, counters and what was recorded, for one run or one generation."""

    def __init__(self, subject: CausalLM, taps: Taps, rows: Rows | None, frame: Frame):
        super().__init__(subject, taps, frame)
        self.rows_wanted = rows
        self.rows: dict[int, Any] = {}
        if rows is not None and rows.layers is not None:
            for layer in rows.layers:
                subject.check(Site("attention", layer))
        self._carry: dict[int, torch.Tensor] = {}

    # -- what happens at a site --------------------------------------------------------------------------------------

    def _at(self, sites: list[Site], place: Place, tensor: torch.Tensor) -> torch.Tensor:
        """Visit the sites that are cut out of one module's tensor; returns the tensor to go on with."""
        for site in sites:
            whole = self._split(place, tensor)
            view = whole if site.index is None else narrow(site, whole)
            out = self.visit(site, view)
            if out is not view:
                tensor = tensor.clone()
                target = self._split(place, tensor)
                (target if site.index is None else narrow(site, target)).copy_(out)
        return tensor

    def _split(self, place: Place, x: torch.Tensor) -> torch.Tensor:
        return cut(place.part, x, self.subject.n_heads, self.subject.n_kv_heads, self.subject.d_head)

    # -- hooks -------------------------------------------------------------------------------------------------------

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Hooks on, and off again however the block is left."""
        if self.subject.hooked:
            raise EngineError("a tap ran the model it taps: compute what an edit needs before the pass")
        with ExitStack() as stack:
            self.subject.hooked = True
            stack.callback(setattr, self.subject, "hooked", False)
            hook = self._hook_onto(stack)
            model = self.subject.hf
            hook(model.register_forward_pre_hook(self._begin, with_kwargs=True))
            # Hooks of one module run in the order they are put on: heads' shares come before what they add up to.
            for site in self.taps:
                if site.kind in LINEAR:
                    self._hook_linear(hook, site)
            for site in self.taps:
                if site.kind == "head_out":
                    self._hook_head_out(hook, site)
            for place_key, sites in self._by_place().items():
                layer, place = place_key
                module = (
                    model.get_input_embeddings()
                    if layer is None
                    else self.subject.module(layer, place.module)
                )
                if place.side == "in":
                    hook(module.register_forward_pre_hook(self._input_hook(sites, place), with_kwargs=True))
                else:
                    hook(module.register_forward_hook(self._output_hook(sites, place, layer)))
            for site in self.taps:
                if site.kind == "logits":
                    hook(model.register_forward_hook(self._logits_hook(site)))
            kernel = self._kernel_layers()
            if kernel:
                modules = {i: self.subject.module(i, self.subject.family.attention) for i in kernel}
                stack.enter_context(tapped_attention(model, modules, self._attention))
            yield
        self.check_fired()

    @staticmethod
    def _hook_onto(stack: ExitStack) -> Callable[[Any], None]:
        def hook(handle: Any) -> None:
            stack.callback(handle.remove)

        return hook

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        cache = kwargs.get("past_key_values")
        ids = kwargs.get("input_ids", args[0] if args else None)
        self.frame.past = int(cache.get_seq_length()) if cache is not None else 0
        self.frame.width = int(ids.shape[1])
        self.frame.cached = cache is not None
        self.frame.forwards += 1
        self._carry.clear()

    def _by_place(self) -> dict[tuple[int | None, Place], list[Site]]:
        """Sites grouped by the module tensor they are cut from, in order of execution."""
        groups: dict[tuple[int | None, Place], list[Site]] = {}
        family = self.subject.family
        for site in self.taps:
            if site.kind in KERNEL_KINDS | LINEAR or site.kind in ("head_out", "logits"):
                continue
            place = _OUTPUT if site.kind == "embed" else family.sites[site.kind]
            groups.setdefault((site.layer, place), []).append(site)
            if site.kind == "resid_mid":  # an edit there must reach the residual stream too, see _input_hook
                groups.setdefault((site.layer, family.sites["resid_post"]), [])
        # The carried change joins resid_post, and later blocks see it through their own input.
        return groups

    def _input_hook(self, sites: list[Site], place: Place) -> Callable[..., Any]:
        middle = [s for s in sites if s.kind == "resid_mid"]

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value = args[0] if args else kwargs["hidden_states"]
            out = self._at(sites, place, value)
            if out is value:
                return None
            if middle:
                # The norm reads resid_mid, but the block adds its own copy of it at the end: carry the change there.
                assert middle[0].layer is not None
                self._carry[middle[0].layer] = out - value
            return ((out, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": out})

        return hook

    def _output_hook(self, sites: list[Site], place: Place, layer: int | None) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            value = output[0] if isinstance(output, tuple) else output
            out = value
            if layer in self._carry and place == self.subject.family.sites["resid_post"]:
                out = out + self._carry.pop(layer)
            out = self._at(sites, place, out)
            if out is value:
                return None
            return (out, *output[1:]) if isinstance(output, tuple) else out

        return hook

    def _hook_linear(self, hook: Callable[[Any], None], site: Site) -> None:
        assert site.layer is not None
        family = self.subject.family
        path = family.out_proj if site.kind == "o" else family.sites["neurons"].module

        def after(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> Any:
            ends = torch.cat([args[0], output], dim=-1)
            out = self.visit(site, ends)
            return None if out is ends else out[..., args[0].shape[-1] :]

        hook(self.subject.module(site.layer, path).register_forward_hook(after))

    def _hook_head_out(self, hook: Callable[[Any], None], site: Site) -> None:
        assert site.layer is not None
        projection = self.subject.module(site.layer, self.subject.family.out_proj)
        weight = self.subject.out_weight(site.layer)

        def after(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> Any:
            z = args[0].unflatten(-1, (self.subject.n_heads, self.subject.d_head))
            return self.visit_share(site, z, weight, output)

        hook(projection.register_forward_hook(after))

    def _logits_hook(self, site: Site) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            out = self.visit(site, output.logits)
            if out is not output.logits:
                output.logits = out
            return output

        return hook

    # -- attention ---------------------------------------------------------------------------------------------------

    def _kernel_layers(self) -> set[int]:
        layers = {s.layer for s in self.taps if s.kind in KERNEL_KINDS and s.layer is not None}
        if self.rows_wanted is not None:
            wanted = self.rows_wanted.layers
            layers |= set(range(self.subject.n_layers)) if wanted is None else set(wanted)
        return layers

    def _attention(self, call: AttentionCall) -> AttentionCall:
        for site in self.taps:
            if site.layer != call.layer or site.kind not in KERNEL_KINDS:
                continue
            if site.kind == "attention":
                call = self.visit_attention(site, call)
                continue
            if site.kind == "q_rot":
                call = call.with_(q=self.visit_heads(site, call.q))
                continue
            t = call.q.shape[2]
            new = call.k[:, :, -t:]
            edited = self.visit_heads(site, new)
            if edited is not new:
                self._refuse_cached(site)
                call = call.with_(k=torch.cat([call.k[:, :, :-t], edited], dim=2))
        if self.rows_wanted is not None and (
            self.rows_wanted.layers is None or call.layer in self.rows_wanted.layers
        ):
            self.rows[call.layer] = reduce_rows(call, self.rows_wanted, self.frame)
        return call

    def visit_attention(self, site: Site, call: AttentionCall) -> AttentionCall:
        """See `Visits`; what the KV cache would not keep is refused."""
        out = super().visit_attention(site, call)
        if out.k is not call.k or out.v is not call.v:
            self._refuse_cached(site)
        return out

    def _refuse_cached(self, site: Site) -> None:
        """The KV cache was written before the kernel is called, so later steps would not see such an edit."""
        if self.frame.cached:
            raise EngineError(f"an edit of keys or values at {site} is not kept in the KV cache; edit k or v")


def opened_cache(cache: Any, use_cache: bool, past: int) -> Any:
    """The KV cache of a run that starts at column `past`: the one given, a new one, or None.

    Raises:
        UsageError: the cache given does not hold exactly the columns before `past`.
    """
    held = 0 if cache is None else int(cache.get_seq_length())
    if held != past:
        raise UsageError(f"the KV cache holds {held} columns, so the run starts there and not at {past}")
    if cache is None and use_cache:
        from transformers import DynamicCache

        # Full layers for every family: a cache of sliding layers would drop keys, and rows would be shifted.
        cache = DynamicCache()
    return cache


class HooksEngine:
    """The reference engine."""

    name = "hooks"
    capabilities = frozenset({"rows", "attention", "cache", "generate", "grad", "resume", "weights"})

    def __init__(self, subject: CausalLM):
        self.subject = subject

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
        """One forward pass over columns `[past, width)` of the batch.

        Args:
            batch: what is run.
            taps: what is watched and edited.
            rows: which attention rows to reduce; where it names no layers, of all that are run.
            keep: logits of this many last columns; default the columns that predict answers.
            cache: KV cache that holds columns `[0, past)`; it is extended in place.
            use_cache: return a KV cache of all columns.
            mask: 4-D additive attention mask (or one for each type of layer) in place of the padding mask.
            start: go on from here; the layers below are not run.
            stop: run the layers below this one only; the trace then holds no logits and its `checkpoint` is set.
        """
        if start is not None and (cache is not None or use_cache):
            raise EngineError("a run from a checkpoint neither reads nor fills a KV cache")
        check_range(self.subject, batch, start, stop, [Site.parse(s) for s in taps], rows)
        cache = opened_cache(cache, use_cache, past)
        frame = Frame(batch)
        session = Session(self.subject, taps, rows, frame)
        kwargs: dict[str, Any] = {
            "input_ids": batch.ids[:, past:],
            "attention_mask": batch.mask if mask is None else mask,
            "position_ids": batch.positions[:, past:],
            "use_cache": cache is not None,
            "logits_to_keep": batch.keep if keep is None else keep,
        }
        if cache is not None:
            kwargs["past_key_values"] = cache
        with ExitStack() as stack:
            if start is not None:
                stack.enter_context(begun(self.subject, start))
            stack.enter_context(session.installed())
            if stop is None:
                out = self.subject.hf(**kwargs)
                return Trace(out.logits, session.records, session.rows, out.get("past_key_values"))
            stack.enter_context(stopped(self.subject, stop))
            try:
                self.subject.hf(**kwargs)
            except Stopped as end:
                logits = end.hidden.new_empty(len(batch), 0, int(self.subject.config.vocab_size))
                reached = Checkpoint(stop, end.hidden)
                return Trace(logits, session.records, session.rows, cache, reached)
            raise EngineError(f"layer {stop - 1} was never run, so the pass could not stop after it")
