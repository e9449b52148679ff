"""Streaming sums equal sums over stored activations, whatever the batch."""

from __future__ import annotations

import pytest
import torch

from interp.errors import UsageError
from interp.models.parts import Part, Pass, parts, watching
from interp.trace.moments import ColumnMoments, Half, ProductMoments
from interp.trace.passes import Prompts, Reader, Sequences, corpus_of, stream
from tests.locate.memorization.small import OTHERS, TEXTS, small_pipeline
from tests.subjects import subject

PART = Part("unet.somewhere", "ff_out", 0)


def _pass(
    items: list[int], conditional: list[bool], valid: torch.Tensor | None = None, index: int = 0
) -> Pass:
    return Pass(100 - index, torch.tensor(items), torch.tensor(conditional), valid, index)


def test_sums_by_item_step_and_half() -> None:
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    x[0, 1] = 0  # a token without a direction
    valid = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1]]).bool()
    moments = ColumnMoments(2)
    moments(PART, x, _pass([1, 1, 0], [True, False, True], valid))
    moments(PART, 2 * x, _pass([1, 1, 0], [True, False, True], valid, index=1))
    moments(PART, x, _pass([1, 0, 0], [False, True, True], index=1))
    assert moments.steps == (0, 1) and moments.timesteps == {0: 100, 1: 99}
    torch.testing.assert_close(moments.sums(PART, 0)[1], x[0, :3].double().square().sum(0))
    torch.testing.assert_close(moments.sums(PART, 0)[0], x[2, 1:].double().square().sum(0))
    torch.testing.assert_close(moments.sums(PART, 0, "unconditional")[1], x[1].double().square().sum(0))
    assert not moments.sums(PART, 0, "unconditional")[0].any()
    both = 4 * x[2, 1:].double().square().sum(0) + x[1:].double().square().sum((0, 1))
    torch.testing.assert_close(moments.sums(PART, 1)[0], both)
    torch.testing.assert_close(moments.totals(PART, 1)[0], (2 * x[2, 1:].sum(0) + x[1:].sum((0, 1))).double())
    unit = torch.nn.functional.normalize(x[0, [0, 2]], dim=-1).double().square().sum(0)
    torch.testing.assert_close(moments.sums(PART, 1, norm="unit")[1], unit)  # size of the tokens is gone
    assert moments.tokens(PART, 0).tolist() == [3, 3] and moments.tokens(PART, 1).tolist() == [11, 3]
    rms = ((moments.sums(PART, 0)[1] / 3 + moments.sums(PART, 1)[1] / 3) / 2).sqrt()
    torch.testing.assert_close(moments.rms(PART, (0, 1))[1], rms)
    with pytest.raises(UsageError, match=r"step 2, conditional: there are steps \[0, 1\]"):
        moments.sums(PART, 2)


def test_rows_of_one_item_are_added_up() -> None:
    x = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(1))
    moments = ColumnMoments(2, torch.tensor([0, 0, 1, 1]))
    moments(PART, x, _pass([3, 0, 1, 2], [True] * 4))
    torch.testing.assert_close(moments.sums(PART, 0)[0], x[1:3].double().square().sum((0, 1)))
    torch.testing.assert_close(moments.sums(PART, 0)[1], x[[0, 3]].double().square().sum((0, 1)))


def test_sums_do_not_depend_on_the_batch_and_nothing_else_is_kept() -> None:
    pipe = small_pipeline()
    chosen = parts(pipe, "ff_out")
    corpus = Prompts(TEXTS + OTHERS, tuple(range(6)), steps=6, stop=3)
    found = []
    for batch in (6, 2):
        moments = ColumnMoments(6)
        stream(pipe, corpus, chosen, moments, batch=batch)
        found.append(moments)
    columns = sum(found[0].sums(p, 0).shape[1] for p in chosen)
    assert found[0].bytes == 3 * 2 * 3 * 6 * columns * 8  # statistics, halves, steps, items, columns, float64
    stored: dict[tuple[Part, int], list[torch.Tensor]] = {}
    with watching(pipe, chosen, lambda p, x, it: stored.setdefault((p, it.index), []).append(x.detach())):
        pipe.denoise(list(corpus.texts), corpus.seeds, steps=6, stop=3, guidance=1.5, both=True)
    for part in chosen:
        for step in range(3):
            x = stored[part, step][0].double()
            sides: tuple[tuple[Half, torch.Tensor], ...] = (("unconditional", x[:6]), ("conditional", x[6:]))
            for half, rows in sides:
                expected = rows.square().sum(1)
                for moments in found:
                    torch.testing.assert_close(
                        moments.sums(part, step, half), expected, rtol=1e-5, atol=1e-6 * float(expected.max())
                    )


