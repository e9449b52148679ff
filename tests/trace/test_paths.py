"""Path patching equals two full passes a sender with every other head frozen, on every family, padded and not."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

import pytest
import torch

from interp.errors import EngineError, UsageError
from interp.intervene.ablate import ablate
from interp.models.batch import Batch
from interp.models.engines.base import Record
from interp.models.sites import MLP, Component, Head, Neuron, Site
from interp.models.subject import CausalLM
from interp.trace import streams
from interp.trace.paths import PathSpent, paths
from interp.trace.streams import reaches
from tests.subjects import ALL, examples, subject
from tests.tiny import tiny


@cache
def pair(model: CausalLM, lengths: tuple[int, ...] = (24, 17, 30)) -> tuple[Batch, Batch]:
    """Clean and corrupt batches; the corrupt prompts differ from the fourth token on."""
    clean = examples(lengths)
    ids = [e.ids[:3] + tuple((i + 1 + 7 * (k % 3)) % 256 for k, i in enumerate(e.ids[3:])) for e in clean]
    twins = [
        type(e)("tiny", twin, e.answer_ids, spans=e.spans, chance=0.1)
        for e, twin in zip(clean, ids, strict=True)
    ]
    return model.batch(clean), model.batch(twins)


@cache
def recorded(model: CausalLM, batch: Batch) -> dict[Site, torch.Tensor]:
    """What all heads and MLPs give in a run."""
    sites = [Site(kind, i) for kind in ("z", "mlp_out") for i in range(model.n_layers)]
    return model.run(batch, {site: Record() for site in sites}).records


DEFAULT = {"q": "answer", "k": "all", "v": "all", "mlp_out": "all", "logits": "answer"}


def naive(
    model: CausalLM,
    clean: Batch,
    corrupt: Batch,
    sender: Component,
    receivers: Sequence[Site],
    scope: Any = None,
    freeze_mlps: bool = False,
) -> torch.Tensor:
    """Two full passes: all heads frozen but the sender, then the receivers' inputs put into the clean run."""
    layers = range(model.n_layers)
    base, other = recorded(model, clean), recorded(model, corrupt)
    sites = list(base)
    real = clean.mask.bool()
    sent = clean.scope_columns(scope or "all", 0, clean.width) & real
    frozen = {site: base[site].clone() for site in sites}
    at = Site("z" if isinstance(sender, Head) else "mlp_out", sender.layer)
    if isinstance(sender, Head):
        frozen[at][:, :, sender.head][sent] = other[at][:, :, sender.head][sent]
    else:
        frozen[at][sent] = other[at][sent]
    fixed = [s for s in sites if s.kind == "z" or freeze_mlps or s == at]
    taps: dict[Site, Any] = {site: (lambda value, site=site: frozen[site]) for site in fixed}
    taps |= {r.whole: Record() for r in receivers if r.kind in "qkv"}
    read: dict[int, torch.Tensor] = {}
    with ExitStack() as stack:
        for i in layers:

            def see(module: Any, args: Any, i: int = i) -> None:
                read[i] = args[0]

            stack.callback(model.module(i, "mlp").register_forward_pre_hook(see).remove)
        first = model.run(clean, taps)
    if receivers[0].kind == "logits":
        columns = clean.scope_columns(scope or "answer", 0, clean.width)[:, -clean.keep :]
        return torch.where(columns[..., None], first.logits, model.run(clean).logits)
    second: dict[Site, Any] = {}
    with ExitStack() as stack:
        for r in receivers:
            columns = clean.scope_columns(scope or DEFAULT[r.kind], 0, clean.width) & real
            if r.kind == "mlp_out":
                new = read[r.layer]

                def give(module: Any, args: Any, new: Any = new, columns: Any = columns) -> Any:
                    return (torch.where(columns[..., None], new, args[0]),)

                module = model.module(r.layer, "mlp")
                stack.callback(module.register_forward_pre_hook(give).remove)
                continue

            def put(value: torch.Tensor, r: Site = r, columns: Any = columns) -> torch.Tensor:
                return torch.where(columns[..., None], first[r.whole][:, :, r.index], value)

            second.setdefault(r, []).append(
                type("Put", (), {"edit": staticmethod(lambda value, frame, put=put: put(value))})()
            )
        return model.run(clean, second).logits


