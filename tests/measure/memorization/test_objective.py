"""The objective on single items equals a naive loop, and does not depend on what else is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from interp.errors import UsageError
from interp.measure.memorization.objective import draws_of, drift, loss, predictions
from interp.models.parts import Pass, parts, replacing, watching
from tests.pipelines import tiny_pipeline
from tests.subjects import ALL, subject


@dataclass(frozen=True)
class Text:
    ids: tuple[int, ...]
    prefix: int


def texts(seed: int = 0) -> list[Text]:
    generator = torch.Generator().manual_seed(seed)
    out = []
    for n, prefix in ((12, 4), (7, 0), (19, 18)):
        out.append(Text(tuple(torch.randint(0, 256, (n,), generator=generator).tolist()), prefix))
    return out


def naive(hf: torch.nn.Module, item: Text, vectors: torch.Tensor | None = None) -> torch.Tensor:
    """One sequence at a time, every token by itself."""
    ids = torch.tensor([item.ids])
    embedded = hf.get_input_embeddings()(ids)  # type: ignore[operator]
    if vectors is not None:
        embedded = torch.cat([vectors[None], embedded], 1)
    logs = hf(inputs_embeds=embedded).logits[0, -len(item.ids) :].log_softmax(-1)
    given = max(1, item.prefix)
    return -torch.stack([logs[i - 1, item.ids[i]] for i in range(given, len(item.ids))]).mean()


@pytest.mark.parametrize("family", ALL)
def test_the_likelihood_of_a_suffix_equals_the_loop(family: str) -> None:
    it, items = subject(family), texts()
    with torch.no_grad():
        found = loss(it, items)
        torch.testing.assert_close(found, torch.stack([naive(it.hf, i) for i in items]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(loss(it, items, batch=2), found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_soft_prompt_stands_before_the_tokens_and_has_gradients(family: str) -> None:
    it, items = subject(family), texts()
    width = it.hf.get_input_embeddings().weight.shape[1]
    vectors = torch.randn(3, 2, width, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found = loss(it, items, embeddings=vectors)
    expected = torch.stack([naive(it.hf, i, v) for i, v in zip(items, vectors, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    (own,) = torch.autograd.grad(found[1], vectors, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected[1], vectors)
    torch.testing.assert_close(own, theirs, rtol=1e-3, atol=1e-5)
    assert own[[0, 2]].abs().max() == 0 and own[1].abs().max() > 0


def test_what_cannot_be_asked_for_is_refused() -> None:
    it = subject("llama")
    with pytest.raises(UsageError, match="at least one item"):
        loss(it, [])
    with pytest.raises(UsageError, match="none is left"):
        loss(it, [Text((1, 2, 3), 3)])
    with pytest.raises(UsageError, match="2 embeddings for 3 items"):
        loss(it, texts(), embeddings=torch.zeros(2, 1, 48))


@dataclass(frozen=True)
class Image:
    name: str
    prompt: str
    image: torch.Tensor


def images(n: int = 3) -> list[Image]:
    generator = torch.Generator().manual_seed(5)
    prompts = ("a photo of seven", "the red digit", "zorax poster of nine")
    shape = tiny_pipeline().image_shape
    return [Image(f"image {i}", prompts[i % 3], torch.rand(shape, generator=generator)) for i in range(n)]


def test_the_denoising_error_equals_the_loop() -> None:
    it, items = tiny_pipeline(), images()
    expected = []
    with torch.no_grad():
        for item in items:
            x0, embedding = it.encode(item.image[None]), it.embed([item.prompt])
            errors = []
            for t, eps in zip(*draws_of(it, item, 4, 7), strict=True):
                x = it.add_noise(x0, eps[None], int(t))
                errors.append((it.noise(x, int(t), embedding) - eps).square().mean())
            expected.append(torch.stack(errors).mean())
        found = loss(it, items, draws=4, seed=7)
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(loss(it, items, draws=4, seed=7, batch=5), found, rtol=1e-4, atol=1e-5)
        other = it.embed(["a red seven"] * 3)
        torch.testing.assert_close(
            loss(it, items[:1], draws=4, seed=7, embeddings=other[:1]),
            loss(it, items, draws=4, seed=7, embeddings=other)[:1],
            rtol=1e-4,
            atol=1e-5,
        )
        assert not torch.allclose(loss(it, items, draws=4, seed=7, embeddings=other), found, rtol=1e-3)


def test_draws_are_stratified_and_depend_on_name_and_seed_alone(rng_untouched: None) -> None:
    it, (a, b, _) = tiny_pipeline(), images()
    t, eps = draws_of(it, a, 8, 0)
    assert (t // 125).tolist() == list(range(8))
    again = draws_of(it, Image(a.name, "other", b.image), 8, 0)
    assert torch.equal(again[0], t) and torch.equal(again[1], eps)
    for name, seed in ((b.name, 0), (a.name, 1)):
        other = draws_of(it, Image(name, a.prompt, a.image), 8, seed)
        assert not torch.equal(other[0], t) and not torch.equal(other[1], eps)
    firsts = torch.cat([draws_of(it, a, 2, seed)[0] for seed in range(400)]).double()
    assert abs(float(firsts.mean()) - 499.5) < 20 and float(firsts.std()) == pytest.approx(288.7, rel=0.05)


def test_rows_say_which_item_they_are_of() -> None:
    for it, items, draws in ((tiny_pipeline(), images(), 3), (subject("llama"), texts(), 1)):
        seen: list[int] = []
        padding: list[int] = []

        def reader(part: object, x: torch.Tensor, pass_: Pass, seen=seen, padding=padding) -> None:  # type: ignore[no-untyped-def]
            assert len(x) == len(pass_.items)
            seen += pass_.items.tolist()
            padding += [] if pass_.valid is None else (~pass_.valid).sum(1).tolist()

        with torch.no_grad(), watching(it, parts(it, "ff_out")[:1], reader):
            loss(it, items, draws=draws, batch=4)
        assert seen == [i for i in range(3) for _ in range(draws)]
        if padding:
            widths = [len(i.ids) - 1 for i in texts()]
            assert padding == [max(widths) - w for w in widths]


def test_drift_is_zero_at_first_and_the_divergence_after_a_change() -> None:
    for it, items in ((tiny_pipeline(), images()), (subject("llama"), texts())):
        part = parts(it, "ff_out")[1]
        with torch.no_grad():
            before = predictions(it, items, draws=2)
            assert float(drift(it, before, before).abs().max()) < 1e-6
            with replacing(it, {part: lambda x, pass_: x * (pass_.items == 1)[:, None, None]}):
                now = predictions(it, items, draws=2)
        found = drift(it, now, before)
        assert found[0] > 1e-6 and found[2] > 1e-6 and found[1] < 1e-6
        if it.kind == "causal_lm":
            expected = torch.nn.functional.kl_div(now[0], before[0], reduction="none", log_target=True)
            torch.testing.assert_close(found[0], expected.sum(-1).mean())
