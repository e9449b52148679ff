"""Reducers of single keys and of what keys contribute along a direction, against whole eager rows and values."""

from __future__ import annotations

import pytest
import torch

from interp.errors import EngineError, UsageError
from interp.models.batch import Batch
from interp.models.engines import rows as engine
from interp.models.engines.base import Frame, Record, Rows
from interp.models.sites import Site
from interp.trace.reducers import At, FirstRows, Many, Mass, Shares, TopK, TopKeys, Whole
from tests.subjects import ALL, examples, subject
from tests.trace.test_reducers import (
    SPANS,
    call,
    eager_rows,
    keys_in_block,  # noqa: F401  (a fixture)
    naive_rows,
    streamed,
)


def directions(s, b: int, r: int):
    """A direction for each head and row of a layer, the same at every call."""

    def of(layer: int) -> torch.Tensor:
        g = torch.Generator().manual_seed(layer)
        return torch.randn(b, s.n_heads, r, s.d_head, generator=g)

    return of


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "solo"])
@pytest.mark.parametrize("family", ALL)
def test_single_keys_and_shares_equal_those_of_eager_rows(family, padded, keys_in_block):  # noqa: F811
    s = subject(family)
    data = examples((24, 17, 40) if padded else (40,))
    batch = Batch.of_ids([e.ids for e in data])
    pad, b = batch.pad.tolist(), len(data)
    columns = torch.tensor([[p + 9, -1, batch.width - 1] for p in pad])
    at = torch.tensor([[p, p + 1, -1] for p in pad])
    spans = [[(p + a, p + c) for a, c in SPANS] for p in pad]
    along = directions(s, b, 3)
    reduce = Many(
        at=At(at), shares=Shares(along, {"all": None, "some": spans}), two=FirstRows(2, At(at[:, :2]))
    )
    found = s.run(
        batch, {Site("v", i): Record() for i in range(s.n_layers)}, rows=Rows(columns, reduce), keep=1
    )
    eager = eager_rows(s, batch)
    for layer in range(s.n_layers):
        probs = eager[layer].gather(
            2, columns.clamp(min=0)[:, None, :, None].expand(-1, s.n_heads, -1, batch.width)
        )
        probs[:, :, 1] = 0.0
        got = found.rows[layer]
        wanted = probs.gather(-1, at.clamp(min=0)[:, None, :, None].expand(-1, s.n_heads, -1, 1))[..., 0]
        wanted[:, :, 2] = 0.0
        torch.testing.assert_close(got["at"], wanted, atol=2e-6, rtol=0)
        torch.testing.assert_close(got["two"], wanted[:, :, :2], atol=2e-6, rtol=0)
        values = found[Site("v", layer)].transpose(1, 2).repeat_interleave(s.n_heads // s.n_kv_heads, 1)
        parts = probs * torch.einsum("bhrd,bhkd->bhrk", along(layer), values)
        torch.testing.assert_close(got["shares"]["all"], parts.sum(-1), atol=1e-5, rtol=1e-5)
        some = torch.stack(
            [
                row[..., sorted({c for x, y in own for c in range(x, y)})].sum(-1)
                for row, own in zip(parts, spans, strict=True)
            ]
        )
        torch.testing.assert_close(got["shares"]["some"], some, atol=1e-5, rtol=1e-5)
        assert some.abs().max() > 1e-2


def test_shares_behind_a_cache_and_of_chosen_heads():
    from transformers import DynamicCache

    s, (e,) = subject("llama"), examples((40,))
    batch, columns, along = (
        Batch.of_ids([e.ids]),
        torch.tensor([[30, 39]]),
        directions(subject("llama"), 1, 2),
    )
    reduce = Shares(along, {"all": None, "some": [[(2, 35)]]})
    whole = s.run(batch, rows=Rows(columns, reduce), keep=1).rows
    cache = DynamicCache()
    s.run(Batch.of_ids([e.ids[:29]]), cache=cache, keep=1)
    found = s.run(batch, rows=Rows(columns, reduce), cache=cache, past=29, keep=1).rows
    chosen = Shares(lambda layer: along(layer)[:, [3, 1]], {"all": None})
    some = s.run(batch, rows=Rows(columns, chosen, heads={1: [3, 1]}), keep=1).rows
    for layer in whole:
        torch.testing.assert_close(found[layer], whole[layer], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(some[1]["all"], whole[1]["all"][:, [3, 1]], atol=2e-5, rtol=1e-5)


def test_half_precision_values_are_read_in_fp32():
    given, along = call(), torch.randn(2, 4, 11, 8, generator=torch.Generator().manual_seed(1))
    v = given.v.to(torch.bfloat16)
    frame, index = Frame(Batch.of_ids([[0] * 11] * 2), 0, 11), torch.arange(11).repeat(2, 1)
    got = engine.reduce_rows(given.with_(v=v), Rows(index, Shares(lambda _: along, {"all": None})), frame)
    probs = naive_rows(given, torch.ones(11, 13, dtype=torch.bool).tril(2).expand(2, 4, 11, 13))
    parts = torch.einsum("bhrd,bhkd->bhrk", along, v.float().repeat_interleave(2, 1))
    torch.testing.assert_close(got["all"], (probs * parts).sum(-1), atol=1e-5, rtol=1e-5)


def test_first_rows_are_what_the_reducer_gives_alone(keys_in_block):  # noqa: F811
    scores = torch.randn(2, 3, 5, 12, generator=torch.Generator().manual_seed(0))
    spans = [[(0, 4)], [(3, 9)]]
    inner = Many(top=TopKeys(), topk=TopK(3), mass=Mass(spans), rows=Whole())
    cuts = list(range(keys_in_block, 12, keys_in_block))
    got, alone = streamed(FirstRows(2, inner), scores, cuts), streamed(inner, scores[:, :, :2], cuts)
    assert torch.equal(got["top"], alone["top"]) and torch.equal(got["topk"].columns, alone["topk"].columns)
    torch.testing.assert_close(got["mass"], alone["mass"])
    torch.testing.assert_close(got["rows"], alone["rows"])


def test_requests_of_another_shape_are_refused():
    s, batch, columns = subject("llama"), Batch.of_ids([[1, 2, 3]]), torch.tensor([[1, 2]])
    for reduce, why in (
        (At(torch.tensor([[1]])), r"columns for \(1, 1\) rows, and \(1, 2\) are read"),
        (At(torch.tensor([[1, 3]])), "column 3: there are 3 keys"),
        (Shares(directions(s, 1, 1), {"all": None}), r"\(1, 4, 1\) batch, heads and rows in layer 0"),
        (Shares(directions(s, 1, 2), {"a": [[(1, 4)]]}), "Shares on columns 1 to 3: there are 3 keys"),
    ):
        with pytest.raises(UsageError, match=why):
            s.run(batch, rows=Rows(columns, reduce))


def test_a_pattern_does_not_tell_values():
    pattern = torch.full((1, 4, 3, 3), 1 / 3)
    frame, columns = Frame(Batch.of_ids([[0] * 3]), 0, 3), torch.tensor([[2]])
    shares = Shares(lambda _: torch.zeros(1, 4, 1, 8), {"all": None})
    for reduce in (shares, Many(a=TopKeys(), b=shares), FirstRows(1, shares)):
        with pytest.raises(EngineError, match="needs the keys' values, and this engine reads probabilities"):
            engine.reduce_probs(pattern, Rows(columns, reduce), 0, frame)
    at = engine.reduce_probs(pattern, Rows(columns, At(torch.tensor([[1]]))), 0, frame)
    torch.testing.assert_close(at, torch.full((1, 4, 1), 1 / 3))
