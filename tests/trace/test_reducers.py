"""Streaming reducers of attention rows against the same reductions of eager attention, and their memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from interp.errors import EngineError, UsageError
from interp.models.batch import Batch
from interp.models.engines import rows as engine
from interp.models.engines.attention import AttentionCall
from interp.models.engines.base import Frame, KeyBlock, RowBlock, Rows, RowShape
from interp.models.subject import CausalLM
from interp.tasks.base import Example
from interp.trace.reducers import At, LogSumExp, Many, Mass, Shares, TopK, TopKeys, Whole
from tests.subjects import ALL, examples, subject
from tests.tiny import tiny

WHOLE = 10**6
BLOCKS = (1, 7, WHOLE)
SPANS = [(1, 3), (2, 6)]  # they overlap


@pytest.fixture(params=BLOCKS, ids=lambda n: f"blocks of {n}")
def keys_in_block(request, monkeypatch):
    """Keys in a block, whatever the model's size."""
    keys_per_block(monkeypatch, request.param)
    return request.param


def keys_per_block(monkeypatch, n: int) -> None:
    monkeypatch.setattr(engine, "block_width", lambda *sizes: n)


def every(spans) -> Many:
    return Many(
        top=TopKeys(), topk=TopK(4), mass=Mass(spans), lse=LogSumExp(), rows=Whole(), one=Many(top=TopKeys())
    )


def eager_rows(s: CausalLM, batch: Batch) -> list[torch.Tensor]:
    before = s.hf.config._attn_implementation
    s.hf.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = s.hf(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                position_ids=batch.positions,
                output_attentions=True,
            )
    finally:
        s.hf.set_attn_implementation(before)
    return [a.float() for a in out.attentions]


