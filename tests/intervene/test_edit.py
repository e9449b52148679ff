"""Weight edits: the same on weights and on activations, and undone bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch

from interp.errors import EngineError, UsageError
from interp.intervene.ablate import ablate
from interp.intervene.base import lower_conditions
from interp.intervene.edit import WeightEdit
from interp.models.engines.base import Record
from interp.models.sites import MLP, Head, Site
from interp.models.subject import CausalLM
from tests.subjects import ALL, examples, subject
from tests.tiny import tiny


def factors(d_in: int, d_out: int, r: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(d_in, r, generator=generator), torch.randn(r, d_out, generator=generator)


def edit(s: CausalLM, layer: int, module: str, r: int = 2, seed: int = 0) -> WeightEdit:
    d_in = s.n_heads * s.d_head if module == "o" else s.d_mlp
    return WeightEdit(layer, module, *factors(d_in, s.d_model, r, seed))


def bits(s: CausalLM) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in s.hf.state_dict().items()}


def same(s: CausalLM, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(t, before[name]) for name, t in s.hf.state_dict().items())


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("module", ["o", "down"])
def test_weights_and_activations_agree_and_the_weights_come_back(family, module):
    s, data = subject(family), examples()
    one, before, name = edit(s, 1, module), bits(s), s.fingerprint
    clean = s.run(data).logits
    sites = {Site(k, 1): Record() for k in ("z", "attn_out", "neurons", "mlp_out", "resid_post")}
    with one.applied(s):
        by_weight = s.run(data, sites)
        assert s.fingerprint != name
    assert same(s, before) and s.fingerprint == name
    with s.apply(one):
        by_tap = s.run(data, sites)
        assert s.fingerprint not in (name, "")
    assert (by_weight.logits - clean).abs().max() > 0.05
    torch.testing.assert_close(by_tap.logits, by_weight.logits, atol=1e-5, rtol=0)
    for site in sites:
        torch.testing.assert_close(by_tap[site], by_weight[site], atol=1e-5, rtol=1e-5)
    # Generation reads weights and taps in the same way, through the KV cache.
    with one.applied(s):
        said = s.generate(data, 5)
    with s.apply(one):
        assert s.generate(data, 5) == said


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("module", ["o", "down"])
def test_the_weight_is_w_plus_a_b(family, module):
    s = subject(family)
    one = edit(s, 1, module)
    x = torch.randn(5, len(one.a), generator=torch.Generator().manual_seed(1))
    path = s.family.out_proj if module == "o" else s.family.sites["neurons"].module
    before = s.module(1, path)(x)
    with one.applied(s):
        torch.testing.assert_close(s.module(1, path)(x), before + x @ one.a @ one.b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_rows_of_one_batch_can_each_have_their_own_edit(family):
    s, data = subject(family), examples((20, 20, 20, 20, 20))
    every = [
        None,
        edit(s, 1, "o"),
        edit(s, 1, "o", r=3, seed=1),
        edit(s, 1, "down") + edit(s, 0, "o", seed=2),
        edit(s, 1, "o", seed=3) + ablate("L1H2 M0"),
    ]
    batch = s.batch(data)
    taps = lower_conditions(s, batch, every, torch.arange(5))
    mixed = s.run(batch, taps).logits
    for row, condition in enumerate(every):
        with s.apply(*([condition] if condition else [])):
            torch.testing.assert_close(mixed[row], s.run(batch).logits[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ALL)
def test_each_runs_edits_as_rows_of_one_batch(family):
    s, data = subject(family), examples()
    every = [edit(s, i, m, seed=i) for i in range(s.n_layers) for m in ("o", "down")]
    every.append(edit(s, 1, "o") + ablate("L1H2 M2"))
    naive = []
    for one in every[:-1]:
        with one.applied(s):
            naive.append(s.run(data).logits)
    with s.apply(every[-1]):
        naive.append(s.run(data).logits)
    for number, logits in s.each(every, s.batch(data)):
        torch.testing.assert_close(logits, naive[number], atol=1e-4, rtol=0)


@pytest.mark.parametrize("order", [lambda e, c: e + c, lambda e, c: c + e])
def test_cuts_before_and_after_the_projection_meet_an_edit_as_they_meet_a_weight(order):
    """The projection reads what a cut of its input left, and a cut of its output comes last, in either order."""
    s, data = subject("llama"), examples()
    for one, cut in ((edit(s, 1, "o"), ablate("L1H2")), (edit(s, 1, "down"), ablate([MLP(1)]))):
        with one.applied(s), s.apply(cut):
            wanted = s.run(data).logits
        with s.apply(order(one, cut)):
            torch.testing.assert_close(s.run(data).logits, wanted, atol=1e-5, rtol=0)


def test_edits_of_one_weight_add_up_and_can_be_left_in_any_order():
    s, data = subject("gpt2"), examples()
    one, two, before = edit(s, 1, "o"), edit(s, 1, "o", seed=1), bits(s)
    with one.applied(s):
        only_one = bits(s)
    with two.applied(s):
        only_two = bits(s)
    with s.apply(one, two):
        wanted = s.run(data).logits
    outer, inner = one.applied(s), two.applied(s)
    outer.__enter__()
    inner.__enter__()
    torch.testing.assert_close(s.run(data).logits, wanted, atol=1e-5, rtol=0)
    outer.__exit__(None, None, None)
    assert same(s, only_two)
    inner.__exit__(None, None, None)
    assert same(s, before)
    with one.applied(s):
        with two.applied(s), one.applied(s):
            pass
        assert same(s, only_one)
    assert same(s, before)


def test_an_exception_restores_every_bit_of_any_type():
    from interp.intervene import edit as module

    s = CausalLM(tiny("llama").to(torch.bfloat16), None, name="bf16")
    weight = s.module(1, "self_attn.o_proj").weight
    with torch.no_grad():
        weight[0, 0], weight[0, 1] = float("nan"), -0.0
    before = weight.detach().clone().view(torch.int16)
    with pytest.raises(ZeroDivisionError), edit(s, 1, "o").applied(s):
        assert not torch.equal(weight.view(torch.int16), before)
        raise ZeroDivisionError
    assert torch.equal(weight.detach().view(torch.int16), before)
    assert weight.requires_grad and weight.grad is None and not module._edited


def test_the_sum_is_rounded_once_in_half_precision():
    s = CausalLM(tiny("llama").to(torch.bfloat16), None, name="bf16")
    one = edit(s, 1, "o")
    weight = s.module(1, "self_attn.o_proj").weight
    wanted = (weight.detach().float() + (one.a @ one.b).T).to(torch.bfloat16)
    with one.applied(s):
        assert torch.equal(weight.detach(), wanted)


def test_an_edit_of_one_head_leaves_the_others_alone():
    s, data = subject("llama"), examples()
    a, b = factors(s.d_head, s.d_model)
    one = WeightEdit.of_head(s, Head(1, 2), a, b)
    with one.applied(s):
        changed = s.out_weight(1).clone()
    torch.testing.assert_close(changed[2], s.out_weight(1)[2] + a @ b)
    assert torch.equal(changed[[0, 1, 3]], s.out_weight(1)[[0, 1, 3]])
    # Without the head there is nothing left of the edit.
    with s.apply(ablate("L1H2")):
        wanted = s.run(data).logits
        with s.apply(one):
            torch.testing.assert_close(s.run(data).logits, wanted, atol=1e-6, rtol=0)


def test_removing_a_singular_component_of_a_head_takes_it_out_of_its_output():
    """W_O (I - v v^T) as factors: a = -W_O v, b = v^T."""
    s, data = subject("qwen2"), examples()
    w = s.out_weight(1)[2].detach()
    v = torch.linalg.svd(w)[2][:2].T
    one = WeightEdit.of_head(s, Head(1, 2), -w @ v, v.T)
    with one.applied(s):
        share = s.run(data, {"head_out[1].2": Record()})["head_out[1].2"]
    assert (share @ v).abs().max() < 1e-5
    clean = s.run(data, {"head_out[1].2": Record()})["head_out[1].2"]
    torch.testing.assert_close(share, clean - clean @ v @ v.T, atol=1e-5, rtol=1e-5)


def test_descriptions_are_by_content():
    s = subject("llama")
    base = edit(s, 1, "o")
    others = [edit(s, 2, "o"), edit(s, 1, "down"), edit(s, 1, "o", seed=1), edit(s, 1, "o", r=1)]
    assert len({base.key(), *(o.key() for o in others)}) == 5
    again = copy.deepcopy(base)
    assert again == base and hash(again) == hash(base) and base != others[0]
    touched = base.touches(s, s.batch(examples()))
    assert list(touched) == [Site("o", 1)] and touched[Site("o", 1)].all()


def test_the_taps_of_projections_see_both_ends():
    s, data = subject("gemma2"), examples()
    trace = s.run(data, {"o[1]": Record(), "z[1]": Record(), "down[1]": Record(), "neurons[1]": Record()})
    for site, given, path in (
        ("o[1]", "z[1]", s.family.out_proj),
        ("down[1]", "neurons[1]", s.family.sites["neurons"].module),
    ):
        x = trace[given].flatten(2)
        assert torch.equal(trace[site], torch.cat([x, s.module(1, path)(x).detach()], -1))


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda s: WeightEdit(1, "up", *factors(4, 4)), UsageError, "o, down"),
        (lambda s: WeightEdit(1, "o", torch.ones(4, 2), torch.ones(3, 4)), UsageError, r"\(d_in, r\)"),
        (
            lambda s: WeightEdit(1, "o", torch.full((4, 2), torch.inf), torch.ones(2, 4)),
            UsageError,
            "not finite",
        ),
        (
            lambda s: WeightEdit(1, "o", *factors(4, 48)).applied(s).__enter__(),
            UsageError,
            "48 x 48, the edit 4 x 48",
        ),
        (lambda s: WeightEdit(9, "o", *factors(48, 48)).applied(s).__enter__(), UsageError, "layers 0 to 2"),
        (lambda s: run(s, WeightEdit(1, "down", *factors(48, 48))), UsageError, "80 x 48, the edit 48 x 48"),
        (lambda s: WeightEdit.of_head(s, Head(1, 9), *factors(12, 48)), UsageError, "heads 0 to 3"),
        (lambda s: run(s.with_engine("lens"), edit(s, 1, "o")), EngineError, "'lens' cannot tap projections"),
    ],
)
def test_bad_edits_say_what_to_write(make, error, told):
    with pytest.raises(error, match=told):
        make(subject("llama"))


def run(s, one):
    with s.apply(one):
        s.run(examples())


def test_weights_out_of_memory_are_refused():
    s = CausalLM(copy.deepcopy(tiny("llama")), None, name="meta")
    projection = s.module(1, "self_attn.o_proj")
    projection.to("meta")
    with pytest.raises(EngineError, match="not in memory"), edit(s, 1, "o").applied(s):
        pass
