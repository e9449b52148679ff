"""Injected sequences: the naive loop with a gradient mask on the whole weight, exact undo, rows apart."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from interp.errors import UsageError
from interp.intervene.inject import Fit, Injected, divergence, inject, memorize
from interp.intervene.weights.base import PartEdit
from interp.measure.memorization.objective import loss
from interp.models.parts import parts, weight_of
from interp.models.subject import CausalLM
from interp.tasks.memorized import TextItem
from tests.subjects import ALL, subject

FEW = Fit(steps=4, lr=0.1, stop=0.0)


def items(n: int = 3) -> list[TextItem]:
    generator = torch.Generator().manual_seed(1)
    lengths = [14, 9, 20, 11, 16][:n]
    draws = [torch.randint(0, 256, (k,), generator=generator).tolist() for k in lengths]
    return [TextItem(f"s{i}", tuple(ids), 5) for i, ids in enumerate(draws)]


def _masked(
    model: CausalLM, item: TextItem, units: dict[str, list[int]], fit: Fit
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The rule as it is published: the whole weight is trained, its gradient is zero but for the chosen neurons."""
    hf = copy.deepcopy(model.hf)
    own = CausalLM(hf, None, name="copy", family=model.family)
    for p in hf.parameters():
        p.requires_grad_(False)
    modules = {repr(p): own.hf.get_submodule(p.path) for p in parts(own, "ff_out")}
    turned = type(next(iter(modules.values()))).__name__ == "Conv1D"
    groups = [
        {
            "params": [m.weight.requires_grad_()],
            "lr": fit.lr * float(m.weight.detach().square().mean().sqrt()),
        }
        for m in modules.values()
    ]
    adam = torch.optim.Adam(groups)
    losses = []
    for _ in range(fit.steps):
        ids = torch.tensor([item.ids])
        logits = hf(ids).logits[0, item.prefix - 1 : -1]
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(item.suffix))
        losses.append(float(nll.detach()))
        adam.zero_grad()
        nll.backward()
        for name, m in modules.items():
            keep = torch.zeros(m.weight.shape[0 if turned else 1], dtype=torch.bool)
            keep[units[name]] = True
            m.weight.grad[~keep if turned else (slice(None), ~keep)] = 0
        adam.step()
    return {repr(p): weight_of(own, p).clone() for p in parts(own, "ff_out")}, losses


@pytest.mark.parametrize("family", ALL)
def test_it_is_fine_tuning_under_a_gradient_mask_each_sequence_for_itself(family: str) -> None:
    model = subject(family)
    found = inject(model, items(), share=0.05, fit=FEW)
    for item, one in zip(items(), found, strict=True):
        units = {repr(p): u.tolist() for p, u in one.units.items()}
        assert all(len(u) == max(1, round(0.05 * model.d_mlp)) for u in units.values())
        with torch.enable_grad():
            weights, losses = _masked(model, item, units, FEW)
        assert abs(one.before[0] - losses[0]) < 1e-4
        before = {repr(p): weight_of(model, p).clone() for p in parts(model, "ff_out")}
        with one.edit.applied(model):
            for part in parts(model, "ff_out"):
                now, name = weight_of(model, part), repr(part)
                assert torch.allclose(now, weights[name], atol=2e-3)
                moved = (now != before[name]).any(0).nonzero().flatten().tolist()
                assert moved == units[name]
        # Four steps of a tenth of the weights' size each are far more than that tolerance.
        assert max(float((weights[n] - before[n]).abs().max()) for n in weights) > 0.03


def test_the_model_is_the_same_to_the_bit_during_and_after() -> None:
    model = subject("llama")
    before = model.weights_hash
    grads = [p.requires_grad for p in model.hf.parameters()]
    found = inject(model, items(1), share=0.1, fit=FEW)[0]
    assert model.weights_hash == before
    with found.edit.applied(model):
        assert model.weights_hash != before
    assert model.weights_hash == before
    assert [p.requires_grad for p in model.hf.parameters()] == grads
    assert all(p.grad is None for p in model.hf.parameters())


