"""Every intervention run by `each` equals a run of its own, on every family, padded and not."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from interp.errors import EngineError, UsageError
from interp.intervene.ablate import ablate
from interp.intervene.base import Atom, Intervention
from interp.intervene.reference import Reference
from interp.intervene.trace import Noise
from interp.models.batch import Batch
from interp.models.engines.attention import AttentionCall
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.trace import ragged
from interp.trace.each import Spent
from tests.models.test_hooks_engine import hooks_left
from tests.subjects import ALL, examples, subject


def naive(model: CausalLM, items: Sequence[Intervention | None], batch, keep=None) -> list[torch.Tensor]:
    out = []
    for item in items:
        with model.apply(*([item] if item is not None else [])):
            out.append(model.run(batch, keep=keep).logits)
    return out


def gap(model: CausalLM, items: Sequence[Intervention | None], batch, keep=None, **options) -> float:
    """Largest difference to one run each; fails where an intervention is missing or comes twice."""
    found = list(model.each(items, batch, keep=keep, **options))
    assert sorted(i for i, _ in found) == list(range(len(items)))
    wanted = naive(model, items, batch, keep)
    for i, logits in found:
        assert logits.shape == wanted[i].shape
    return max(float((logits - wanted[i]).abs().max()) for i, logits in found)


CUTS: list[Intervention | None] = [
    None,
    *[ablate(f"L{i}H{h}") for i in range(3) for h in range(4)],
    *[ablate(f"L{i}H1", scope="answer") for i in range(3)],
    *[ablate(f"L{i}H2", scope="value") for i in range(3)],
    ablate("L1H2", scope=7),
    ablate("L0H2 M1", scope=(2, 5, 6)),
    *[ablate(f"M{i}", scope=scope) for i in range(3) for scope in ("all", "answer", "key")],
    ablate("L0N3 L1N7 L2N70"),
    ablate("L0H1 L1H2 L2H3 M1", scope="answer"),
    ablate("L2H0", scope="answer") + ablate("L0H0", scope="value"),
    ablate("L1H0", scope="key") + ablate("M1", scope="answer") + ablate("L2N4"),
    *[
        ablate(f"L{i}H3", mode="uniform", scope=scope)
        for i in range(3)
        for scope in ("all", "answer", "value")
    ],
    ablate("L1H2 L2H1", mode="uniform") + ablate("L0H0 M2", scope="answer"),
]


@pytest.mark.parametrize("lengths", [(24,), (24, 17, 40)], ids=["solo", "padded"])
@pytest.mark.parametrize("family", ALL)
def test_each_equals_one_run_each(family: str, lengths: tuple[int, ...]) -> None:
    model = subject(family)
    batch = model.batch(examples(lengths))
    assert gap(model, CUTS, batch) < 1e-4
    assert gap(model, CUTS, batch, keep=1, budget=100) < 1e-4


@pytest.mark.parametrize("family", ALL)
def test_long_suffixes_go_through_the_kernel(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = subject(family)
    batch = model.batch(examples())
    monkeypatch.setattr(ragged, "SHORT", 0)
    assert gap(model, CUTS, batch) < 1e-4
    monkeypatch.setattr(ragged, "SHORT", 1000)
    monkeypatch.setattr(ragged, "SCORES", 500)
    assert gap(model, CUTS, batch) < 1e-4


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_references_and_draws(family: str) -> None:
    model = subject(family)
    given = examples()
    batch = model.batch(given)
    cuts = [
        ablate("L1H2", mode="mean", reference=given),
        ablate("L1H1 L2H0", mode="mean", scope="answer", reference=Reference(given, "position")),
        ablate("L0H1", mode="mean", scope="value", reference=Reference(given, "role")),
        ablate("L1H0 M2", mode="resample", reference=given, seed=3),
        ablate("L1H3", mode="resample", scope="answer", reference=Reference(None, "twin")),
    ]
    assert gap(model, cuts, batch) < 1e-4


def test_a_cut_of_many_layers_is_lowered_once_a_site(monkeypatch: pytest.MonkeyPatch) -> None:
    model = subject("llama")
    data = examples((24, 17))
    wide = ablate(
        [*model.heads(), *(f"M{i}" for i in range(3))], "resample", reference=Reference(None, "twin")
    )
    items = [
        wide,
        ablate("L2H1", "resample", reference=wide.reference) + wide,
        ablate("L0H1", "knockout", "answer"),
    ]
    asked = []
    twins = Reference.twins

    def counted(self: Reference, model: CausalLM, example: object, kind: str, kept: int) -> torch.Tensor:
        asked.append(kind)
        return twins(self, model, example, kind, kept)

    batch = model.batch(data)
    wanted = naive(model, items, batch)
    monkeypatch.setattr(Reference, "twins", counted)
    found = dict(model.each(items, batch))
    assert max(float((found[i] - wanted[i]).abs().max()) for i in range(3)) < 1e-4
    # Two examples at the six sites of three layers; the composed cut has one step more at z of layer 2.
    assert len(asked) <= 2 * 2 * (6 + 1)


@pytest.mark.parametrize("family", ["llama", "neox", "gemma3"])
def test_applied_interventions_hold_for_all(family: str) -> None:
    model = subject(family)
    batch = model.batch(examples())
    alone = next(iter(model.each([ablate("L1H1")], batch)))[1]
    with model.apply(ablate("L0H0 L2H2"), ablate("M1", scope="answer")):
        assert gap(model, CUTS[:22], batch) < 1e-4
        assert not torch.allclose(next(iter(model.each([ablate("L1H1")], batch)))[1], alone, atol=1e-3)
    with model.apply(ablate("L1H1", mode="uniform")):
        assert gap(model, CUTS[:6], batch) < 1e-4


def test_work_is_counted_and_left_out() -> None:
    model = subject("llama")
    given = examples((24, 24))
    batch = model.batch(given)  # 24 prompt and 2 answer tokens in each row
    spent = Spent()
    list(model.each([None], batch, spent=spent))
    assert (spent.token_layers, spent.prompt_tokens, spent.forwards) == (52 * 3, 48, 0)
    spent = Spent()
    list(model.each([ablate("L0H0", scope="answer")] * 5, batch, spent=spent))
    assert (spent.token_layers, spent.prompt_tokens) == (52 * 3 + 5 * 6 * 3, 48 + 5 * 2)
    spent = Spent()
    # All positions of the middle layer: 52 tokens there, and in the last layer the three columns that are read.
    list(model.each([ablate("L1H0")], batch, spent=spent))
    assert (spent.token_layers, spent.prompt_tokens) == (52 * 3 + 52 + 6, 48 + 48)
    spent = Spent()
    list(model.each([ablate("M2", scope="value")], batch, spent=spent))
    assert (
        spent.token_layers == 52 * 3
    )  # what the last layer writes at columns that are not read is never seen


def test_what_touches_nothing_is_the_intact_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = subject("llama")
    batch = model.batch(examples())
    found = dict(model.each([ablate([]), None], batch))
    clean = model.run(batch).logits
    assert torch.allclose(found[0], clean, atol=1e-6) and torch.equal(found[0], found[1])
    found[0].zero_()
    assert torch.equal(dict(model.each([None], batch))[0], found[1])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4503599627370496 bytes"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4503599627370496 bytes"),
        RuntimeError("MPS backend out of memory"),
    ],
    ids=["cuda", "linux", "windows", "mps"],
)
def test_halving_when_memory_runs_out(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    from interp.errors import EngineError
    from interp.trace import each as module

    model = subject("llama")
    batch = model.batch(examples())
    wanted = naive(model, CUTS[1:13], batch)
    sizes: list[int] = []

    waves: list[weakref.ref] = []

    class Small(module.Wave):
        limit = 3

        def run(self):
            assert not any(w() for w in waves)  # what failed is not kept beside what is tried next
            waves.append(weakref.ref(self))
            sizes.append(len(self.branches))
            ends = super().run()
            if len(self.branches) > self.limit * len(batch):
                raise type(error)(*error.args)
            return ends

    monkeypatch.setattr(module, "Wave", Small)
    gc.disable()
    try:
        for i, logits in model.each(CUTS[1:13], batch):
            assert torch.allclose(logits, wanted[i], atol=1e-4)
    finally:
        gc.enable()
    assert max(sizes) > 9 and sum(s for s in sizes if s <= 9) == 36
    # Once memory has run out, no chunk is begun that is as large again.
    budget = 6 * batch.width * len(batch)
    sizes.clear()
    list(model.each(CUTS[1:13] * 4, batch, budget=budget))
    assert sizes.count(max(sizes)) == 1 and sum(s > 9 for s in sizes) < len(sizes) / 2
    Small.limit = 0
    with pytest.raises(EngineError, match="memory ran out on one intervention over 3 rows"):
        list(model.each(CUTS[1:3], batch))


def test_nothing_is_left_after_an_exception() -> None:
    model = subject("llama")
    batch = model.batch(examples())

    class Broken(type(ablate("L1H1"))):  # type: ignore[misc]
        @classmethod
        def lower_group(cls, *args):
            def fail(value):
                raise RuntimeError("in a tap")

            from interp.models.sites import Site

            return {Site("z", 1): [fail]}

    def hooks() -> list[list[int]]:
        return [[*m._forward_hooks, *m._forward_pre_hooks] for m in model.hf.modules()]

    # transformers leaves hooks of its own where a model was once asked for its attention patterns.
    kernel, before = model.config._attn_implementation, hooks()
    with pytest.raises(RuntimeError, match="in a tap"):
        list(model.each([Broken(ablate("L1H1").components)], batch))
    assert model.config._attn_implementation == kernel and not model.hooked
    assert not any("forward" in m.__dict__ for m in model.hf.modules())
    assert hooks() == before
    assert gap(model, CUTS[:3], batch) < 1e-4


def test_the_model_is_free_between_two_results_and_after_the_last() -> None:
    model = subject("llama")
    batch = model.batch(examples())
    cuts = [ablate("L1H1"), Scale("embed", 0, (4,)), ablate("L2H2", scope="answer"), None]
    wanted = naive(model, cuts, batch)
    other = naive(model, [ablate("L0H0")], batch)[0]
    for i, logits in model.each(cuts, batch, budget=1):
        with model.apply(ablate("L0H0")):
            assert torch.equal(model.run(batch).logits, other)
            assert gap(model, [ablate("L2H1")], batch) < 1e-4
        assert torch.allclose(logits, wanted[i], atol=1e-4)
    left = model.each(cuts, batch, budget=1)
    next(left)
    assert not model.hooked and hooks_left(model) == 0 and model.config._attn_implementation == "sdpa"
    with model.apply(ablate("L0H0")):
        begun = model.each(cuts, batch)
        wanted = naive(model, cuts, batch)
    for i, logits in begun:  # under what was applied when it was asked for
        assert torch.allclose(logits, wanted[i], atol=1e-4) and not model._edits


def test_what_is_no_list_of_interventions_is_refused() -> None:
    model = subject("llama")
    batch = model.batch(examples((12,)))
    assert [i for i, _ in model.each(iter([None, ablate("L1H1")]), batch)] == [0, 1]
    assert list(model.each([], batch)) == []
    with pytest.raises(UsageError, match=r"each\(\[ablate"):
        model.each(ablate("L1H1"), batch)
    with pytest.raises(UsageError, match=r"ablate\('L1H1'\)"):
        model.each(["L1H1"], batch)


def test_bf16_stays_close() -> None:
    import copy

    whole = subject("llama")
    model = CausalLM(copy.deepcopy(whole.hf).to(torch.bfloat16), None, name="half")
    batch = model.batch(examples())
    exact, rounded = naive(whole, CUTS, batch), naive(model, CUTS, batch)
    for i, logits in model.each(CUTS, batch):
        assert logits.dtype == torch.bfloat16
        # Rounding differs between the two; neither may be further from the exact logits than bf16 takes it.
        usual = (rounded[i].float() - exact[i]).abs().mean()
        assert (logits.float() - exact[i]).abs().mean() < 1.5 * usual


@dataclass(frozen=True)
class Scale(Atom):
    """What a site holds at some tokens, times a number: an edit that every kind of site can take."""

    kind: str
    layer: int
    positions: tuple[int, ...]
    index: int | None = None
    factor: float = 1.7

    @property
    def site(self) -> Site:
        return Site(self.kind, None if self.kind == "embed" else self.layer, self.index)

    def describe(self):
        return {"kind": "scale", "site": repr(self.site), "at": self.positions, "by": self.factor}

    def group(self):
        return (self,)

    def touches(self, subject, batch):
        return {self.site: batch.scope_columns(self.positions, 0, batch.width)}

    @classmethod
    def lower_group(cls, subject, batch, atoms, of, n):
        atom = atoms[0][1]
        mine = torch.isin(of, torch.tensor([number for number, _ in atoms]))
        return {atom.site: [_Scaled(atom, batch, mine)]}


@dataclass(frozen=True)
class _Scaled:
    atom: Scale
    batch: Batch
    mine: torch.Tensor

    def edit(self, value, frame):
        at = self.batch.scope_columns(self.atom.positions, frame.past, frame.width) & self.mine[:, None]
        by = torch.where(at, self.atom.factor, 1.0)
        if self.atom.kind != "attention":
            return value * by.view(*by.shape, *[1] * (value.ndim - 2))
        v = value.v.clone()
        v[:, :, -frame.width :] *= by[:, None, :, None]
        return value.with_(q=value.q * by[:, None, :, None], v=v)


KINDS = ["resid_pre", "q", "k", "v", "q_rot", "k_rot", "attention", "z", "head_out", "attn_out"]
KINDS += ["o", "resid_mid", "neurons", "down", "mlp_out", "resid_post"]


@pytest.mark.parametrize("family", ALL)
def test_edits_of_every_kind_of_site(family: str) -> None:
    model = subject(family)
    batch = model.batch(examples())
    every: list[Intervention] = []
    for kind in KINDS:
        if kind == "resid_mid" and model.family.parallel:
            continue
        every += [Scale(kind, i, at) for i in range(3) for at in ((4,), (2, 9), (16,), (15, 17))]
        if kind in ("z", "q", "k", "v", "head_out", "q_rot", "k_rot", "neurons"):
            every.append(Scale(kind, 1, (3, 12), index=1))
    every += [
        Scale("resid_pre", 2, (5,)) + Scale("z", 0, (11,)),
        Scale("k_rot", 2, (0, 5)) + Scale("v", 0, (1,)),
    ]
    clean = model.run(batch).logits
    wanted = naive(model, every, batch)
    for i, logits in model.each(every, batch):
        assert (logits - wanted[i]).abs().max() < 1e-4, every[i]
    assert sum(float((w - clean).abs().max()) > 1e-3 for w in wanted) > len(wanted) / 3


@pytest.mark.parametrize("family", ["llama", "neox", "gpt2", "gemma3", "olmo2"])
def test_an_applied_edit_of_any_kind_is_made_once_beside_each(family: str) -> None:
    model = subject(family)
    batch = model.batch(examples())
    every: list[Intervention | None] = [None, ablate("L1H1", mode="uniform", scope="value")]
    every += [
        Scale(kind, i, at)
        for kind in ("resid_pre", "q", "z", "head_out", "mlp_out", "resid_post")
        for i, at in ((0, (9,)), (1, (4, 11)), (2, (16,)))
    ]
    for kind in KINDS:
        if kind == "resid_mid" and model.family.parallel:
            continue
        with model.apply(*(Scale(kind, i, (4, 9, 16), factor=-0.8) for i in range(3))):
            assert gap(model, every, batch) < 1e-4, kind
    with model.apply(Scale("z", 1, (4, 9), index=2), Scale("z", 1, (9, 11)), Noise(0.5, "value")):
        assert gap(model, every, batch) < 1e-4


def test_embeddings_and_logits_run_whole() -> None:
    model = subject("llama")
    batch = model.batch(examples())

    spent = Spent()
    every = [Scale("embed", 0, (4,)), Scale("embed", 0, (4,)) + ablate("L1H1"), ablate("L2H2")]
    wanted = naive(model, every, batch)
    for i, logits in model.each(every, batch, spent=spent):
        assert torch.allclose(logits, wanted[i], atol=1e-4)
    assert spent.forwards == 2


def test_two_softmax_parts_are_one_softmax_however_far_apart_their_scores_are() -> None:
    generator = torch.Generator().manual_seed(0)
    r, g, kv, h, m, past, d = 2, 3, 2, 4, 5, 7, 8
    for scale in (1.0, 40.0):
        q = scale * torch.randn(g, r, h, m, d, generator=generator)
        k, v = (torch.randn(g, r, kv, m, d, generator=generator) for _ in range(2))
        before = [torch.randn(r, kv, past + m, d, generator=generator) for _ in range(2)]
        before[0] *= scale
        prefix = ragged.Prefix(*before, None, torch.zeros(r, dtype=torch.long))
        group = ragged.Group(past, torch.arange(r), list(range(g)), torch.zeros(g, r, m, 1))
        call = AttentionCall(0, q[0], k[0], v[0], None, d**-0.5)
        found = ragged.attend(group, q, k, v, prefix, None, call)  # type: ignore[arg-type]
        for i in range(g):
            keys, values = (
                torch.cat([p[:, :, :past], own[i]], 2) for p, own in zip(before, (k, v), strict=True)
            )
            mask = torch.ones(m, past + m, dtype=torch.bool).tril(past)
            wanted = torch.nn.functional.scaled_dot_product_attention(
                q[i], keys, values, mask, enable_gqa=True
            )
            torch.testing.assert_close(found[i], wanted.transpose(1, 2), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_edits_of_one_site_keep_the_order_of_their_own_intervention(family: str) -> None:
    model = subject(family)
    given = examples()
    batch = model.batch(given)
    cut = ablate("M1", mode="mean", reference=given)
    scale = Scale("mlp_out", 1, (2, 9))
    every = [cut + scale, scale + cut, scale + cut + scale, cut, ablate("M0") + scale + cut]
    assert gap(model, every, batch) < 1e-4
    found = dict(model.each(every, batch))
    assert torch.allclose(found[1], found[3], atol=1e-5)  # the mean hides what was scaled before
    assert torch.allclose(found[0], found[2], atol=1e-5) and not torch.allclose(found[0], found[1], atol=1e-2)


def test_noise_that_is_named_twice_is_added_twice() -> None:
    model = subject("llama")
    batch = model.batch(examples())
    once, twice = Noise(0.5, "value"), Noise(1.0, "value")
    found = dict(model.each([once + once, twice, once], batch))
    assert torch.allclose(found[0], found[1], atol=1e-4) and not torch.allclose(found[0], found[2], atol=1e-2)


def test_an_edit_that_is_not_announced_is_an_error() -> None:
    @dataclass(frozen=True)
    class Quiet(Scale):
        def touches(self, subject, batch):
            return {Site(self.kind, self.layer): batch.scope_columns(self.positions, 0, batch.width)}

    model = subject("llama")
    with pytest.raises(EngineError, match=r"edits v\[1\].1, which its `touches` does not name"):
        list(model.each([Quiet("v", 1, (4,), index=1)], model.batch(examples())))
