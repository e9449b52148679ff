"""Causal maps against the loop that restores one cell a forward pass, with the noise of the map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.errors import UsageError
from interp.intervene.trace import Noise, noise_level, noisy, trace_map, window_of
from interp.models.engines.base import Record
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Span
from tests.subjects import ALL, subject


def prompt(n: int = 9, first: int = 2, last: int = 5) -> Example:
    ids = torch.randint(0, 256, (n,), generator=torch.Generator().manual_seed(n)).tolist()
    return Example("t", tuple(ids), (7, 8), spans=(Span(first, last, "subject"),), chance=0.0)


def loop(model: CausalLM, example: Example, kind: str, window: int, sigma: float, samples: int) -> np.ndarray:
    """Probability of the answer, layer x position x sample: one pass of the model a cell, torch hooks by hand."""
    batch = model.batch([replace(example, answer_ids=example.answer_ids[:1])])
    sites = {Site(kind, i): Record() for i in range(model.n_layers)}
    clean = model.run(batch, sites)
    noise = Noise(sigma)
    added = torch.stack([noise.values(e, model.d_model) for e in noisy(example, samples)])
    (span,) = example.spans
    many = model.batch([replace(example, answer_ids=example.answer_ids[:1])] * samples)
    out = np.zeros((model.n_layers, len(example.ids), samples))

    def corrupt(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, span.start : span.end] += added
        return x

    for layer in range(model.n_layers):
        for position in range(len(example.ids)):

            def restore(x, i, position=position):
                x = x.clone()
                x[:, position] = clean[Site(kind, i)][0, position]
                return x

            taps = {
                Site(kind, i): (lambda x, i=i, f=restore: f(x, i))
                for i in window_of(layer, window, model.n_layers)
            }
            logits = model.run(many, {Site("embed"): corrupt, **taps}).logits[:, -1]
            out[layer, position] = torch.softmax(logits, -1)[:, example.answer_ids[0]].numpy()
    return out


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize(("kind", "window"), [("resid_post", 1), ("mlp_out", 2), ("attn_out", 3)])
def test_map_equals_the_loop(family: str, kind: str, window: int) -> None:
    model, example = subject(family), prompt()
    wanted = loop(model, example, kind, window, 2.0, 3)
    frame = trace_map(model, example, kind, window=window, samples=3, sigma=2.0)
    found = frame.value.to_numpy().reshape(model.n_layers, -1)
    np.testing.assert_allclose(found, wanted.mean(-1), rtol=1e-4)
    assert np.ptp(found) > 0.05 * found.mean()  # the map is not flat, so agreement means something


@pytest.mark.parametrize("first", [0, 4])
def test_what_a_map_must_show_at_its_edges(first: int) -> None:
    model, example = subject("gpt2"), prompt(9, first, first + 2)
    frame = trace_map(model, example, samples=4)
    assert (frame[frame.position < first].effect == 0).all()
    top = frame[frame.layer == model.n_layers - 1].set_index("position")
    # Of the last layer only the last position is read: restored it gives the clean answer, the others nothing.
    assert top.value[8] == pytest.approx(frame.high[0], abs=1e-6)
    assert top.effect[:8].abs().max() == 0
    assert (frame.low.nunique(), frame.high.nunique()) == (1, 1)
    assert set(frame[frame.position.isin([first, first + 1])].role) == {"subject"}


def test_noise_is_the_same_for_all_and_its_size_is_that_of_the_subject() -> None:
    model, example = subject("llama"), prompt()
    embedded = model.hf.get_input_embeddings()(torch.tensor(example.ids[2:5])).detach()
    assert noise_level(model, example) == pytest.approx(3 * float(embedded.std()), rel=1e-5)
    noise = Noise(1.5, seed=1)
    draws = [noise.values(e, 40) for e in noisy(example, 200)]
    assert torch.stack(draws).std() == pytest.approx(1.5, rel=0.02)
    assert torch.equal(draws[3], noise.values(noisy(example, 4)[3], 40))
    assert not torch.equal(draws[3], Noise(1.5, seed=2).values(noisy(example, 4)[3], 40))
    assert not torch.equal(draws[0], draws[1])
    one = trace_map(model, example, samples=2, seed=1)
    assert one.equals(trace_map(model, example, samples=2, seed=1))
    assert not one.value.equals(trace_map(model, example, samples=2, seed=2).value)


def test_windows_are_cut_off_at_the_ends() -> None:
    assert [len(window_of(i, 10, 30)) for i in (0, 4, 5, 15, 25, 26, 29)] == [5, 9, 10, 10, 10, 9, 6]
    assert window_of(7, 1, 30) == (7,) and window_of(7, 3, 30) == (6, 7, 8)


def test_bad_requests_say_what_to_write() -> None:
    with pytest.raises(UsageError, match="no span of role 'subject'"):
        trace_map(subject("llama"), replace(prompt(), spans=()))
    with pytest.raises(UsageError, match="no span of role 'subject'"):
        trace_map(subject("llama"), replace(prompt(), spans=()), sigma=1.0)
    for kind, window in (("resid_post", 3), ("mlp_out", 0)):
        with pytest.raises(UsageError, match="write window=1"):
            trace_map(subject("llama"), prompt(), kind, window=window)
    with pytest.raises(UsageError, match="layers 0 to 2"):
        trace_map(subject("llama"), prompt(), layers=[1, 3])
    with pytest.raises(UsageError, match="at least one draw"):
        trace_map(subject("llama"), prompt(), samples=0)


def test_the_noised_span_is_named_as_scopes_are() -> None:
    model, example = subject("llama"), prompt()
    spans = (Span(2, 4, "subject", 0), Span(3, 5, "subject", 0), Span(6, 8, "subject", 1))
    many = replace(example, spans=spans)  # two that overlap cover tokens 2 to 4, as the one of `prompt` does
    found = trace_map(model, many, samples=2, role="subject.0", sigma=1.0)
    wanted = trace_map(model, example, samples=2, sigma=1.0)
    assert found.value.equals(wanted.value) and found.low.equals(wanted.low)
    assert noise_level(model, many, "subject.0") == noise_level(model, example)


def test_a_map_can_be_drawn_as_it_is() -> None:
    from interp.plot import patch_map

    frame = trace_map(subject("llama"), prompt(), samples=2)
    assert frame.recovery.to_numpy() == pytest.approx((frame.effect / (frame.high - frame.low)).to_numpy())
    (map_,) = [trace for trace in patch_map(frame).data if trace.type == "heatmap" and trace.name]
    assert np.asarray(map_.z).shape == (3, 9)
    assert np.asarray(map_.z)[1, 4] == pytest.approx(frame.recovery[9 + 4])
