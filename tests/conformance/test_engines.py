"""All engines run the same taps and edits alike, on every family, padded and not."""

from __future__ import annotations

import pytest
import torch

from interp.errors import EngineError, UsageError
from interp.intervene.ablate import ablate
from interp.models.batch import Batch
from interp.models.engines.base import Record, Reduce, Rows
from interp.models.sites import Site
from interp.trace.reducers import LogSumExp, Many, TopK, TopKeys
from tests.conformance.common import (
    BATCHES,
    CLOSE,
    ENGINES,
    FAMILIES,
    LACKING,
    OTHERS,
    bare,
    batch,
    gap,
    in_layer,
    kinds,
    model,
    recorded,
    sites,
)
from tests.subjects import examples, subject
from tests.tiny import tiny


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", BATCHES)
def test_logits_are_hugging_face_s_and_recordings_the_reference_s(engine, family, name):
    given = batch(name)
    trace = recorded(family, engine, given)
    truth = bare(subject(family).hf, given, output_hidden_states=True)
    assert gap(trace.logits, truth.logits, given) <= CLOSE
    for i in range(model(family, engine).n_layers):
        assert gap(trace[Site("resid_pre", i)], truth.hidden_states[i], given) <= CLOSE
    reference = recorded(family, "hooks", given)
    apart = {s: gap(trace[s], reference[s], given) for s in sites(family, engine)}
    assert max(apart.values()) <= CLOSE, {s: g for s, g in apart.items() if g > CLOSE}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", OTHERS)
def test_edits_of_every_kind_of_site_do_the_same(engine, family):
    given, one, other = batch(), subject(family), model(family, engine)
    intact = one.run(given, {"resid_post[2]": Record()}, keep=given.width)
    for site in in_layer(family, engine, 1):
        # What is recorded behind an edit is what flows on, there, at the end of the block and in the logits.
        taps = {site: [lambda x: 0.5 * x + 0.1, Record()]}
        taps |= {s: Record() for s in (Site("resid_post", 1), Site("resid_post", 2)) if s != site}
        a, b = (m.run(given, taps, keep=given.width) for m in (one, other))
        assert gap(a.logits, b.logits, given) <= CLOSE, site
        for s in taps:
            assert gap(a[s], b[s], given) <= CLOSE, (site, s)
        assert gap(a.logits, intact.logits, given) > 100 * CLOSE, site


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", ENGINES)
def test_rows_are_those_of_eager_attention(engine, family):
    given, other = batch(), model(family, engine)
    last = given.width - 1
    columns = torch.tensor([[last - 3, -1, last]] * len(given))
    eager = tiny(family)
    eager.set_attn_implementation("eager")
    truth = bare(eager, given, output_attentions=True).attentions
    rows = other.run(given, rows=Rows(columns), keep=1).rows
    assert sorted(rows) == list(range(other.n_layers))
    for i, probs in rows.items():
        assert probs.dtype == torch.float32
        torch.testing.assert_close(probs[:, :, [0, 2]], truth[i][:, :, [last - 3, last]], atol=1e-5, rtol=0)
        assert not probs[:, :, 1].any()
    only = other.run(given, rows=Rows(columns, lambda block: block.probs.sum(), frozenset({1}))).rows
    assert float(only.pop(1)) == pytest.approx(2 * len(given) * other.n_heads, abs=1e-3)
    assert not only


@pytest.mark.parametrize("engine", OTHERS)
@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_rows_of_some_heads_are_reduced_alike(engine, family):
    given = batch()
    last = given.width - 1
    columns = torch.tensor([[last - 3, -1, last]] * len(given))
    asked = Rows(columns, Many(best=TopK(2), top=TopKeys()), heads={1: (3, 0), 2: (2,)})
    truth, rows = (model(family, e).run(given, rows=asked, keep=1).rows for e in ("hooks", engine))
    assert set(rows) == {1, 2}
    for i, found in rows.items():
        best = truth[i]["best"]
        assert best.values.shape[:3] == (len(given), len(asked.heads[i]), 3)
        torch.testing.assert_close(found["best"].values, best.values, atol=1e-5, rtol=0)
        assert torch.equal(found["best"].columns[:, :, [0, 2]], best.columns[:, :, [0, 2]])
        assert torch.equal(found["top"][:, :, [0, 2]], truth[i]["top"][:, :, [0, 2]])
    if engine == "lens":
        with pytest.raises(EngineError, match="needs attention scores, and this engine reads probabilities"):
            model(family, engine).run(given, rows=Rows(columns, LogSumExp()))