CASES = {
    "logits": ("logits", None),
    "queries": ("q[1].1 q[2].0 q[2].3", None),
    "keys and values": ("k[1].1 v[2].0 k[2].1", None),
    "at a span": ("v[1].0 q[2].1 k[2].0", "value"),
    "mixed": ("v[1].1 mlp_out[1] q[2].2 mlp_out[2]", None),
}


@pytest.mark.parametrize(
    ("case", "frozen"), [*((c, False) for c in CASES), ("logits", True), ("mixed", True)]
)
@pytest.mark.parametrize("family", ALL)
def test_paths_equal_two_full_passes(family: str, case: str, frozen: bool) -> None:
    model = subject(family)
    clean, corrupt = pair(model)
    names, scope = CASES[case]
    receivers = [Site.parse(name) for name in names.split()]
    every = [Head(0, 0), Head(0, 3), Head(1, 2), Head(2, 1), MLP(0), MLP(1), MLP(2)]
    senders = [s for s in every if any(reaches(model, s, r) for r in receivers)]
    found = dict(paths(model, clean, corrupt, senders, receivers, scope=scope, freeze_mlps=frozen))
    assert sorted(found) == list(range(len(senders)))
    intact = model.run(clean).logits
    moved = []
    for number, sender in enumerate(senders):
        wanted = naive(model, clean, corrupt, sender, receivers, scope, frozen)
        for row in range(len(clean)):
            columns = [c - clean.width + clean.keep for c in clean.answer_columns(row)]
            assert torch.allclose(found[number][row, columns], wanted[row, columns], atol=2e-4), (sender, row)
            moved.append(float((wanted - intact)[row, columns].abs().max()))
    assert max(moved) > 1e-2


@pytest.mark.parametrize("family", ["llama", "neox", "gemma2"])
def test_small_chunks_and_pieces_change_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = subject(family)
    clean, corrupt = pair(model)
    receivers = [Site("v", 2, 0), Site("q", 2, 3)]
    senders = [*(Head(i, h) for i in range(2) for h in range(4)), MLP(0), MLP(1)]
    wanted = dict(paths(model, clean, corrupt, senders, receivers))
    monkeypatch.setattr(streams, "BYTES", 10**5)
    found = paths(model, clean, corrupt, senders, receivers, budget=7)
    assert len(list(found.walk.chunks())) > 3
    for number, logits in found:
        assert torch.allclose(logits, wanted[number], atol=1e-4)


def test_two_attention_layers_by_hand() -> None:
    """In a model without MLPs, L0H1 -> L1H2.v is one product of matrices."""
    hf = tiny("gpt2")
    with torch.no_grad():
        for block in hf.transformer.h:
            block.mlp.c_proj.weight.zero_()
            block.mlp.c_proj.bias.zero_()
        del hf.transformer.h[2]
    model = CausalLM(hf, None, name="two layers")
    clean, corrupt = pair(model, (12,))
    (_, found), *_ = paths(model, clean, corrupt, [Head(0, 1)], [Site("v", 1, 2)])

    def heads(x: torch.Tensor, i: int, x_v: torch.Tensor | None = None) -> torch.Tensor:
        """What each head writes, h t d; values may be read from another stream."""
        block = hf.transformer.h[i]
        wide = [block.attn.c_attn(block.ln_1(y)).view(-1, 3, 4, 12) for y in (x, x if x_v is None else x_v)]
        q, k, v = (w[:, j].transpose(0, 1) for j, w in enumerate((wide[0], wide[0], wide[1])))
        scores = q @ k.transpose(1, 2) / 12**0.5
        pattern = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf).softmax(-1)
        return pattern @ v @ block.attn.c_proj.weight.view(4, 12, -1)

    with torch.no_grad():
        start = [hf.transformer.wte(b.ids[0]) + hf.transformer.wpe(b.positions[0]) for b in (clean, corrupt)]
        first, other = (heads(x, 0) for x in start)
        resid = start[0] + first.sum(0) + hf.transformer.h[0].attn.c_proj.bias
        second = heads(resid, 1)
        second[2] = heads(resid, 1, resid + other[1] - first[1])[2]
        end = resid + second.sum(0) + hf.transformer.h[1].attn.c_proj.bias
        wanted = hf.lm_head(hf.transformer.ln_f(end))[-clean.keep :]
    assert torch.allclose(found[0], wanted, atol=1e-4)
    assert float((found - model.run(clean).logits).abs().max()) > 1e-2


