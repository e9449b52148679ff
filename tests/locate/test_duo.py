"""Gates of KV heads: the mixture against squares made by hand, the optimiser against plain autograd, planted heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

import interp
from interp.errors import EngineError, UsageError
from interp.locate.duo import DuoGates, hidden, streaming
from interp.tasks.base import FixedTask
from tests.planted.retrieval import Planted, plant, planted_task
from tests.subjects import examples, subject
from tests.tiny import WINDOW

SINK, RECENT = 2, 5
FAMILIES = ("gpt2", "llama", "mistral", "neox")
EXAMPLES = examples((24, 17, 40))


@contextmanager
def by_hand(module: Any, gates: torch.Tensor, window: int | None = None) -> Iterator[None]:
    """The model with whole squares of attention, one full and one streaming, mixed head by head."""
    of = {}

    def mixed(
        attention: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        layer = of.setdefault(id(attention), len(of))
        per = q.shape[1] // k.shape[1]
        row, key = torch.meshgrid(torch.arange(q.shape[2]), torch.arange(q.shape[2]), indexing="ij")
        seen = (key <= row) & (row - key < (window or 10**6))
        near = seen & ((key < SINK) | (row - key < RECENT))
        out = torch.zeros_like(q)
        for head in range(q.shape[1]):
            scores = q[:, head] @ k[:, head // per].transpose(1, 2) * q.shape[-1] ** -0.5
            full, part = (scores.masked_fill(~mask, float("-inf")).softmax(-1) for mask in (seen, near))
            a = gates[layer, head // per]
            values = v[:, head // per]
            out[:, head] = a * (full @ values) + (1 - a) * (part @ values)
        return out.transpose(1, 2), None

    before = module.config._attn_implementation
    AttentionInterface.register("by_hand", mixed)
    AttentionMaskInterface.register("by_hand", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    module.set_attn_implementation("by_hand")
    try:
        yield
    finally:
        module.set_attn_implementation(before)


def by_hand_states(family: str, gates: torch.Tensor, rows: Any = EXAMPLES) -> list[torch.Tensor]:
    """Last hidden states at the answer's rows, one example after the other, without padding."""
    module: Any = subject(family).hf
    out = []
    with by_hand(module, gates, WINDOW if family == "mistral" else None):
        for e in rows:
            ids = torch.tensor([e.full_ids[:-1]])
            states = module(ids, output_hidden_states=True).hidden_states[-1][0]
            out.append(states[e.answer_rows.start :])
    return out


