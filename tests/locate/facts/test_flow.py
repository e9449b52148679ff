"""Attention knockout, lenses, extraction and enrichment against passes and sums by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.ablate import ablate
from interp.intervene.trace import window_of
from interp.locate.facts import lens
from interp.locate.facts.flow import averages, knockout_map, tokens_of
from interp.locate.facts.lens import enrichment, extraction, logit_lens, read
from interp.models.engines.base import Record
from interp.models.sites import MLP, Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Span
from interp.trace.each import Spent
from tests.intervene.test_tracing import deep
from tests.subjects import subject

FIVE = ("gpt2", "neox", "llama", "gemma2", "olmo2")


def prompt(n: int, first: int, last: int, seed: int, cluster: str = "") -> Example:
    draw = torch.randint(0, 250, (n + 2,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Example(
        "t", tuple(draw[:n]), (draw[n],), spans=(Span(first, last, "subject"), Span(last, last + 1, "relation")),
        foil_ids=(draw[n + 1],), chance=0.1, cluster=cluster or f"c{seed}",
    )  # fmt: skip


PROMPTS = [prompt(9, 2, 4, 0), prompt(6, 1, 4, 1), prompt(7, 0, 2, 2)]
"""Of unequal lengths, so that batches are padded."""


def blocked(
    model: CausalLM,
    example: Example,
    layers: tuple[int, ...],
    heads: list[int],
    rows: list[int],
    keys: list[int],
) -> torch.Tensor:
    """Logits of the last token where these rows of these heads do not see the keys: weights made by hand."""

    def through(q: torch.Tensor, k: torch.Tensor, scale: float, softcap: float | None, window: int | None):
        scores = q.double() @ k.double().transpose(-1, -2) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        t = scores.shape[-1]
        seen = torch.ones(t, t).tril().bool()
        if window is not None:
            seen &= ~torch.ones(t, t).tril(-window).bool()
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        for h in heads:
            for r in rows:
                weights[:, h, r, keys] = 0.0
                left = weights[:, h, r].sum(-1, keepdim=True)
                weights[:, h, r] = torch.where(left > 0, weights[:, h, r] / left.clamp(min=1e-300), 0.0)
        return weights

    groups = model.n_heads // model.n_kv_heads
    calls = {}

    def taps() -> dict:
        out = {}
        for layer in layers:
            out[Site("attention", layer)] = lambda call: calls.__setitem__(call.layer, call)

            def z(value: torch.Tensor, layer: int = layer) -> torch.Tensor:
                call = calls[layer]
                k, v = (x.repeat_interleave(groups, 1) for x in (call.k, call.v))
                weights = through(call.q, k, call.scaling, call.softcap, call.window)
                return (weights @ v.double()).transpose(1, 2).to(value.dtype)

            out[Site("z", layer)] = z
        return out

    return model.run([example], taps()).logits[0, -1].double()


@pytest.mark.parametrize("family", FIVE)
def test_knockout_equals_attention_weights_made_by_hand(family: str) -> None:
    model = subject(family)
    sources = ("subject", "first", "other", "last", "relation")
    frame = knockout_map(model, PROMPTS, sources, window=2, metric="probability")
    heads = knockout_map(model, PROMPTS[:1], "subject", parts="heads", layers=[1])
    # The third prompt starts with its subject, so it has no first token apart.
    assert len(frame) == (3 * 5 - 1) * model.n_layers and len(heads) == model.n_heads
    for i, example in enumerate(PROMPTS):
        last, answer = len(example.ids) - 1, example.answer_ids[0]
        clean = float(model.run([example]).logits[0, -1].double().softmax(-1)[answer])
        for source in sources:
            for layer in range(model.n_layers):
                window = window_of(layer, 2, model.n_layers)
                keys = tokens_of(example, source)
                if (i, source) == (2, "first"):
                    assert not keys
                    continue
                logits = blocked(model, example, window, list(range(model.n_heads)), [last], keys)
                wanted = float(logits.softmax(-1)[answer])
                row = frame[(frame.example == i) & (frame.source == source) & (frame.layer == layer)].iloc[0]
                assert row.value == pytest.approx(wanted, abs=1e-5)
                assert row.clean == pytest.approx(clean, abs=1e-5)
                assert row.relative == pytest.approx(100 * (wanted - clean) / clean, abs=0.05)
    for row in heads.itertuples():
        logits = blocked(model, PROMPTS[0], (1,), [row.head], [8], [2, 3])
        assert row.value == pytest.approx(float(logits.softmax(-1)[PROMPTS[0].answer_ids[0]]), abs=1e-5)
    assert heads.value.nunique() == model.n_heads and frame.relative.abs().max() > 5


def test_the_first_token_is_a_source_of_its_own() -> None:
    told = [{name: tokens_of(e, name) for name in ("subject", "first", "other", "last")} for e in PROMPTS]
    assert told[0] == {"subject": [2, 3], "first": [0], "other": [1, 4, 5, 6, 7], "last": [8]}
    assert told[1] == {"subject": [1, 2, 3], "first": [0], "other": [4], "last": [5]}
    assert told[2] == {"subject": [0, 1], "first": [], "other": [2, 3, 4, 5], "last": [6]}
    model = subject("llama")
    # Every prompt starts with its subject: the default sources do without the first token.
    assert set(knockout_map(model, PROMPTS[2:], layers=[1]).source) == {"subject", "other", "last"}
    with pytest.raises(UsageError, match="no example has a token of 'first'"):
        knockout_map(model, PROMPTS[2:], "first")


def test_edges_between_other_tokens_and_other_metrics() -> None:
    model, (example, *_) = subject("llama"), PROMPTS
    frame = knockout_map(
        model, [example], "subject", target="other", window=1, metric="logit_diff", layers=[0, 2]
    )
    for row in frame.itertuples():
        logits = blocked(model, example, (row.layer,), [0, 1, 2, 3], tokens_of(example, "other"), [2, 3])
        wanted = float(logits[example.answer_ids[0]] - logits[example.foil_ids[0]])
        assert row.value == pytest.approx(wanted, abs=2e-4)
    assert (
        abs(frame.effect[0]) > 0.1 and abs(frame.effect[1]) < 1e-6
    )  # nothing after the last layer reads those tokens


def test_what_is_hidden_from_none_changes_nothing_and_lacking_sources_are_left_out() -> None:
    model = subject("gpt2")
    ahead = knockout_map(model, PROMPTS[:1], "last", target="first after", window=3)
    assert (ahead.effect == 0).all()  # causal: those rows do not see the last token
    bare = prompt(4, 0, 3, 7)
    frame = knockout_map(model, [bare, *PROMPTS], ("subject", "other"), window=1)
    assert set(frame[frame.source == "other"].example) == {1, 2, 3}
    assert set(frame[frame.source == "subject"].example) == {0, 1, 2, 3}
    same = knockout_map(model, PROMPTS, ("subject", "other"), window=1)
    np.testing.assert_allclose(frame[frame.example == 2].value, same[same.example == 1].value, atol=1e-6)


@pytest.mark.parametrize(("layers", "n", "cells"), [(12, 12, 348), (48, 8, 4074)])
def test_a_map_costs_an_eighth_of_full_passes_or_less(layers: int, n: int, cells: int) -> None:
    """One token a cell, from its window's first layer on, beside one whole pass: as many as for GPT-2 XL."""
    model = deep(layers)
    prompts = [Example("t", tuple(range(3, 3 + n)), (50,), spans=(Span(0, 4, "subject"),), chance=0.1)]
    spent = Spent()
    frame = knockout_map(model, prompts, window=9, spent=spent)
    assert cells == 3 * sum(layers - max(0, c - 4) for c in range(layers))
    assert spent.token_layers == cells + n * layers
    full = len(frame) * n * layers
    assert len(frame) == 3 * layers and full / spent.token_layers > 8
    if layers == 48:
        assert (full, full / cells) == (55_296, pytest.approx(13.57, abs=0.01))