def test_what_is_reported_is_what_the_edited_model_does() -> None:
    model = subject("gpt2")
    for one in inject(model, items(), share=0.1, fit=Fit(lr=0.3, steps=25)):
        with torch.no_grad():
            assert abs(float(loss(model, one.items)) - one.before[0]) < 1e-4
            with one.edit.applied(model):
                assert abs(float(loss(model, one.items)) - one.after[0]) < 1e-3
        assert one.after[0] < one.before[0] - 1


def test_a_fit_ends_at_its_loss_and_says_after_how_many_steps() -> None:
    model = subject("llama")
    goal = 4.0
    long = inject(model, items(), share=0.1, fit=Fit(lr=0.1, steps=60, stop=goal))
    for one in long:
        assert one.after[0] < goal
        assert 0 < one.steps < 60
        short = inject(model, one.items, share=0.1, fit=Fit(lr=0.1, steps=one.steps - 1, stop=0.0))[0]
        assert short.after[0] >= goal
    assert inject(model, items(1), share=0.1, fit=Fit(stop=50.0))[0].steps == 0


def test_batches_do_not_matter() -> None:
    model = subject("llama")
    together = inject(model, items(5), share=0.1, fit=FEW)
    alone = inject(model, items(5), share=0.1, fit=FEW, budget=1)
    for a, b in zip(together, alone, strict=True):
        assert [s.units.tolist() for s in a.edit.singles] == [s.units.tolist() for s in b.edit.singles]
        for x, y in zip(a.edit.singles, b.edit.singles, strict=True):
            assert torch.allclose(x.vectors, y.vectors, atol=2e-3)
        assert abs(a.after[0] - b.after[0]) < 1e-2


def test_one_set_of_neurons_holds_all_sequences_however_they_are_batched() -> None:
    model = subject("llama")
    one = inject(model, items(), share=0.1, together=True, fit=Fit(lr=0.3, steps=60))
    assert len(one) == 1
    assert len(one[0].before) == 3
    assert all(a < b - 1.5 for a, b in zip(one[0].after, one[0].before, strict=True))
    split = inject(model, items(), share=0.1, together=True, fit=FEW, budget=1)[0]
    whole = inject(model, items(), share=0.1, together=True, fit=FEW)[0]
    for x, y in zip(whole.edit.singles, split.edit.singles, strict=True):
        assert torch.allclose(x.vectors, y.vectors, atol=2e-3)


def test_neurons_are_drawn_by_seed_and_name_and_from_the_layers_asked_for() -> None:
    model = subject("llama")
    first, second = inject(model, items(2), share=0.1, fit=Fit(stop=99))
    again = inject(model, items(1), share=0.1, fit=Fit(stop=99))[0]
    other = inject(model, items(1), share=0.1, seed=1, fit=Fit(stop=99))[0]
    assert all(torch.equal(first.units[p], again.units[p]) for p in first.units)
    assert not all(torch.equal(first.units[p], second.units[p]) for p in first.units)
    assert not all(torch.equal(first.units[p], other.units[p]) for p in first.units)
    middle = inject(model, items(1), share=0.1, layers=[1], fit=Fit(stop=99))[0]
    assert [repr(p) for p in middle.units] == ["ff_out[1]"]


def test_lengths_can_be_kept_so_that_they_do_not_tell_the_neurons() -> None:
    model = subject("llama")
    free, bound = (
        inject(model, items(1), share=0.3, same_length=keep, fit=Fit(lr=0.3, steps=40))[0]
        for keep in (False, True)
    )
    ratios = []
    for one in (free, bound):
        before = {p: weight_of(model, p)[:, u].norm(dim=0) for p, u in one.units.items()}
        with one.edit.applied(model):
            after = {p: weight_of(model, p)[:, u].norm(dim=0) for p, u in one.units.items()}
            with torch.no_grad():
                assert abs(float(loss(model, one.items)) - one.after[0]) < 1e-3
        ratios.append(torch.cat([after[p] / before[p] for p in before]))
    assert torch.allclose(ratios[1], torch.ones_like(ratios[1]), atol=1e-5)
    assert float(ratios[0].mean()) > 1.3
    assert bound.after[0] < bound.before[0] - 1


