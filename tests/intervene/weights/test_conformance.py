"""Every kind of edit on either kind of subject: it does what it says, stacks, and gives every bit back."""

from __future__ import annotations

import itertools

import pytest
import torch

from interp.errors import EngineError, UsageError
from interp.intervene import edit as registry
from interp.intervene.weights import (
    Delta,
    LowRank,
    MeanAblate,
    ModelDelta,
    OutputVectors,
    ProjectOut,
    Prune,
    Stack,
)
from interp.intervene.weights.places import _lent
from interp.models.parts import Part, module_of, parts, replacing, weight_of
from interp.models.subject import CausalLM
from tests.intervene.weights.cases import (
    KINDS,
    PLACES,
    bits,
    by_hand,
    draw,
    edit,
    fresh,
    kept,
    part,
    run,
    same,
    subject,
)
from tests.tiny import tiny

FEW = ["prune", "mean_ablate", "shift", "model_delta"]


def state(s, at):
    weight, bias = kept(s, at)
    return weight.detach().clone(), None if bias is None else bias.detach().clone()


def equal(one, two):
    return all((a is None and b is None) or torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(("name", "of"), PLACES)
def test_a_model_under_an_edit_is_the_model_edited_by_hand(name, of):
    s, own = subject(name), fresh(name)
    at = part(s, of)
    before, clean = bits(s), run(s)
    module = module_of(own, at)
    first, had = module.weight.detach().clone(), module.bias
    for kind in KINDS if of == "ff_out" else [*FEW, "prune rows", "project out"]:
        one = edit(s, at, kind)
        zero = torch.zeros(weight_of(s, at).shape[0])
        turned = type(module).__name__ == "Conv1D"
        w, b = by_hand(s, one, kind, first.T if turned else first, zero if had is None else had.detach())
        with torch.no_grad():
            module.weight.copy_(w.T if turned else w)
            module.bias = torch.nn.Parameter(b)
        wanted = run(own)
        with one.applied(s):
            weight, bias = kept(s, at)
            found = weight.T if turned else weight
            torch.testing.assert_close(found, w, atol=2e-6, rtol=1e-6)
            if not kind.startswith(("project", "low", "scaled")):
                assert torch.equal(found, w), kind
            torch.testing.assert_close(zero if bias is None else bias, b, atol=2e-6, rtol=1e-6)
            got = run(s)
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)
        assert (got - clean).abs().max() > 1e-3, kind
        assert same(s, before) and torch.equal(run(s), clean), kind
        with torch.no_grad():
            module.weight.copy_(first)
            module.bias = had
    assert not registry._edited and not _lent


@pytest.mark.parametrize(("name", "of"), PLACES)
def test_mean_ablation_is_the_units_held_at_their_means(name, of):
    s = subject(name)
    at = part(s, of)
    one = edit(s, at, "mean_ablate")
    assert isinstance(one, MeanAblate)

    def hold(x, pass_):
        x = x.clone()
        x[..., one.units] = one.means
        return x

    with replacing(s, {at: hold}):
        wanted = run(s)
    with one.applied(s):
        torch.testing.assert_close(run(s), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "of", "kinds"),
    [("llama", "ff_out", KINDS), ("gpt2", "ff_out", FEW), ("pipeline", "ff_out", FEW)],
)
def test_edits_of_one_part_stack_in_order_and_can_be_left_in_any(name, of, kinds):
    s = subject(name)
    pairs = list(itertools.product(kinds, kinds))
    at = part(s, of)
    before, first = bits(s), state(s, at)
    orders = 0
    for a, b in pairs:
        one, two = edit(s, at, a), edit(s, at, b, seed=1)
        with two.applied(s):
            only_two = state(s, at)
        with one.applied(s):
            only_one = state(s, at)
            with two.applied(s):
                both = state(s, at)
            assert equal(state(s, at), only_one)
        with (one + two).applied(s):
            assert equal(state(s, at), both)
        with Stack((two, one)).applied(s):
            orders += not equal(state(s, at), both)
        outer, inner = one.applied(s), two.applied(s)
        outer.__enter__()
        inner.__enter__()
        outer.__exit__(None, None, None)
        left = state(s, at)
        # Also a bias that was moved by the weights that the first had left.
        assert equal(left, only_two), (a, b)
        inner.__exit__(None, None, None)
        assert equal(state(s, at), first), (a, b)
    assert orders > len(pairs) / 4  # an order that made no difference would prove nothing
    assert same(s, before) and not registry._edited and not _lent


def test_the_first_of_three_can_be_left_first():
    s = subject("llama")
    at = part(s, "ff_out")
    before = bits(s)
    first, mean, last = edit(s, at, "shift"), edit(s, at, "mean_ablate"), edit(s, at, "delta", seed=2)
    with mean.applied(s), last.applied(s):
        wanted = state(s, at)
    held = [e.applied(s) for e in (first, mean, last)]
    for one in held:
        one.__enter__()
    for one in held:
        one.__exit__(None, None, None)
        if one is held[0]:
            assert equal(state(s, at), wanted)
    assert same(s, before)


