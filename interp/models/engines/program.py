"""Taps as a program: at which module tensors a pass is stopped, in order of execution, and what is done at each.

For engines that walk along a forward pass (nnsight), where the reference engine hangs hooks on modules. A program is
plain data and plain functions, with names of modules in place of modules, so it can be sent to where the model is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from interp.errors import EngineError
from interp.models.engines.attention import AttentionCall
from interp.models.engines.base import Frame, Rows, Taps
from interp.models.engines.rows import reduce_rows
from interp.models.engines.visits import Visits, by_heads, cut
from interp.models.families import Part
from interp.models.sites import KERNEL_KINDS, Site

if TYPE_CHECKING:
    from interp.models.subject import CausalLM

INPUT_OF = {"head_out": "z", "o": "z", "down": "neurons"}
"""Kinds that are made at the output of a projection, with the kind that lies at its input."""
KERNEL_CALL = "attention_interface_"
"""How nnsight names the call of the attention kernel in a forward; the number after it moves with versions, but the
call is the last operation of that name (what comes before binds the name)."""


@dataclass(frozen=True)
class Stop:
    """A module's tensor at which the pass stops.

    Attributes:
        kind, layer: of the sites there.
        path: of the module in the model.
        side: input or output of the module, or the kernel call within it.
        part: how the sites are cut out of the tensor, see `Place`.
        sites: what is visited; none where the tensor is only needed for another stop.
    """

    kind: str
    layer: int | None
    path: str
    side: Literal["in", "out", "kernel"]
    part: Part = ""
    sites: tuple[Site, ...] = ()


def plan_stops(subject: CausalLM, sites: list[Site], row_layers: list[int]) -> tuple[Stop, ...]:
    """Where to stop for these sites and attention rows, in order of execution; `logits` are met at the end."""
    groups: dict[Site, list[Site]] = {Site("attention", layer): [] for layer in row_layers}
    for site in sites:
        if site.kind == "logits":
            continue
        at = Site("attention", site.layer) if site.kind in KERNEL_KINDS else site.whole
        groups.setdefault(at, []).append(site)
        if site.kind in INPUT_OF:  # what is made of a projection's input and output
            groups.setdefault(Site(INPUT_OF[site.kind], site.layer), [])
        if (
            site.kind == "resid_mid"
        ):  # the block adds its own copy of resid_mid, so an edit is carried to its end
            groups.setdefault(Site("resid_post", site.layer), [])
    return tuple(_stop(subject, at, tuple(groups[at])) for at in sorted(groups))


def _stop(subject: CausalLM, at: Site, sites: tuple[Site, ...]) -> Stop:
    family = subject.family
    if at.kind == "embed":
        table = subject.hf.get_input_embeddings()
        path = next(name for name, module in subject.hf.named_modules() if module is table)
        return Stop(at.kind, None, path, "out", "", sites)
    block = f"{family.layers}.{at.layer}"
    if at.kind == "attention":
        return Stop(at.kind, at.layer, f"{block}.{family.attention}", "kernel", "", sites)
    if at.kind in INPUT_OF:
        projection = family.sites[INPUT_OF[at.kind]].module
        return Stop(at.kind, at.layer, f"{block}.{projection}", "out", "", sites)
    place = family.sites[at.kind]
    path = f"{block}.{place.module}" if place.module else block
    return Stop(at.kind, at.layer, path, place.side, place.part, sites)


class Program(Visits):
    """What a pass does at each stop; inside a trace, `prepare` comes first, `reach` for each stop, `finish` last.

    Args:
        subject: whose site table says where the stops are; it is not kept when the program is sent away.
        taps: what is watched and edited.
        rows: attention rows to reduce.
        frame: the pass.

    Raises:
        UsageError: a site does not exist in the subject.
    """

    def __init__(self, subject: CausalLM, taps: Taps, rows: Rows | None, frame: Frame):
        super().__init__(subject, taps, frame)
        self.grad = torch.is_grad_enabled()
        self.rows_wanted = rows
        self.rows: dict[int, Any] = {}
        self.n_heads, self.n_kv_heads, self.d_head = subject.n_heads, subject.n_kv_heads, subject.d_head
        self.row_layers: list[int] = []
        if rows is not None:
            self.row_layers = sorted(range(subject.n_layers) if rows.layers is None else rows.layers)
        for layer in self.row_layers:
            subject.check(Site("attention", layer))
        self.stops = plan_stops(subject, list(self.taps), self.row_layers)
        self.waiting: Stop | None = None
        self._carry: dict[int | None, torch.Tensor] = {}
        self._input_needed = {stop.path for stop in self.stops if stop.kind in INPUT_OF}
        self._inputs: dict[str, torch.Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "subject"}

    # -- inside the trace --------------------------------------------------------------------------------------------

    def prepare(self, model: Any) -> None:
        """Open the forwards whose kernel call is stopped at; it must happen before the pass enters them."""
        for stop in self.stops:
            if stop.side == "kernel":
                kernel_call(model, stop)

    def reach(self, model: Any, stop: Stop) -> None:
        """Wait for the pass at a stop, run its taps, and hand the tensor back."""
        self.waiting = stop
        if stop.side == "kernel":
            self._reach_kernel(kernel_call(model, stop), stop)
            return
        module = model.get(stop.path)
        if stop.side == "in":
            args, kwargs = module.inputs
            name = next(iter(kwargs), "")
            value = args[0] if args else kwargs[name]
            out = self.act(stop, value)
            if out is not value:
                module.inputs = ((out, *args[1:]), kwargs) if args else (args, {**kwargs, name: out})
            return
        output = module.output
        value = output[0] if isinstance(output, tuple) else output
        out = self._made(module._module, stop, value) if stop.kind in INPUT_OF else self.act(stop, value)
        if out is not value:
            module.output = (out, *output[1:]) if isinstance(output, tuple) else out

    def finish(self, model: Any) -> dict[str, Any]:
        """Wait for the end of the pass: its logits and all that was kept, as plain data."""
        self.waiting = None
        output = model.output
        for site in self.taps:
            if site.kind == "logits":
                out = self.visit(site, output.logits)
                if out is not output.logits:
                    output.logits = out
        return {
            "logits": output.logits if self.grad else output.logits.detach(),
            "records": {repr(site): kept for site, kept in self.records.items()},
            "fired": {repr(site): n for site, n in self.fired.items()},
            "rows": self.rows,
        }

    # -- what is done at a stop --------------------------------------------------------------------------------------

    def act(self, stop: Stop, tensor: torch.Tensor) -> torch.Tensor:
        """Run the taps of a stop on a module's tensor; returns the tensor to go on with, the same where none edits."""
        value = tensor
        if stop.kind == "resid_post" and stop.layer in self._carry:
            value = value + self._carry.pop(stop.layer)
        for site in stop.sites:
            whole = cut(stop.part, value, self.n_heads, self.n_kv_heads, self.d_head)
            out = self.visit_part(site, whole)
            if out is not whole:
                value = value.clone()
                cut(stop.part, value, self.n_heads, self.n_kv_heads, self.d_head).copy_(out)
        if stop.kind == "resid_mid" and value is not tensor:
            self._carry[stop.layer] = value - tensor
        if stop.side == "in" and stop.path in self._input_needed:
            self._inputs[stop.path] = value
        return value

    def _made(self, projection: nn.Module, stop: Stop, output: torch.Tensor) -> torch.Tensor:
        """Visit what is made of a projection's input and output; returns the output to go on with."""
        given = self._inputs[stop.path]
        for site in stop.sites:
            if site.kind == "head_out":
                z = given.unflatten(-1, (self.n_heads, self.d_head))
                weight = by_heads(projection, self.n_heads, self.d_head, site.layer)
                output = self.visit_share(site, z, weight, output)
            else:
                ends = torch.cat([given, output], dim=-1)
                out = self.visit(site, ends)
                output = output if out is ends else out[..., given.shape[-1] :]
        return output

    # -- attention ---------------------------------------------------------------------------------------------------

    def _reach_kernel(self, operation: Any, stop: Stop) -> None:
        args, kwargs = operation.inputs
        call = before = _attention_call(stop, args, kwargs)
        for site in stop.sites:
            if site.kind == "attention":
                call = self.visit_attention(site, call)
            elif site.kind == "q_rot":
                call = call.with_(q=self.visit_heads(site, call.q))
            else:
                call = call.with_(k=self.visit_heads(site, call.k))
        if stop.layer in self.row_layers:
            self.reduce_rows(call)
        if any(getattr(call, name) is not getattr(before, name) for name in ("q", "k", "v", "mask")):
            operation.inputs = ((args[0], call.q, call.k, call.v, call.mask, *args[5:]), kwargs)

    def reduce_rows(self, call: AttentionCall) -> None:
        assert self.rows_wanted is not None
        self.rows[call.layer] = reduce_rows(call, self.rows_wanted, self.frame)


def kernel_call(model: Any, stop: Stop) -> Any:
    """The operation of an attention module that calls the kernel.

    Raises:
        EngineError: the module's forward calls no attention interface.
    """
    source = model.get(stop.path).source
    found = [name for name in source.names if name.startswith(KERNEL_CALL)]
    if not found:
        raise EngineError(
            f"engine 'nnsight' finds no call of the attention interface in {stop.path}, so its "
            "attention cannot be tapped; use engine='hooks'"
        )
    return getattr(source, found[-1])


def _attention_call(stop: Stop, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AttentionCall:
    if len(args) < 5 or not isinstance(args[0], nn.Module):
        raise EngineError(
            f"engine 'nnsight' does not know how {stop.path} calls its attention kernel; use engine='hooks'"
        )
    assert stop.layer is not None
    q, k, v, mask = args[1:5]
    return AttentionCall.of(stop.layer, q, k, v, mask, kwargs)