def test_work_is_counted() -> None:
    model = subject("llama")
    clean, corrupt = pair(model, (24, 24))  # 26 columns of which the first three are alike, 3 answer rows
    runs = 2 * 52 * 3
    spent = PathSpent()
    list(paths(model, clean, corrupt, [Head(1, 0), Head(2, 0)], [Site("logits")], spent=spent))
    assert spent.token_layers == runs + 6 * (1 + 2)  # answer rows of the first sender, then of both
    assert spent.naive == runs + 2 * 52 * 3
    spent = PathSpent()
    list(paths(model, clean, corrupt, [Head(0, 0)], [Site("k", 1, 0)], spent=spent))
    # Through layer 0 and read in layer 1; then the intact run, layer 1 for what differs and the answer rows of layer 2.
    assert spent.token_layers == runs + 46 + 46 + 52 * 3 + 46 + 6
    assert spent.naive == runs + 2 * 52 * 3
    spent = PathSpent()
    list(paths(model, clean, corrupt, [Head(0, 0)], [Site("logits")], freeze_mlps=True, spent=spent))
    assert spent.token_layers == runs


def test_equal_prompts_change_nothing() -> None:
    model = subject("llama")
    clean, _ = pair(model)
    for receivers in ([Site("logits")], [Site("q", 2, 0)]):
        ((_, logits),) = paths(model, clean, clean, [Head(0, 0)], receivers)
        assert torch.allclose(logits, model.run(clean).logits, atol=1e-5)


def test_what_is_no_path_is_refused() -> None:
    model = subject("llama")
    clean, corrupt = pair(model)
    with pytest.raises(UsageError, match="L2H0 lies behind every receiver"):
        paths(model, clean, corrupt, [Head(2, 0)], [Site("q", 2, 1)])
    with pytest.raises(UsageError, match="L1N3 cannot send"):
        paths(model, clean, corrupt, [Neuron(1, 3)], [Site("logits")])
    with pytest.raises(UsageError, match="one of their own"):
        paths(model, clean, corrupt, [Head(0, 0)], [Site("logits"), Site("q", 2, 1)])
    with pytest.raises(UsageError, match=r"no path ends at z\[1\]"):
        paths(model, clean, corrupt, [Head(0, 0)], [Site("z", 1)])
    with pytest.raises(UsageError, match=r"no path ends at q\[1\]"):
        paths(model, clean, corrupt, [Head(0, 0)], [Site("q", 1)])
    with pytest.raises(UsageError, match="as many tokens"):
        paths(model, clean, pair(model, (24,))[1], [Head(0, 0)], [Site("logits")])
    with model.apply(ablate("L0H0")), pytest.raises(UsageError, match="leave `apply`"):
        paths(model, clean, corrupt, [Head(0, 0)], [Site("logits")])
    bridge = model.with_engine("nnsight")
    with pytest.raises(EngineError, match="use engine 'hooks'"):
        paths(bridge, clean, corrupt, [Head(0, 0)], [Site("logits")])