@pytest.mark.parametrize("name", ["llama", "gpt2", "pipeline"])
def test_an_exception_in_stacks_on_many_parts_restores_every_bit_and_the_fingerprint(name):
    s = fresh(name)
    every = parts(s, "ff_out")
    weight = module_of(s, every[0]).weight
    with torch.no_grad():
        weight[0, 0], weight[0, 1] = -0.0, 1e-42
    before, was = bits(s), s.fingerprint
    stack = Stack(tuple(edit(s, p, kind) for p in every[:2] for kind in KINDS)).made_for(s)
    assert len(stack.edits) == 2 * len(KINDS) and stack.parts == every[:2]
    with pytest.raises(ZeroDivisionError), stack.applied(s), stack.applied(s):
        assert s.fingerprint != was
        raise ZeroDivisionError
    assert same(s, before) and s.fingerprint == was and not registry._edited and not _lent


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_rounded_once_and_comes_back(kind):
    s = CausalLM(tiny("llama").to(torch.bfloat16), None, name="bf16")
    at = part(s, "ff_out")
    one, before = edit(s, at, kind), bits(s)
    first = module_of(s, at).weight.detach().float()
    wanted = by_hand(s, one, kind, first, torch.zeros(len(first)))
    with one.applied(s):
        weight, bias = kept(s, at)
        torch.testing.assert_close(weight, wanted[0].bfloat16(), atol=1e-6, rtol=8e-3)
        if bias is not None:
            torch.testing.assert_close(bias, wanted[1].bfloat16(), atol=1e-6, rtol=8e-3)
        if kind in ("prune", "delta", "output_vectors"):
            assert torch.equal(weight, wanted[0].bfloat16())
    assert same(s, before)


def test_an_edit_of_facts_and_one_of_a_part_meet_on_one_weight():
    from interp.intervene.edit import WeightEdit

    s = subject("llama")
    at, before = part(s, "ff_out"), bits(s)
    d_out, d_in = weight_of(s, at).shape
    fact, mean = WeightEdit(1, "down", draw(d_in, 1), draw(1, d_out)), edit(s, at, "mean_ablate")
    with fact.applied(s), mean.applied(s):
        wanted = state(s, at)
    with fact.applied(s):
        held = mean.applied(s)
        held.__enter__()
        assert equal(state(s, at), wanted)
    with mean.applied(s):
        pass
    held.__exit__(None, None, None)
    assert same(s, before)


def test_edits_can_be_compared_and_do_not_change_with_the_tensors_they_were_made_from():
    s = subject("llama")
    at = part(s, "ff_out")
    for kind in KINDS:
        assert edit(s, at, kind) == edit(s, at, kind) and hash(edit(s, at, kind)) == hash(edit(s, at, kind))
        assert edit(s, at, kind) != edit(s, part(s, "ff_out", 2), kind)
        assert kind == "prune rows" or edit(s, at, kind) != edit(s, at, kind, seed=5)
    change = draw(*weight_of(s, at).shape)
    one = Delta(at, change)
    was = one.digest
    change += 1
    assert one.digest == was and Stack((one,)) == one and Stack((one, one)) != one


def test_what_does_not_fit_is_refused_before_anything_is_changed():
    s = subject("llama")
    at, before = part(s, "ff_out"), bits(s)
    d_out, d_in = weight_of(s, at).shape
    good = edit(s, at, "prune")
    for bad, why in (
        (Prune(at, torch.ones(d_out, d_in + 1, dtype=torch.bool)), "out x in"),
        (Delta(at, draw(d_in, d_out)), "out x in"),
        (LowRank(at, draw(d_out, 1), draw(1, d_in)), "out x in"),
        (ProjectOut(at, torch.eye(d_out)[:, :1]), "any x 48"),
        (ProjectOut(at, torch.eye(d_in)[:, :1], "out"), "80 x any"),
        (OutputVectors(at, torch.tensor([0]), draw(1, d_out + 1)), "out x in"),
        (OutputVectors(at, torch.tensor([d_in]), draw(1, d_out)), f"units 0 to {d_in - 1}"),
        (MeanAblate(at, torch.tensor([d_in]), draw(1)), f"units 0 to {d_in - 1}"),
        (Prune(Part("model.layers.9.mlp.down_proj", "ff_out", 9), good.mask), "no module"),
        (ModelDelta({"model.nothing.weight": draw(2)}), "no parameter"),
        (ModelDelta({f"{at.path}.weight": draw(2, 2)}), "the change"),
    ):
        with pytest.raises(UsageError, match=why), (good + bad).applied(s):
            raise AssertionError("applied")
    assert same(s, before)
    for make, why in (
        (lambda: MeanAblate(at, torch.tensor([0, 0]), draw(2)), "each once"),
        (lambda: MeanAblate(at, torch.tensor([0, 1]), draw(1)), "2 units and 1 means"),
        (lambda: OutputVectors(at, torch.tensor([0, 1]), draw(1, d_out)), "2 units and 1 vectors"),
        (lambda: ProjectOut(at, draw(d_in, 2)), "not orthonormal"),
        (lambda: ProjectOut(at, torch.eye(d_in), "up"), "no side"),
        (lambda: LowRank(at, draw(d_in, 2), draw(1, d_out)), "share no rank"),
        (lambda: Delta(at, draw(d_out, d_in) / 0), "not finite"),
        (lambda: Prune.units(s, at, [d_in]), f"units 0 to {d_in - 1}"),
    ):
        with pytest.raises(UsageError, match=why):
            make()


@pytest.mark.parametrize("weight", [torch.empty(48, 80, device="meta"), torch.ones(48, 80, dtype=torch.int8)])
def test_weights_that_cannot_be_edited_say_why(weight):
    s = fresh("llama")
    at = part(s, "ff_out")
    one = edit(s, at, "delta")
    module_of(s, at).weight = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(EngineError, match=r"not in memory|quantised"), one.applied(s):
        pass