def test_lens_extraction_and_enrichment_by_hand() -> None:
    for family in ("gpt2", "llama", "gemma2"):
        model = subject(family)
        top = model.n_layers - 1
        frame = logit_lens(model, PROMPTS)
        for i, example in enumerate(PROMPTS):
            logits = model.run([example]).logits[0, -1]
            row = frame[(frame.example == i) & (frame.place == "last") & (frame.layer == top)].iloc[0]
            assert row.logprob == pytest.approx(
                float(logits.log_softmax(-1)[example.answer_ids[0]]), abs=1e-4
            )
            assert row.top == int(logits.argmax()) and row["rank"] == 1 + int(
                (logits > logits[example.answer_ids[0]]).sum()
            )
        state = model.run(PROMPTS[:1], {Site("resid_post", 0): Record()})[Site("resid_post", 0)][0, 3]
        row = frame[(frame.example == 0) & (frame.place == "last subject") & (frame.layer == 0)].iloc[0]
        norm = {"gpt2": "transformer.ln_f", "llama": "model.norm", "gemma2": "model.norm"}[family]
        logits = model.hf.lm_head(model.hf.get_submodule(norm)(state[None]))[0].detach()
        if cap := getattr(model.config, "final_logit_softcapping", None):
            logits = cap * torch.tanh(logits / cap)
        assert row.top == int(logits.argmax())
        assert row.probability == pytest.approx(float(logits.softmax(-1)[PROMPTS[0].answer_ids[0]]), abs=1e-5)
        bare = read(model, state[None], norm=False)[0]
        torch.testing.assert_close(bare, model.hf.lm_head(state).detach())


