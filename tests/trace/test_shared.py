"""Walks over prompts that begin alike: every prefix once, and the numbers of one run each."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import UsageError
from interp.intervene.ablate import ablate
from interp.models.walk import Walk, common
from tests.subjects import ALL, examples, subject

PROMPT = st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple)


def tree_edges(prompts):
    """Tokens of the prefix tree: every distinct prefix is one."""
    return len({p[: i + 1] for p in prompts for i in range(len(p))})


@given(st.lists(PROMPT, min_size=1, max_size=8, unique=True))
def test_a_walk_runs_every_edge_of_the_prefix_tree_once(prompts):
    # The last token of a prompt is always run, for what it predicts.
    ends = sum(any(q != p and q[: len(p)] == p for q in prompts) for p in prompts)
    tokens = Walk.of(prompts).tokens
    assert tree_edges(prompts) <= tokens <= tree_edges(prompts) + ends


@given(PROMPT, PROMPT)
def test_common_prefix(a, b):
    n = common(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


@given(st.lists(PROMPT, min_size=1, max_size=6), st.data())
def test_nothing_from_the_first_own_token_on_is_shared(prompts, data):
    first = [data.draw(st.integers(0, len(p) - 1)) for p in prompts]
    walk = Walk.of(prompts, first)
    assert all(past <= own for past, own in zip(walk.past, first, strict=True))
    assert walk.tokens == walk.naive - sum(walk.past)


def test_a_walk_pays_where_much_is_shared():
    long = tuple(range(40))
    assert Walk.of([(*long, 1), (*long, 2)]).pays
    assert not Walk.of([long]).pays
    assert not Walk.of([long, tuple(range(1, 41))]).pays
    # Short prompts share most of their tokens, and are still better run together.
    assert not Walk.of([(1, 2, 3, 4, i) for i in range(9)]).pays
    assert Walk.of([(*long[:20], i) for i in range(9)]).pays


@pytest.mark.parametrize("family", ALL)
def test_caches_hold_what_prompts_share(family, rng_untouched):
    """Logits on the walk are those of one run each; a taker may go on behind its prompt."""
    s = subject(family)
    generator = torch.Generator().manual_seed(1)
    base = torch.randint(1, 250, (44,), generator=generator).tolist()
    prompts = [
        (*base[:n], *base[a:b]) for n, a, b in ((44, 3, 6), (30, 5, 9), (30, 7, 8), (12, 0, 4), (44, 3, 7))
    ]
    walk = Walk.of(prompts)
    assert walk.pays
    seen = []
    for i, past, cache in walk.caches(s):
        assert cache.get_seq_length() == past == walk.past[i]
        batch = s.batch(examples_of([(*prompts[i], 9, 8)]))
        logits = s.run(batch, keep=3, cache=cache, past=past).logits[0, 0]
        whole = s.run(s.batch(examples_of([prompts[i]])), keep=1).logits[0, 0]
        torch.testing.assert_close(logits, whole, atol=1e-4, rtol=1e-4)
        seen.append(i)
    assert sorted(seen) == list(range(len(prompts)))


def examples_of(prompts):
    from interp.tasks.base import Example

    return [Example("t", p, (1,), chance=0.5) for p in prompts]


@pytest.mark.parametrize("family", ALL)
def test_each_goes_on_from_a_cache(family):
    s = subject(family)
    (example,) = examples((40,))
    batch = s.batch([example])
    past = 29
    cache = s.run(s.batch(examples_of([example.ids[:past]])), use_cache=True).cache
    cuts = [
        None,
        *(ablate(h, mode, (33, "answer")) for h in ("L0H1", "L1H2", "L2H3") for mode in ("zero", "uniform")),
    ]
    whole = dict(s.each(cuts, batch))
    found = dict(s.each(cuts, batch, cache=cache, past=past))
    assert set(found) == set(whole)
    for i, logits in whole.items():
        torch.testing.assert_close(found[i], logits, atol=1e-4, rtol=1e-4)
    assert cache.get_seq_length() == batch.width


def test_an_edit_of_cached_columns_is_refused():
    s = subject("llama")
    (example,) = examples((40,))
    cache = s.run(s.batch(examples_of([example.ids[:20]])), use_cache=True).cache
    with pytest.raises(UsageError, match="edits column 3, and the KV cache holds the first 20"):
        list(s.each([ablate("L1H2", "zero", "value")], s.batch([example]), cache=cache, past=20))