def same_as_whole_rows(got, probs: torch.Tensor, spans, tolerance: float) -> None:
    """What `every` kept, against reductions of whole softmax rows; rows of zeros are absent."""
    here = probs.sum(-1) > 0
    expected = probs.argmax(-1).masked_fill(~here, -1)
    assert torch.equal(got["top"], expected)
    assert torch.equal(got["one"]["top"], expected)
    torch.testing.assert_close(got["rows"], probs, atol=tolerance, rtol=0)
    n = probs.shape[-1]
    wanted = torch.nn.functional.pad(probs, (0, max(0, 4 - n))).topk(4).values
    tops = got["topk"]
    torch.testing.assert_close(tops.values, wanted, atol=tolerance, rtol=0)
    there = tops.columns >= 0
    assert torch.equal(there.any(-1), here)
    at_columns = probs.gather(-1, tops.columns.clamp(min=0)).masked_fill(~there, 0.0)
    torch.testing.assert_close(tops.values, at_columns, atol=tolerance, rtol=0)
    for columns in tops.columns.flatten(0, -2).tolist():
        real = [c for c in columns if c >= 0]
        assert len(set(real)) == len(real)
    mass = torch.stack(
        [
            row[..., sorted({c for a, b in own for c in range(a, b)})].sum(-1)
            for row, own in zip(probs, spans, strict=True)
        ]
    )
    torch.testing.assert_close(got["mass"], mass, atol=tolerance, rtol=0)
    assert torch.equal(got["lse"] == float("-inf"), ~here)


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "solo"])
@pytest.mark.parametrize("family", ALL)
def test_reducers_equal_reductions_of_eager_rows(family, padded, keys_in_block):
    s = subject(family)
    lengths = (24, 17, 40) if padded else (40,)
    batch = Batch.of_ids([e.ids for e in examples(lengths)])
    pad = batch.pad.tolist()
    # The first token of each row, one in its middle, its last; and one that is not asked for.
    columns = torch.tensor([[p, p + 9, -1, batch.width - 1] for p in pad])
    spans = [[(p + a, p + b) for a, b in SPANS] for p in pad]
    found = s.run(batch, rows=Rows(columns, every(spans)), keep=1).rows
    eager = eager_rows(s, batch)
    for layer in range(s.n_layers):
        index = columns.clamp(min=0)[:, None, :, None].expand(-1, s.n_heads, -1, batch.width)
        probs = eager[layer].gather(2, index)
        probs[:, :, 2] = 0.0
        same_as_whole_rows(found[layer], probs, spans, 2e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_half_precision_is_reduced_in_fp32(family, keys_in_block):
    s = CausalLM(tiny(family).to(torch.bfloat16), None, name=family)
    batch = Batch.of_ids([e.ids for e in examples()])
    pad = batch.pad.tolist()
    columns = torch.tensor([[batch.width - 5, -1, batch.width - 1]] * 3)
    spans = [[(p + a, p + b) for a, b in SPANS] for p in pad]
    whole = s.run(batch, rows=Rows(columns), keep=1).rows
    found = s.run(batch, rows=Rows(columns, every(spans)), keep=1).rows
    for layer, probs in whole.items():
        assert probs.dtype == found[layer]["mass"].dtype == torch.float32
        assert probs[:, :, [0, 2]].sum(-1) == pytest.approx(1.0, abs=1e-6)
        same_as_whole_rows(found[layer], probs, spans, 1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_rows_behind_a_cache_are_those_of_the_whole_pass(family, keys_in_block):
    from transformers import DynamicCache

    s, (e,) = subject(family), examples((40,))
    batch, spans = Batch.of_ids([e.ids]), [SPANS]
    columns = torch.tensor([[30, 33, 39]])
    whole = s.run(batch, rows=Rows(columns), keep=1).rows
    cache = DynamicCache()
    s.run(Batch.of_ids([e.ids[:29]]), cache=cache, keep=1)
    found = s.run(batch, rows=Rows(columns, every(spans)), cache=cache, past=29, keep=1).rows
    for layer in whole:
        same_as_whole_rows(found[layer], whole[layer], spans, 2e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_rows_of_chosen_heads_only(family, keys_in_block):
    s, batch = subject(family), Batch.of_ids([e.ids for e in examples()])
    columns = torch.tensor([[batch.width - 2, batch.width - 1]] * 3)
    whole = s.run(batch, rows=Rows(columns), keep=1).rows
    found = s.run(batch, rows=Rows(columns, heads={0: [3, 1], 2: [2]}), keep=1).rows
    assert set(found) == {0, 2}
    torch.testing.assert_close(found[0], whole[0][:, [3, 1]], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[2], whole[2][:, [2]], atol=1e-6, rtol=0)
    both = s.run(batch, rows=Rows(columns, layers=frozenset({0, 1}), heads={0: [3]}), keep=1).rows
    assert both[0].shape[1] == 1 and both[1].shape[1] == s.n_heads


def test_rows_of_heads_that_are_not_there_are_refused():
    s, batch, columns = subject("llama"), Batch.of_ids([[1, 2, 3]]), torch.tensor([[2]])
    with pytest.raises(UsageError, match=r"heads \[4\] in layer 1, which has heads 0 to 3"):
        s.run(batch, rows=Rows(columns, heads={1: [0, 4]}))
    with pytest.raises(UsageError, match=r"layers \[2\], but `layers` is \[0\]"):
        Rows(columns, layers=frozenset({0}), heads={2: [1]})


def test_a_function_still_gets_whole_rows_block_by_block_or_not(monkeypatch):
    s, batch = subject("llama"), Batch.of_ids([e.ids for e in examples()])
    columns = torch.tensor([[batch.width - 2, -1]] * 3)
    seen: list[RowBlock] = []
    want = s.run(batch, rows=Rows(columns, lambda block: block.probs.sum(-1)), keep=1).rows
    keys_per_block(monkeypatch, 7)
    got = s.run(
        batch, rows=Rows(columns, lambda block: seen.append(block) or block.probs.sum(-1)), keep=1
    ).rows
    assert [block.layer for block in seen] == [0, 1, 2]
    assert all(block.probs.shape == (3, 4, 2, 40) for block in seen)
    for layer in want:
        torch.testing.assert_close(got[layer], want[layer])
        torch.testing.assert_close(got[layer][..., 0], torch.ones(3, 4))
        assert not got[layer][..., 1].any()


def test_gradients_reach_queries_and_keys_through_rows():
    s = subject("gemma2")  # its softcap must not be undone in place
    batch, columns = Batch.of_ids([list(range(20))]), torch.tensor([[19]])
    weight = s.module(0, "self_attn.q_proj").weight
    trace = s.run(batch, rows=Rows(columns, Many(rows=Whole(), mass=Mass([[(10, 14)]]))), grad=True)
    by_rows = torch.autograd.grad(trace.rows[0]["rows"][..., 10:14].sum(), weight, retain_graph=True)[0]
    by_mass = torch.autograd.grad(trace.rows[0]["mass"].sum(), weight)[0]
    assert by_rows.abs().max() > 1e-4
    torch.testing.assert_close(by_mass, by_rows, atol=1e-6, rtol=1e-4)


# -- kernels that hand over other masks than the CPU's ---------------------------------------------------------------


def call(seed: int = 0, **changes) -> AttentionCall:
    """One layer's queries and keys: 2 rows, 4 heads over 2 KV heads, 11 queries of 13 keys."""
    g = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(2, h, n, 8, generator=g) for h, n in ((4, 11), (2, 13)))
    return AttentionCall(0, q, k, k, None, 0.5, **changes)


def naive_rows(c: AttentionCall, visible: torch.Tensor) -> torch.Tensor:
    scores = torch.einsum("bhtd,bhsd->bhts", c.q, c.k.repeat_interleave(2, 1)) * c.scaling
    return torch.softmax(scores.masked_fill(~visible, float("-inf")), -1).nan_to_num(0.0)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kind", ["none", "padding", "boolean", "additive", "by head"])
def test_masks_of_all_kinds_of_kernels(kind, window, keys_in_block):
    at, keys = torch.arange(11)[:, None] + 2, torch.arange(13)[None]
    visible = (keys <= at) & (keys > at - (window or 99))
    visible = visible.expand(2, 4, 11, 13).clone()
    if kind == "padding":
        visible[1, :, :, :4] = False
    if kind == "by head":
        visible[:, 2, :, 5] = False
    # SDPA takes a 4-D mask with the window in it, flash kernels the padding and the window.
    mask = {
        "none": None,
        "padding": visible[:, 0, 10] | (keys < 9) & (keys >= torch.tensor([[0], [4]])),
        "boolean": visible[:, :1],
        "additive": torch.where(visible[:1, :1], 0.0, torch.finfo(torch.float32).min),
        "by head": visible,
    }[kind]
    given = call().with_(mask=mask, window=window if kind in ("none", "padding") else None)
    index = torch.tensor([[0, 10, 4], [3, 4, -1]])
    frame = Frame(Batch.of_ids([[0] * 11] * 2), 0, 11)
    rows = Rows(index, every([[(0, 5)], [(3, 4)]]))
    probs = naive_rows(given, visible).gather(2, index.clamp(min=0)[:, None, :, None].expand(-1, 4, -1, 13))
    probs[1, :, 2] = 0.0
    same_as_whole_rows(
        engine.reduce_rows(given, rows, frame), probs, rows.reduce.reducers["mass"].spans, 1e-6
    )
    some = engine.reduce_rows(given, Rows(index, heads={0: [2, 0]}), frame)
    torch.testing.assert_close(some, probs[:, [2, 0]], atol=1e-6, rtol=0)


def test_keys_after_the_last_query_are_not_read_and_not_attended(keys_in_block):
    given = call()
    nan = given.k.clone()
    nan[:, :, 6:] = float("nan")  # the last of the rows, 3, sees the keys up to 5
    frame, index, spans = (
        Frame(Batch.of_ids([[0] * 11] * 2), 0, 11),
        torch.tensor([[0], [3]]),
        [[(0, 5)], [(3, 13)]],
    )
    probs = naive_rows(given, torch.ones(11, 13, dtype=torch.bool).tril(2).expand(2, 4, 11, 13))
    probs = probs.gather(2, index[:, None, :, None].expand(-1, 4, -1, 13))
    got = engine.reduce_rows(given.with_(k=nan), Rows(index, every(spans)), frame)
    same_as_whole_rows(got, probs, spans, 1e-6)


def test_a_pass_looks_at_the_request_once():
    s, batch = subject("llama"), Batch.of_ids([[1, 2, 3]])
    reads = []

    class Counted(torch.Tensor):
        def to(self, device):
            reads.append(device)
            return self.as_subclass(torch.Tensor)

    s.run(batch, rows=Rows(torch.tensor([[2]]).as_subclass(Counted), TopKeys()))
    assert len(reads) == 1  # and not once a layer: on a GPU each look waits for it


def test_a_row_that_sees_no_key_is_empty(keys_in_block):
    given = call().with_(mask=torch.zeros(2, 1, 11, 13, dtype=torch.bool))
    frame = Frame(Batch.of_ids([[0] * 11] * 2), 0, 11)
    got = engine.reduce_rows(given, Rows(torch.tensor([[3], [4]]), every([[(0, 5)], [(3, 4)]])), frame)
    assert (got["top"] == -1).all() and (got["topk"].columns == -1).all()
    assert not got["topk"].values.any() and not got["mass"].any() and not got["rows"].any()
    assert (got["lse"] == float("-inf")).all()


# -- reducers on scores of any kind ----------------------------------------------------------------------------------


def streamed(reducer, scores: torch.Tensor, cuts: list[int]):
    b, h, r, k = scores.shape
    reduction = reducer.begin(RowShape(0, (b, h, r), k, scores.device, Frame(Batch.of_ids([[0]] * b))))
    for start, end in zip([0, *cuts], [*cuts, k], strict=True):
        reduction.update(KeyBlock(scores[..., start:end], start))
    return reduction.finish()


@dataclass
class Case:
    scores: torch.Tensor
    cuts: list[int]
    spans: list[list[tuple[int, int]]]


@st.composite
def cases(draw) -> Case:
    """Scores with ties, large and small values and invisible keys, cut into blocks anywhere."""
    b, h, r, k = (draw(st.integers(1, n)) for n in (2, 2, 2, 12))
    value = st.one_of(
        st.sampled_from([0.0, 1.0, -1.0, float("-inf")]), st.floats(-200.0, 200.0, width=32, allow_nan=False)
    )
    flat = draw(st.lists(value, min_size=b * h * r * k, max_size=b * h * r * k))
    cuts = draw(st.lists(st.integers(1, k - 1), unique=True).map(sorted)) if k > 1 else []
    end = st.integers(0, k)
    ranges = st.tuples(end, end).map(lambda x: (min(x), max(x)))
    spans = draw(st.lists(st.lists(ranges, max_size=3), min_size=b, max_size=b))
    return Case(torch.tensor(flat).view(b, h, r, k), cuts, spans)


@given(cases())
def test_blocks_do_not_matter_whatever_the_scores(case):
    scores = case.scores.double()
    probs = torch.softmax(scores, -1).nan_to_num(0.0).float()
    got = streamed(every(case.spans), case.scores, case.cuts)
    here = case.scores.amax(-1) > float("-inf")
    # Of equal scores the lowest column, as argmax of the whole row gives it.
    assert torch.equal(got["top"], case.scores.argmax(-1).masked_fill(~here, -1))
    torch.testing.assert_close(got["lse"].double(), scores.logsumexp(-1), atol=1e-5, rtol=1e-6)
    # The softmax rounds more scores equal, so its own argmax says nothing here.
    top = {"top": probs.argmax(-1).masked_fill(~here, -1)}
    same_as_whole_rows({**got, **top, "one": top}, probs, case.spans, 1e-6)


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=30), st.integers(1, 30))
def test_ties_go_to_the_lowest_column(values, width):
    scores = torch.tensor(values).view(1, 1, 1, -1)
    cuts = list(range(width, len(values), width))
    assert streamed(TopKeys(), scores, cuts).item() == values.index(max(values))