def drawn(family: str) -> torch.Tensor:
    own = subject(family)
    return torch.rand(own.n_layers, own.n_kv_heads, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_gates_of_one_are_the_model_itself(family: str) -> None:
    own = subject(family)
    batch = own.batch(EXAMPLES)
    gates = torch.ones(own.n_layers, own.n_kv_heads)
    gated = own.run(batch, streaming(gates, sink=SINK, recent=RECENT)).logits
    assert torch.equal(gated, own.run(batch).logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("which", ["zero", "drawn"])
def test_mixture_equals_squares_made_by_hand(family: str, which: str) -> None:
    own = subject(family)
    gates = drawn(family) if which == "drawn" else torch.zeros(own.n_layers, own.n_kv_heads)
    with torch.no_grad():
        found = hidden(own, EXAMPLES, streaming(gates, sink=SINK, recent=RECENT))
        wanted = by_hand_states(family, gates)
        intact = hidden(own, EXAMPLES)
    for mine, slow, whole in zip(found, wanted, intact, strict=True):
        torch.testing.assert_close(mine, slow, atol=2e-5, rtol=2e-5)
        assert (mine - whole).abs().max() > 0.01, "gates change something"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_steps_equal_autograd_and_adam_by_hand(family: str) -> None:
    own = subject(family)
    lr, weight, steps = 0.1, 0.05, 3
    task = FixedTask(EXAMPLES, name="tiny")
    fitted = DuoGates(steps=steps, lr=lr, weight=weight, sink=SINK, recent=RECENT, batch=3).fit(own, task)

    gates = torch.ones(own.n_layers, own.n_kv_heads)
    flags = [(p, p.requires_grad) for p in own.hf.parameters()]
    with torch.no_grad():
        intact = torch.cat(by_hand_states(family, gates))
    first, second = torch.zeros_like(gates), torch.zeros_like(gates)
    losses = []
    for step in range(steps):
        gates.requires_grad_()
        distance = (torch.cat(by_hand_states(family, gates)) - intact).square().mean()
        loss = distance + weight * gates.abs().mean()
        (slope,) = torch.autograd.grad(loss, gates)
        losses.append(float(loss.detach()))
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        # Three steps have no ramp: the rate is whole from the first to the last.
        change = (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        gates = (gates.detach() - lr * change).clamp(0, 1)
    np.testing.assert_allclose(fitted.gates_, gates.numpy(), atol=2e-4)
    assert fitted.losses_["loss"].tolist() == pytest.approx(losses, abs=1e-5)
    assert 0 < fitted.gates_.min() < fitted.gates_.max()
    assert fitted.gates_.min() < 0.9
    assert all(p.requires_grad == flag and p.grad is None for p, flag in flags)


def test_scores_give_each_query_head_the_gate_of_its_keys() -> None:
    own = subject("llama")
    fitted = DuoGates(steps=2, sink=SINK, recent=RECENT).fit(own, FixedTask(EXAMPLES, name="tiny"))
    frame = fitted.scores_
    assert len(frame) == own.n_layers * own.n_heads
    for row in frame.itertuples():
        assert row.kv_head == own.kv_head(row.head)
        assert row.score == pytest.approx(float(fitted.gates_[row.layer, row.kv_head]))
    assert set(frame.method) == {"duo"}
    assert set(frame.n) == {3}
    assert fitted.losses_.columns.tolist() == ["step", "loss", "distance", "penalty"]
    assert fitted.losses_["distance"][0] == pytest.approx(0.0, abs=1e-10), "gates start at one"


def test_one_seed_is_one_result() -> None:
    own, task = subject("llama"), FixedTask(EXAMPLES, name="tiny")
    options: dict[str, Any] = {"steps": 3, "sink": SINK, "recent": RECENT, "batch": 1}
    before = torch.get_rng_state(), str(np.random.get_state())
    gates = [DuoGates(seed=seed, **options).fit(own, task).gates_ for seed in (0, 0, 4)]
    # Not Python's own: the type checker of the tests samples from containers with it.
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]
    assert np.array_equal(gates[0], gates[1])
    assert not np.array_equal(gates[0], gates[2])


def test_the_rate_rises_and_falls() -> None:
    rates = [DuoGates(steps=10)._rate(step) for step in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 1, 1, 0.5])


def test_what_cannot_be_is_refused() -> None:
    task = FixedTask(EXAMPLES, name="tiny")
    own = subject("llama")
    with pytest.raises(UsageError, match="needs a task"):
        DuoGates().fit(own)
    with pytest.raises(UsageError, match="no prompt is longer than sink 30 and recent 20"):
        DuoGates(sink=30, recent=20).fit(own, task)
    with pytest.raises(UsageError, match="recent is 0"):
        DuoGates(recent=0).fit(own, task)
    with pytest.raises(UsageError, match="lr 0 must be above 0"):
        DuoGates(lr=0).fit(own, task)
    with pytest.raises(EngineError, match="softcap"):
        DuoGates(steps=1, sink=1, recent=2).fit(subject("gemma2"), task)


def gate(fitted: DuoGates, planted: Planted, place: tuple[int, int]) -> float:
    layer, head = place
    return float(fitted.gates_[layer, head // (planted.n_heads // planted.n_kv_heads)])


@pytest.mark.parametrize(("kind", "n_semantic"), [("llama", 0), ("gpt2", 1)])
def test_planted_heads_keep_their_gates(kind: str, n_semantic: int) -> None:
    """Heads that bring the answer from afar keep their gate; heads that look near, or at BOS, lose it.

    In a group of KV heads a gate is as high as the neediest head's, and heads that write from afar what no answer needs
    (`offset`) keep theirs too: the loss is of the hidden states and not of the answer.
    """
    n_planted = 0 if n_semantic else 1
    planted = plant(kind, seed=0, n_planted=n_planted, n_semantic=n_semantic, n_decoys=7)
    model = interp.load(planted.module, tokenizer=None)
    task = planted_task(planted, 2, 0, 100 if n_semantic else 60)
    fitted = DuoGates(steps=24, lr=0.1, sink=1, recent=4, batch=2).fit(model, task)
    working = planted.retrieval | planted.semantic
    per = planted.n_heads // planted.n_kv_heads
    afar = [*working, *(at for name, at in planted.decoys.items() if name in ("offset", "ahead", "salient"))]
    shared = {(layer, head // per) for layer, head in [*afar, *planted.others, *planted.carriers]}
    assert all(gate(fitted, planted, at) > 0.8 for at in working)
    near = [at for name, at in planted.decoys.items() if name in ("sink", "previous", "two_back")]
    alone = [at for at in [*near, *planted.support] if (at[0], at[1] // per) not in shared]
    assert len(alone) > 2 or kind == "llama"
    assert all(gate(fitted, planted, at) < 0.2 for at in alone)
    assert gate(fitted, planted, planted.decoys["offset"]) > 0.8
