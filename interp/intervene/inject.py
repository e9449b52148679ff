"""Sequences put into a language model on purpose, so that it is known what holds them.

`inject` trains only what chosen neurons of the MLPs write, on one sequence, until the model recites it: the INJ
benchmark (Chang, Thomason and Jia 2024, "Do Localization Methods Actually Localize Memorized Data in LLMs?"). What a
locator then finds can be held against the neurons that were trained. `memorize` trains a low-rank change of the same
matrices on many sequences at once, so that nothing is known of the neurons, as in a model that was trained on them.

The weights are never touched: the change is added to what a projection gives while it is trained, and comes back as
data. Sequences that are injected each for itself are rows of one batch, each row with its own neurons.

Trained on a few sequences alone, a model forgets how to go on with anything else. `keep` has passages behind which it
should say what it said: how far it has moved there (Kullback-Leibler divergence from the intact model) is added to the
loss, over a few passages at each update, in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from interp.errors import EngineError, UsageError
from interp.intervene.weights.base import Stack
from interp.intervene.weights.kinds import LowRank, OutputVectors
from interp.models.batch import Batch, plan
from interp.models.cache import Progress, quiet
from interp.models.engines.base import Frame
from interp.models.parts import Part, parts, weight_of
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import stable_seed
from interp.tasks.memorized import TextItem

PASSAGES = 4
"""Passages that each update is held to, of those to keep."""
TOKENS = 1024
"""Padded tokens of a batch that is trained on."""


@dataclass(frozen=True)
class Fit:
    """How a change is trained.

    Attributes:
        steps: updates, at most.
        lr: step of Adam, as a multiple of the root mean square of the weights that are changed.
        stop: training ends where the mean loss (nats a token of the suffix) is below this.
        hold: weight of the divergence behind passages to keep (nats a token), where there are any.
    """

    steps: int = 200
    lr: float = 0.1
    stop: float = 0.05
    hold: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.lr <= 0 or self.stop < 0 or self.hold < 0:
            raise UsageError("a fit needs steps >= 1, lr > 0, stop >= 0 and hold >= 0")


@dataclass(frozen=True, eq=False)
class Injected:
    """Sequences in a model: the edit that holds them, and how far it went.

    `with found.edit.applied(subject)` is the model that knows them; leaving it gives every bit back.

    Attributes:
        items: the sequences that this edit holds.
        edit: `OutputVectors` of the neurons that were trained, or `LowRank` changes, one of each part.
        before: loss of each before, nats a token of the suffix.
        after: loss of each with the edit.
        steps: updates that were made.
    """

    items: tuple[TextItem, ...]
    edit: Stack
    before: tuple[float, ...]
    after: tuple[float, ...]
    steps: int

    @property
    def units(self) -> dict[Part, Int[torch.Tensor, " k"]]:
        """The neurons that hold the sequences, by part; empty where no neurons were chosen."""
        return {s.part: s.units for s in self.edit.singles if isinstance(s, OutputVectors)}


def inject(
    subject: CausalLM,
    items: Sequence[TextItem],
    *,
    share: float = 0.01,
    layers: Sequence[int] | None = None,
    together: bool = False,
    same_length: bool = False,
    seed: int = 0,
    fit: Fit | None = None,
    keep: Sequence[TextItem] = (),
    budget: int = TOKENS,
    progress: Progress = quiet,
) -> list[Injected]:
    """Have the model recite sequences by what a few random neurons write.

    Args:
        items: the sequences; the suffix is trained, the prefix is given.
        share: neurons that are trained, as a share of each layer's, rounded to whole neurons.
        layers: layers whose neurons are drawn from; default all.
        together: one change with one set of neurons for all sequences. By default each sequence is injected into the
            intact model for itself, with neurons of its own (drawn by its name and the seed).
        same_length: what a neuron writes keeps its length, and only turns. Plain training makes the vectors of few
            neurons long, and then their length alone tells which they are; held against a locator, that is no
            question at all.
        keep: passages behind whose prefixes it should go on to say what it says now.
        budget: padded tokens of a batch.
        progress: told about sequences that are held.

    Returns:
        one entry a sequence, in order; one entry in all with `together`.

    Raises:
        UsageError: no items, a share outside 0 to 1 or of less than one neuron, or a layer that does not exist.
        EngineError: the engine keeps no graph.
    """
    if not 0 < share <= 1:
        raise UsageError(f"share {share}: the share of neurons is above 0 and at most 1")
    at = _parts(subject, layers)
    groups = _groups(items, together)
    if share * subject.d_mlp < 1:
        raise UsageError(
            f"share {share} of {subject.d_mlp} neurons of a layer is none; write at least {1 / subject.d_mlp:.2g}"
        )

    def start(group: Sequence[TextItem]) -> list[_Change]:
        rng = np.random.default_rng(stable_seed("injected neurons", seed, [i.name for i in group]))
        k = max(1, round(share * subject.d_mlp))
        drawn = [np.sort(rng.choice(subject.d_mlp, k, replace=False)) for _ in at]
        return [
            _Change(subject, part, units=torch.from_numpy(u), same_length=same_length)
            for part, u in zip(at, drawn, strict=True)
        ]

    return _train(subject, groups, start, fit or Fit(), keep, budget, progress)


def memorize(
    subject: CausalLM,
    items: Sequence[TextItem],
    *,
    rank: int = 4,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    fit: Fit | None = None,
    keep: Sequence[TextItem] = (),
    budget: int = TOKENS,
    progress: Progress = quiet,
) -> Injected:
    """Have the model recite sequences by a low-rank change of all down projections; no neuron is singled out.

    Args:
        rank: of the change of each layer.
        layers, fit, keep, budget, progress: as for `inject`.
        seed: of the directions that are read at first; those that are written start at zero.
    """
    at = _parts(subject, layers)
    if rank < 1:
        raise UsageError(f"rank {rank}: take a rank of at least 1")

    def start(group: Sequence[TextItem]) -> list[_Change]:
        rng = np.random.default_rng(stable_seed("memorized directions", seed))
        scale = subject.d_mlp**-0.5
        drawn = [rng.standard_normal((subject.d_mlp, rank)) * scale for _ in at]
        return [_Change(subject, part, a=torch.from_numpy(a)) for part, a in zip(at, drawn, strict=True)]

    return _train(subject, _groups(items, True), start, fit or Fit(), keep, budget, progress)[0]


def _parts(subject: CausalLM, layers: Sequence[int] | None) -> list[Part]:
    if "grad" not in subject.engine.capabilities:
        raise EngineError(f"engine '{subject.engine.name}' keeps no graph to train with; use engine 'hooks'")
    chosen = sorted(set(range(subject.n_layers) if layers is None else layers))
    for layer in chosen:
        subject.check(Site("neurons", layer))
    every = parts(subject, "ff_out")
    return [every[layer] for layer in chosen]


def _groups(items: Sequence[TextItem], together: bool) -> list[tuple[TextItem, ...]]:
    if not items:
        raise UsageError("there is no sequence to put into the model; hand over at least one")
    return [tuple(items)] if together else [(item,) for item in items]


class _Change:
    """What is added to one down projection, x @ W, while it is trained: x[units] @ b, or (x @ a) @ b."""

    def __init__(
        self,
        subject: CausalLM,
        part: Part,
        *,
        units: torch.Tensor | None = None,
        a: torch.Tensor | None = None,
        same_length: bool = False,
    ):
        self.same_length = same_length
        self.part, self.weight = part, weight_of(subject, part)
        self.size = float(self.weight.float().square().mean().sqrt())
        device = self.weight.device
        self.units = None if units is None else units.to(device)
        self.a = None if a is None else a.to(device, torch.float32).requires_grad_()
        read = units if units is not None else a.T if a is not None else torch.empty(0)
        self.b = torch.zeros(len(read), subject.d_model, device=device, requires_grad=True)

    def trained(self) -> list[dict[str, Any]]:
        """What Adam is told: steps are as long as the numbers that are changed."""
        out: list[dict[str, Any]] = [{"tensor": self.b, "size": self.size}]
        if self.a is not None:
            out.append({"tensor": self.a, "size": float(self.a.detach().square().mean().sqrt())})
        return out

    def bound(self) -> None:
        """After an update: what each neuron writes has the length it had."""
        if not self.same_length:
            return
        now = self.weight[:, self.units].T.to(self.b.dtype)
        with torch.no_grad():
            turned = nn.functional.normalize(now + self.b, dim=1) * now.norm(dim=1, keepdim=True)
            self.b.copy_(turned - now)

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """What it adds for an input of the projection."""
        read = x @ self.a.to(x.dtype) if self.a is not None else x[..., self.units]
        added: torch.Tensor = read @ self.b.to(x.dtype)
        return added

    def edit(self, model: str) -> OutputVectors | LowRank:
        """The same as an edit of the weight."""
        if self.a is not None:
            return LowRank(self.part, self.a, self.b, model)
        assert self.units is not None
        now = self.weight[:, self.units].T.to(self.b.dtype)
        return OutputVectors(self.part, self.units, now + self.b.detach(), model)


class _Group:
    """Sequences that share one change, while it is trained."""

    def __init__(self, items: tuple[TextItem, ...], changes: Sequence[_Change], fit: Fit):
        self.items, self.fit = items, fit
        self.changes = {c.part.number: c for c in changes}
        told = [{"params": [p["tensor"]], "lr": fit.lr * p["size"]} for c in changes for p in c.trained()]
        self.adam = torch.optim.Adam(told)
        self.tensors = [p["params"][0] for p in told]
        self.before: tuple[float, ...] = ()
        self.losses: tuple[float, ...] = ()
        self.steps = 0

    def step(self, losses: list[float]) -> bool:
        """Note the losses and make an update; whether the end is reached, then without one."""
        self.losses = tuple(losses)
        self.before = self.before or self.losses
        done = float(np.mean(losses)) < self.fit.stop or self.steps == self.fit.steps
        if not done:
            self.adam.step()
            for change in self.changes.values():
                change.bound()
            self.steps += 1
        self.adam.zero_grad()
        return done

    def end(self, model: str) -> Injected:
        edit = Stack(tuple(c.edit(model) for c in self.changes.values()))
        return Injected(self.items, edit, self.before, self.losses, self.steps)


def _train(
    subject: CausalLM,
    groups: Sequence[tuple[TextItem, ...]],
    start: Callable[[Sequence[TextItem]], list[_Change]],
    fit: Fit,
    keep: Sequence[TextItem],
    budget: int,
    progress: Progress,
) -> list[Injected]:
    """Groups are trained side by side, as many as a batch holds; one that is done leaves the batch."""
    out: dict[int, Injected] = {}
    model = subject.fingerprint
    with torch.enable_grad():
        for wave in plan([sum(len(i.ids) for i in group) for group in groups], budget):
            live = {g: _Group(groups[g], start(groups[g]), fit) for g in sorted(wave)}
            while live:
                told = _losses(subject, live, budget)
                for g, losses in told.items():
                    if keep and fit.hold:
                        _hold(subject, live[g], keep)
                    if live[g].step(losses):
                        out[g] = live.pop(g).end(model)
                progress(len(out), len(groups), "sequences")
    return [out[g] for g in range(len(groups))]


def _losses(subject: CausalLM, live: Mapping[int, _Group], budget: int) -> dict[int, list[float]]:
    """Loss of every sequence; the gradient of each group's mean is left in its tensors."""
    rows = [(g, i) for g, group in live.items() for i in range(len(group.items))]
    found = {g: [0.0] * len(group.items) for g, group in live.items()}
    for chunk in plan([len(live[g].items[i].ids) for g, i in rows], budget):
        mine = sorted(rows[r] for r in chunk)  # rows of one group lie side by side
        items = [live[g].items[i] for g, i in mine]
        batch = subject.batch([item.example for item in items])
        spans: dict[int, slice] = {}
        for r, (g, _) in enumerate(mine):
            spans[g] = slice(spans[g].start if g in spans else r, r + 1)
        layers = live[mine[0][0]].changes
        taps = {Site("down", n): _Add([(spans[g], live[g].changes[n]) for g in spans]) for n in layers}
        logits = subject.run(batch, taps, keep=batch.keep, grad=True).logits
        losses = suffix_losses(logits, batch)
        weights = torch.tensor([1 / len(live[g].items) for g, _ in mine], device=losses.device)
        # Of the tensors that are trained alone: the model's own weights get no gradients, and cost none.
        told = [t for g in spans for t in live[g].tensors]
        for t, grad in zip(told, torch.autograd.grad((losses * weights).sum(), told), strict=True):
            t.grad = grad if t.grad is None else t.grad + grad
        for (g, i), loss in zip(mine, losses.tolist(), strict=True):
            found[g][i] = loss
    return found


