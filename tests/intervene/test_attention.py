"""Attention set by hand, against a plain loop over eager attention squares; and what is refused."""

from __future__ import annotations

import pytest
import torch

from interp.errors import EngineError, UsageError
from interp.intervene.ablate import ablate
from interp.intervene.attention import set_attention
from interp.intervene.base import lower_conditions
from interp.models.batch import Batch
from interp.models.engines.attention import AttentionCall
from interp.models.engines.base import Frame, Rows
from interp.models.sites import Site, components
from tests.intervene.test_modes import HEADS, naive, rows_of
from tests.subjects import ALL, examples, subject
from tests.trace.test_each import naive as one_run_each

KEYS = {"value": {3: 1.0, 4: 1.0, 5: 1.0}, (2, 16, 20): {2: 1.0, 16: 1.0, 20: 1.0}, "all": None}


def onto(weights, how, factor):
    """A pattern of eager attention with rows set as `set_attention` says."""

    def of(pattern, rows):
        seen = (pattern > 0).float()
        weight = torch.zeros(pattern.shape[-1]) + (not weights)
        for k, w in (weights or {}).items():
            weight[k] = w
        aim = seen * (weight > 0)
        new = {
            "set": seen * weight,
            "keep": pattern * aim,
            "scale": pattern * torch.where(aim > 0, factor, 1.0),
        }[how]
        new = new / new.sum(-1, keepdim=True).clamp(min=1e-30)
        return torch.where(aim.any(-1, keepdim=True), new, pattern)

    return of


def cases():
    for scope in ("all", (2, 16)):
        for to, weights in KEYS.items():
            yield set_attention(HEADS, to, scope), onto(weights, "set", 1), scope
        yield set_attention(HEADS, "value", scope, "keep"), onto(KEYS["value"], "keep", 1), scope
    given = {"value": 3.0, 0: 1.0, 10: 0.5}
    tokens = {3: 1.0, 4: 1.0, 5: 1.0, 0: 1.0, 10: 0.5}
    yield set_attention(HEADS, given, "answer"), onto(tokens, "set", 1), "answer"
    for factor in (5.0, 0.2):
        for scope in ("answer", "all"):
            item = set_attention(HEADS, ("value", 12), scope, "scale", factor)
            yield item, onto(dict.fromkeys((3, 4, 5, 12), 1.0), "scale", factor), scope


@pytest.mark.parametrize("family", ALL)
def test_attention_that_is_set_equals_edits_of_eager_squares(family):
    """Alone, padded and as branches of one intact run; windows of 16 hide the values from late rows."""
    s, data, heads = subject(family), examples((40, 21)), components(HEADS)
    batch = s.batch(data)
    every = list(cases())
    branches = dict(s.each([item for item, _, _ in every], batch, keep=3))
    intact = s.run(batch, keep=3).logits
    for i, (item, pattern_of, scope) in enumerate(every):
        with s.apply(item):
            padded = s.run(batch, keep=3).logits
            alone = s.run([data[0]], keep=3).logits[0]
        wanted = [naive(family, e, heads, rows_of(scope, e), pattern_of) for e in data]
        found = [("alone", 0, alone), *(("padded", r, x) for r, x in enumerate(padded))]
        for how, row, logits in (*found, *(("each", r, x) for r, x in enumerate(branches[i]))):
            assert (logits - wanted[row]).abs().max() < 1e-4, (how, item, row)
        if family not in ("mistral", "gemma2", "gemma3"):
            assert (wanted[0] - intact[0]).abs().max() > 1e-3, item
    torch.testing.assert_close(s.run(batch, keep=3).logits, intact, atol=0, rtol=0)


def attention(s, batch, layer, *items):
    """Attention of the rows that predict the first answer token, b h s."""
    with s.apply(*items):
        return s.run(batch, rows=Rows(batch.answer_start[:, None])).rows[layer][:, :, 0]


def test_rows_that_are_set_have_the_weights_asked_for_and_other_heads_their_own():
    s, data = subject("llama"), examples()
    batch = s.batch(data)
    before = attention(s, batch, 1)
    after = attention(s, batch, 1, set_attention("L1H2", {"value": 3, "key": 1}))
    for row in range(len(data)):
        value, key = (batch.scope_columns(r, 0, batch.width)[row] for r in ("value", "key"))
        torch.testing.assert_close(after[row, 2, value], torch.full((3,), 0.25), atol=1e-6, rtol=0)
        torch.testing.assert_close(after[row, 2, key], torch.full((2,), 0.125), atol=1e-6, rtol=0)
    torch.testing.assert_close(after[:, [0, 1, 3]], before[:, [0, 1, 3]], atol=1e-6, rtol=0)
    scaled = attention(s, batch, 1, set_attention("L1H2", "value", how="scale", factor=4))
    at = batch.scope_columns("value", 0, batch.width)[0]
    own, own_after = before[0, 2], scaled[0, 2]
    odds = own_after[at].sum() / own_after[~at].sum() / (own[at].sum() / own[~at].sum())
    assert odds == pytest.approx(4, rel=1e-4)


