"""Every score equals a plain loop over eager attention; shares of heads and the rest sum to the logit; CRI is a run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import interp
from interp.errors import EngineError, UsageError
from interp.locate.capture import Watch, prefix_of
from interp.locate.greedy import begin, decode, finish, new_cache
from interp.locate.options import Options
from interp.locate.readout import Norm, Readout
from interp.locate.scores import SCORES, copying, dynamic_sets
from interp.locate.scores.repeats import repeated
from interp.models.batch import Batch
from interp.models.engines.base import Record
from interp.models.sites import Site
from interp.tasks.base import FixedTask, Span
from tests.locate.naive_scores import eager, naive_scores
from tests.locate.test_greedy import mixed
from tests.subjects import ALL, examples, subject

FEW = ["llama", "gpt2", "qwen3", "gemma2"]
NULL = (7, 8)
ONE_PASS = [name for name in SCORES if name not in ("cri", "induction", "echo")]


def asked(lengths: tuple[int, ...] = (24, 17, 40)):
    """Examples with a needle's sentence, and a question (of the last, the query only)."""
    out = []
    for i, e in enumerate(examples(lengths)):
        question = Span(9, 13, "question" if i < 2 else "query", 0)
        out.append(replace(e, spans=(*e.spans, Span(1, 7, "evidence", 0), question)))
    return out


def captured(s, data, names=ONE_PASS, options=None, **how):
    watch = Watch(s, data, names, options or Options(null=NULL))
    begun = begin(watch, data, **how)
    for row, capture in enumerate(begun.captures):
        watch.more(capture, begun.prefix(row))
    return begun.captures


def same(captures, wanted, names=ONE_PASS, tolerance=2e-5):
    for capture, expected in zip(captures, wanted, strict=True):
        for name in names:
            np.testing.assert_allclose(
                SCORES[name](capture), expected[name], atol=tolerance, rtol=1e-4, err_msg=name
            )


@pytest.mark.parametrize("family", FEW)
def test_scores_equal_plain_loops(family):
    s, data, options = subject(family), asked(), Options(null=NULL)
    wanted = [naive_scores(s, e, NULL, options) for e in data]
    same(captured(s, data), wanted)  # padded; the null question runs the context again
    same(captured(s, data, cache=new_cache()), wanted)  # padded; it goes on from the batch's cache
    for e, expected in zip(data, wanted, strict=True):
        same(captured(s, [e]), [expected])
    assert all(np.abs(expected[name]).max() > 0.01 for expected in wanted for name in ONE_PASS[3:])
    assert any(expected["copy"].any() and expected["copy_position"].any() for expected in wanted)


@pytest.mark.parametrize(
    "options",
    [
        Options(null=NULL, needle="evidence", window=4, anchor="mean", k=3),
        Options(null=(9, 10, 11), unembed="raw", window=12, k=1),
    ],
    ids=["evidence", "raw"],
)
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_options_are_those_of_the_loops(family, options):
    s, data = subject(family), asked((24, 17))
    wanted = [naive_scores(s, e, options.null, options) for e in data]
    same(captured(s, data, options=options), wanted)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_pass_behind_a_cache_tells_the_same(family):
    """As on a prefix that several prompts share: only what is read, and what follows, is run."""
    s = subject(family)
    (e,) = asked((40,))
    watch = Watch(s, [e], ONE_PASS, Options(null=NULL))
    assert watch.first == [9] and watch.cached
    assert Watch(s, [e], ("copy", "locos")).first == [39]
    assert Watch(s, [e], ("anchor",)).first == [32]
    whole = captured(s, [e])
    for past in (0, 5, watch.first[0]):
        cache = new_cache()
        if past:
            s.run(Batch.of_ids([e.ids[:past]]), cache=cache, keep=1)
        begun = begin(watch, [e], cache=cache, past=past)
        watch.more(begun.captures[0], begun.prefix(0))
        for name in ONE_PASS:
            np.testing.assert_allclose(
                SCORES[name](begun.captures[0]), SCORES[name](whole[0]), atol=2e-5, rtol=1e-4, err_msg=name
            )
        assert finish(watch, begun, forced=True)[0].tokens == len(e.full_ids) - 1 - past


