"""Ablation against hand-written hooks, and many conditions in one pass against one run each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from interp.errors import UsageError
from interp.intervene.ablate import ablate
from interp.intervene.base import lower_conditions
from interp.intervene.reference import Reference
from interp.models.batch import Batch
from interp.models.engines.base import Record
from interp.models.sites import MLP, Head, Neuron, Site
from tests.subjects import ALL, examples, subject


def by_hand(s, batch, replaced):
    """z of layer 1, head 2 replaced by `replaced(z)`."""

    def tap(z):
        out = z.clone()
        out[..., 2, :] = replaced(z)[..., 2, :]
        return out

    return s.run(batch, {"z[1]": tap}).logits


def test_zero_mean_and_uniform_equal_hand_written_hooks():
    s, batch = subject("llama"), subject("llama").batch(examples())
    with s.apply(ablate("L1H2", "zero")):
        torch.testing.assert_close(s.run(batch).logits, by_hand(s, batch, torch.zeros_like))
    # The mean over all real tokens of the reference, by hand.
    rows = [s.run([e], {"z[1]": Record()})["z[1]"][0] for e in examples()]
    mean = torch.cat(rows).mean(0)
    with s.apply(ablate("L1H2", "mean", reference=examples())):
        torch.testing.assert_close(
            s.run(batch).logits, by_hand(s, batch, lambda z: mean.expand_as(z)), atol=1e-5, rtol=0
        )
    # Uniform attention: z is the running mean of the values of the head's KV group.
    one = s.batch(examples()[:1])
    v = s.run(one, {"v[1]": Record()})["v[1]"][:, :, s.kv_head(2)]
    running = v.cumsum(1) / torch.arange(1, v.shape[1] + 1)[:, None]
    with s.apply(ablate("L1H2", "uniform")):
        got = s.run(one, {"z[1].2": Record()})
    torch.testing.assert_close(got["z[1].2"], running, atol=1e-5, rtol=0)


def test_scope_answer_leaves_the_prompt_alone_and_roles_cut_their_tokens_only():
    s = subject("llama")
    batch = s.batch(examples())
    clean = s.run(batch, {"z[1]": Record()})["z[1]"]
    for scope, expected in (("answer", None), ("value", range(3, 6)), (("key", "value.0"), range(1, 6))):
        with s.apply(ablate("L1H2", "zero", scope)):
            cut = s.run(batch, {"z[1]": Record()})["z[1]"]
        changed = (cut != clean).any(-1)
        assert not changed[..., [0, 1, 3]].any()
        for row, e in enumerate(examples()):
            first = int(batch.pad[row])
            want = range(len(e.ids) - 1, len(e.ids) + 2) if expected is None else expected
            assert changed[row, first:, 2].nonzero()[:, 0].tolist() == list(want)


def test_mean_by_role_and_by_position_use_the_token_s_own_class():
    s = subject("llama")
    data = examples((24, 24, 24))
    batch = s.batch(data)
    z = torch.cat([s.run([e], {"z[1].2": Record()})["z[1].2"] for e in data])
    with s.apply(ablate("L1H2", "mean", reference=Reference(data, "position"))):
        got = s.run(batch, {"z[1].2": Record()})["z[1].2"]
    torch.testing.assert_close(got, z.mean(0).expand_as(got), atol=1e-5, rtol=0)
    with s.apply(ablate("L1H2", "mean", reference=Reference(data, "role"))):
        got = s.run(batch, {"z[1].2": Record()})["z[1].2"]
    torch.testing.assert_close(got[0, 3], z[:, 3:6].mean((0, 1)), atol=1e-5, rtol=0)
    others = torch.cat([z[:, :1], z[:, 6:]], 1).mean((0, 1))
    torch.testing.assert_close(got[1, 10], others, atol=1e-5, rtol=0)


def test_resample_from_the_twin_takes_the_twin_s_values():
    s = subject("llama")
    e = examples()[0]
    twin = Batch.of_ids([[*e.corrupt["value_swap"].ids, *e.answer_ids[:-1]]])
    expected = s.run(twin, {"z[1].2": Record()})["z[1].2"]
    with s.apply(ablate("L1H2", "resample", reference=Reference(None, "twin"))):
        got = s.run([e], {"z[1].2": Record()})["z[1].2"]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_twins_of_one_question_are_told_apart():
    s, e = subject("llama"), examples()[0]
    ids = e.corrupt["value_swap"].ids
    other = replace(e, corrupt={"value_swap": replace(e.corrupt["value_swap"], ids=(*ids[:5], 7, *ids[6:]))})
    reference = Reference(None, "twin")
    found = [reference.twins(s, x, "z") for x in (e, other)]
    assert e.key() == other.key() and not torch.equal(found[0], found[1])


def test_twins_of_a_batch_run_once_for_all_conditions(monkeypatch):
    s, data = subject("llama"), examples((12,) * 11)
    runs = []
    run = type(s.engine).run
    monkeypatch.setattr(type(s.engine), "run", lambda *a, **k: runs.append(a) or run(*a, **k))
    reference = Reference(None, "twin")
    list(s.each([ablate([c], "resample", "answer", reference) for c in (*s.heads(), MLP(0), MLP(1))], data))
    assert len(runs) == 2 * 11 + 2  # twins at z and at mlp_out, the intact run, and the unembedding
    reference.twins(s, data[0], "z")
    reference.twins(s, examples((9,))[0], "z")
    assert sum(key[:2] == ("twin", "z") for key in reference._cache) == 8


def test_resample_draws_depend_on_the_seed_and_not_on_the_batch():
    s = subject("llama")
    data = examples()
    cut = ablate("L1H2 L2H0", "resample", reference=data, seed=3)
    with s.apply(cut):
        together = s.run(s.batch(data), {"z[1].2": Record()})["z[1].2"]
        alone = s.run([data[1]], {"z[1].2": Record()})["z[1].2"]
    torch.testing.assert_close(together[1, -alone.shape[1] :], alone[0])
    with s.apply(ablate("L1H2", "resample", reference=data, seed=4)):
        assert not torch.equal(s.run([data[1]], {"z[1].2": Record()})["z[1].2"], alone)


def run_each(s, data, conditions, **options):
    """Logits by condition, in their order."""
    found = dict(s.each(conditions, s.batch(data), **options))
    return torch.stack([found[i] for i in range(len(conditions))])


def conditions(data):
    twin = Reference(None, "twin")
    return [
        None,
        ablate("L0H1 L1H2", "zero", "answer"),
        ablate("L0H1 L1H2", "mean", "answer", data),
        ablate("L0H1 L1H2", "mean", "answer", Reference(data, "role")),
        ablate("L0H1 L1H2", "resample", "answer", data),
        ablate("L0H1", "resample", "answer", twin),
        ablate("L0H1 L1H2", "uniform", "answer"),
        ablate([MLP(1), Head(2, 0)], "zero", "answer"),
        ablate([Neuron(1, 3), Neuron(1, 5)], "mean", "answer", data) + ablate("L2H3", "uniform", "answer"),
    ]


@pytest.mark.parametrize("family", ALL)
def test_conditions_of_scope_answer_equal_one_run_each(family):
    """KV-prefix reuse, padded and solo, under every mode: the fast path against the naive loop."""
    s, data = subject(family), examples()
    every = conditions(data)
    for row, e in enumerate(data):
        packed = run_each(s, [e], every)[:, 0]
        for condition, fast in zip(every, packed, strict=True):
            with s.apply(*([condition] if condition else [])):
                torch.testing.assert_close(fast, s.run([e]).logits[0], atol=1e-4, rtol=0)
                together = s.run(data).logits[row, -3:]
            torch.testing.assert_close(fast, together, atol=1e-4, rtol=0)
        moved = (packed - packed[0]).abs().amax((1, 2))
        # The twin differs at the value only, which is out of the sliding window of some layers.
        assert (moved[[1, 2, 3, 4, 6, 7, 8]] > 1e-3).all()


def odd_windows():
    """A window in the config that no layer, or only the first layers, use."""
    import transformers as hf

    from tests.tiny import _GEMMA, _LLAMA_LIKE, tiny

    yield hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**_GEMMA, layer_types=["full_attention"] * 3))
    window = {"use_sliding_window": True, "sliding_window": 8}
    yield hf.Qwen2ForCausalLM(hf.Qwen2Config(**_LLAMA_LIKE, **window, max_window_layers=3))
    yield hf.Qwen2ForCausalLM(hf.Qwen2Config(**_LLAMA_LIKE, **window, max_window_layers=1))
    yield tiny("mistral")


@pytest.mark.parametrize("which", range(4))
def test_conditions_keep_to_the_windows_of_their_layers(which):
    from interp.models.subject import CausalLM

    module = list(odd_windows())[which]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    s, cut = CausalLM(module, None, name="odd"), ablate("L1H2 L2H0", "zero", "answer")
    for e in examples():
        packed = run_each(s, [e], [None, cut])[:, 0]
        torch.testing.assert_close(packed[0], s.run([e]).logits[0], atol=1e-4, rtol=0)
        with s.apply(cut):
            torch.testing.assert_close(packed[1], s.run([e]).logits[0], atol=1e-4, rtol=0)


def test_a_scope_of_positions_is_the_same_as_a_span_there():
    s, data = subject("llama"), examples()  # the value spans are tokens 3 to 5
    with s.apply(ablate("L1H2 M0", scope="value")):
        by_role = s.run(data).logits
    with s.apply(ablate("L1H2 M0", scope=(3, 4, 5))):
        assert torch.equal(s.run(data).logits, by_role)
    assert ablate("L1H2", scope=(3, 4)).key() != ablate("L1H2", scope=(3, 5)).key()


def test_a_scope_that_an_example_lacks_is_an_error_also_beside_one_that_has_it():
    s, data = subject("llama"), examples()
    data[1] = replace(data[1], spans=())
    with s.apply(ablate("L1H2", scope="value")), pytest.raises(UsageError, match="an example has no span"):
        s.run(data)


def test_a_mean_by_class_is_asked_for_where_the_scope_reaches_only():
    s, data = subject("llama"), examples()  # up to 40 tokens; the reference has 14
    short = Reference(examples((12,)), "position")
    with s.apply(ablate("L1H2", "mean", "value", short)):
        got = s.run(data, {"z[1].2": Record()})["z[1].2"]
    for row, first in enumerate(s.batch(data).pad.tolist()):
        wanted = short.means(s, "z")["4"][1, 2]
        torch.testing.assert_close(got[row, first + 4], wanted, atol=1e-6, rtol=0)
    with s.apply(ablate("L1H2", "mean", "answer", short)), pytest.raises(UsageError, match="has no position"):
        s.run(data)


def test_scopes_join_answers_roles_and_positions():
    s, data = subject("llama"), examples()
    batch = s.batch(data)
    both = batch.scope_columns(("answer", "value", 7), 0, batch.width)
    parts = [batch.scope_columns(scope, 0, batch.width) for scope in ("answer", "value", (7,))]
    assert torch.equal(both, parts[0] | parts[1] | parts[2])


def test_bare_ids_have_no_roles():
    s = subject("llama")
    ids = Batch.of_ids([e.ids for e in examples()])
    with s.apply(ablate("L1H2", scope="value")), pytest.raises(UsageError, match="bare ids has no spans"):
        s.run(ids)
    with pytest.raises(UsageError, match="each prompt at least one token"):
        s.batch([replace(examples()[0], ids=()), examples()[1]])


def test_each_survives_an_exception():
    s, e = subject("llama"), examples()[0]
    clean = run_each(s, [e], [None])
    with pytest.raises(UsageError, match="heads 0 to 3"):
        run_each(s, [e], [ablate("L1H9", scope="answer")])
    assert torch.equal(run_each(s, [e], [None]), clean)


@pytest.mark.parametrize("budget", [3, 4, 1000])
def test_chunks_change_nothing(budget):
    s, data = subject("llama"), examples()
    whole = run_each(s, data[:1], conditions(data))
    torch.testing.assert_close(
        run_each(s, data[:1], conditions(data), budget=budget), whole, atol=1e-5, rtol=0
    )


def test_rows_of_a_batch_can_each_have_their_own_condition():
    s, data = subject("qwen3"), examples()
    every = [None, ablate("L1H2"), ablate("L0H0 M1")]
    batch = s.batch(data)
    taps = lower_conditions(s, batch, every, torch.tensor([2, 0, 1]))
    mixed = s.run(batch, taps).logits
    for row, condition in enumerate([every[2], None, every[1]]):
        with s.apply(*([condition] if condition else [])):
            torch.testing.assert_close(mixed[row], s.run(batch).logits[row], atol=1e-6, rtol=0)


def test_a_prompt_of_one_token_has_an_empty_prefix():
    s = subject("gpt2")
    from interp.tasks.base import Example

    e = Example("t", (5,), (6, 7), chance=0.5)
    cut = ablate("L1H0", "zero", "answer")
    both = run_each(s, [e], [None, cut])[:, 0]
    torch.testing.assert_close(both[0], s.run([e]).logits[0], atol=1e-5, rtol=0)
    with s.apply(cut):
        torch.testing.assert_close(both[1], s.run([e]).logits[0], atol=1e-5, rtol=0)


def test_apply_nests_restores_and_changes_the_fingerprint():
    s = subject("llama")
    batch = s.batch(examples())
    clean, name = s.run(batch).logits, s.fingerprint
    a, b = ablate("L1H2"), ablate("M0")
    with pytest.raises(ZeroDivisionError), s.apply(a):
        with s.apply(b):
            both, inner = s.run(batch).logits, s.fingerprint
        assert s.fingerprint not in (name, inner)
        raise ZeroDivisionError
    assert torch.equal(s.run(batch).logits, clean) and s.fingerprint == name
    with s.apply(a + b):
        assert torch.equal(s.run(batch).logits, both)


def test_generation_under_a_cut_of_scope_answer():
    s = subject("llama")
    data = examples()
    with s.apply(ablate("L1H2 L2H1", "zero", "answer")):
        out = s.generate(data, 4)
        for e, said in zip(data, out, strict=True):
            ids = list(e.ids)
            for _ in range(4):
                # Rows from the last prompt token on are cut, as `answer_start` of the whole sequence says.
                whole = Batch.of_ids([ids])
                batch = Batch(
                    whole.ids, whole.mask, whole.positions, whole.pad, torch.tensor([len(e.ids) - 1])
                )
                ids.append(int(s.run(batch, keep=1).logits[0, -1].argmax()))
            assert said == ids[len(e.ids) :]


def test_descriptions_name_everything_that_changes_a_number():
    data = examples()
    base = ablate("L1H2", "mean", "answer", data)
    others = [
        ablate("L1H3", "mean", "answer", data),
        ablate("L1H2", "resample", "answer", data),
        ablate("L1H2", "mean", "all", data),
        ablate("L1H2", "mean", "answer", data[:2]),
        ablate("L1H2", "mean", "answer", Reference(data, "role")),
        ablate("L1H2", "mean", "answer", data, seed=1),
    ]
    assert len({base.key(), *(o.key() for o in others)}) == 7
    assert ablate("L1H2", "mean", "answer", examples()).key() == base.key()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ablate("L1H2", "nil"), "zero, mean, resample, uniform"),
        (lambda: ablate("M1", "uniform"), "heads only"),
        (lambda: ablate("head 3"), "L17H3"),
        (lambda: ablate("L1H2", "zero", reference=examples()), "no reference"),
        (lambda: ablate("L1H2", "mean", reference=Reference(None, "twin")), "pooled, position, role"),
        (lambda: run(ablate("L1H2", "mean")), "needs a reference"),
        (lambda: run(ablate("L1H9")), "heads 0 to 3"),
        (lambda: run(ablate("L7H0")), "layers 0 to 2"),
        (lambda: run(ablate("L1N99999")), "neurons 0 to 79"),
        (lambda: run(ablate("L1H2", scope="subject")), "key value"),
        (lambda: run(ablate("L1H2", scope=(3, 99))), "positions 0 to"),
    ],
)
def test_bad_cuts_say_what_to_write(make, told):
    with pytest.raises(UsageError, match=told):
        make()


def run(cut):
    s = subject("llama")
    with s.apply(cut):
        s.run(examples())


def test_bfloat16_weights_keep_statistics_in_fp32():
    from interp.models.subject import CausalLM
    from tests.tiny import tiny

    s = CausalLM(tiny("llama").to(torch.bfloat16), None, name="bf16")
    reference = Reference(examples())
    assert reference.means(s, "z")[""].dtype == torch.float32
    with s.apply(ablate("L1H2", "mean", reference=reference)):
        assert s.run(examples(), {Site("z", 1): Record()})["z[1]"].dtype == torch.bfloat16
