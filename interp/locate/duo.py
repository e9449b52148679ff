"""Learned gates of KV heads: which of them need the whole context (DuoAttention, Xiao et al. 2024, arXiv 2410.10819).

Each KV head gets a gate a in [0, 1], and its query heads put out `a * full + (1 - a) * streaming`: their attention over
the whole context, and over the first `sink` and the last `recent` keys alone. With all weights frozen the gates are
trained to leave the last hidden states, at the rows that predict the answer, as they are, and to be small:

    mean over rows and dimensions of (h_full - h_mix)^2  +  weight * mean |a|

Heads that bring something from afar keep their gate, others lose it. The hidden states are those behind the final norm,
as in the authors' code; there the rows are the passkeys' own, here those that predict them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch.nn import functional

from interp.errors import EngineError, UsageError
from interp.locate.base import Locator
from interp.locate.gradients import frozen
from interp.locate.readout import final_norm
from interp.models.batch import Batch
from interp.models.engines.attention import AttentionCall
from interp.models.engines.base import Frame, Tap
from interp.models.offload import present
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task, stable_seed

METHOD = "duo"


class DuoGates(Locator):
    """Gates of KV heads, trained to keep what is retrieved from the context.

    Args:
        steps: steps of the optimiser (Adam; the rate rises over the first fifth and falls over the last).
        lr: learning rate. A gate that nothing depends on falls by about this much a step.
        weight: weight of the mean gate in the loss.
        sink: first keys that streaming attention sees.
        recent: last keys that it sees, the row's own included.
        batch: examples a step.
        seed: order of the examples.

    Attributes:
        scores_: component, method (`duo`), layer, head, kv_head, score, se (NaN), n (examples). Heads that share keys
            and values share the gate.
        gates_: the gates, layer x KV head.
        losses_: step, loss, distance (what the gates change), penalty (the mean gate).

    Example:
        gates = DuoGates(sink=4, recent=64).fit(model, interp.task("niah", length=384, n=16))
        gates.select(0.5)
    """

    mechanism = "retrieval heads"

    def __init__(
        self,
        *,
        steps: int = 100,
        lr: float = 0.02,
        weight: float = 0.05,
        sink: int = 16,
        recent: int = 64,
        batch: int = 4,
        seed: int = 0,
    ):
        self.steps = steps
        self.lr = lr
        self.weight = weight
        self.sink = sink
        self.recent = recent
        self.batch = batch
        self.seed = seed

    def fit(
        self,
        subject: CausalLM,
        data: Task | None = None,
        *,
        reference: Any = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Self:
        """Train the gates on a task whose answers are to be found far back in the prompt.

        Raises:
            UsageError: no task, a parameter out of range, or prompts so short that streaming attention sees all.
            EngineError: the engine keeps no graph, or the model's attention cannot be split.
        """
        self._check(subject)
        if data is None:
            raise UsageError("DuoGates needs a task: fit(model, interp.task('niah', length=384, n=16))")
        examples = data.examples(subject)
        if all(len(e.full_ids) - 1 <= self.sink + self.recent for e in examples):
            raise UsageError(
                f"no prompt is longer than sink {self.sink} and recent {self.recent} keys together, so streaming "
                "attention sees all of it; take fewer, or longer prompts"
            )
        intact = _intact(subject, examples, self.batch)
        gates = torch.ones(subject.n_layers, subject.n_kv_heads, device=subject.device, requires_grad=True)
        optimiser = torch.optim.Adam([gates], lr=self.lr)
        told = []
        for step, group in zip(range(self.steps), self._groups(len(examples)), strict=False):
            optimiser.param_groups[0]["lr"] = self.lr * self._rate(step)
            distance, gates.grad = self.gradient(
                subject, [examples[i] for i in group], gates, [intact[i] for i in group]
            )
            penalty = float(gates.detach().abs().mean())
            optimiser.step()
            with torch.no_grad():
                gates.clamp_(0.0, 1.0)
            told.append((step, distance + self.weight * penalty, distance, penalty))
            if progress:
                progress(step + 1, self.steps, "gates")
        self.gates_ = gates.detach().cpu().numpy()
        self.losses_ = pd.DataFrame(told, columns=["step", "loss", "distance", "penalty"])
        self.scores_ = _frame(subject, self.gates_, len(examples))
        return self

    def gradient(
        self,
        subject: CausalLM,
        examples: Sequence[Example],
        gates: Float[torch.Tensor, "l kv"],
        intact: Sequence[Float[torch.Tensor, "_ d"]],
    ) -> tuple[float, Float[torch.Tensor, "l kv"]]:
        """What the gates change on these examples, and the gradient of the whole loss."""
        with torch.enable_grad(), frozen(subject):
            mixed = hidden(subject, examples, streaming(gates, sink=self.sink, recent=self.recent))
            distance = (torch.cat(mixed) - torch.cat(list(intact))).square().mean()
            loss = distance + self.weight * gates.abs().mean()
            (found,) = torch.autograd.grad(loss, [gates])
        return float(distance.detach()), found

    def _check(self, subject: CausalLM) -> None:
        if "grad" not in subject.engine.capabilities or "attention" not in subject.engine.capabilities:
            raise EngineError(
                f"engine '{subject.engine.name}' trains no gates (capability 'grad'); use 'hooks'"
            )
        for name in ("steps", "sink", "recent", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"DuoGates: {name} is {getattr(self, name)}; take 1 or more")
        if self.lr <= 0 or self.weight < 0:
            raise UsageError(f"DuoGates: lr {self.lr} must be above 0, and weight {self.weight} not below")

    def _rate(self, step: int) -> float:
        """The authors' schedule: up over the first fifth of the steps, down over the last, never below a tenth."""
        ramp = max(1, self.steps // 5)
        return min(1.0, max((step + 1) / ramp, 0.1), max((self.steps - step) / ramp, 0.1))

    def _groups(self, n: int) -> Iterator[list[int]]:
        """Examples of each step: all in a random order, and again in another."""
        epoch = 0
        while True:
            order = np.random.default_rng(stable_seed("duo", self.seed, epoch)).permutation(n).tolist()
            yield from (order[i : i + self.batch] for i in range(0, n, self.batch))
            epoch += 1


def streaming(gates: Float[torch.Tensor, "l kv"], *, sink: int, recent: int) -> dict[Site, list[Tap]]:
    """Taps that mix each KV head's full and streaming attention: `gate * full + (1 - gate) * streaming`.

    Streaming attention is another call of a kernel that keeps no square of the context, behind a boolean mask that
    all layers share.
    """
    taps: dict[Site, list[Tap]] = {}
    for layer in range(len(gates)):
        mix = _Mix(gates[layer], sink, recent)
        taps[Site("attention", layer)] = [_At(mix.stream)]
        taps[Site("z", layer)] = [_At(mix.mixed)]
    return taps


class _At:
    """A tap from a method that sees the frame."""

    def __init__(self, edit: Callable[[Any, Frame], Any]):
        self.edit = edit


class _Mix:
    """One layer's mixture: its streaming half is made at the kernel's call, and joined where the heads' output is."""

    def __init__(self, gates: Float[torch.Tensor, " kv"], sink: int, recent: int):
        self.gates, self.sink, self.recent = gates, sink, recent
        self.half: torch.Tensor | None = None

    def stream(self, call: AttentionCall, frame: Frame) -> None:
        if call.softcap is not None:
            raise EngineError(f"layer {call.layer}: attention with a softcap cannot be streamed yet")
        if frame.past or call.k.shape[2] != call.q.shape[2]:
            raise EngineError("gates are mixed over whole prompts: run without a KV cache")
        per = call.q.shape[1] // call.k.shape[1]
        k, v = (x.repeat_interleave(per, 1) for x in (call.k, call.v))
        near = _seen(call, _near(frame, self.sink, self.recent))
        z = functional.scaled_dot_product_attention(call.q, k, v, attn_mask=near, scale=call.scaling)
        self.half = z.transpose(1, 2)

    def mixed(self, z: Float[torch.Tensor, "b t h d"], frame: Frame) -> torch.Tensor:
        assert self.half is not None
        gate = self.gates.to(z.device, z.dtype).repeat_interleave(z.shape[2] // len(self.gates))[:, None]
        half, self.half = self.half, None
        return gate * z + (1 - gate) * half


def _near(frame: Frame, sink: int, recent: int) -> Bool[torch.Tensor, "b 1 t t"]:
    """Which keys streaming attention sees: the first of each prompt and the last before each row; made once a pass."""
    key = "streaming", sink, recent
    if key not in frame.memo:
        batch = frame.batch
        at = torch.arange(batch.width, device=batch.ids.device)
        back = at[:, None] - at[None]
        near = (batch.positions < sink)[:, None] | (back < recent)
        frame.memo[key] = (near & (back >= 0) & batch.mask.bool()[:, None])[:, None]
    found: torch.Tensor = frame.memo[key]
    return found


def _seen(call: AttentionCall, near: Bool[torch.Tensor, "b 1 t t"]) -> Bool[torch.Tensor, "b h t t"]:
    """Of these keys those that the model's own mask shows; padding sees itself, or its rows would be no numbers."""
    near = near.to(call.q.device)
    at = torch.arange(near.shape[-1], device=near.device)
    back = at[:, None] - at[None]
    if call.mask is not None and call.mask.ndim == 4:
        shown = (
            call.mask if call.mask.dtype == torch.bool else call.mask > torch.finfo(call.mask.dtype).min / 2
        )
        near = near & shown
    elif call.window is not None:
        near = near & (back < call.window)
    return near | (back == 0)


class _Keep:
    """Keeps some columns of a site's tensor with the graph behind them."""

    def __init__(self, rows: torch.Tensor, columns: torch.Tensor):
        self.rows, self.columns = rows, columns
        self.kept: torch.Tensor

    def edit(self, value: torch.Tensor, frame: Frame) -> None:
        self.kept = value[self.rows.to(value.device), self.columns.to(value.device)]


def hidden(
    subject: CausalLM, examples: Sequence[Example], taps: dict[Site, list[Tap]] | None = None
) -> list[Float[torch.Tensor, "_ d"]]:
    """Last hidden states, behind the final norm, at the rows that predict the answers; fp32, with the graph if any."""
    batch: Batch = subject.batch(examples)
    columns = [batch.answer_columns(row) for row in range(len(batch))]
    rows = torch.cat([torch.full((len(own),), row) for row, own in enumerate(columns)])
    keep = _Keep(rows, torch.cat([torch.tensor(own) for own in columns]))
    last = Site("resid_post", subject.n_layers - 1)
    every: dict[Site, Any] = {**(taps or {}), last: [keep]}
    subject.run(batch, every, keep=1, grad=torch.is_grad_enabled())
    norm = final_norm(subject).module
    with present(norm):
        states = norm(keep.kept).float()
    return list(states.to(subject.device).split([len(own) for own in columns]))


def _intact(subject: CausalLM, examples: Sequence[Example], size: int) -> list[Float[torch.Tensor, "_ d"]]:
    """Hidden states of the model as it is, example by example."""
    with torch.no_grad():
        return [h for i in range(0, len(examples), size) for h in hidden(subject, examples[i : i + size])]


def _frame(subject: CausalLM, gates: Float[np.ndarray, "l kv"], n: int) -> pd.DataFrame:
    heads = subject.heads()
    kv = [subject.kv_head(h.head) for h in heads]
    return pd.DataFrame(
        {
            "component": [repr(h) for h in heads],
            "method": METHOD,
            "layer": [h.layer for h in heads],
            "head": [h.head for h in heads],
            "kv_head": kv,
            "score": [float(gates[h.layer, g]) for h, g in zip(heads, kv, strict=True)],
            "se": np.nan,
            "n": n,
        }
    )
