"""Second moments of keys: those of the dense computation, kept, and taken up again where a pass stopped."""

from __future__ import annotations

import pytest
import torch

from interp.errors import BrokenData, UsageError
from interp.intervene.facts import Moments, second_moments
from interp.models.engines.base import Record
from interp.models.sites import Site
from tests.subjects import ALL, examples, subject

TEXT = examples((30, 12, 41, 7, 25, 19, 33), seed=3)


def dense(s, data=TEXT) -> dict[int, torch.Tensor]:
    """All keys of all prompts, one prompt at a time and kept whole."""
    sites = {Site("neurons", i): Record() for i in range(s.n_layers)}
    keys: dict[int, list[torch.Tensor]] = {i: [] for i in range(s.n_layers)}
    for e in data:
        trace = s.run(s.batch([_whole(e)], forced=False), sites)
        for site in sites:
            keys[site.layer].append(trace[site][0].double())
    rows = {i: torch.cat(k) for i, k in keys.items()}
    return {i: k.T @ k / len(k) for i, k in rows.items()}


def _whole(e):
    from dataclasses import replace

    return replace(e, ids=e.full_ids, answer_ids=())


@pytest.mark.parametrize("family", ALL)
def test_streamed_moments_are_those_of_the_dense_computation(family):
    s = subject(family)
    found = second_moments(s, TEXT, cache=False, budget=100, dtype=torch.float64)
    assert found.tokens == sum(len(e.full_ids) for e in TEXT)
    for layer, c in dense(s).items():
        torch.testing.assert_close(found.by_layer[layer], c, atol=1e-6 * float(c.abs().max()), rtol=1e-4)


def test_an_interrupted_pass_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    from interp.intervene.facts import covariance

    monkeypatch.setattr(covariance, "EVERY", 2)
    s = subject("llama")
    ran: list[int] = []

    def stop_at(n: int):
        def progress(done: int, total: int, what: str) -> None:
            ran.append(done)
            if done == n:
                raise KeyboardInterrupt

        return progress

    whole = second_moments(s, TEXT, cache=tmp_path / "a", budget=50)
    with pytest.raises(KeyboardInterrupt):
        second_moments(s, TEXT, cache=tmp_path / "b", budget=50, progress=stop_at(5))
    ran.clear()
    again = second_moments(s, TEXT, cache=tmp_path / "b", budget=50, progress=stop_at(-1))
    assert ran[0] == 5  # four batches were kept
    assert again.tokens == whole.tokens
    for layer, c in whole.by_layer.items():
        assert torch.equal(again.by_layer[layer], c)
    ran.clear()
    kept = second_moments(s, TEXT, cache=tmp_path / "b", budget=50, progress=stop_at(-1))
    assert ran == [] and torch.equal(kept.by_layer[2], whole.by_layer[2])


def test_what_is_kept_belongs_to_model_text_and_layers(tmp_path):
    s = subject("llama")
    second_moments(s, TEXT, cache=tmp_path)
    second_moments(s, TEXT[:-1], cache=tmp_path)
    second_moments(s, TEXT, layers=[1], cache=tmp_path)
    second_moments(subject("qwen2"), TEXT, cache=tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4
    for file in files:
        file.write_bytes(b"not safetensors")
    with pytest.raises(BrokenData, match="delete it"):
        second_moments(s, TEXT, cache=tmp_path)


def test_only_the_layers_asked_for_and_none_above_them_run():
    s = subject("llama")
    found = second_moments(s, TEXT, layers=[1], cache=False)
    assert list(found.by_layer) == [1]
    torch.testing.assert_close(found.by_layer[1].double(), dense(s)[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_whitening_is_the_inverse_with_its_ridge(ridge):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    c, keys = x.T @ x / 50, torch.randn(8, 3, generator=generator, dtype=torch.float64)
    moments = Moments({2: c}, 50)
    inverse = torch.linalg.inv(c + ridge * c.diagonal().mean() * torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(moments.whitened(2, keys, ridge), inverse @ keys)


def test_moments_that_cannot_be_inverted_say_what_to_do():
    c = torch.zeros(8, 8)
    c[0, 0] = 1.0
    with pytest.raises(UsageError, match="more than 8 tokens, or a larger ridge"):
        Moments({0: c}, 5).whitened(0, torch.ones(8, 1), 0.0)
    with pytest.raises(UsageError, match=r"layers \[0\], not of layer 1"):
        Moments({0: c}, 5).whitened(1, torch.ones(8, 1), 0.0)
    with pytest.raises(UsageError, match="layers 0 to 2"):
        second_moments(subject("llama"), TEXT, layers=[7], cache=False)
    with pytest.raises(UsageError, match="float32 or float64"):
        second_moments(subject("llama"), TEXT, dtype=torch.bfloat16, cache=False)
    with pytest.raises(UsageError, match="at least one prompt"):
        second_moments(subject("llama"), [], cache=False)