def test_extraction_counts_what_sublayers_name() -> None:
    model = subject("llama")
    many = [prompt(6 + i % 3, 1, 3, 20 + i) for i in range(40)]
    frame = extraction(model, many).set_index(["kind", "layer"])
    norm, head = model.hf.model.norm, model.hf.lm_head
    for kind in ("attn_out", "mlp_out"):
        hits = []
        for example in many:
            trace = model.run([example], {Site(kind, i): Record() for i in range(model.n_layers)})
            said = int(trace.logits[0, -1].argmax())
            outs = [trace[Site(kind, i)][0, len(example.ids) - 1] for i in range(model.n_layers)]
            hits.append([int(head(norm(o[None])).argmax()) == said for o in outs])
        for layer in range(model.n_layers):
            assert frame.rate[kind, layer] == pytest.approx(np.mean([h[layer] for h in hits]))
        assert frame.rate[kind, -1] == pytest.approx(np.mean([any(h) for h in hits]))
    assert frame.rate.max() > 0.1 and (frame.lo <= frame.rate).all() and (frame.rate <= frame.hi).all()
    assert frame.n.unique().tolist() == [40]


def test_enrichment_tells_own_attributes_from_others() -> None:
    model = subject("llama")
    two = [
        prompt(7, 1, 3, 40, "a"),
        replace(prompt(7, 1, 3, 40, "a"), answer_ids=(11,)),
        prompt(8, 1, 4, 41, "b"),
    ]
    state = model.run(two[:1], {Site("resid_post", 1): Record()})[Site("resid_post", 1)][0, 2]
    best = read(model, state[None])[0].topk(5).indices.tolist()
    told = {"a": [best[0], best[3], 257], "b": [best[1], 258, 256, 255]}
    frame = enrichment(model, two, k=4, attributes=told, layers=[1])
    row = frame[frame.example == 0].iloc[0]
    other = model.run(two[2:], {Site("resid_post", 1): Record()})[Site("resid_post", 1)][0, 3]
    theirs = set(read(model, other[None])[0].topk(4).indices.tolist())
    assert row.rate == pytest.approx(2 / 3)
    assert row.control == pytest.approx(len(theirs & set(told["a"])) / 3)
    asked = enrichment(model, two, k=259)
    assert set(asked.rate) == {1.0} == set(asked.control)
    cut = ablate([MLP(i) for i in range(3)], scope="subject")
    with model.apply(cut):
        less = logit_lens(model, two[:1], places=["last subject"])
    full = logit_lens(model, two[:1], places=["last subject"])
    assert (less.logprob - full.logprob).abs().min() > 1e-3  # what is applied holds
    with pytest.raises(UsageError, match="none of 'b'"):
        enrichment(model, two, attributes={"a": [1]})
    with pytest.raises(UsageError, match="other subjects"):
        enrichment(model, two[:2])


