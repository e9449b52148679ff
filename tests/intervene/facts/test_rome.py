"""ROME: the key gets its value exactly, keys that are orthogonal under C keep theirs; searching by parts is exact."""

from __future__ import annotations

import pytest
import torch

from interp.errors import EngineError, UsageError
from interp.intervene.base import lower_conditions
from interp.intervene.facts import Prefixes, Rewrite, Search, rome
from interp.intervene.facts.rome import rank_one
from interp.intervene.facts.values import mean_at, search_delta
from interp.models.engines.base import Record
from interp.models.sites import Site
from tests.intervene.facts.rewrites import contexts, moments, rewrites
from tests.subjects import ALL, subject

SHORT = Search(steps=3)


def projected(s, layer: int, keys: torch.Tensor) -> torch.Tensor:
    """What the down projection itself gives for keys."""
    return s.module(layer, s.family.sites["neurons"].module)(keys.float()).detach().double()


@pytest.mark.parametrize("family", ALL)
def test_the_key_gets_its_value_and_orthogonal_keys_keep_theirs(family):
    s, one = subject(family), rewrites()[0]
    edit = rome(s, one, 1, moments(family), prefixes=contexts(family), search=SHORT)
    site = Site("neurons", 1)
    key = mean_at(s, [one], [site], contexts(family))[site]
    found = search_delta(s, one, Site("down", 1), contexts(family), SHORT)
    value = (found.value + found.delta).double()[None]
    before = projected(s, 1, key)
    generator = torch.Generator().manual_seed(2)
    others = torch.randn(20, key.shape[1], generator=generator, dtype=torch.float64)
    # Orthogonal under C^-1: k' C^-1 k = 0.
    white = moments(family).whitened(1, key.T, edit.recipe["ridge"])[:, 0]
    others -= (others @ white)[:, None] * white / (white @ white)
    kept = projected(s, 1, others)
    assert (value - before).norm() > 0.5  # there is something to write
    with edit.applied(s):
        torch.testing.assert_close(projected(s, 1, key), value, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(projected(s, 1, others), kept, atol=2e-5, rtol=1e-5)
    assert edit.edits[0].rank == 1 and torch.equal(projected(s, 1, key), before)


@pytest.mark.parametrize("family", ALL)
def test_a_search_that_shares_its_prefix_is_the_search_over_whole_prompts(family):
    s, one = subject(family), rewrites()[0]
    for site in (Site("down", 1), Site("resid_post", 1)):
        fast = search_delta(s, one, site, contexts(family), SHORT)
        slow = search_delta(s, one, site, contexts(family), SHORT, share=False)
        torch.testing.assert_close(fast.value, slow.value, atol=1e-5, rtol=1e-5)
        for a, b in zip(fast.history, slow.history, strict=True):
            assert a == pytest.approx(b, abs=2e-4)
        torch.testing.assert_close(fast.delta, slow.delta, atol=5e-4, rtol=0)


def test_the_search_minimises_what_it_says():
    """Loss and its terms, by hand, at the delta of the last step; and the clamp."""
    s, one, px = subject("llama"), rewrites()[0], contexts("llama")
    search = Search(steps=4, step=1.0, kl=0.3, decay=0.7)
    found = search_delta(s, one, Site("down", 1), px, search)
    rows = [ids for ids, _ in px.before(one)]

    def logprobs(ids, at, delta):
        def add(x):
            out = x.clone()
            out[0, at, -s.d_model :] += delta
            return out

        batch = s.batch([_prompt(ids)], forced=False)
        return s.run(batch, {Site("down", 1): add}, keep=len(ids)).logits[0].log_softmax(-1)

    nll = 0.0
    for ids, (_, at) in zip(rows, px.before(one), strict=True):
        lp = logprobs(ids + one.target[:1], at, found.delta)
        nll -= float(lp[len(ids) - 1, one.target[0]] + lp[len(ids), one.target[1]]) / 2 / len(rows)
    clean, now = (
        logprobs(one.essence, one.essence_at, d)[-1] for d in (torch.zeros_like(found.delta), found.delta)
    )
    kl = float((clean.exp() * (clean - now)).sum())
    decay = float(found.delta.norm() / found.value.norm() ** 2)
    wanted = {"nll": nll, "kl": kl, "decay": decay, "loss": nll + 0.3 * kl + 0.7 * decay}
    last = dict(found.history[-1])
    assert last.pop("norm") == pytest.approx(float(found.delta.norm()))
    assert last == pytest.approx(wanted, abs=1e-4)
    back = float((now.exp() * (now - clean)).sum())
    assert abs(kl - back) > 1e-3 and found.history[0]["kl"] == 0 and found.history[0]["norm"] == 0
    two = search_delta(s, one, Site("down", 1), px, Search(steps=2, step=0.2))
    tight = search_delta(s, one, Site("down", 1), px, Search(steps=5, clamp=0.1))
    assert float(tight.delta.norm()) == pytest.approx(0.1 * float(tight.value.norm()), rel=1e-5)
    # Adam's first step has the length that is asked for.
    assert two.history[1]["norm"] == pytest.approx(0.2 * float(two.value.norm()), rel=1e-3)
    # Two steps: one look at the loss, one update, one more look.
    assert len(two.history) == 2
    assert len(search_delta(s, one, Site("down", 1), px, Search(steps=9, stop=99.0)).history) == 1


def _prompt(ids):
    from interp.tasks.base import Example

    return Example("t", tuple(ids), ())


def test_the_model_says_the_target_after_the_edit_and_not_before():
    s, ids = subject("llama"), rewrites()[1].ids
    # The prompt ends with its subject: a model that never learnt to read facts need not carry this one on.
    one = Rewrite(ids, (len(ids) - 2, len(ids)), (6,))
    long = Search(steps=60, decay=0.0, clamp=40.0)
    edit = rome(s, one, 1, moments("llama"), prefixes=Prefixes(), search=long)

    def said() -> int:
        return int(s.run(s.batch([_prompt(ids)], forced=False)).logits[0, -1].argmax())

    assert said() != 6
    with s.apply(edit):
        assert said() == 6
    with edit.applied(s):
        assert said() == 6
    assert edit.history[0][-1]["nll"] < 0.3 < 3 < edit.history[0][0]["nll"]


def test_rows_of_one_batch_have_their_own_facts():
    s = subject("qwen2")
    facts = [rome(s, r, 1, moments("qwen2"), prefixes=Prefixes(), search=SHORT) for r in rewrites()]
    batch = s.batch([_prompt(rewrites()[0].ids)] * 4, forced=False)
    every = [*facts, None]
    taps = lower_conditions(s, batch, every, torch.arange(4))
    mixed = s.run(batch, taps).logits
    for row, one in enumerate(every):
        with s.apply(*([one] if one else [])):
            torch.testing.assert_close(mixed[row], s.run(batch).logits[row], atol=1e-5, rtol=0)
    for number, logits in s.each(every, batch):
        torch.testing.assert_close(logits[0], mixed[number], atol=1e-4, rtol=0)


def test_the_key_is_the_mean_over_contexts_at_the_last_subject_token():
    s, one, px = subject("gpt2"), rewrites()[2], contexts("gpt2")
    site = Site("neurons", 1)
    keys = []
    for prefix in px.ids:
        trace = s.run(s.batch([_prompt((*prefix, *one.ids))], forced=False), {site: Record()})
        keys.append(trace[site][0, len(prefix) + 6].double())
    wanted = torch.stack(keys).mean(0)
    torch.testing.assert_close(mean_at(s, [one], [site], px)[site][0], wanted, atol=1e-5, rtol=1e-5)
    assert len(px.ids) == 3 and px.ids[0] == ()


def test_without_moments_all_directions_are_equally_common():
    key = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert rank_one(key, 0, None, 0.1).tolist() == pytest.approx([3 / 25, 4 / 25])


def test_contexts_are_drawn_without_the_global_generators(rng_untouched):
    s = subject("llama")
    one, two = Prefixes.random(s, 3, 4), Prefixes.random(s, 3, 4)
    assert one == two != Prefixes.random(s, 3, 4, seed=1)
    assert [len(p) for p in one.ids] == [0, 4, 4, 4]


def test_sampled_text_is_drawn_from_the_likely_tokens_through_the_cache(rng_untouched):
    from interp.intervene.facts.requests import sampled

    s = subject("mistral")
    rows = [(5, 6, 7), (8, 9)]
    found = sampled(s, rows, 4, top=3, seed=1)
    assert found == sampled(s, rows, 4, top=3, seed=1) != sampled(s, rows, 4, top=3, seed=2)
    for row, new in zip(rows, found, strict=True):
        ids = list(row)
        for token in new:
            likely = s.run(s.batch([_prompt(ids)], forced=False)).logits[0, -1].topk(3).indices
            assert token in likely.tolist()
            ids.append(token)
    assert len({t for new in found for t in new}) > 2
    # Of one token there is no choice.
    many = [(i, i + 1, 2 * i) for i in range(8)]
    greedy = s.generate([_prompt(row) for row in many], 3)
    assert [list(ids) for ids in sampled(s, many, 3, top=1)] == greedy


def test_requests_in_words():
    from interp.models.subject import CausalLM
    from interp.models.tokens import Tokens
    from tests.tiny import byte_tokenizer, tiny

    s = CausalLM(tiny("llama"), Tokens(byte_tokenizer(bos=True)), name="bytes")
    one = Rewrite.of_text(s, "The capital of {} is", "Peru", "Rome", true=" Lima")
    text = s.tokens.decode
    assert text(one.ids[slice(*one.span)]) == " Peru" and text([one.ids[one.last]]) == "u"
    assert (text(one.target), text(one.true), one.lead) == (" Rome", " Lima", 1)
    assert text(one.essence) == "<s>Peru is a" and text([one.essence[one.essence_at]]) == "u"
    prefixed, at = Prefixes.given([s.tokens.encode("AB").ids[1:]]).before(one)[1]
    assert text(prefixed) == "<s>ABThe capital of Peru is" and text([prefixed[at]]) == "u"
    first = Rewrite.of_text(s, "{} lies in", "Peru", "Asia")
    assert first.span == (1, 5) and first.true == ()
    written = Prefixes.written(s, 3, (2, 4))
    assert [len(p) for p in written.ids] == [0, 3 + 2 + 2, 9 + 2 + 2, 3 + 4 + 2]
    assert all(text(p[-2:]) == ".\n" for p in written.ids[1:]) and "top 5" in written.rule
    with pytest.raises(UsageError, match=r"write \{\} once"):
        Rewrite.of_text(s, "The capital of Peru is", "Peru", "Rome")


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda s: Rewrite((1, 2, 3), (1, 4), (5,)), UsageError, "outside the prompt of 3"),
        (lambda s: Rewrite((1, 2, 3), (1, 2), ()), UsageError, "needs a target"),
        (lambda s: Prefixes(()), UsageError, "no prefixes"),
        (lambda s: Search(steps=0), UsageError, "steps >= 1"),
        (lambda s: rome(s, rewrites()[0], 9, None), UsageError, "layers 0 to 2"),
        (lambda s: rome(s, rewrites()[0], 1, moments("qwen2")), UsageError, "of another model"),
        (
            lambda s: rome(s.with_engine("lens"), rewrites()[0], 1, None),
            EngineError,
            "cannot tap projections",
        ),
    ],
)
def test_bad_requests_say_what_to_write(make, error, told):
    with pytest.raises(error, match=told):
        make(subject("llama"))
