"""The `lens` engine: TransformerLens' TransformerBridge, on a weight-sharing twin of the model.

TransformerLens is an independent reading of the same weights: it has its own hooks, inside an attention that it
computes itself. It builds the whole attention square in every layer and always starts at the first one, so it serves
as a check and for work beside TransformerLens (`engine.bridge` has its weights and tools), not for speed. What it
cannot do is refused by name; and which sites it has right is not believed but measured, when the engine is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch

from interp.errors import EngineError
from interp.models.batch import Batch
from interp.models.engines.base import Frame, Record, Rows, Taps, Trace
from interp.models.engines.bridge import bridged, tolerance
from interp.models.engines.hooks import HooksEngine, opened_cache
from interp.models.engines.rows import reduce_probs
from interp.models.engines.visits import Visits
from interp.models.sites import LENS_HOOKS, Site

if TYPE_CHECKING:
    from interp.models.subject import CausalLM


def _point(bridge: Any, site: Site) -> Any:
    """The hook point of a whole site, or None where the bridge has none of that name."""
    if site.kind == "embed":
        return bridge.embed.hook_out
    try:
        return reduce(getattr, site.lens_name().split(".")[2:], bridge.blocks[site.layer])
    except AttributeError:
        return None


class _Session(Visits):
    """Taps bound to a bridge for one run."""

    def __init__(self, engine: LensEngine, taps: Taps, rows: Rows | None, frame: Frame):
        super().__init__(engine.subject, taps, frame)
        for site in self.taps:
            if reason := engine.lacks.get(site.kind):
                raise EngineError(f"engine 'lens' has no {site} for {self.subject.name}: {reason}")
        self.bridge = engine.bridge
        self.rows_wanted = rows
        self.rows: dict[int, Any] = {}
        layers = range(self.subject.n_layers) if rows is None or rows.layers is None else rows.layers
        self.row_layers = sorted(layers) if rows is not None else []
        for layer in self.row_layers:
            self.subject.check(Site("attention", layer))
        self._carry: dict[int | None, torch.Tensor] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Hooks on, and off again however the block is left."""
        if self.subject.hooked:
            raise EngineError("a tap ran the model it taps: compute what an edit needs before the pass")
        with ExitStack() as stack:
            self.subject.hooked = True
            stack.callback(setattr, self.subject, "hooked", False)
            stack.enter_context(_shares(self.bridge, self.taps))
            for whole, sites in self._by_point().items():
                _hook(stack, _point(self.bridge, whole), self._visitor(whole, sites))
            for layer in self.row_layers:
                _hook(stack, self.bridge.blocks[layer].attn.hook_pattern, self._row_reader(layer))
            yield

    def _by_point(self) -> dict[Site, list[Site]]:
        """Sites grouped by their hook point, in order of execution."""
        groups: dict[Site, list[Site]] = {}
        for site in self.taps:
            if site.kind == "logits":
                continue
            groups.setdefault(site.whole, []).append(site)
            if site.kind == "resid_mid":  # a change there joins the residual stream at the block's end
                groups.setdefault(Site("resid_post", site.layer), [])
        return groups

    def _visitor(self, whole: Site, sites: list[Site]) -> Callable[[torch.Tensor], torch.Tensor]:
        def visit(value: torch.Tensor) -> torch.Tensor:
            out = value
            if whole.kind == "resid_post" and whole.layer in self._carry:
                out = out + self._carry.pop(whole.layer)
            for site in sites:
                out = self.visit_part(site, out)
            if whole.kind == "resid_mid" and out is not value:
                # Its hook point is the input of the norm only; the block adds its own copy at the end.
                self._carry[whole.layer] = out - value
            return out

        return visit

    def _row_reader(self, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
        wanted = self.rows_wanted
        assert wanted is not None

        def read(pattern: torch.Tensor) -> torch.Tensor:
            self.rows[layer] = reduce_probs(pattern, wanted, layer, self.frame)
            return pattern

        return read


@contextmanager
def _shares(bridge: Any, sites: Iterable[Site]) -> Iterator[None]:
    """TransformerLens computes the heads' shares, in every layer, where one of the sites needs them to fire."""
    before = bridge.cfg.use_attn_result
    if any(site.kind == "head_out" for site in sites):
        bridge.set_use_attn_result(True)
    try:
        yield
    finally:
        bridge.set_use_attn_result(before)


def _hook(stack: ExitStack, point: Any, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Put a function on a hook point until the stack is closed; hooks of the user's on the bridge stay."""

    def call(value: torch.Tensor, hook: Any) -> torch.Tensor | None:
        out = fn(value)
        return None if out is value else out

    handle = point.add_hook(call)

    def remove() -> None:
        handle.hook.remove()
        point.fwd_hooks[:] = [other for other in point.fwd_hooks if other is not handle]

    stack.callback(remove)


def _keeper(kept: list[torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def keep(value: torch.Tensor) -> torch.Tensor:
        kept.append(value)
        return value

    return keep


class LensEngine:
    """Runs a subject through TransformerLens.

    Attributes:
        lacks: kinds of sites that TransformerLens has not or has wrong for this model, and why.

    Raises:
        EngineError: TransformerLens cannot bridge the model, or what it makes of it has other logits.
    """

    name = "lens"
    capabilities = frozenset({"rows", "cache", "grad"})

    def __init__(self, subject: CausalLM):
        self.subject = subject
        self._tensors = _tensors(subject.hf)
        self._bridge = bridged(subject)
        self.lacks: dict[str, str] = {
            "attention": "its kernel takes no (q, k, v, mask); tap q_rot, k_rot or v, or ask for rows"
        }
        self.lacks |= self._measured()

    @property
    def bridge(self) -> Any:
        """The TransformerBridge, over the tensors that the model holds now."""
        now = _tensors(self.subject.hf)
        if list(map(id, now)) != list(map(id, self._tensors)):
            self._bridge, self._tensors = bridged(self.subject), now
        return self._bridge

    def _measured(self) -> dict[str, str]:
        """What is missing or wrong, found by running a few tokens, one row padded, against the model itself."""
        subject = self.subject
        size = int(subject.config.vocab_size)
        rows = [[(7 * i + 3) % size for i in range(9)], [(5 * i + 11) % size for i in range(6)]]
        batch = Batch.of_ids(rows, device=subject.device)
        real = batch.mask.bool()
        layers = sorted({0, subject.n_layers // 2, subject.n_layers - 1})
        absent = {"resid_mid"} if subject.family.parallel else set()
        sites = [Site("embed"), *(Site(k, i) for k in LENS_HOOKS if k not in absent for i in layers)]
        with torch.no_grad():
            truth = HooksEngine(subject).run(batch, {s: Record() for s in sites}, keep=batch.width)
            seen, logits = self._watched(batch, [s for s in sites if s.kind != "head_out"])
            shares, again = self._watched(batch, [s for s in sites if s.kind == "head_out"])
        gap = max(_gap(x[real], truth.logits[real]) for x in (logits, again))
        if not gap <= tolerance(subject.dtype):
            raise EngineError(
                f"engine 'lens': for {subject.name} TransformerLens' logits are off by {gap:.2g} of their scale; "
                "use engine 'hooks'"
            )
        lacks: dict[str, str] = {}
        for site, values in (seen | shares).items():
            hook = site.lens_name()
            if values is None:
                lacks.setdefault(site.kind, f"its bridge has no {hook}")
            elif len(values) != 1:
                lacks.setdefault(site.kind, f"its bridge fires {hook} {len(values)} times a pass")
            elif values[0].shape != truth[site].shape:
                lacks.setdefault(site.kind, f"{hook} has shape {tuple(values[0].shape)}")
            elif not (gap := _gap(values[0][real], truth[site][real])) <= tolerance(subject.dtype):
                lacks.setdefault(site.kind, f"{hook} is off by {gap:.2g} of its scale")
        return lacks

    def _watched(
        self, batch: Batch, sites: list[Site]
    ) -> tuple[dict[Site, list[torch.Tensor] | None], torch.Tensor]:
        """What each site's hook sees in one pass, None where there is no such hook; and the logits."""
        seen: dict[Site, list[torch.Tensor] | None] = {}
        with ExitStack() as stack:
            stack.enter_context(_shares(self.bridge, sites))
            for site in sites:
                point = _point(self.bridge, site)
                seen[site] = None if point is None else []
                if point is not None:
                    _hook(stack, point, _keeper(seen[site]))  # type: ignore[arg-type]
            return seen, self._forward(batch, batch.width).logits

    def _forward(self, batch: Batch, keep: int, **options: Any) -> Any:
        past = options.pop("past", 0)
        kwargs: dict[str, Any] = {
            "input_ids": batch.ids[:, past:],
            "attention_mask": batch.mask,
            "position_ids": batch.positions[:, past:],
            "use_cache": False,
            "logits_to_keep": keep,
        }
        return self.bridge.original_model(**{**kwargs, **options})

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
        start: Any = None,
        stop: int | None = None,
    ) -> Trace:
        """One forward pass over columns `[past, width)` of the batch; see `HooksEngine.run`."""
        if start is not None or stop is not None:
            raise EngineError(
                "engine 'lens' cannot resume: TransformerLens runs every layer below the start too"
            )
        options: dict[str, Any] = {"past": past}
        cache = opened_cache(cache, use_cache, past)
        if cache is not None:
            options |= {"use_cache": True, "past_key_values": cache}
        if mask is not None:
            options["attention_mask"] = mask
        frame = Frame(batch, past, batch.width - past, forwards=1, cached=cache is not None)
        session = _Session(self, taps, rows, frame)
        with session.installed():
            logits = self._forward(batch, batch.keep if keep is None else keep, **options).logits
            for site in session.taps:
                if site.kind == "logits":
                    logits = session.visit(site, logits)
        session.check_fired()
        return Trace(logits, session.records, session.rows, cache)


def _tensors(module: Any) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference as a share of the scale."""
    a, b = a.float(), b.float()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1.0)) if a.numel() else 0.0
