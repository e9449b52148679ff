"""Gradient screens: exact where they must be, right gradients everywhere, and honest about the rest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import interp
from interp.errors import EngineError, NoAcceptedExample, UsageError
from interp.intervene.ablate import ablate
from interp.intervene.patch import patch
from interp.intervene.put import Put, Values
from interp.locate.gradients import along_layers, gradients, metric_of
from interp.measure.metrics import score_answer
from interp.models.sites import MLP, Head, Neuron, Site
from tests.subjects import ALL, examples, subject

EVEN = examples((24, 24, 24))


def mean(s, data, metric, *cuts):
    """Mean metric under cuts, by the slow way."""
    with s.apply(*cuts):
        batch = s.batch(data)
        logits = s.run(batch).logits
    first = batch.width - logits.shape[1]
    rows = [
        logits[i, (c := batch.answer_columns(i)).start - first : c.stop - first] for i in range(len(data))
    ]
    return float(np.mean([score_answer(r, e)[metric] for r, e in zip(rows, data, strict=True)]))


@pytest.mark.parametrize("metric", ["logit_diff", "logprob"])
def test_metrics_are_those_of_measure(metric):
    s, data = subject("llama"), examples()
    batch = s.batch(data)
    found = metric_of(s.run(batch).logits, batch, data, metric)
    for i in range(len(data)):
        assert float(found[i]) == pytest.approx(mean(s, [data[i]], metric), abs=1e-4)


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("kind", ["z", "neurons", "resid_post", "attn_out", "mlp_out", "resid_pre"])
def test_gradients_equal_finite_differences(family, kind):
    """Along a random direction in each layer, all layers tapped in one pass; padded rows."""
    s, data = subject(family), examples()
    batch = s.batch(data)
    sites = [Site(kind, i) for i in range(s.n_layers)]

    def metric(logits):
        return metric_of(logits.double(), batch, data, "logit_diff")

    found, values, grads = gradients(s, batch, sites, metric)
    assert float(found.mean()) == pytest.approx(mean(s, data, "logit_diff"), abs=1e-4)
    generator = torch.Generator().manual_seed(0)
    step = 1e-2
    for site in sites:
        shift = torch.randn(values[site].shape, generator=generator)
        shift *= batch.mask.view(*batch.mask.shape, *[1] * (shift.ndim - 2)) / shift.norm()
        ends = [
            metric(s.run(batch, {site: lambda x, a=a, shift=shift: x + a * shift}).logits).sum()
            for a in (step, -step)
        ]
        slope = float(ends[0] - ends[1]) / (2 * step)
        assert float((grads[site] * shift).sum()) == pytest.approx(slope, rel=0.02, abs=2e-3), site


def test_weights_keep_their_flags_and_get_no_gradient():
    s = subject("gpt2")
    flags = {name: i % 2 == 0 for i, (name, _) in enumerate(s.hf.named_parameters())}
    for name, p in s.hf.named_parameters():
        p.requires_grad_(flags[name])
    before = {name: p.clone() for name, p in s.hf.named_parameters()}
    try:
        interp.screen(s, EVEN)
        with pytest.raises(UsageError, match="no foil"):
            interp.screen(s, [replace(e, foil_ids=()) for e in EVEN])
        for name, p in s.hf.named_parameters():
            assert p.requires_grad == flags[name] and p.grad is None and torch.equal(p, before[name])
    finally:
        s.hf.requires_grad_(True)


def test_only_the_sites_that_are_asked_for_are_in_the_graph():
    s = subject("llama")
    batch = s.batch(EVEN)
    seen = {}

    def metric(logits):
        seen["logits"] = logits
        return metric_of(logits, batch, EVEN, "logprob")

    below = {}
    site = Site("z", 2)
    gradients(s, batch, [site], metric, taps={Site("resid_post", 0): lambda x: below.update(x=x)})
    assert seen["logits"].requires_grad and not below["x"].requires_grad


def straight(family):
    """A tiny model without final norm, so that logits are linear in what the last layer adds to the stream."""
    from interp.models.subject import CausalLM
    from tests.tiny import tiny

    module = tiny(family)
    if family == "gpt2":
        module.transformer.ln_f = torch.nn.Identity()
    else:
        module.model.norm = torch.nn.Identity()
    return CausalLM(module, None, name=f"straight {family}")


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("mode", ["zero", "mean", "patch"])
def test_exact_where_the_metric_is_linear(family, mode):
    s = straight(family)
    last = [s.n_layers - 1]
    for over, kind in (("neuron", None), ("role", "mlp_out"), ("position", "resid_post")):
        if family == "gemma3" and over == "neuron":
            continue  # a norm follows the down projection
        found = interp.screen(s, EVEN, over, kind=kind, mode=mode, layers=last, top=60, sample=10).frame
        seen = found[found.verified]
        np.testing.assert_allclose(seen.approx, seen.exact, atol=2e-4)
        assert seen.exact.abs().max() > 0.01
    # Heads of the last layer reach the logits through its MLP too, which is not linear: cut that MLP.
    if mode == "zero":
        with s.apply(ablate([MLP(last[0])])):
            found = interp.screen(s, EVEN, layers=last)
        if family != "gemma3":
            np.testing.assert_allclose(found.frame.approx, found.frame.exact, atol=2e-4)
            assert found.agreement.spearman == pytest.approx(1) and found.agreement.recall == 1


@pytest.mark.parametrize("family", ALL)
def test_exact_values_are_those_of_ablation(family):
    s, data = subject(family), examples()
    for metric, scope in (("logit_diff", "all"), ("logprob", "answer")):
        found = interp.screen(s, data, metric=metric, scope=scope, top=2, sample=2)
        base = mean(s, data, metric)
        assert found.base == pytest.approx(base, abs=1e-4)
        for row in found.frame[found.frame.verified].itertuples():
            cut = mean(s, data, metric, ablate(row.component, scope=scope))
            assert row.exact == pytest.approx(cut - base, abs=2e-4)
    found = interp.screen(s, data, "neuron", mode="mean", top=2, sample=0).frame
    for row in found[found.verified].itertuples():
        cut = mean(s, data, "logit_diff", ablate(row.component, "mean", reference=data))
        assert row.exact == pytest.approx(cut - mean(s, data, "logit_diff"), abs=2e-4)


@pytest.mark.parametrize(
    ("over", "kind"), [("position", "resid_post"), ("position", "attn_out"), ("head", "z")]
)
def test_exact_values_are_those_of_patching(over, kind):
    """One example: the patch frame has a row for each cell, and so has the screen."""
    s, data = subject("llama"), EVEN[:1]
    found = interp.screen(s, data, over, kind=kind, mode="patch", top=0, sample=200)
    slow = patch(s, data, kind, over=over)
    key = "position" if over == "position" else "head"
    mine = found.frame.rename(columns={"unit": "head"}) if key == "head" else found.frame
    both = slow.merge(mine[["layer", key, "approx", "exact"]], on=["layer", key])
    assert len(both) == len(slow) == len(found.frame) and found.frame.verified.all()
    np.testing.assert_allclose(both.exact, both.value - both.corrupt, atol=2e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_steps_of_a_cut_sum_to_the_effect_of_the_whole_layer(family, mode):
    """Completeness of integrated gradients, and that it is the steps that make it."""
    s = subject(family)
    reference = EVEN if mode == "mean" else None
    rough, fine = (
        interp.screen(s, EVEN, mode=mode, steps=steps, top=0, sample=0, reference=reference).frame
        for steps in (1, 150)
    )
    off = {}
    for layer in range(s.n_layers):
        cut = ablate([Head(layer, h) for h in range(s.n_heads)], mode, reference=reference)
        whole = mean(s, EVEN, "logit_diff", cut) - mean(s, EVEN, "logit_diff")
        sums = [f[f.layer == layer].approx.sum() for f in (rough, fine)]
        assert sums[1] == pytest.approx(whole, abs=0.03 * max(1, abs(whole)))
        off[layer] = abs(sums[0] - whole)
    assert max(off.values()) > 0.1


def test_steps_of_a_patch_follow_the_inputs():
    """Of the embeddings' own path: at the first site the shares sum to the change from run to donor."""
    s = subject("llama")
    clean, dirty = (mean(s, d, "logit_diff") for d in (EVEN, [twin(e) for e in EVEN]))
    found = interp.screen(
        s, EVEN, "position", kind="resid_pre", mode="patch", layers=[0], steps=60, top=0, sample=0
    )
    assert found.base == pytest.approx(dirty, abs=1e-4)
    assert found.frame.approx.sum() == pytest.approx(clean - dirty, abs=0.02)
    plain = interp.screen(s, EVEN, "position", kind="resid_pre", mode="patch", layers=[0], top=0, sample=0)
    assert abs(plain.frame.approx.sum() - (clean - dirty)) > 0.05