def test_log_sum_exp_is_that_of_the_scores():
    given, visible = call(), torch.ones(11, 13, dtype=torch.bool).tril(2)
    frame = Frame(Batch.of_ids([[0] * 11] * 2), 0, 11)
    got = engine.reduce_rows(given, Rows(torch.arange(11).repeat(2, 1), LogSumExp()), frame)
    for b, h, t in np.ndindex(2, 4, 11):
        scores = [
            0.5 * float(given.q[b, h, t] @ given.k[b, h // 2, s]) for s in range(13) if bool(visible[t, s])
        ]
        assert float(got[b, h, t]) == pytest.approx(math.log(sum(map(math.exp, scores))), abs=1e-5)


def test_bad_reducers_say_what_to_write():
    s, batch, columns = subject("llama"), Batch.of_ids([[1, 2, 3]]), torch.tensor([[2]])
    with pytest.raises(UsageError, match="at least 1"):
        TopK(0)
    with pytest.raises(UsageError, match="spans for 2 rows, and the batch has 1"):
        s.run(batch, rows=Rows(columns, Mass([[(0, 1)], [(0, 1)]])))
    with pytest.raises(UsageError, match="columns 1 to 3: there are 3 keys"):
        s.run(batch, rows=Rows(columns, Mass([[(1, 4)]])))


def test_mass_of_a_role_is_the_mass_on_its_tokens():
    s, data = subject("llama"), examples()
    batch = s.batch(data)
    columns = torch.stack([torch.tensor(list(batch.answer_columns(i))) for i in range(3)])
    spans = [
        [(p + x.start, p + x.end) for x in e.spans if x.role == "value"]
        for p, e in zip(batch.pad.tolist(), data, strict=True)
    ]
    by_role = s.run(batch, rows=Rows(columns, Mass.of(batch, "value"))).rows
    by_span = s.run(batch, rows=Rows(columns, Mass(spans))).rows
    assert all(torch.equal(by_role[i], by_span[i]) for i in by_role)
    assert by_role[0].max() > 0.05


# -- other engines, and memory ---------------------------------------------------------------------------------------


def test_a_whole_pattern_is_reduced_the_same():
    given, visible = call(), torch.ones(11, 13, dtype=torch.bool).tril(2)
    frame = Frame(Batch.of_ids([[0] * 11] * 2), 0, 11)
    index, spans = torch.tensor([[0, 10, 4], [3, 4, -1]]), [[(0, 5)], [(3, 4)]]
    pattern = naive_rows(given, visible.expand(2, 4, 11, 13))
    kept = Many(top=TopKeys(), topk=TopK(4), mass=Mass(spans), rows=Whole())
    by_pattern = engine.reduce_probs(pattern, Rows(index, kept), 0, frame)
    by_scores = engine.reduce_rows(given, Rows(index, kept), frame)
    assert torch.equal(by_pattern["top"], by_scores["top"])
    for name in ("mass", "rows"):
        torch.testing.assert_close(by_pattern[name], by_scores[name], atol=1e-6, rtol=0)
    torch.testing.assert_close(by_pattern["topk"].values, by_scores["topk"].values, atol=1e-6, rtol=0)
    some = engine.reduce_probs(pattern, Rows(index, TopKeys(), heads={0: [3]}), 0, frame)
    assert torch.equal(some, by_scores["top"][:, [3]])
    with pytest.raises(EngineError, match=r"LogSumExp\(\) needs attention scores"):
        engine.reduce_probs(pattern, Rows(index, LogSumExp()), 0, frame)
    with pytest.raises(EngineError, match="needs attention scores"):
        engine.reduce_probs(pattern, Rows(index, Many(a=TopKeys(), b=LogSumExp())), 0, frame)


class Largest(TorchDispatchMode):
    """The largest storage that any operation makes, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {
            x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in known:
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 16])
def test_memory_does_not_grow_with_keys(rows, dtype, monkeypatch):
    budget = 2048
    monkeypatch.setitem(engine.BLOCK, "cpu", budget)
    reducers = {
        "top": TopKeys(),
        "topk": TopK(4),
        "mass": Mass([[(1, 9)]]),
        "lse": LogSumExp(),
        "many": Many(a=TopKeys(), b=LogSumExp()),
        "at": At(torch.full((1, rows), 3)),
        "shares": Shares(lambda layer: torch.ones(1, 4, rows, 8), {"all": None, "some": [[(1, 9)]]}),
    }
    for name, reducer in reducers.items():
        most = {}
        for keys in (512, 8192):
            g = torch.Generator().manual_seed(0)
            q, k = (torch.randn(1, h, keys, 8, generator=g).to(dtype) for h in (4, 2))
            given = AttentionCall(0, q, k, k, None, 0.5)
            frame = Frame(Batch.of_ids([[0] * keys]), 0, keys)
            asked = Rows(torch.arange(keys - rows, keys)[None], reducer)
            with Largest() as largest:
                engine.reduce_rows(given, asked, frame)
            most[keys] = largest.bytes
        assert most[8192] <= max(4 * budget, 4 * 2 * 4 * rows * 8), (
            name
        )  # a block, or what topk puts together
        assert most[8192] == most[512], name
    with Largest() as largest:
        engine.reduce_rows(given, Rows(asked.columns), frame)
    assert largest.bytes == 4 * 4 * rows * 8192  # the rows themselves, and the test sees them


def test_examples_decode_the_same_for_any_block(monkeypatch):
    from interp.locate.greedy import decode

    s, data = subject("llama"), examples()
    want = decode(s, data, forced=True)
    keys_per_block(monkeypatch, 3)
    for a, b in zip(decode(s, data, forced=True), want, strict=True):
        assert torch.equal(a.argmax, b.argmax) and a.output == b.output
    assert isinstance(data[0], Example)