@pytest.mark.parametrize("engine", OTHERS)
def test_many_interventions_run_one_by_one_where_there_is_no_resume(engine):
    cuts = [None, ablate("L1H2"), ablate("M0", mode="zero")]
    truth = dict(subject("llama").each(cuts, examples(), keep=1))
    found = dict(model("llama", engine).each(cuts, examples(), keep=1))
    assert set(found) == {0, 1, 2}
    for i, logits in found.items():
        torch.testing.assert_close(logits, truth[i], atol=CLOSE, rtol=0)
    assert (truth[1] - truth[0]).abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_padded_row_is_what_it_is_alone(engine, family):
    given, other = batch(), model(family, engine)
    together = other.run(given, {"z[1]": Record(), "resid_post[2]": Record()}, keep=1)
    for row, e in enumerate(examples(BATCHES["padded"])):
        alone = other.run(Batch.of_ids([e.ids]), {"z[1]": Record(), "resid_post[2]": Record()}, keep=1)
        torch.testing.assert_close(together.logits[row], alone.logits[0], atol=CLOSE, rtol=0)
        for s in ("z[1]", "resid_post[2]"):
            torch.testing.assert_close(together[s][row, -len(e.ids) :], alone[s][0], atol=CLOSE, rtol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_all_forms_of_taps(engine):
    """Positions, reductions, edits that see the frame, several taps in their order, columns of logits that are kept."""
    given, other = batch(), model("llama", engine)
    last = given.width - 1
    whole = subject("llama").run(given, {"z[1]": Record(), "logits": Record()}, keep=3)

    class AtLast:
        def edit(self, value, frame):
            assert (frame.past, frame.width, frame.forwards) == (0, given.width, 1)
            assert frame.batch.ids.shape == value.shape[:2]
            out = value.clone()
            out[:, frame.columns][:, -1] = 0
            return out

    positions = torch.tensor([[last, last - 2]] * len(given))
    taps = {
        "z[1]": Record(positions),
        "v[0]": Reduce(lambda value, frame: float(value[frame.batch.mask.bool()].abs().max())),
        "mlp_out[2]": [AtLast(), Record(), lambda x: None],
        "logits": Record(),
    }
    trace = other.run(given, taps, keep=3)
    torch.testing.assert_close(trace["z[1]"], whole["z[1]"][:, [-1, -3]], atol=CLOSE, rtol=0)
    assert trace["v[0]"] == pytest.approx(
        float(subject("llama").run(given, {"v[0]": Record()})["v[0]"][given.mask.bool()].abs().max()),
        abs=CLOSE,
    )
    assert not trace["mlp_out[2]"][:, -1].any() and trace["mlp_out[2]"][:, -2].any()
    assert trace["logits"].shape == trace.logits.shape == (len(given), 3, 259)
    assert torch.equal(trace["logits"], trace.logits)
    assert (trace.logits[:, -1] - whole.logits[:, -1]).abs().max() > 0.01
    torch.testing.assert_close(trace.logits[:, :-1], whole.logits[:, :-1], atol=CLOSE, rtol=0)
    order = {"z[1]": [torch.zeros_like, lambda z: z + 1, Record()], "z[1].2": [lambda z: 2 * z, Record()]}
    ordered = other.run(given, order)
    assert ordered["z[1]"].eq(1).all() and ordered["z[1].2"].eq(2).all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", ["gpt2", "neox", "gemma3"])
def test_interventions_hold_under_every_engine(engine, family):
    given = examples()
    cut = ablate("L1H2 L2H0 M1", mode="zero", scope="answer")
    with subject(family).apply(cut) as s:
        truth = s.run(given, {"mlp_out[1]": Record()})
    with model(family, engine).apply(cut) as s:
        trace = s.run(given, {"mlp_out[1]": Record()})
    torch.testing.assert_close(trace.logits, truth.logits, atol=CLOSE, rtol=0)
    torch.testing.assert_close(trace["mlp_out[1]"][:, -1], truth["mlp_out[1]"][:, -1])
    assert (truth.logits - subject(family).run(given).logits).abs().max() > 0.01


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma2"])
def test_gradients_are_the_same(engine, family):
    """Of the logits by a site's tensor, and by the weights themselves."""

    def gradients(s):
        shift = torch.zeros(s.d_model, requires_grad=True)
        s.hf.zero_grad()
        s.run(batch("solo"), {"attn_out[1]": lambda x: x + shift}, keep=1, grad=True).logits[
            0, -1, 7
        ].backward()
        weights = {n: p.grad.clone() for n, p in s.hf.named_parameters() if p.grad is not None}
        s.hf.zero_grad()
        return shift.grad, weights

    (by_site, by_weight), (truth, weights) = gradients(model(family, engine)), gradients(subject(family))
    assert truth.abs().max() > 1e-3
    torch.testing.assert_close(by_site, truth, atol=CLOSE, rtol=1e-3)
    assert set(by_weight) == set(weights) == {n for n, _ in subject(family).hf.named_parameters()}
    for name, grad in weights.items():
        torch.testing.assert_close(
            by_weight[name], grad, atol=1e-3, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("engine", "family", "kind"), sorted(LACKING))
def test_a_site_that_an_engine_lacks_is_refused_by_name(engine, family, kind):
    with pytest.raises(EngineError, match=rf"engine '{engine}' has no {kind}\[1\] for {family}: .*hook_rot_"):
        model(family, engine).run(batch(), {Site(kind, 1): Record()})
    assert kind in kinds(family, "hooks")


@pytest.mark.parametrize("engine", ENGINES)
def test_what_an_engine_does_not_declare_it_refuses(engine):
    other, given = model("llama", engine), batch("solo")
    calls = {
        "resume": lambda: other.run(given, stop=1),
        "generate": lambda: other.generate(given, 2),
        "cache": lambda: other.run(given, use_cache=True),
        "attention": lambda: other.run(given, {"attention[1]": lambda call: call.with_(v=0 * call.v)}),
        "weights": lambda: other.run(given, {"o[1]": Record()}),
        "rows": lambda: other.run(given, rows=Rows(torch.tensor([[3]]))),
    }
    for capability, call in calls.items():
        if capability in other.engine.capabilities:
            call()
        else:
            with pytest.raises(EngineError, match=f"engine '{engine}'"):
                call()


@pytest.mark.parametrize("engine", ENGINES)
def test_bad_taps_are_refused_alike(engine):
    other, given = model("llama", engine), batch("solo")
    with pytest.raises(EngineError, match="two taps record"):
        other.run(given, {"z[1]": [Record(), Record()]})
    with pytest.raises(EngineError, match="shape"):
        other.run(given, {"z[1]": lambda z: z[..., 0]})
    with pytest.raises(UsageError, match="layers 0 to 2"):
        other.run(given, {"z[3]": Record()})
    with pytest.raises(UsageError, match="layers 0 to 2"):
        other.run(given, rows=Rows(torch.tensor([[1]]), layers=frozenset({9})))
