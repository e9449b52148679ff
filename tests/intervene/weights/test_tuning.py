"""Weights trained or replaced in a block: what was done is handed out, and every bit comes back."""

from __future__ import annotations

import pytest
import torch

from interp.errors import EngineError, UsageError
from interp.intervene import edit as registry
from interp.intervene.weights import ModelDelta, parameter, parameters, part_delta, substituted, tuned
from interp.intervene.weights.places import training
from interp.models.parts import module_of, parts, weight_of
from interp.models.subject import CausalLM
from tests.intervene.weights.cases import bits, draw, edit, fresh, part, run, same, subject
from tests.tiny import tiny


def output(s):
    """What the subject gives, with a graph."""
    if s.kind == "pipeline":
        return s.noise(draw(2, *s.latent_shape), 300, s.embed(["a photo of zorax", "the red digit"]))
    from tests.subjects import examples

    return s.run(examples(), grad=True).logits


@pytest.mark.parametrize("name", ["llama", "gpt2", "pipeline"])
def test_training_is_handed_out_as_an_edit_and_undone(name):
    s = fresh(name)
    what = [*parts(s, "ff_out"), next(n for n in parameters(s) if n.endswith("bias") or "norm" in n)]
    flags = {n: p.requires_grad for n, p in parameters(s).items()}
    kept_grad = torch.ones_like(parameter(s, what[-1]))
    parameter(s, what[-1]).grad = kept_grad
    before, clean, was = bits(s), run(s), s.fingerprint
    with pytest.raises(ZeroDivisionError), tuned(s, what) as tuning:
        assert len(tuning.free) == len(what)
        assert {n for n, p in parameters(s).items() if p.requires_grad} == set(tuning.free)
        adam = torch.optim.Adam(tuning.free.values(), lr=1e-2)
        for _ in range(2):
            adam.zero_grad()
            output(s).square().mean().backward()
            adam.step()
        trained, changed = run(s), bits(s)
        delta = tuning.delta()
        raise ZeroDivisionError
    assert same(s, before) and s.fingerprint == was and not registry._edited and not training
    assert {n: p.requires_grad for n, p in parameters(s).items()} == flags
    assert parameter(s, what[-1]).grad is kept_grad
    assert all(p.grad is None for n, p in parameters(s).items() if n != what[-1])
    with delta.applied(s):
        torch.testing.assert_close(run(s), trained, atol=1e-4, rtol=1e-4)
        for key, tensor in bits(s).items():
            torch.testing.assert_close(tensor, changed[key], atol=1e-7, rtol=1e-6)
    assert (
        (trained - clean).abs().max() > 1e-3 and delta.model == was and set(delta.changes) == set(tuning.free)
    )
    # The same, part by part.
    own = [part_delta(s, delta, p) for p in what[:-1]]
    at = what[0]
    with delta.applied(s):
        wanted = weight_of(s, at).clone()
    with own[0].applied(s):
        assert torch.equal(weight_of(s, at), wanted)
    assert sum(d.budget(s).norm ** 2 for d in own) ** 0.5 == pytest.approx(delta.budget(s).norm, rel=1e-4)


def test_all_weights_of_a_model_or_of_a_unet_are_free_by_default():
    with tuned(subject("llama")) as tuning:
        assert set(tuning.free) == set(parameters(subject("llama")))
    with tuned(subject("pipeline")) as tuning:
        names = set(parameters(subject("pipeline")))
        assert set(tuning.free) == {n for n in names if n.startswith("unet.")} and tuning.free.keys() < names


def test_training_stands_on_edits_and_hands_out_its_own_part():
    s = fresh("llama")
    at = part(s, "ff_out")
    first, before = edit(s, at, "delta"), bits(s)
    with first.applied(s):
        under = bits(s)
        with tuned(s, [at]) as tuning:
            with torch.no_grad():
                tuning.free[f"{at.path}.weight"].add_(0.5)
            delta = tuning.delta()
            with pytest.raises(EngineError, match="is being trained"), first.applied(s):
                pass
            with pytest.raises(EngineError, match="is being trained"), ModelDelta(delta.changes).applied(s):
                pass
            with pytest.raises(EngineError, match="is being trained"), tuned(s, [at]):
                pass
            with edit(s, part(s, "ff_out", 2), "prune").applied(s):  # another weight
                pass
            assert float((tuning.delta().changes[f"{at.path}.weight"] - 0.5).abs().max()) < 1e-5
        assert same(s, under)
    assert same(s, before)
    assert float((delta.changes[f"{at.path}.weight"] - 0.5).abs().max()) < 1e-5


