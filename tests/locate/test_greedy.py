"""Draft-verify decoding against the step-by-step loop with eager attentions, and the scores made of its rows."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

import interp
from interp.errors import NoAcceptedExample, UsageError
from interp.locate import retrieval_heads
from interp.locate.greedy import Decoded, decode, lookup
from interp.locate.retrieval_heads import copy_position_score, copy_score, recall
from interp.models.batch import Batch
from interp.tasks.base import Example, FixedTask, Span
from tests.subjects import ALL, examples, subject


def mixed(s):
    """Examples whose forced answer is right, wrong from the first token, and wrong later."""
    out = []
    for i, e in enumerate(examples((24, 17, 40, 9))):
        said = s.generate(Batch.of_ids([e.ids]), 3)[0]
        if i == 1:
            said[0] = (said[0] + 1) % 256
        if i == 2:
            said[2] = (said[2] + 1) % 256
        out.append(replace(e, answer_ids=tuple(said), corrupt={}, foil_ids=(), candidates=()))
    return out


def naive(s, e, limit):
    """One eager forward a token; the most attended key of the row that predicts it."""
    ids, rows = list(e.ids), []
    while len(ids) < len(e.ids) + limit:
        with torch.no_grad():
            out = s.hf(input_ids=torch.tensor([ids]), output_attentions=True)
        rows.append(torch.stack([a[0, :, -1].argmax(-1) for a in out.attentions]))
        ids.append(int(out.logits[0, -1].argmax()))
        if tuple(ids[len(e.ids) :]) == e.answer_ids:
            break
    return ids[len(e.ids) :], torch.stack(rows)


@pytest.mark.parametrize("family", ALL)
def test_draft_verify_equals_token_by_token_decoding(family):
    s = subject(family)
    data = mixed(s)
    before = s.hf.config._attn_implementation
    s.hf.set_attn_implementation("eager")
    try:
        expected = [naive(s, e, len(e.answer_ids) + 16) for e in data]
    finally:
        s.hf.set_attn_implementation(before)
    for likely, group in product((True, False), ([0, 1, 2, 3], [0], [1], [2])):
        for i, got in zip(group, decode(s, [data[i] for i in group], likely=likely), strict=True):
            assert got.output == expected[i][0]
            assert torch.equal(got.argmax, expected[i][1])
            assert got.exact == (i in (0, 3)) and (got.passes == 1) == (i in (0, 3))


def test_a_cache_is_paid_for_only_where_the_answer_is_unlikely(monkeypatch):
    s = subject("llama")
    right, wrong, late = mixed(s)[:3]
    n = len(late.full_ids) - 1
    once, again = (decode(s, [late], likely=likely)[0] for likely in (False, True))
    assert n < once.tokens < 2 * n < again.tokens == once.tokens + len(late.ids) + 2
    held = []

    def run(*args, cache=None, **kwargs):
        held.append(cache is not None)
        return type(s).run(s, *args, cache=cache, **kwargs)

    monkeypatch.setattr(s, "run", run)
    monkeypatch.setattr(retrieval_heads, "TOKENS", 1)  # one example a pass, in order of length
    heads = interp.RetrievalHeads(accept=-1.0, max_new_tokens=1).fit(s, FixedTask([wrong, right, late]))
    assert heads.instances_["exact"].tolist() == [False, True, False]
    # Right after a refuted answer the first pass keeps its cache, and after a right one it does not.
    assert held == [False, True, False]


def test_stops_and_limits_end_an_output():
    s = subject("llama")
    wrong = mixed(s)[1]
    whole = decode(s, [wrong], max_new_tokens=12)[0].output
    assert len(whole) == 12
    late = mixed(s)[2]  # agrees with the draft for two tokens
    short = decode(s, [late], max_new_tokens=1)[0]
    assert len(short.output) == len(short.argmax) == 1
    stop = whole[5]
    cut = decode(s, [wrong], max_new_tokens=12, stops=frozenset({stop}))[0]
    assert cut.output == whole[: whole.index(stop) + 1] and len(cut.argmax) == len(cut.output)


def test_prompt_lookup_continues_the_last_tokens_where_they_stood():
    assert lookup([1, 2, 3, 4, 9, 2, 3], 2) == [4, 9]
    assert lookup([1, 2, 3], 2) == []
    assert lookup([5, 1, 5, 2, 5], 1) == [2]  # the latest occurrence


def hand(output, argmax, ids, span, answer):
    e = Example("t", ids, answer, spans=(Span(*span, "value", 0),), chance=0.5)
    return Decoded(output, torch.tensor(argmax)[:, None, :], tuple(output) == answer), e


def test_copy_score_is_set_based_and_at_most_one():
    # Needle 5 6 5 at positions 1-3; three heads.
    ids, answer = (9, 5, 6, 5, 1), (5, 6, 5)
    d, e = hand([5, 6, 5], [[1, 0, 3], [2, 2, 2], [3, 0, 1]], ids, (1, 4), answer)
    assert copy_score(d, e)[0] == pytest.approx([1.0, 0.5, 1.0])  # two distinct tokens
    assert copy_score(d, e, count=True)[0] == pytest.approx([1.0, 1 / 3, 1.0])
    # The third head looks at the other 5: copied token, wrong place.
    assert copy_position_score(d, e)[0] == pytest.approx([1.0, 1 / 3, 1 / 3])


def test_counting_can_exceed_one_and_the_set_cannot():
    d, e = hand([5, 5, 5, 6], [[1], [1], [1], [2]], (9, 5, 6, 1), (1, 3), (5, 6))
    assert copy_score(d, e, count=True)[0, 0] == 2.0
    assert copy_score(d, e)[0, 0] == 1.0


def test_a_hit_needs_the_needle_and_the_token():
    ids = (5, 5, 6, 1)  # 5 also stands before the needle
    outside, e = hand([5, 6], [[0], [3]], ids, (1, 3), (5, 6))
    wrong_token, _ = hand([5, 6], [[2], [1]], ids, (1, 3), (5, 6))
    assert copy_score(outside, e)[0, 0] == 0.0
    assert copy_score(wrong_token, e)[0, 0] == 0.0


def test_keys_in_the_answer_itself_are_no_needle():
    d, e = hand([5, 6], [[1], [4]], (9, 5, 6, 1), (1, 3), (5, 6))  # position 4 is the first answer token
    assert copy_score(d, e)[0, 0] == 0.5


def test_recall_counts_tokens_with_multiplicity():
    assert recall([5, 7, 8], (5, 5)) == 0.5
    assert recall([1, 5, 5], (5, 5)) == 1.0


def test_scores_frame_is_the_mean_of_instances():
    s = subject("llama")
    data = [replace(e, cluster=str(i)) for i, e in enumerate(mixed(s))]
    heads = interp.RetrievalHeads(mode="forced").fit(s, FixedTask(data, name="t"))
    assert len(heads.scores_) == 2 * 12 and list(heads.scores_["method"].unique()) == [
        "copy",
        "copy_position",
    ]
    copy = heads.per_instance_["copy"]
    assert copy.shape == (4, 3, 4)
    row = heads.scores_.query("method == 'copy' and component == 'L2H1'").iloc[0]
    assert row.score == copy[:, 2, 1].mean() and row.n == 4
    assert row.se == pytest.approx(copy[:, 2, 1].std(ddof=1) / 2)
    assert row.kv_head == 0
    group = heads.groups_.query("method == 'copy' and layer == 2 and kv_head == 0").iloc[0]
    assert (
        group["mean"] == pytest.approx(copy.mean(0)[2, :2].mean())
        and group["max"] == copy.mean(0)[2, :2].max()
    )


def test_only_instances_that_recall_the_needle_count():
    s = subject("llama")
    data = mixed(s)
    heads = interp.RetrievalHeads(accept=0.9, max_new_tokens=3).fit(s, FixedTask(data, name="t"))
    kept = [
        recall(d.output, e.answer_ids) > 0.9
        for d, e in zip(decode(s, data, max_new_tokens=3), data, strict=True)
    ]
    assert heads.instances_["accepted"].tolist() == kept and 0 < sum(kept) < 4
    assert heads.acceptance_ == pytest.approx(np.mean(kept))
    assert (heads.scores_["n"] == sum(kept)).all()


def test_zero_accepted_instances_explain_themselves():
    s = subject("llama")
    wrong = [replace(e, answer_ids=tuple((t + 1) % 256 for t in e.answer_ids)) for e in mixed(s)[:1]]
    with pytest.raises(NoAcceptedExample, match=r"recalls none of 1 needles.*it said"):
        interp.RetrievalHeads(accept=0.99, max_new_tokens=1).fit(s, FixedTask(wrong, name="t"))


def test_bad_requests_say_what_to_write():
    s = subject("llama")
    with pytest.raises(UsageError, match="needs a task"):
        interp.RetrievalHeads().fit(s)
    bare = [replace(e, spans=()) for e in examples()]
    with pytest.raises(UsageError, match="nothing can be copied"):
        interp.RetrievalHeads().fit(s, FixedTask(bare, name="t"))
    with pytest.raises(UsageError, match="copy, copy_position"):
        interp.RetrievalHeads("copied").fit(s, FixedTask(examples(), name="t"))
    with pytest.raises(UsageError, match="not fitted"):
        interp.RetrievalHeads().top(3)
    heads = interp.RetrievalHeads(mode="forced").fit(s, FixedTask(examples(), name="t"))
    with pytest.raises(UsageError, match="12 components"):
        heads.top(13)
    assert repr(heads).startswith("RetrievalHeads(method='copy', mode='forced'")