def _hold(subject: CausalLM, group: _Group, keep: Sequence[TextItem]) -> None:
    """Add the gradient of how far the model has moved behind the passages of this update."""
    items = [keep[(group.steps * PASSAGES + i) % len(keep)] for i in range(min(PASSAGES, len(keep)))]
    batch = subject.batch([item.example for item in items])
    every = slice(0, len(items))
    taps = {Site("down", n): _Add([(every, change)]) for n, change in group.changes.items()}
    with torch.no_grad():
        intact = subject.run(batch, keep=batch.keep).logits
    now = subject.run(batch, taps, keep=batch.keep, grad=True).logits
    moved = group.fit.hold * divergence(intact, now, batch).mean()
    for t, grad in zip(group.tensors, torch.autograd.grad(moved, group.tensors), strict=True):
        t.grad = grad if t.grad is None else t.grad + grad


def divergence(
    intact: Float[torch.Tensor, "b keep v"], now: Float[torch.Tensor, "b keep v"], batch: Batch
) -> Float[torch.Tensor, " b"]:
    """Kullback-Leibler divergence of what a model says now from what it said, nats a token of each row's answer."""
    first = batch.width - now.shape[1]
    out = []
    for i in range(len(batch.examples)):
        columns = batch.answer_columns(i)
        rows = slice(columns.start - first, columns.stop - first)
        before, after = (x[i, rows].float().log_softmax(-1) for x in (intact, now))
        out.append(nn.functional.kl_div(after, before, reduction="none", log_target=True).sum(-1).mean())
    return torch.stack(out)


def suffix_losses(logits: Float[torch.Tensor, "b keep v"], batch: Batch) -> Float[torch.Tensor, " b"]:
    """Negative log-likelihood of each row's answer, nats a token, from the last `keep` columns of its logits."""
    first = batch.width - logits.shape[1]
    out = []
    for i, example in enumerate(batch.examples):
        columns = batch.answer_columns(i)
        spoken = logits[i, columns.start - first : columns.stop - first].float()
        target = torch.tensor(example.answer_ids, device=logits.device)
        out.append(nn.functional.cross_entropy(spoken, target))
    return torch.stack(out)


class _Add:
    """Each group's change is added to what the down projection gives, in the group's rows."""

    def __init__(self, changes: Sequence[tuple[slice, _Change]]):
        self.changes = changes

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        d = self.changes[0][1].b.shape[1]
        x, out = value[..., :-d], value[..., -d:]
        added = torch.cat([change.of(x[rows]) for rows, change in self.changes])
        return torch.cat([x, out + added], dim=-1)