def twin(e):
    """The corrupt prompt, asked the clean question."""
    return replace(e, ids=e.corrupt["value_swap"].ids)


def test_roles_are_sums_of_their_positions_and_batches_change_nothing(monkeypatch):
    s, data = subject("qwen3"), EVEN
    by_role = interp.screen(s, data, "role", kind="mlp_out", top=0, sample=0).frame.set_index(
        ["layer", "role"]
    )
    by_position = interp.screen(s, data, "position", kind="mlp_out", top=0, sample=0).frame
    role = {**dict.fromkeys((1, 2), "key"), **dict.fromkeys((3, 4, 5), "value"), 23: "last"}
    summed = by_position.groupby(
        ["layer", by_position.position.map(lambda p: role.get(p, "other"))]
    ).approx.sum()
    for place, value in summed.items():
        assert by_role.approx[place] == pytest.approx(value, abs=1e-5)
    assert len(by_role) == 4 * s.n_layers
    ragged = examples()
    whole = interp.screen(s, ragged, "role", top=4, sample=3)
    monkeypatch.setattr("interp.locate.screen.TOKENS", 30)
    parts = interp.screen(s, ragged, "role", top=4, sample=3)
    one, other = (f.frame.set_index(["layer", "role"]).sort_index() for f in (whole, parts))
    np.testing.assert_allclose(one.approx, other.approx, atol=1e-4)
    np.testing.assert_allclose(one.exact, other.exact, atol=1e-4)