def _keeper(kept: list[torch.Tensor]) -> Reader:
    return lambda part, x, pass_: kept.append(x)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_padded_sequences_count_as_alone(family: str) -> None:
    model = subject(family)
    ids = ((5, 6, 7, 8, 9, 10, 11), (1, 2, 3), (20, 21, 22, 23, 24))
    chosen = parts(model, "ff_out")
    together = ColumnMoments(3)
    stream(model, Sequences(ids, (2, 0, 2)), chosen, together)
    for i, (own, first) in enumerate(zip(ids, (2, 0, 2), strict=True)):
        alone = ColumnMoments(1)
        stream(model, Sequences((own,), first), chosen, alone)
        kept: list[torch.Tensor] = []
        stream(model, Sequences((own,), 0), chosen[1:2], _keeper(kept))
        expected = kept[0][0, first:].double().square().sum(0)
        for part in chosen:
            assert together.tokens(part, 0)[i] == len(own) - first
            torch.testing.assert_close(
                together.sums(part, 0)[i],
                alone.sums(part, 0)[0],
                rtol=1e-4,
                atol=1e-5 * float(expected.max()),
            )
        torch.testing.assert_close(alone.sums(chosen[1], 0)[0], expected, rtol=1e-5, atol=1e-6)


def test_products_of_columns_by_group() -> None:
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(2))
    valid = torch.ones(4, 3).bool()
    valid[2, 0] = False
    groups = torch.tensor([0, 1, 1])
    for norm in ("raw", "unit"):
        moments = ProductMoments(groups, steps=(0, 1), norm=norm)
        for index in range(3):  # step 2 does not count
            moments(PART, x + index, _pass([0, 1, 2, 2], [True, True, True, False], valid, index))
        flat = torch.cat([(x + i)[1:3].flatten(0, 1)[valid[1:3].flatten()] for i in range(2)]).double()
        if norm == "unit":
            flat = torch.nn.functional.normalize(flat, dim=-1)
        only = torch.tensor([False, True])
        torch.testing.assert_close(moments.mean(PART, only), flat.T @ flat / 10, rtol=1e-5, atol=1e-6)
    alone = torch.cat([x[3], x[3] + 1]).double()
    raw = ProductMoments(groups, steps=(0, 1))
    for index in range(2):
        raw(PART, x + index, _pass([0, 1, 2, 2], [True, True, True, False], valid, index))
    torch.testing.assert_close(
        raw.mean(PART, None, "unconditional"), alone.T @ alone / 6, rtol=1e-5, atol=1e-6
    )


def test_what_a_corpus_is_made_of() -> None:
    pipe, model = small_pipeline(), subject("llama")
    assert corpus_of(pipe, list(TEXTS), steps=4, stop=2) == Prompts(TEXTS, (0, 0, 0), 4, 2)
    from interp.tasks.memorized import TextItem

    items = [TextItem("a", (1, 2, 3, 4), 2), TextItem("b", (1, 2, 3), 1)]
    assert corpus_of(model, items) == Sequences(((1, 2, 3, 4), (1, 2, 3)), (1, 0))
    with pytest.raises(UsageError, match="small is a pipeline"):
        corpus_of(pipe, items)
    with pytest.raises(UsageError, match="is a language model"):
        corpus_of(model, ["text"])
    with pytest.raises(UsageError, match="is a pipeline, and cannot run Sequences"):
        corpus_of(pipe, Sequences(((1, 2),)))
    with pytest.raises(UsageError, match="2 seeds for 3 prompts"):
        Prompts(TEXTS, (0, 1))
    with pytest.raises(UsageError, match="sequence 1: read from token 2, and it has 2"):
        Sequences(((1, 2, 3), (1, 2)), 2)
