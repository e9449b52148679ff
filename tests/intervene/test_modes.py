"""Every mode in every scope against a plain loop over eager attention squares; knockout and mean queries in detail."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from interp.errors import EngineError, UsageError
from interp.intervene.ablate import ablate
from interp.intervene.base import lower_conditions
from interp.intervene.reference import Reference
from interp.models.batch import Batch
from interp.models.engines.base import Record, Rows
from interp.models.sites import components
from interp.models.subject import CausalLM
from tests.subjects import ALL, examples, subject
from tests.tiny import tiny

HEADS = "L0H1 L2H0 L2H3"


@cache
def eager(family):
    """The same weights with eager attention, which hands out its squares."""
    module = tiny(family)
    module.set_attn_implementation("eager")
    return CausalLM(module, None, name=family)


def square(s, ids, layer, taps):
    """Attention pattern and values (one a query head) of a layer, h t s and h s d, under edits of z below it."""
    patterns = []
    attention = s.module(layer, s.family.attention)
    handle = attention.register_forward_hook(lambda m, a, out: patterns.append(out[1]))
    try:
        v = s.run(Batch.of_ids([ids]), {**taps, f"v[{layer}]": Record()})[f"v[{layer}]"][0]
    finally:
        handle.remove()
    return patterns[0][0], v.transpose(0, 1).repeat_interleave(s.n_heads // s.n_kv_heads, 0)


def naive(family, e, heads, rows, pattern_of):
    """Logits of the answer, the pattern of each head replaced in `rows` layer by layer, the rest recomputed."""
    s, ids = eager(family), [*e.ids, *e.answer_ids[:-1]]
    taps = {}
    for layer in sorted({h.layer for h in heads}):
        pattern, v = square(s, ids, layer, taps)
        new = {h.head: pattern_of(pattern[h.head][rows], rows) @ v[h.head] for h in heads if h.layer == layer}

        def tap(z, new=new):
            z = z.clone()
            for head, value in new.items():
                z[0, rows, head] = value
            return z

        taps[f"z[{layer}]"] = tap
    return s.run(Batch.of_ids([ids]), taps, keep=len(e.answer_ids)).logits[0]


def rows_of(scope, e):
    n = len(e.full_ids) - 1
    if scope == "value":
        return list(range(3, 6))
    return list(range(n)) if scope == "all" else list(e.answer_rows) if scope == "answer" else list(scope)


def without(keys):
    def of(pattern, rows):
        left = pattern.clone()
        left[:, list(keys)] = 0
        total = left.sum(-1, keepdim=True)
        return torch.where(total > 0, left / total.clamp(min=1e-30), 0.0)

    return of


def uniform(pattern, rows):
    seen = (pattern > 0).float()
    return seen / seen.sum(-1, keepdim=True)


PATTERNS = {
    "uniform": (lambda scope: ablate(HEADS, "uniform", scope), uniform),
    "zero": (lambda scope: ablate(HEADS, "zero", scope), lambda pattern, rows: 0 * pattern),
    "needle": (lambda scope: ablate(HEADS, "knockout", scope), without((3, 4, 5))),
    "key": (lambda scope: ablate(HEADS, "knockout", scope, keys="key"), without((1, 2))),
    # The last 16 keys of row 16 are all that a row of a window sees.
    "many": (lambda scope: ablate(HEADS, "knockout", scope, keys=range(1, 17)), without(range(1, 17))),
    "all": (lambda scope: ablate(HEADS, "knockout", scope, keys="all"), lambda pattern, rows: 0 * pattern),
}


@pytest.mark.parametrize("family", ALL)
def test_edits_of_attention_equal_edits_of_eager_squares(family):
    """Alone, padded and as branches of one intact run, in every scope."""
    s, data, heads = subject(family), examples((40, 17)), components(HEADS)
    batch = s.batch(data)
    scopes = {name: ("all", "answer") for name in PATTERNS}
    scopes |= {name: ("all", "answer", "value", (2, 16)) for name in ("needle", "many")}
    cuts = [(name, scope) for name, several in scopes.items() for scope in several]
    items = [PATTERNS[name][0](scope) for name, scope in cuts]
    branches = dict(s.each(items, batch, keep=3))
    intact = s.run(batch, keep=3).logits
    for i, (name, scope) in enumerate(cuts):
        with s.apply(items[i]):
            padded = s.run(batch, keep=3).logits
            alone = s.run([data[0]], keep=3).logits[0]
        wanted = [naive(family, e, heads, rows_of(scope, e), PATTERNS[name][1]) for e in data]
        found = [("alone", 0, alone), *(("padded", r, x) for r, x in enumerate(padded))]
        for how, row, logits in (*found, *(("each", r, x) for r, x in enumerate(branches[i]))):
            assert (logits - wanted[row]).abs().max() < 1e-4, (how, name, scope, row)
        assert (torch.stack(wanted) - intact).abs().max() > 1e-3, (name, scope)


def means_of_queries(s, data):
    """Mean query of each layer over all tokens, by plain recording."""
    rows = [s.run([e], {f"q[{i}]": Record() for i in range(s.n_layers)}) for e in data]
    return [torch.cat([r[f"q[{i}]"][0] for r in rows]).mean(0) for i in range(s.n_layers)]


@pytest.mark.parametrize("family", ALL)
def test_a_mean_query_is_put_in_before_norm_and_rotation_of_that_head_alone(family):
    s, data, heads = subject(family), examples(), components(HEADS)
    mean = means_of_queries(s, data)
    joint = family == "olmo2"

    for scope in ("all", "answer", "value"):
        cut = ablate(HEADS, "mean_query", scope, data)
        for e in data[:2]:
            rows = rows_of(scope, e)

            def put(q, layer, rows=rows):
                q = q.clone()
                for head in (h.head for h in heads if h.layer == layer):
                    value = mean[layer][head].expand(len(rows), -1)
                    if joint:
                        value = (
                            value
                            / value.norm(dim=-1, keepdim=True)
                            * q[0, rows, head].norm(dim=-1, keepdim=True)
                        )
                    q[0, rows, head] = value
                return q

            taps = {f"q[{i}]": (lambda q, i=i, put=put: put(q, i)) for i in range(s.n_layers)}
            wanted = eager(family).run([e], taps, keep=3).logits[0]
            with s.apply(cut):
                alone = s.run([e], keep=3).logits[0]
                padded = s.run(data, keep=3).logits[data.index(e)]
            branch = dict(s.each([cut], data, keep=3))[0][data.index(e)]
            for found in (alone, padded, branch):
                torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
            assert (wanted - s.run([e], keep=3).logits[0]).abs().max() > 1e-3
    with s.apply(ablate("L1H2", "mean_query", "all", data)):
        one = s.run([data[0]], {"q_rot[1]": Record()})["q_rot[1]"]
    intact = s.run([data[0]], {"q_rot[1]": Record()})["q_rot[1]"]
    torch.testing.assert_close(one[:, :, [0, 1, 3]], intact[:, :, [0, 1, 3]], atol=1e-5, rtol=0)
    assert (one[:, :, 2] - intact[:, :, 2]).abs().max() > 0.01


def test_a_mean_query_by_role_or_position_is_that_of_the_token():
    s, data = subject("llama"), examples((24, 24, 24))
    q = torch.cat([s.run([e], {"q[1].2": Record()})["q[1].2"] for e in data])
    for pool, at, wanted in (("position", 7, q[:, 7].mean(0)), ("role", 4, q[:, 3:6].mean((0, 1)))):
        with s.apply(ablate("L1H2", "mean_query", reference=Reference(data, pool))):
            got = s.run([data[1]], {"q[1].2": Record()})["q[1].2"]
        torch.testing.assert_close(got[0, at], wanted, atol=1e-5, rtol=0)


def test_rows_read_under_a_knockout_have_no_such_edges_and_sum_to_one():
    s, data = subject("gemma3"), examples()
    batch = s.batch(data)
    rows = Rows(batch.answer_start[:, None])
    before = s.run(batch, rows=rows).rows[1][:, :, 0]
    with s.apply(ablate("L1H2", "knockout", "answer", keys="value")):
        after = s.run(batch, rows=rows).rows[1][:, :, 0]
    at = batch.scope_columns("value", 0, batch.width)
    for row in range(len(data)):
        assert not after[row, 2, at[row]].any() and before[row, 2, at[row]].min() > 0
        assert after[row, 2].sum() == pytest.approx(1, abs=1e-5)
        left = before[row, 2].masked_fill(at[row], 0)
        torch.testing.assert_close(after[row, 2], left / left.sum(), atol=1e-5, rtol=0)
    torch.testing.assert_close(after[:, [0, 1, 3]], before[:, [0, 1, 3]], atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma2"])
def test_a_row_without_a_key_left_gives_zero_and_no_nan(family):
    s, e = subject(family), examples((40,))[0]
    window = family == "mistral" or family == "gemma2"  # 16 keys; of gemma2 in layers 0 and 2
    # Row 2 sees keys 0 to 2 only; row 29 sees, in a window, 14 to 29.
    cut = ablate("L0H1 L1H1", "knockout", (2, 29, 35), keys=(*range(3), *range(14, 30)))
    with s.apply(cut):
        trace = s.run([e], {"z[0].1": Record(), "z[1].1": Record(), "resid_post[2]": Record()}, keep=40)
    assert torch.isfinite(trace.logits).all() and torch.isfinite(trace["resid_post[2]"]).all()
    z = [trace[f"z[{i}].1"][0] for i in (0, 1)]
    assert not z[0][2].any() and not z[1][2].any()
    assert bool(z[0][29].any()) == (not window) and bool(z[1][29].any()) == (family != "mistral")
    assert z[0][35].any() and z[0][1].any() and z[0][30].any()
    with s.apply(cut):
        mask = s.run([e], {"attention[0]": Record()})["attention[0]"].mask[0, 1]
    seen = mask if mask.dtype == torch.bool else mask > -1e30
    assert seen.any(-1).all()  # what kernels make of a row without a key is not asked
    s.hf.zero_grad()
    with s.apply(cut):
        s.run([e], keep=40, grad=True).logits.sum().backward()
    try:
        assert all(torch.isfinite(p.grad).all() for p in s.hf.parameters() if p.grad is not None)
    finally:
        s.hf.zero_grad(set_to_none=True)


def test_a_knockout_that_others_make_blind_is_refused():
    s, e = subject("llama"), examples((12,))[0]
    parts = [ablate("L1H2", "knockout", (2,), keys=keys) for keys in ((0, 1), (2,))]
    with s.apply(parts[0] + parts[1]), pytest.raises(EngineError, match="all keys in one knockout"):
        s.run([e])


@pytest.mark.parametrize("family", ALL)
def test_generation_under_a_knockout_or_a_mean_query_equals_whole_passes(family):
    s, data = subject(family), examples()
    for cut in (ablate(HEADS, "knockout", "answer"), ablate(HEADS, "mean_query", "all", data)):
        with s.apply(cut):
            out = s.generate(data, 4)
            for e, said in zip(data, out, strict=True):
                ids = list(e.ids)
                for _ in range(4):
                    whole = Batch.of_ids([ids])
                    start = torch.tensor([len(e.ids) - 1])
                    batch = Batch(whole.ids, whole.mask, whole.positions, whole.pad, start, (e,))
                    ids.append(int(s.run(batch, keep=1).logits[0, -1].argmax()))
                assert said == ids[len(e.ids) :]


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen3"])
def test_rows_of_a_batch_have_their_own_knockout(family):
    s, data = subject(family), examples()
    every = [
        ablate("L1H2 L0H0", "knockout", "answer"),
        None,
        ablate("L1H0", "knockout", "answer") + ablate("L2H3", "knockout", "all", keys="key"),
    ]
    batch = s.batch(data)
    mixed = s.run(batch, lower_conditions(s, batch, every, torch.tensor([2, 0, 1]))).logits
    for row, condition in enumerate([every[2], every[0], None]):
        with s.apply(*([condition] if condition else [])):
            torch.testing.assert_close(mixed[row], s.run(batch).logits[row], atol=1e-5, rtol=0)


def test_a_knockout_touches_rows_from_its_first_key_on():
    from interp.trace.each import Spent

    s, e = subject("llama"), examples((40,))[0]
    spent = Spent()
    list(s.each([ablate("L1H2", "knockout", "all", keys=(30,))], [e], spent=spent))
    # The intact prompt, and its last ten tokens anew.
    assert spent.prompt_tokens == 40 + 10


def test_keys_are_part_of_name_and_key():
    one = ablate("L1H2", "knockout", "answer")
    other = ablate("L1H2", "knockout", "answer", keys="evidence")
    assert one.keys_name == "evidence, else value" and other.keys_name == "evidence"
    assert len({one.key(), other.key(), ablate("L1H2", "knockout", "answer", keys=(3, 4)).key()}) == 3
    assert repr(other) == "ablate(L1H2, mode=knockout, scope=answer, keys=evidence)"
    assert "keys" not in ablate("L1H2").describe() and ablate("L1H2").keys_name == ""


def test_default_keys_are_the_evidence_where_an_example_has_it():
    from dataclasses import replace

    from interp.tasks.base import Span

    s, e = subject("llama"), examples((20,))[0]
    with_evidence = replace(e, spans=(*e.spans, Span(0, 8, "evidence", 0)))
    for given, keys in ((e, "value"), (with_evidence, tuple(range(8)))):
        with s.apply(ablate("L1H2", "knockout", "answer")):
            default = s.run([given]).logits
        with s.apply(ablate("L1H2", "knockout", "answer", keys=keys)):
            assert torch.equal(s.run([given]).logits, default)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ablate("M1", "knockout"), "'knockout' changes attention patterns"),
        (lambda: ablate("M1", "mean_query"), "'mean_query' changes attention patterns"),
        (lambda: ablate("L1H2", "zero", keys="value"), "takes no keys; write mode='knockout'"),
        (lambda: ablate("L1H2", "mean_query", reference=Reference(None, "twin")), "pooled, position, role"),
        (lambda: run(ablate("L1H2", "mean_query")), "needs a reference"),
        (lambda: run(ablate("L1H2", "knockout", keys="subject")), "has no span of that role|have|key value"),
        (lambda: run(ablate("L1H2", "knockout", keys=(99,))), "positions 0 to"),
        (lambda: run(ablate("L1H2", "knockout"), bare=True), "bare ids has no evidence"),
    ],
)
def test_bad_cuts_say_what_to_write(make, told):
    with pytest.raises(UsageError, match=told):
        make()


def run(cut, bare=False):
    s = subject("llama")
    with s.apply(cut):
        s.run(Batch.of_ids([e.ids for e in examples()]) if bare else examples())


def test_a_kernel_without_a_mask_of_edges_is_refused(monkeypatch):
    s = subject("llama")
    monkeypatch.setattr(s.hf.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(EngineError, match="kernel 'flash_attention_2' does not take"):
        ablate("L1H2", "knockout").lower(s, s.batch(examples()))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_other_engines_do_the_same_or_say_that_they_cannot(family):
    s, data = subject(family), examples((20, 30))
    blind = ablate("L1H2", "knockout", (2,), keys=range(3))
    for cut in (ablate("L1H2 L0H1", "knockout", "answer"), blind, ablate("L1H2", "mean_query", "all", data)):
        with s.apply(cut):
            wanted = s.run(data).logits
        for engine in ("nnsight", "lens"):
            other = s.with_engine(engine)
            with other.apply(cut):
                if engine == "lens" and cut.mode == "knockout":
                    with pytest.raises(EngineError, match=r"engine 'lens' has no attention\["):
                        other.run(data)
                    continue
                torch.testing.assert_close(other.run(data).logits, wanted, atol=1e-4, rtol=0)