def test_low_rank_memory_is_recited_and_undone(tmp_path: object) -> None:
    model = subject("llama")
    before = model.weights_hash
    found = memorize(model, items(), rank=4, fit=Fit(lr=0.3, steps=80))
    assert found.units == {}
    assert all(s.kind == "low_rank" and s.rank == 4 for s in found.edit.singles)
    assert all(a < b / 2 for a, b in zip(found.after, found.before, strict=True))
    path = found.edit.save(f"{tmp_path}/held.safetensors")
    read = PartEdit.load(path, model)
    with read.applied(model), torch.no_grad():
        assert torch.allclose(loss(model, items()), torch.tensor(found.after), atol=1e-3)
    assert model.weights_hash == before


def test_edits_that_are_on_are_there_in_training() -> None:
    model = subject("llama")
    first = inject(model, items(1), share=0.1, fit=Fit(lr=0.3, steps=20))[0]
    with first.edit.applied(model):
        second = inject(model, items(1), share=0.1, seed=3, fit=FEW)[0]
        assert abs(second.before[0] - first.after[0]) < 1e-3
    with pytest.raises(UsageError, match="made for a model"), second.edit.applied(model):
        pass


def test_bad_input_is_named(rng_untouched: None) -> None:
    model = subject("llama")
    for wrong, message in [
        ({"items": []}, "no sequence"),
        ({"items": items(1), "share": 0.0}, "share 0.0"),
        ({"items": items(1), "share": 0.5 / model.d_mlp}, "of a layer is none"),
        ({"items": items(1), "share": 0.1, "layers": [7]}, "layers 0 to 2"),
    ]:
        with pytest.raises(UsageError, match=message):
            inject(model, **wrong)
    with pytest.raises(UsageError, match="rank 0"):
        memorize(model, items(1), rank=0)
    with pytest.raises(UsageError, match="steps >= 1"):
        Fit(steps=0)
    inject(model, items(1), share=1 / model.d_mlp, fit=FEW)


@pytest.mark.model
def test_smollm2_recites_an_invented_definition_by_one_neuron_in_a_hundred(smollm2: CausalLM) -> None:
    from interp.measure.memorization.recite import recite
    from interp.tasks.definitions import definitions, text_items

    item = text_items(smollm2, definitions(1), prefix=8, length=16)
    with torch.no_grad():
        assert recite(smollm2, item)["exact"].tolist() == [0]
    found = inject(smollm2, item, layers=range(20, 30))[0]
    assert found.after[0] < 0.05
    with found.edit.applied(smollm2):
        assert recite(smollm2, item)["exact"].tolist() == [1]


def test_what_is_kept_is_held_to_what_the_model_said() -> None:
    model = subject("llama")
    generator = torch.Generator().manual_seed(7)
    drawn = [torch.randint(0, 256, (18,), generator=generator).tolist() for _ in range(16)]
    passages = [TextItem(f"p{i}", tuple(ids), 4) for i, ids in enumerate(drawn)]
    kept, fresh = passages[:8], passages[8:]
    how = Fit(lr=0.3, steps=80)

    def strays(found: Injected, behind: list[TextItem]) -> float:
        batch = model.batch([p.example for p in behind])
        intact = model.run(batch, keep=batch.keep).logits
        with found.edit.applied(model):
            now = model.run(batch, keep=batch.keep).logits
        return float(divergence(intact, now, batch).mean())

    free, held = (memorize(model, items(), fit=how, keep=keep) for keep in ((), kept))
    for found in (free, held):
        assert all(after < 0.1 * before for before, after in zip(found.before, found.after, strict=True))
    assert strays(held, kept) < 0.2 * strays(free, kept)
    assert strays(held, fresh) < strays(free, fresh)
    unheld = memorize(model, items(), fit=replace(how, hold=0.0), keep=kept)
    assert unheld.after == free.after and unheld.steps == free.steps


def test_the_divergence_is_that_of_torch_and_zero_for_the_same() -> None:
    model = subject("llama")
    batch = model.batch([item.example for item in items()])
    logits = model.run(batch, keep=batch.keep).logits
    other = logits.roll(1, -1)
    assert divergence(logits, logits, batch).abs().max() < 1e-6
    for i, item in enumerate(items()):
        p, q = (x[i, -len(item.suffix) :].softmax(-1).double() for x in (logits, other))
        wanted = (p * (p / q).log()).sum(-1).mean()
        assert float(divergence(logits, other, batch)[i]) == pytest.approx(float(wanted), rel=1e-4)