def test_the_agreement_says_what_it_is_of():
    s = subject("llama")
    found = interp.screen(s, EVEN, "neuron", top=10, sample=20, seed=1)
    frame, agreement = found.frame, found.agreement
    assert agreement.n == len(frame) == s.n_layers * s.d_mlp
    assert agreement.verified == frame.verified.sum() == frame.exact.notna().sum() <= 30
    assert agreement.rule == "top 10 and 20 at random, seed 1"
    best = frame.approx.abs().sort_values(ascending=False).index[:10]
    assert frame.verified[best].all()
    seen = frame[frame.verified]
    ranks = seen[["approx", "exact"]].rank()
    assert agreement.spearman == pytest.approx(ranks.approx.corr(ranks.exact))
    assert agreement.pearson == pytest.approx(seen.approx.corr(seen.exact))
    assert agreement.m == 10
    top = [set(seen[c].abs().nlargest(10).index) for c in ("approx", "exact")]
    assert agreement.recall == len(top[0] & top[1]) / 10
    assert found.top(2) == tuple(Neuron(int(frame.layer[i]), int(frame.unit[i])) for i in best[:2])
    again = interp.screen(s, EVEN, "neuron", top=10, sample=20, seed=1).frame
    assert again.equals(frame)
    other = interp.screen(s, EVEN, "neuron", top=10, sample=20, seed=2).frame
    assert not other.verified.equals(frame.verified)
    none = interp.screen(s, EVEN, top=0, sample=0)
    assert (
        none.agreement.verified == 0 and np.isnan(none.agreement.spearman) and none.frame.exact.isna().all()
    )


def test_a_screen_alone_is_one_forward_and_one_backward_pass():
    s = subject("llama")
    calls = {"block": 0}
    handle = s.blocks[0].register_forward_pre_hook(lambda *_: calls.update(block=calls["block"] + 1))
    try:
        interp.screen(s, EVEN, top=0, sample=0)
        assert calls["block"] == 1
        interp.screen(s, EVEN, mode="patch", top=0, sample=0)
        assert calls["block"] == 3
    finally:
        handle.remove()


def test_random_state_is_left_alone(rng_untouched):
    interp.screen(subject("llama"), EVEN, top=1, sample=1)