def test_scaling_twice_scales_by_the_product_and_heads_named_once_once():
    """Side by side with other conditions too; a pattern set twice is what it is when set once."""
    s, batch = subject("llama"), subject("llama").batch(examples((40, 21)))

    def by(heads, factor):
        return set_attention(heads, "value", how="scale", factor=factor)

    wanted = by("L0H1", 4.0) + by("L0H3 L2H0", 2.0)
    keep = set_attention("L0H1 L1H2", "value", how="keep")
    pairs = [
        (by("L0H1 L0H3", 2.0) + by("L0H1 L2H0", 2.0), wanted),
        (keep + keep, keep),
        (by("L0H3", 2.0), by("L0H3", 2.0)),
    ]
    every = dict(s.each([item for pair in pairs for item in pair], batch, keep=3))
    for i, (found, equal) in enumerate(pairs):
        with s.apply(found):
            alone = s.run(batch, keep=3).logits
        with s.apply(equal):
            torch.testing.assert_close(s.run(batch, keep=3).logits, alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(every[2 * i], every[2 * i + 1], atol=1e-5, rtol=0)
        torch.testing.assert_close(every[2 * i], alone, atol=1e-4, rtol=0)


def test_a_row_that_sees_none_of_the_tokens_keeps_its_attention():
    s, data = subject("mistral"), examples((40, 18))
    batch = s.batch(data)
    before = attention(s, batch, 1)
    after = attention(s, batch, 1, set_attention("L1H2", "value"))
    # Row 39 sees the last 16 keys only, row 17 of the shorter prompt sees the values from 3 on.
    torch.testing.assert_close(after[0], before[0], atol=0, rtol=0)
    at = batch.scope_columns("value", 0, batch.width)[1]
    torch.testing.assert_close(after[1, 2, at], torch.full((3,), 1 / 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen3"])
def test_rows_of_a_batch_have_their_own_edit_and_parts_run_in_order(family):
    s, data = subject(family), examples()
    every = [
        set_attention("L1H2 L0H0", "value"),
        None,
        set_attention("L1H0", "key", "all") + set_attention("L2H3", {"key": 1}) + ablate("L1H1"),
    ]
    batch = s.batch(data)
    mixed = s.run(batch, lower_conditions(s, batch, every, torch.tensor([2, 0, 1]))).logits
    for row, condition in enumerate([every[2], every[0], None]):
        with s.apply(*([condition] if condition else [])):
            torch.testing.assert_close(mixed[row], s.run(batch).logits[row], atol=1e-5, rtol=0)
    alike = [set_attention("L1H2", *args) for args in (("value",), ("key",), ("value", "all"))]
    mixed = s.run(batch, lower_conditions(s, batch, alike, torch.tensor([2, 0, 1]))).logits
    for row, condition in enumerate([alike[2], alike[0], alike[1]]):
        with s.apply(condition):
            torch.testing.assert_close(mixed[row], s.run(batch).logits[row], atol=1e-5, rtol=0)
    both = [set_attention("L1H2", "key", "all"), set_attention("L1H2", (1, 4), "all", "keep")]
    last = attention(s, batch, 1, both[0] + both[1])[:, 2]
    if family != "gemma2":
        # What is left of the keys at 1 and 2 is kept on 1 alone.
        assert all(last[row, int(batch.pad[row]) + 1] > 0.999 for row in range(len(data)))


def test_a_cut_and_an_edit_of_attention_compose_as_branches():
    s, data = subject("llama"), examples()
    batch = s.batch(data)
    items = [
        set_attention("L1H2", "value") + ablate("L0H1", scope="answer"),
        set_attention("L2H0 L0H0", (0,), "all", "scale", 3),
    ]
    wanted = one_run_each(s, items, batch)
    for i, logits in s.each(items, batch):
        torch.testing.assert_close(logits, wanted[i], atol=1e-4, rtol=0)


def test_generation_under_an_edit_equals_whole_passes():
    for family in ("llama", "gemma3"):
        s, data = subject(family), examples((24, 21))
        # The sliding layers of gemma3 keep their last keys only; token 20 of the longer prompt is among them.
        with s.apply(set_attention("L0H1 L0H3 L1H2", (10, 20))):
            out = s.generate(data, 3)
            for e, said in zip(data, out, strict=True):
                ids = list(e.ids)
                for _ in range(3):
                    whole = Batch.of_ids([ids])
                    start = torch.tensor([len(e.ids) - 1])
                    batch = Batch(whole.ids, whole.mask, whole.positions, whole.pad, start, (e,))
                    ids.append(int(s.run(batch, keep=1).logits[0, -1].argmax()))
                assert said == ids[len(e.ids) :]


def test_a_cache_that_dropped_the_first_keys_of_a_window_is_counted_from_its_end():
    s, data = subject("gemma3"), examples((26, 20))
    batch = s.batch(data)
    (tap,) = set_attention("L0H1", (12,), "all").lower(s, batch)[Site("attention", 0)]
    q, k = torch.ones(2, s.n_heads, 1, s.d_head), torch.ones(2, s.n_kv_heads, 16, s.d_head)
    mask = tap.edit(AttentionCall(0, q, k, k, None, 1.0, window=16), Frame(batch, past=27, width=1)).mask
    for row in range(2):
        # Columns 12 to 27 are held; the shorter row begins with padding.
        assert (mask[row, 1, 0] == 0).nonzero()[:, 0].tolist() == [int(batch.pad[row])]
    assert not mask[:, 0].any()


def test_an_edit_of_the_answer_rows_runs_them_only():
    from interp.trace.each import Spent

    s, e = subject("llama"), examples((40,))[0]
    for item, tokens in (
        (set_attention("L1H2", "value"), 1),
        (set_attention("L1H2", (30,), "all"), 10),
        (set_attention("L1H2", (30,), "value"), 0),
    ):
        spent = Spent()
        list(s.each([item], [e], spent=spent))
        assert spent.prompt_tokens == 40 + tokens, item


def test_everything_that_changes_a_number_is_in_the_key():
    items = [
        set_attention("L1H2", "value"),
        set_attention("L1H3", "value"),
        set_attention("L1H2", "key"),
        set_attention("L1H2", "value", "all"),
        set_attention("L1H2", "value", how="keep"),
        set_attention("L1H2", "value", how="scale", factor=2),
        set_attention("L1H2", "value", how="scale", factor=3),
        set_attention("L1H2", {"value": 1, "key": 1}),
        set_attention("L1H2", {"value": 1, "key": 2}),
        # Apart in the seventh digit.
        set_attention("L1H2", "value", how="scale", factor=2.0000001),
        set_attention("L1H2", {"value": 1, "key": 2.0000001}),
        set_attention("L1H2", {"value": 1, "key": 1 / 3}),
        set_attention("L1H2", {"value": 1, "key": 0.333333}),
    ]
    assert len({i.key() for i in items}) == len(items)
    assert items[0].key() == set_attention("L1H2", "value").key()
    assert items[0].with_components(components("L1H3")).key() == items[1].key()
    assert len({repr(i) for i in items}) == len(items)
    assert repr(items[5]) == "set_attention(L1H2, to=value, at=answer, how=scale, factor=2)"
    assert "factor=2.0000001)" in repr(items[9]) and "value:1+key:2.0000001" in repr(items[10])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: set_attention("M1", "value"), "M1 is no head"),
        (lambda: set_attention("L1H2", ()), "to is empty"),
        (lambda: set_attention("L1H2", "value", how="focus"), "write uniform, keep or scale"),
        (lambda: set_attention("L1H2", "value", how="scale"), "needs a factor"),
        (lambda: set_attention("L1H2", "value", how="scale", factor=0), "a number above 0"),
        (lambda: set_attention("L1H2", "value", factor=2), "takes no factor"),
        (lambda: set_attention("L1H2", {"value": -1}), "a weight is -1"),
        (lambda: set_attention("L1H2", {"value": 1}, how="keep"), "weights say all"),
        (lambda: run(set_attention("L1H2", "subject")), "no span of that role"),
        (lambda: run(set_attention("L1H2", (99,))), "positions 0 to"),
        (lambda: run(set_attention("L9H2", "value")), "layer"),
    ],
)
def test_bad_edits_say_what_to_write(make, told):
    with pytest.raises(UsageError, match=told):
        make()


def run(item):
    s = subject("llama")
    with s.apply(item):
        s.run(examples())


def test_a_kernel_without_a_mask_of_edges_is_refused(monkeypatch):
    s = subject("llama")
    monkeypatch.setattr(s.hf.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(EngineError, match="set_attention edits the attention mask"):
        set_attention("L1H2", "value").lower(s, s.batch(examples()))


def test_other_engines_do_the_same_or_say_that_they_cannot():
    s, data = subject("llama"), examples((20, 30))
    item = set_attention("L1H2 L0H1", "value")
    with s.apply(item):
        wanted = s.run(data).logits
    other = s.with_engine("nnsight")
    with other.apply(item):
        torch.testing.assert_close(other.run(data).logits, wanted, atol=1e-4, rtol=0)
    lens = s.with_engine("lens")
    with lens.apply(item), pytest.raises(EngineError, match=r"engine 'lens' has no attention\["):
        lens.run(data)