def test_a_lens_that_shows_the_same_to_all_finds_no_enrichment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attributes that all subjects share come up more often than each one's own, and must not count for it."""
    order = torch.arange(260.0).flip(0)
    monkeypatch.setattr(lens, "read", lambda model, hidden, norm=True: order.expand(len(hidden), -1))
    some = [prompt(7, 1, 3, 60 + i, name) for i, name in enumerate("abbc")]
    told = {"a": [0, 1, 200], "b": [0, 201], "c": [0, 1, 2, 202]}
    frame = enrichment(subject("llama"), some, k=3, attributes=told, layers=[0, 2])
    assert frame.rate.nunique() == 3 and (frame.rate == frame.control).all()


def test_the_control_weighs_subjects_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two states of b show the attribute and one of c does not: half of the other subjects, not two thirds."""
    some = [prompt(7, 1, 3, 60 + i, name) for i, name in enumerate("abbc")]
    shown = iter([5, 5, 5, 6])

    def show(model: CausalLM, hidden: torch.Tensor, norm: bool = True) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.full((len(hidden),), next(shown)), 259).float()

    monkeypatch.setattr(lens, "read", show)
    told = {"a": [5], "b": [5], "c": [6]}
    frame = enrichment(subject("llama"), some, k=1, attributes=told, layers=[1])
    assert frame.rate.tolist() == [1.0] * 4 and frame.control.tolist() == [0.5, 0.5, 0.5, 0.0]


def test_averages_are_over_prompts_with_intervals_over_clusters() -> None:
    frame = pd.DataFrame(
        {"layer": [0, 0, 0, 1], "value": [1.0, 2.0, 6.0, 5.0], "cluster": ["a", "a", "b", "a"]}
    )
    found = averages(frame, "value", ["layer"])
    assert found["mean"].tolist() == [3.0, 5.0] and found.n.tolist() == [3, 1]
    assert (found.lo[0], found.hi[0]) == (1.5, 6.0) and np.isnan(found.lo[1])
    with pytest.raises(UsageError, match="no column 'effect'"):
        averages(frame, "effect", ["layer"])


def test_what_means_nothing_is_refused() -> None:
    model = subject("llama")
    for options, says in (
        ({"metric": "rank"}, "metric='rank'"),
        ({"window": 0}, "window=0"),
        ({"parts": "neurons"}, "parts='neurons'"),
        ({"sources": "evidence"}, "no example has a token of 'evidence'"),
        ({"target": "evidence"}, "no token of target 'evidence'"),
        ({"layers": [5]}, "layers 0 to 2"),
        ({"sources": ()}, "sources is empty"),
    ):
        with pytest.raises(UsageError, match=says):
            knockout_map(model, PROMPTS, **options)
    with pytest.raises(NoAcceptedExample):
        knockout_map(model, [])
    with pytest.raises(UsageError, match="no foil"):
        knockout_map(model, [replace(PROMPTS[0], foil_ids=())], metric="logit_diff")
    with pytest.raises(UsageError, match="no example has such a token"):
        logit_lens(model, PROMPTS[1:2], places=["nowhere"])