def test_put_writes_what_it_holds_and_knows_its_batch():
    s = subject("llama")
    batch = s.batch(EVEN)
    stored = torch.randn(3, batch.width, s.n_heads, s.d_head, generator=torch.Generator().manual_seed(0))
    columns = torch.zeros(3, batch.width, dtype=torch.bool)
    columns[0, 4], columns[2, 7:9] = True, True
    put = Put(Site("z", 1, 2), Values(batch, stored, "noise"), columns)
    kept = {}
    with s.apply(put):
        s.run(batch, {"z[1]": lambda z: kept.update(z=z)}, keep=1)
    clean = {}
    s.run(batch, {"z[1]": lambda z: clean.update(z=z)}, keep=1)
    wanted = clean["z"].clone()
    wanted[:, :, 2][columns] = stored[:, :, 2][columns]
    assert torch.equal(kept["z"], wanted)
    # Rows of the batch in another order, each with its own example's values.
    order = torch.tensor([2, 0])
    with s.apply(put):
        s.run(batch.select(order), {"z[1]": lambda z: kept.update(z=z)}, keep=1)
    torch.testing.assert_close(kept["z"], wanted[order], atol=1e-5, rtol=0)
    with s.apply(put), pytest.raises(UsageError, match="other examples"):
        s.run(examples((24,)))
    other = Put(Site("z", 1, 2), Values(batch, stored, "noise"), ~columns)
    assert len({put.key(), other.key(), Put(put.site, Values(batch, stored, "zero"), columns).key()}) == 3


def test_each_puts_values_at_their_own_columns():
    """Suffixes that start late, padded rows."""
    s, data = subject("llama"), examples()
    batch = s.batch(data)
    stored = torch.randn(3, batch.width, s.d_model, generator=torch.Generator().manual_seed(0))
    columns = torch.zeros(3, batch.width, dtype=torch.bool)
    columns[:, 39], columns[1, 40] = True, True
    puts = [Put(Site("mlp_out", i), Values(batch, stored, "noise"), columns) for i in range(s.n_layers)]
    clean = s.run(batch).logits
    for i, logits in s.each(puts, batch):
        with s.apply(puts[i]):
            wanted = s.run(batch).logits
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
        assert (wanted - clean).abs().amax((1, 2)).min() > 1e-3


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda s: interp.screen(s, []), NoAcceptedExample, "no example"),
        (lambda s: interp.screen(s, EVEN, "layer"), UsageError, "head, neuron, position, role"),
        (lambda s: interp.screen(s, EVEN, mode="noise"), UsageError, "zero, mean, patch"),
        (lambda s: interp.screen(s, EVEN, steps=0), UsageError, "1 or more"),
        (lambda s: interp.screen(s, EVEN, kind="q"), UsageError, "cut at z"),
        (lambda s: interp.screen(s, EVEN, "role", kind="z"), UsageError, "attn_out, mlp_out"),
        (lambda s: interp.screen(s, EVEN, "role", scope="answer"), UsageError, "its own scope"),
        (lambda s: interp.screen(s, examples(), "position"), UsageError, "one length"),
        (lambda s: interp.screen(s, EVEN, metric="accuracy"), UsageError, "logit_diff or logprob"),
        (lambda s: interp.screen(s, EVEN, reference=EVEN), UsageError, "takes no reference"),
        (lambda s: interp.screen(s, EVEN, layers=[7]), UsageError, "layers 0 to 2"),
        (lambda s: interp.screen(s, EVEN, mode="patch", corruption="x"), UsageError, "no corruption 'x'"),
        (lambda s: interp.screen(s, EVEN, top=1, sample=0).top(99), UsageError, "12 heads or neurons"),
        (lambda s: interp.screen(s, EVEN, "role").top(1), UsageError, "0 heads or neurons"),
    ],
)
def test_bad_screens_say_what_to_write(make, error, told):
    with pytest.raises(error, match=told):
        make(subject("llama"))


def test_an_engine_without_gradients_is_refused(monkeypatch):
    s = subject("llama")
    monkeypatch.setattr(type(s.engine), "capabilities", s.engine.capabilities - {"grad"})
    with pytest.raises(EngineError, match="no gradients"):
        interp.screen(s, EVEN)


def test_resumed_steps_hold_an_applied_edit_of_the_stream_once(monkeypatch):
    from tests.trace.test_each import Scale

    s, data = subject("llama"), examples()
    batch = s.batch(data)
    sites = [Site("z", i) for i in range(s.n_layers)]
    columns = batch.mask.bool()

    def found():
        def metric(logits):
            return metric_of(logits, batch, data, "logit_diff")

        return along_layers(s, batch, sites, metric, lambda site, value: 0 * value, 2, columns)[2]

    with s.apply(*(Scale("resid_pre", i, (3, 9)) for i in range(3))):
        resumed = found()
        monkeypatch.setattr(type(s.engine), "capabilities", s.engine.capabilities - {"resume"})
        whole = found()
    for site in sites:
        torch.testing.assert_close(resumed[site], whole[site], atol=1e-5, rtol=1e-4)