def test_half_precision_is_handed_out_without_loss():
    s = CausalLM(tiny("llama").to(torch.bfloat16), None, name="bf16")
    at = part(s, "ff_out")
    with tuned(s, [at]) as tuning:
        with torch.no_grad():
            module_of(s, at).weight.mul_(1.37)
        wanted = weight_of(s, at).clone()
        delta = tuning.delta()
    with delta.applied(s):
        assert torch.equal(weight_of(s, at), wanted)


@pytest.mark.parametrize("name", ["llama", "gpt2", "pipeline"])
def test_gradients_reach_what_stands_in_for_a_weight(name):
    s = subject(name)
    at = part(s, "ff_out")
    before, one = bits(s), edit(s, at, "delta")
    with one.applied(s):
        wanted = run(s)
    share = torch.tensor(1.0, requires_grad=True)
    base = weight_of(s, at)
    for where, tensor in (
        (at, base + share * one.change),
        (f"{at.path}.weight", (base + share * one.change).T if name == "gpt2" else base + share * one.change),
    ):
        with substituted(s, {where: tensor}):
            out = output(s)
        torch.testing.assert_close(out.detach(), wanted, atol=2e-5, rtol=1e-4)
        slope = torch.autograd.grad(out.square().mean(), share)[0]
        step = 1e-2
        ends = []
        for moved in (1 - step, 1 + step):
            with substituted(s, {at: base + moved * one.change}), torch.no_grad():
                ends.append(float(output(s).detach().double().square().mean()))
        assert float(slope) == pytest.approx((ends[1] - ends[0]) / (2 * step), rel=2e-2, abs=1e-5)
    assert same(s, before) and [type(p) for p in parameters(s).values()] == [torch.nn.Parameter] * len(
        parameters(s)
    )


def test_a_square_weight_that_is_kept_turned_is_replaced_the_right_way_round():
    s = subject("gpt2")
    at = part(s, "self_out")
    one = edit(s, at, "delta")
    with one.applied(s):
        wanted = run(s)
    with substituted(s, {at: weight_of(s, at) + one.change}):
        torch.testing.assert_close(run(s), wanted, atol=2e-5, rtol=1e-4)
    with tuned(s, [at]) as tuning:
        with torch.no_grad():
            tuning.free[f"{at.path}.weight"].add_(one.change.T)
        delta = part_delta(s, tuning.delta(), at)
    torch.testing.assert_close(delta.change, one.change, atol=1e-6, rtol=1e-5)


def test_a_tied_weight_is_replaced_wherever_it_is_used():
    s = fresh("gpt2")
    s.hf.lm_head.weight = s.hf.transformer.wte.weight
    name = "transformer.wte.weight"
    new, clean = draw(*parameter(s, name).shape), run(s)
    with substituted(s, {name: new}):
        found = run(s)
        assert (found - clean).abs().max() > 0.1
        assert s.hf.lm_head.weight is s.hf.transformer.wte.weight
    was = parameter(s, name).detach().clone()
    with torch.no_grad():
        parameter(s, name).copy_(new)
        torch.testing.assert_close(run(s), found, atol=1e-4, rtol=1e-5)
        parameter(s, name).copy_(was)


def test_names_and_shapes_that_are_not_there_are_refused():
    s = subject("pipeline")
    at = part(s, "ff_out")
    with pytest.raises(UsageError, match=r"no parameter 'unet.nothing'"), tuned(s, ["unet.nothing"]):
        pass
    with pytest.raises(UsageError, match=r"no parameter 'vae.x'"):
        parameter(s, "vae.x")
    with pytest.raises(UsageError, match="takes its place"), substituted(s, {at: torch.zeros(2, 2)}):
        pass
    with tuned(s, [at]) as tuning:
        nothing = tuning.delta()
    assert nothing.changes == {}
    with pytest.raises(UsageError, match="does not change"):
        part_delta(s, nothing, at)
