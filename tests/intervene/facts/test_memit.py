"""MEMIT: the dense formula, exact for lambda -> 0, and ROME where there is one fact and one layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from interp.errors import UsageError
from interp.intervene.facts import Moments, Search, memit, rome
from interp.intervene.facts.memit import shares
from interp.intervene.facts.values import mean_at, search_delta
from interp.models.sites import Site
from tests.intervene.facts.rewrites import contexts, moments, rewrites
from tests.subjects import ALL, subject

SHORT = Search(steps=2, step=0.2)
PLAIN = [f for f in ALL if f not in ("gemma2", "gemma3", "olmo2")]


@pytest.mark.parametrize("lam", [0.0, 0.3, 50.0])
def test_shares_are_those_of_the_dense_formula(lam):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 12, generator=generator, dtype=torch.float64)
    c, keys = x.T @ x / 80, torch.randn(12, 4, generator=generator, dtype=torch.float64)
    found = shares(keys, 0, Moments({0: c}, 80), lam, 0.01)
    c = c + 0.01 * c.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    if lam:
        torch.testing.assert_close(found, torch.linalg.inv(lam * c + keys @ keys.T) @ keys)
    else:
        torch.testing.assert_close(keys.T @ found, torch.eye(4, dtype=torch.float64))
    eye = torch.eye(12, dtype=torch.float64)
    if lam:
        wanted = torch.linalg.inv(lam * eye + keys @ keys.T) @ keys
        torch.testing.assert_close(shares(keys, 0, None, lam, 0.01), wanted)


@pytest.mark.parametrize("family", PLAIN)
def test_one_fact_in_one_layer_is_rome_as_lambda_goes_to_zero(family):
    s, one, px = subject(family), rewrites()[0], contexts(family)
    # With the same limits both search the same vector: what is added to the MLP is added to the residual stream.
    search = replace(SHORT, clamp=1e6, decay=0.0)
    wanted = rome(s, one, 1, moments(family), prefixes=px, search=search).edits[0]
    ends = [Site("down", 1), Site("resid_post", 1)]
    long = [float(v[0, -s.d_model :].norm()) for v in mean_at(s, [one], ends, px).values()]
    search = replace(search, step=search.step * long[0] / long[1])
    found = memit(s, [one], [1], moments(family), weight=0.0, prefixes=px, search=search).edits[0]
    torch.testing.assert_close(found.a @ found.b, wanted.a @ wanted.b, atol=1e-4, rtol=1e-3)
    # The share of a key is k^T C^-1 k / (lambda + k^T C^-1 k).
    key = mean_at(s, [one], [Site("neurons", 1)], px)[Site("neurons", 1)][0]
    power = float(key @ moments(family).whitened(1, key[:, None], 1e-3)[:, 0])
    half = memit(s, [one], [1], moments(family), weight=power / s.d_mlp, prefixes=px, search=search).edits[0]
    torch.testing.assert_close(half.a @ half.b, wanted.a @ wanted.b / 2, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "qwen3"])
def test_all_facts_get_their_residual_for_lambda_zero_and_a_part_of_it_else(family):
    s, facts, px = subject(family), rewrites(), contexts(family)
    end = Site("resid_post", 2)
    before = mean_at(s, facts, [end], px)[end]
    wanted = torch.stack([search_delta(s, r, end, px, SHORT).delta.double() for r in facts])
    reached = []
    for weight in (0.0, 0.3, 30.0):
        edit = memit(s, facts, [1, 2], moments(family), weight=weight, prefixes=px, search=SHORT)
        assert [(e.layer, e.rank) for e in edit.edits] == [(1, 3), (2, 3)]
        with edit.applied(s):
            got = mean_at(s, facts, [end], px)[end] - before
        reached.append(float((got * wanted).sum() / (wanted**2).sum()))
        if not weight:
            torch.testing.assert_close(got, wanted, atol=5e-4 * float(wanted.abs().max()) + 1e-4, rtol=0)
    assert reached[0] == pytest.approx(1.0, abs=1e-3) and reached[0] > reached[1] > reached[2] > 0


def test_the_first_layer_of_a_window_takes_half_of_what_is_missing():
    s, facts, px = subject("llama"), rewrites(), contexts("llama")
    edit = memit(s, facts, [0, 1], moments("llama"), weight=0.0, prefixes=px, search=SHORT)
    end = Site("resid_post", 1)
    wanted = torch.stack([search_delta(s, r, end, px, SHORT).delta.double() for r in facts])
    torch.testing.assert_close(edit.edits[0].b.double(), wanted / 2, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("family", "make", "told"),
    [
        ("gemma2", lambda s, f: memit(s, f, [1], None), "write through a norm"),
        ("llama", lambda s, f: memit(s, [], [1], None), "at least one rewrite"),
        ("llama", lambda s, f: memit(s, f, [], None), "and one layer"),
        ("llama", lambda s, f: memit(s, f, [3], None), "layers 0 to 2"),
        ("llama", lambda s, f: memit(s, f, [1], None, weight=-1.0), "take 0 or more"),
        ("llama", lambda s, f: memit(s, f, [1], moments("qwen2")), "of another model"),
        ("llama", lambda s, f: shares(torch.ones(8, 2), 4, None, 0.0, 0.0), "layer 4: the keys of two facts"),
    ],
)
def test_bad_requests_say_what_to_write(family, make, told):
    with pytest.raises(UsageError, match=told):
        make(subject(family), rewrites(1))
