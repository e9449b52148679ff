"""Subspace cuts: the projection that is named is gone, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import interp
from interp.errors import UsageError
from interp.intervene.ablate import ablate
from interp.intervene.base import lower_conditions
from interp.intervene.reference import Reference
from interp.intervene.subspace import ProjectOut, Subspace, project_out, width
from interp.models.batch import Batch
from interp.models.engines.base import Record
from interp.models.sites import Site
from tests.subjects import ALL, examples, subject

KINDS = (
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "neurons",
    "q",
    "k",
    "v",
    "z",
    "head_out",
)


def basis(d: int, r: int, seed: int = 0) -> torch.Tensor:
    draw = torch.randn(d, r, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(draw)[0].T.float().contiguous()


def record(s, batch, site):
    return s.run(batch, {site: Record()})[site]


@pytest.mark.parametrize("family", ALL)
def test_the_projection_is_gone_and_the_rest_is_as_it_was(family):
    s, batch = subject(family), Batch.of_ids([e.ids for e in examples()])
    for kind in KINDS:
        if kind == "resid_mid" and s.family.parallel:
            continue
        for index in (None, 1) if kind in ("q", "k", "v", "z", "head_out") else (None,):
            site = Site(kind, 1, index)
            q = basis(width(s, site), 3)
            before = record(s, batch, site)
            with s.apply(project_out(site, q)):
                after = record(s, batch, site)
            x, y = (v.flatten(2) if index is None else v for v in (before, after))
            assert x.shape[-1] == q.shape[1]
            assert (y @ q.T).abs().max() < 2e-5, site
            assert (x @ q.T).abs().max() > 0.05, site
            torch.testing.assert_close(y, x - (x @ q.T) @ q, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_all_of_one_head_is_the_zero_ablation_of_the_head(family):
    s, batch = subject(family), subject(family).batch(examples())
    for scope in ("all", "answer", "value"):
        with s.apply(project_out("z[1].2", torch.eye(s.d_head), scope)):
            whole = s.run(batch).logits
        with s.apply(ablate("L1H2", "zero", scope)):
            torch.testing.assert_close(whole, s.run(batch).logits, atol=1e-5, rtol=0)
    # The coordinates of one head in the basis of all heads.
    rows = torch.eye(s.n_heads * s.d_head)[2 * s.d_head : 3 * s.d_head]
    with s.apply(project_out("z[1]", rows)):
        flat = s.run(batch).logits
    with s.apply(ablate("L1H2")):
        torch.testing.assert_close(flat, s.run(batch).logits, atol=1e-5, rtol=0)


def test_the_mean_of_the_subspace_is_put_in_its_place_and_the_rest_stays():
    s, data = subject("llama"), examples((24, 24, 24))
    batch, q = s.batch(data), basis(s.d_model, 2)
    clean = record(s, batch, "resid_mid[1]")
    wanted = {
        "pooled": clean.mean((0, 1)).expand_as(clean),
        "position": clean.mean(0).expand_as(clean),
    }
    for pool, mean in wanted.items():
        with s.apply(project_out("resid_mid[1]", q, mode="mean", reference=Reference(data, pool))):
            got = record(s, batch, "resid_mid[1]")
        torch.testing.assert_close(got @ q.T, mean @ q.T, atol=1e-5, rtol=0)
        rest = torch.eye(s.d_model) - q.T @ q
        torch.testing.assert_close(got @ rest, clean @ rest, atol=1e-5, rtol=0)
    with s.apply(project_out("z[1].2", torch.eye(s.d_head), "value", "mean", data)):
        got = s.run(batch).logits
    with s.apply(ablate("L1H2", "mean", "value", data)):
        torch.testing.assert_close(got, s.run(batch).logits, atol=1e-5, rtol=0)


def conditions(s):
    q = basis(s.d_model, 4)
    return [
        None,
        project_out("resid_post[1]", q[:1], "answer"),
        project_out("resid_post[1]", q, "answer"),
        project_out("resid_post[1]", q[1:3], "answer", "mean", examples()),
        project_out("v[2].1", basis(s.d_head, 2), "answer") + ablate("L1H2", scope="answer"),
        project_out("neurons[0]", basis(s.d_mlp, 5), "answer")
        + project_out("resid_post[1]", q[:1], "answer"),
    ]


@pytest.mark.parametrize("family", ALL)
def test_packed_conditions_and_conditions_of_rows_equal_one_run_each(family):
    s, data = subject(family), examples((20, 20, 20, 20, 20, 20))
    every = conditions(s)
    single = []
    for condition in every:
        with s.apply(*([condition] if condition else [])):
            single.append(s.run(data).logits)
    found = dict(s.each(every, [data[1]]))
    packed = torch.stack([found[i][0] for i in range(len(every))])
    batch, order = s.batch(data), [3, 0, 5, 2, 4, 1]
    mixed = s.run(batch, lower_conditions(s, batch, every, torch.tensor(order))).logits
    for number, one in enumerate(single):
        torch.testing.assert_close(packed[number], one[1], atol=1e-4, rtol=0)
        row = order.index(number)
        torch.testing.assert_close(mixed[row], one[row], atol=1e-4, rtol=0)
        assert number == 0 or (one - single[0]).abs().max() > 1e-3


def test_any_spanning_rows_give_the_same_cut():
    s = subject("llama")
    batch, q = s.batch(examples()), basis(s.d_model, 3)
    mixing = torch.tensor([[2.0, 1, 0], [0, 1, 5], [1, 0, 1], [3, 2, 6]])
    with s.apply(project_out("mlp_out[1]", q)):
        wanted = s.run(batch).logits
    for rows in (mixing @ q, mixing.double() @ q.double(), (mixing @ q).numpy(), 100 * q):
        cut = project_out("mlp_out[1]", rows)
        assert cut.space.rank == 3
        with s.apply(cut):
            torch.testing.assert_close(s.run(batch).logits, wanted, atol=1e-4, rtol=0)
    assert torch.equal(Subspace.spanned("mlp_out[1]", q).basis, q)


def test_the_empty_subspace_changes_nothing():
    s = subject("llama")
    batch, cut = s.batch(examples()), project_out("mlp_out[1]", torch.zeros(0, s.d_model))
    assert cut.space.rank == 0
    with s.apply(cut):
        cut_logits = s.run(batch).logits
    assert torch.equal(cut_logits, s.run(batch).logits)


def test_a_step_of_decoding_that_holds_no_token_of_the_scope_is_left_alone():
    s, data = subject("llama"), examples()
    cut = project_out(
        "resid_post[1]", torch.randn(2, s.d_model, generator=torch.Generator().manual_seed(0)), "value"
    )
    with s.apply(cut):
        said = s.generate(data, 3)
        for e, tokens in zip(data, said, strict=True):
            ids = Batch.of([e], forced=False)
            assert tokens[0] == int(s.run(ids, keep=1).logits[0, -1].argmax())


def test_gradients_pass_through_a_cut():
    s, batch = subject("llama"), Batch.of_ids([examples()[0].ids])
    q = basis(s.d_model, 2)
    leaf = torch.zeros(1, 24, s.d_model, requires_grad=True)
    with s.apply(project_out("resid_post[1]", q)):
        # The cut comes first, then the shift.
        late = s.run(batch, {"resid_post[1]": lambda x: x + leaf}, keep=1, grad=True).logits[0, -1, 7]
        early = s.run(batch, {"mlp_out[1]": lambda x: x + leaf}, keep=1, grad=True).logits[0, -1, 7]
    (free,) = torch.autograd.grad(late, leaf)
    (through,) = torch.autograd.grad(early, leaf)
    torch.testing.assert_close(through, free - (free @ q.T) @ q, atol=1e-5, rtol=1e-4)


def test_bfloat16_is_projected_in_fp32():
    from interp.models.subject import CausalLM
    from tests.tiny import tiny

    s = CausalLM(tiny("llama").to(torch.bfloat16), None, name="bf16")
    batch, q = Batch.of_ids([examples()[0].ids]), basis(s.d_model, 3)
    before = record(s, batch, "resid_mid[1]")
    with s.apply(project_out("resid_mid[1]", q)):
        after = record(s, batch, "resid_mid[1]")
    exact = (before.float() - (before.float() @ q.T) @ q).to(torch.bfloat16)
    assert after.dtype == torch.bfloat16 and torch.equal(after, exact)


def test_descriptions_are_by_content():
    q = basis(8, 2)
    base = project_out("mlp_out[1]", q)
    others = [
        project_out("mlp_out[2]", q),
        project_out("mlp_out[1]", q[:1]),
        project_out("mlp_out[1]", basis(8, 2, seed=1)),
        project_out("mlp_out[1]", q, "answer"),
        project_out("mlp_out[1]", q, mode="mean", reference=examples()),
    ]
    assert len({base.key(), *(o.key() for o in others)}) == 6
    again = project_out("mlp_out[1]", q.clone())
    assert again == base and hash(again) == hash(base) and again.key() == base.key()
    assert base.describe()["rank"] == 2
    mine = q.clone()
    cut = project_out("mlp_out[1]", mine)
    mine.zero_()
    assert cut == base
    assert interp.project_out is project_out


def test_touches_says_site_and_columns():
    s = subject("llama")
    batch = s.batch(examples())
    touched = project_out("z[1].2", torch.eye(s.d_head), ("key", "value")).touches(s, batch)
    assert list(touched) == [Site("z", 1)]
    assert touched[Site("z", 1)].sum(1).tolist() == [5, 5, 5]


@pytest.mark.parametrize("family", ALL)
def test_each_runs_cuts_as_rows_of_one_batch(family):
    s = subject(family)
    batch, q = s.batch(examples()), basis(s.d_model, 4)
    every = [
        project_out("resid_post[1]", q, "answer"),
        project_out("resid_post[1]", q[:1]),
        project_out("v[1].1", basis(s.d_head, 2), "value"),
        project_out("k[2].0", basis(s.d_head, 2)) + ablate("L1H2"),
        project_out("z[2]", basis(s.n_heads * s.d_head, 4)),
        project_out("neurons[0]", basis(s.d_mlp, 3), ("key", "value"), "mean", examples()),
    ]
    for number, logits in s.each(every, batch):
        with s.apply(every[number]):
            torch.testing.assert_close(logits, s.run(batch).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: project_out("mlp_out[1]", torch.zeros(2, 8)), "span nothing"),
        (lambda: project_out("mlp_out[1]", torch.full((2, 8), torch.nan)), "finite"),
        (lambda: project_out("mlp_out[1]", np.ones(8)), "matrix"),
        (lambda: project_out("mlp_out[1]", np.ones((2, 8), int)), "floats"),
        (lambda: project_out("neurons[1].4", torch.ones(1, 1)), "no vectors"),
        (lambda: project_out("attention[1]", torch.ones(1, 8)), "no vectors"),
        (lambda: Subspace(Site("mlp_out", 1), torch.ones(2, 8)), "not orthonormal"),
        (lambda: project_out("mlp_out[1]", basis(8, 2), mode="uniform"), "zero, mean"),
        (lambda: project_out("mlp_out[1]", basis(8, 2), mode="mean"), "with mode 'mean'"),
        (lambda: project_out("mlp_out[1]", basis(8, 2), reference=examples()), "with mode 'mean'"),
        (
            lambda: ProjectOut(
                Subspace.spanned("z[1]", basis(8, 2)), "mean", reference=Reference(None, "twin")
            ),
            "twin",
        ),
        (lambda: run(project_out("mlp_out[1]", basis(8, 2))), "48 numbers, those of the basis 8"),
        (lambda: run(project_out("mlp_out[9]", basis(48, 2))), "layers 0 to 2"),
        (lambda: run(project_out("z[1].9", basis(12, 2))), "indices 0 to 3"),
        (lambda: run(project_out("mlp_out[1]", basis(48, 2), "subject")), "key value"),
    ],
)
def test_bad_cuts_say_what_to_write(make, told):
    with pytest.raises(UsageError, match=told):
        make()


def run(cut):
    s = subject("llama")
    with s.apply(cut):
        s.run(examples())