def test_a_prefix_is_cut_out_of_its_row():
    s, data = subject("llama"), asked()
    batch, cache = s.batch(data), new_cache()
    s.run(batch, cache=cache)
    for row, e in enumerate(data):
        alone = new_cache()
        s.run(Batch.of_ids([e.ids[:11]]), cache=alone, keep=1)
        cut = prefix_of(cache, row, int(batch.pad[row]))(11)
        assert cut.get_seq_length() == 11
        for got, want in zip(cut.layers, alone.layers, strict=True):
            torch.testing.assert_close(got.keys, want.keys, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(got.values, want.values, atol=2e-5, rtol=1e-4)


# -- shares of the logit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ALL)
def test_heads_mlps_embeddings_and_biases_sum_to_the_logit(family):
    s, data = subject(family), asked()
    watch = Watch(s, data, ("dla",))
    batch = s.batch(data)
    m, n = 3, s.n_layers
    record = Record(watch.columns(batch)[:, :m])
    sites = [Site("resid_pre", 0), *(Site("mlp_out", i) for i in range(n)), *(Site("o", i) for i in range(n))]
    taps = {**dict.fromkeys(sites, record), **watch.taps(batch)}
    trace = s.run(batch, taps, rows=watch.rows(batch))
    captures = watch.take(trace, batch)
    readout = watch.readout
    tokens = torch.tensor([e.answer_ids for e in data])
    vectors = readout.vectors(tokens)
    scales = readout.scales(trace, (len(data), m))
    end = scales[-1] if not readout.post else readout.norm.scale(trace[Site("resid_post", n - 1)])
    for row, e in enumerate(data):
        _, logits = eager(s, e.full_ids[:-1])
        for step, token in enumerate(e.answer_ids):
            u, scale = vectors[row, step], float(end[row, step])
            total = float(captures[row].shares["all"][step].sum())
            for site in sites[: n + 1]:
                total += scale * float(trace[site][row, step] @ u)
            for i in range(n):
                bias = getattr(s.module(i, s.family.out_proj), "bias", None)
                total += 0.0 if bias is None else scale * float(bias.detach() @ u)
            total += float(s.hf.get_output_embeddings().weight[token].detach() @ readout.norm.bias)
            logit = float(logits[e.answer_rows[step], token])
            if cap := getattr(s.config, "final_logit_softcapping", None):
                logit = cap * float(np.arctanh(logit / cap))
            assert total == pytest.approx(logit, abs=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_form_of_a_norm_is_found_out(dtype):
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    for kind, centred, shift in (
        (LlamaRMSNorm, False, 0.0),
        (Gemma2RMSNorm, False, 1.0),
        (torch.nn.LayerNorm, True, 0.0),
    ):
        module = kind(4096).to(dtype)
        with torch.no_grad():
            module.weight.copy_(torch.linspace(-0.5, 1.5, 4096))
        norm = Norm.of(module, "a norm")
        assert norm.centred == centred
        torch.testing.assert_close(norm.gain, shift + module.weight.float())


def test_a_norm_of_another_kind_is_refused():
    class Cubed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.linspace(0.5, 2.0, 8))

        def forward(self, x):
            return self.weight * x**3

    with pytest.raises(EngineError, match=r"the final norm \(Cubed\) is neither a LayerNorm nor an RMS norm"):
        Norm.of(Cubed(), "the final norm")


def test_a_bare_readout_needs_no_pass_of_norms():
    s = subject("gemma2")
    bare = Readout(s, folded=False)
    assert bare.taps(torch.tensor([[3]])) == {} and bare.norm is None
    row = s.hf.get_output_embeddings().weight[5]
    torch.testing.assert_close(bare.vectors(torch.tensor([[5]]))[0, 0], row.detach())
    assert set(Readout(s).taps(torch.tensor([[3]]))) == {
        Site("resid_post", 2),
        *(Site("o", i) for i in range(3)),
    }


# -- scores with runs of their own -----------------------------------------------------------------------------------


def naive_cri(s, e, twin, positions):
    """One run each: the corrupt prompt with one head's clean z in it."""
    clean, corrupt = e.full_ids[:-1], (twin.ids + e.answer_ids)[:-1]
    z: dict[int, torch.Tensor] = {}

    def run(ids, layer=None, head=None):
        handles = []
        for i in range(s.n_layers):

            def hook(m, args, i=i):
                x = args[0].clone()
                if layer is None:
                    z.setdefault(i, x[0].clone())
                if i == layer:
                    cut = slice(head * s.d_head, (head + 1) * s.d_head)
                    x[0, positions, cut] = z[i][positions, cut]
                return (x, *args[1:])

            handles.append(s.module(i, s.family.out_proj).register_forward_pre_hook(hook))
        try:
            with torch.no_grad():
                logits = s.hf(input_ids=torch.tensor([list(ids)])).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        rows = logits[list(e.answer_rows)].log_softmax(-1)
        return float(rows[range(len(e.answer_ids)), list(e.answer_ids)].sum())

    run(clean)  # fills z
    base = run(corrupt)
    return np.array([[run(corrupt, i, h) - base for h in range(s.n_heads)] for i in range(s.n_layers)])


@pytest.mark.parametrize("scope", ["answer", "all"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_cri_equals_one_run_each(family, scope):
    s, data = subject(family), asked((24, 17))
    options = Options(scope=scope)
    captures = captured(s, data, ("cri",), options)
    for e, capture in zip(data, captures, strict=True):
        positions = list(e.answer_rows) if scope == "answer" else list(range(len(e.full_ids) - 1))
        wanted = naive_cri(s, e, e.corrupt["value_swap"], positions)
        np.testing.assert_allclose(SCORES["cri"](capture), wanted, atol=2e-4)
        assert np.abs(wanted).max() > 0.1


def test_cri_takes_the_dropped_needle_where_there_is_one():
    s, (e,) = subject("llama"), asked((24,))
    ids = (*e.ids[:1], 90, 91, 92, 93, 94, 95, *e.ids[7:])
    dropped = replace(e, ids=ids, corrupt={})
    both = replace(e, corrupt={**e.corrupt, "needle_drop": dropped})
    (capture,) = captured(s, [both], ("cri",), Options())
    wanted = naive_cri(s, e, dropped, list(e.answer_rows))
    np.testing.assert_allclose(SCORES["cri"](capture), wanted, atol=2e-4)
    (swapped,) = captured(s, [both], ("cri",), Options(corruption="value_swap"))
    assert np.abs(SCORES["cri"](swapped) - wanted).max() > 0.01


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_induction_and_echo_are_read_in_the_second_copy(family):
    s, (e, other) = subject(family), asked((24, 17))
    captures = captured(s, [e, other], ("induction", "echo"), Options(repeat=9))
    for example, capture in zip((e, other), captures, strict=True):
        ids, start = repeated(s, example, Options(repeat=9))
        assert start == 0 and ids[:9] == ids[9:] and len(set(ids)) == 9
        attention = eager(s, ids)[0]
        rows = range(9, 17)
        for name, shift in (("induction", 8), ("echo", 9)):
            wanted = [
                [np.mean([float(a[h, t, t - shift]) for t in rows]) for h in range(s.n_heads)]
                for a in attention
            ]
            np.testing.assert_allclose(SCORES[name](capture), wanted, atol=2e-6)
    assert repeated(s, e, Options(repeat=9)) != repeated(s, other, Options(repeat=9))


# -- what was emitted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_top_keys_of_emitted_tokens_are_those_of_single_steps(family):
    s, k = subject(family), 4
    data = mixed(s)
    watch = Watch(s, data, ("copy", "copy_topk"), Options(k=k))
    for group in ([0, 1, 2, 3], [1], [2]):
        for i, got in zip(group, decode(s, [data[i] for i in group], watch=watch), strict=True):
            e = data[i]
            for step in range(len(got.output)):
                attention, logits = eager(s, (*e.ids, *got.output[:step]))
                assert got.output[step] == int(logits[-1].argmax())
                tops = torch.stack([a[:, -1].topk(k).indices.sort().values for a in attention])
                assert torch.equal(got.topk[step].sort().values, tops)
                assert torch.equal(got.argmax[step], torch.stack([a[:, -1].argmax(-1) for a in attention]))


def test_copying_scores_are_of_the_output_and_the_others_of_the_answer():
    s = subject("llama")
    late = mixed(s)[2]
    heads = interp.RetrievalHeads(
        scores=("copy", "copy_position", "copy_topk", "needle_mass"), accept=-1.0, max_new_tokens=5
    ).fit(s, FixedTask([late]))
    (decoded,) = decode(s, [late], max_new_tokens=5, watch=Watch(s, [late], ("copy_topk",)))
    assert tuple(decoded.output) != late.answer_ids
    for name, score in (
        ("copy", copying.copy_score),
        ("copy_position", copying.copy_position_score),
        ("copy_topk", copying.copy_topk_score),
    ):
        np.testing.assert_array_equal(heads.per_instance_[name][0], score(decoded, late))
    wanted = torch.stack(eager(s, late.full_ids[:-1])[0])[..., 3:6].sum(-1)[..., list(late.answer_rows)]
    np.testing.assert_allclose(heads.per_instance_["needle_mass"][0], wanted.mean(-1), atol=2e-6)
    (steps,) = heads.copied_
    hits = copying.copied(decoded.output, decoded.argmax[..., None], late).numpy()
    assert steps.shape == (5, 3, 4) and (steps == hits).all()


def test_all_scores_of_one_fit():
    s, data = subject("llama"), asked()
    options = Options(null=NULL, repeat=8)
    heads = interp.RetrievalHeads("locos", mode="forced", scores="all", options=options)
    heads.fit(s, FixedTask(data, name="t"))
    assert list(heads.per_instance_) == ["locos", *(n for n in SCORES if n != "locos")]
    assert set(heads.scores_["method"]) == set(SCORES) and heads.ranking()["method"][0] == "locos"
    assert len(heads.scores_) == 12 * len(SCORES) and heads.scores_["score"].notna().all()
    assert heads.clusters_ == ["c0", "c1", "c2"]
    for name, values in heads.per_instance_.items():
        assert values.shape == (3, 3, 4), name
        alone = interp.RetrievalHeads(name, mode="forced", scores=(), options=options)
        alone.fit(s, FixedTask(data, name="t"))
        np.testing.assert_allclose(alone.per_instance_[name], values, atol=2e-6, err_msg=name)


def test_only_copying_needs_the_answer_in_the_prompt():
    s = subject("llama")
    other = [replace(e, answer_ids=(201, 202), candidates=(), foil_ids=()) for e in asked()]
    heads = interp.RetrievalHeads("locos", scores=("needle_mass", "dla"), mode="forced")
    assert heads.fit(s, FixedTask(other)).acceptance_ == 1.0
    with pytest.raises(UsageError, match="nothing can be copied"):
        interp.RetrievalHeads("copy", mode="forced").fit(s, FixedTask(other))


def test_dynamic_sets_against_a_fixed_one():
    steps = np.zeros((2, 2, 3), dtype=bool)
    steps[0, 0, 1] = steps[0, 1, 2] = steps[1, 1, 2] = True
    sets, covered = dynamic_sets([steps, np.zeros((1, 2, 3), dtype=bool)], "L0H1 L1H0")
    assert sets.to_numpy().tolist() == [[0, 0, "L0H1"], [0, 0, "L1H2"], [0, 1, "L1H2"]]
    assert covered["n"].tolist() == [2, 1, 0]
    assert covered["jaccard"].tolist() == [1 / 3, 0.0, 0.0]
    assert covered["recall"].tolist()[:2] == [0.5, 0.0] and np.isnan(covered["recall"][2])


def test_bad_requests_say_what_to_write():
    s, data = subject("llama"), asked()
    for names, options, change, why in (
        (("locus",), None, {}, r"no score 'locus' of heads \(did you mean 'locos'\?\); write one of copy,"),
        (("qr",), None, {}, r"this model has no tokenizer; give its ids: Options\(null="),
        (("qr",), Options(null=NULL), {"spans": data[0].spans[:2]}, "no question or query span"),
        (("r2",), None, {"spans": ()}, "no value span of item 0"),
        (("locos",), Options(needle="evidence"), {"spans": data[0].spans[:2]}, "no evidence span of item 0"),
        (("cri",), None, {"corrupt": {}}, "needs a corruption, and an example has none"),
        (
            ("cri",),
            Options(corruption="noise"),
            {},
            "needs corruption 'noise', and an example has value_swap",
        ),
        (("temporal",), Options(window=1), {}, "take a window of 2 or more"),
        (
            ("qr",),
            Options(null=NULL),
            {"spans": (Span(3, 6, "value", 0), Span(1, 2, "query", 0))},
            "behind the evidence",
        ),
    ):
        with pytest.raises(UsageError, match=why):
            Watch(s, [replace(data[0], **change)], names, options)
    with pytest.raises(UsageError, match="window is 0; take 1 or more"):
        Options(window=0)
    with pytest.raises(UsageError, match="anchor is 'sum'; write one of max, mean"):
        Options(anchor="sum")
    with pytest.raises(UsageError, match="bare ids"):
        Watch(s, data).rows(Batch.of_ids([[1, 2]]))


def test_each_score_says_its_formula():
    for name, score in SCORES.items():
        assert score.name == name and len(score.formula) > 60, name
    assert {n for n, x in SCORES.items() if x.extra} == {"qr", "cri", "induction", "echo"}
    assert {n for n, x in SCORES.items() if x.rows == "emitted"} == {"copy", "copy_position", "copy_topk"}
