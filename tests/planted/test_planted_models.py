"""The planted models are what they say: held against plain transformers, eager attention and hooks, not the toolkit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from interp.errors import UsageError
from interp.tasks.base import Example, check_example

from .naive import MUTANTS, accuracy, copy_score, forward, judge, mean_score
from .placement import DECOYS, Place
from .retrieval import CONTEXT, NoRoom, Planted, plant, planted_task

KINDS = ("gpt2", "llama")
SEEDS = range(20)
N = 6
LENGTH = 60


@dataclass(frozen=True)
class Case:
    """A planted model with questions, and what it does with them."""

    planted: Planted
    examples: Sequence[Example]
    attentions: Sequence[Tensor]
    greedy: Sequence[tuple[int, ...]]


def run(planted: Planted, examples: Sequence[Example]) -> Case:
    """One eager pass for each example."""
    passes = [forward(planted, e) for e in examples]
    return Case(planted, examples, [a for a, _ in passes], [g for _, g in passes])


@pytest.fixture(scope="module", params=[(k, s) for k in KINDS for s in SEEDS], ids=lambda p: f"{p[0]}-{p[1]}")
def case(request: pytest.FixtureRequest) -> Case:
    kind, seed = request.param
    planted = plant(kind, seed=seed)
    return run(planted, planted_task(planted, N, 0, LENGTH).examples(None))


def test_greedy_decoding_copies(case: Case) -> None:
    assert list(case.greedy) == [e.answer_ids for e in case.examples]


def test_planted_heads_attend_to_the_source(case: Case) -> None:
    for example, attention in zip(case.examples, case.attentions, strict=True):
        (value,) = example.spans_of("value", 0)
        source = list(range(value.start, value.end))
        for layer, head in case.planted.retrieval:
            rows = attention[layer, head, example.answer_rows.start : example.answer_rows.stop]
            assert rows.argmax(-1).tolist() == source
            assert rows.amax(-1).min() > 0.9
        for layer, head in case.planted.support:
            assert attention[layer, head, 1:].argmax(-1).tolist() == list(range(len(example.full_ids) - 1))


def test_decoys_attend_where_they_say(case: Case) -> None:
    for example, attention in zip(case.examples, case.attentions, strict=True):
        (value,) = example.spans_of("value", 0)
        rows = list(example.answer_rows)
        for name, (layer, head) in case.planted.decoys.items():
            at = attention[layer, head].argmax(-1)[rows].tolist()
            back = {"previous": 1, "two_back": 2, "offset": case.planted.offsets.get(name)}.get(
                name.split(".")[0]
            )
            if back is not None:
                assert at == [row - back for row in rows], name
            elif name == "sink":
                assert set(at) == {0}
            elif name == "salient":
                assert {example.full_ids[place] for place in at} <= set(case.planted.hot)
                assert at[0] in range(value.start, value.end)
            elif name == "duplicate":
                assert at == list(range(value.start - 1, value.end - 1))
            elif name == "ahead":
                assert at == list(range(value.start + 1, value.end + 1))
            else:
                raise AssertionError(f"no test of decoy {name}")


def test_naive_copy_score_finds_the_planted_heads(case: Case) -> None:
    verdict = judge(mean_score(case.examples, case.attentions), case.planted)
    assert (verdict.precision, verdict.recall, verdict.lowest) == (1.0, 1.0, 1.0)
    # `salient` looks at one of three to five tokens, `offset` is right by chance; neither comes near.
    assert verdict.highest < 0.4
    assert verdict.sound


def test_mutants_fail(case: Case) -> None:
    verdicts = {
        n: judge(mean_score(case.examples, case.attentions, f), case.planted) for n, f in MUTANTS.items()
    }
    assert not any(v.sound for v in verdicts.values()), verdicts
    duplicate, ahead = case.planted.decoys.get("duplicate"), case.planted.decoys.get("ahead")
    assert verdicts["row_off_by_one"].missed == case.planted.retrieval
    assert verdicts["row_off_by_one"].caught == {duplicate} - {None}
    assert verdicts["no_token_match"].caught >= {duplicate, ahead} - {None}
    # One token of m falls out of the needle.
    share = np.mean([1 - 1 / len(e.answer_ids) for e in case.examples])
    assert verdicts["needle_off_by_one"].lowest == pytest.approx(share)


def test_cutting_planted_heads_destroys_recall(case: Case) -> None:
    planted, examples = case.planted, case.examples[::2]
    chance = float(np.mean([e.chance for e in examples]))
    for answer_only in (False, True):
        assert accuracy(planted, examples, planted.retrieval, answer_only=answer_only) <= chance
    # The supporting heads wrote into the context; they are missed there and nowhere else.
    assert accuracy(planted, examples, planted.support) <= chance
    assert accuracy(planted, examples, planted.support, answer_only=True) == 1.0


def test_cutting_decoys_does_not(case: Case) -> None:
    planted = case.planted
    rng = np.random.default_rng(case.planted.seed)
    pool: list[Place] = [*planted.decoys.values(), *sorted(planted.others)]
    drawn = [pool[i] for i in rng.permutation(len(pool))[: len(planted.retrieval)]]
    for places in (drawn, list(planted.decoys.values())):
        assert accuracy(planted, case.examples[::2], places) == 1.0


def test_questions_keep_the_contract(case: Case) -> None:
    for example in case.examples:
        check_example(example, copies=True)
        check_example(example.corrupt["value_swap"], copies=True)
        twin = example.corrupt["value_swap"]
        assert sorted(twin.ids) == sorted(example.ids)
        assert (twin.answer_ids, twin.foil_ids) == (example.foil_ids, example.answer_ids)
        assert len(set(example.ids)) == len(example.ids) - 1, "only the key stands twice"
        assert len(example.candidates) == 4
        assert example.chance == 0.25
        assert 3 <= len(example.answer_ids) <= 5
    depths = [e.meta["depth"] for e in case.examples]
    assert depths == pytest.approx([(i + 0.5) / N for i in range(N)], abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_recall_falls_with_noise(kind: str) -> None:
    levels = (0.0, 0.1, 0.2, 0.3, 0.6)
    curve = []
    for noise in levels:
        seen = []
        for seed in range(4):
            planted = plant(kind, seed=seed, noise=noise)
            case = run(planted, planted_task(planted, N, 0, LENGTH).examples(None))
            verdict = judge(mean_score(case.examples, case.attentions), planted)
            right = np.mean([g == e.answer_ids for g, e in zip(case.greedy, case.examples, strict=True)])
            seen.append([float(right), verdict.recall, len(verdict.caught), verdict.lowest])
        curve.append(np.mean(seen, axis=0))
    table = np.array(curve)
    right, recall, caught, lowest = table.T
    print(
        f"\n{kind}: noise, accuracy, recall, wrongly caught, lowest planted score\n",
        np.c_[levels, table].round(2),
    )
    assert right[0] == recall[0] == 1.0
    assert right[1] > 0.7
    assert recall[1] == 1.0
    # The heads are still found where the model has begun to fail.
    assert 0.0 < right[2] < 0.8
    assert recall[2] > 0.8
    assert (np.diff(lowest) < 0).all()
    # At the top nothing is left to be found, and nothing is found.
    assert right[-1] == recall[-1] == 0.0
    assert (caught == 0.0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_token_by_token_generation_copies(kind: str) -> None:
    planted = plant(kind, seed=3)
    for example in planted_task(planted, 4, 1, CONTEXT - 5).examples(None):
        ids = torch.tensor([example.ids])
        out = planted.module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=len(example.answer_ids), do_sample=False
        )
        assert tuple(out[0, len(example.ids) :].tolist()) == example.answer_ids


@pytest.mark.parametrize("kind", KINDS)
def test_full_context(kind: str) -> None:
    for seed in range(4):
        planted = plant(kind, seed=seed)
        case = run(planted, planted_task(planted, 4, 0, CONTEXT - 5).examples(None))
        assert judge(mean_score(case.examples, case.attentions), planted).sound
        assert list(case.greedy) == [e.answer_ids for e in case.examples]


@pytest.mark.parametrize("kind", KINDS)
def test_single_token_values_expose_a_shifted_needle(kind: str) -> None:
    planted = plant(kind, seed=5)
    case = run(planted, planted_task(planted, 4, 0, 40, value_length=(1, 1)).examples(None))
    found = judge(mean_score(case.examples, case.attentions), planted)
    assert not found.missed
    # With one token to look at, a head that looks for striking tokens cannot be told from one that copies.
    assert planted.decoys["salient"] in found.caught
    shifted = judge(mean_score(case.examples, case.attentions, MUTANTS["needle_off_by_one"]), planted)
    assert shifted.missed == planted.retrieval


@pytest.mark.parametrize("kind", KINDS)
def test_silent_heads_fool_the_score_and_not_the_cut(kind: str) -> None:
    planted = plant(kind, seed=2, n_planted=2, n_silent=2)
    case = run(planted, planted_task(planted, N, 0, LENGTH).examples(None))
    scores = mean_score(case.examples, case.attentions)
    assert len(planted.silent) == 2
    assert {scores[place] for place in planted.silent | planted.retrieval} == {1.0}
    assert accuracy(planted, case.examples, planted.silent) == 1.0
    assert accuracy(planted, case.examples, planted.retrieval) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_one_fixed_distance_fools_the_score(kind: str) -> None:
    """Why depths must vary: at its own distance a head that never reads the context scores like a retrieval head."""
    planted = plant(kind, seed=0)
    place = planted.decoys["offset"]
    task = planted_task(planted, 4, 0, LENGTH, distance=planted.offsets["offset"])
    case = run(planted, task.examples(None))
    assert mean_score(case.examples, case.attentions, copy_score)[place] == 1.0
    assert accuracy(planted, case.examples, [place]) == 1.0


def test_the_family_varies() -> None:
    for kind in KINDS:
        family = [plant(kind, seed=seed) for seed in range(12)]
        for name in ("n_layers", "n_heads", "vocab", "d_head", "retrieval", "support"):
            assert len({getattr(p, name) for p in family}) > 1, name
        assert {len(p.retrieval) for p in family} == {1, 2, 3, 4}
        assert {part for parts in DECOYS for part in parts} == {name for p in family for name in p.decoys}
        for p in family:
            heads = [*p.retrieval, *p.support, *p.silent, *p.decoys.values(), *p.others]
            assert len(heads) == len(set(heads)) == p.n_layers * p.n_heads
            assert max(layer for layer, _ in p.support) < min(layer for layer, _ in p.retrieval)
        assert (len({p.n_heads // p.n_kv_heads for p in family}) > 1) == (kind == "llama")


@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_is_one_model(kind: str, rng_untouched: None) -> None:
    first, again, noisy = plant(kind, seed=7), plant(kind, seed=7), plant(kind, seed=7, noise=0.1)
    weights = [dict(p.module.named_parameters()) for p in (first, again, noisy)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert first.retrieval == noisy.retrieval
    name = "lm_head.weight"
    moved = (weights[0][name] - weights[2][name]).square().mean().sqrt() / weights[0][
        name
    ].square().mean().sqrt()
    assert moved.item() == pytest.approx(0.1, rel=0.05)
    assert (
        planted_task(first, 3, 0, 60).examples(None)[2].key()
        == planted_task(again, 3, 0, 60).examples(None)[2].key()
    )


@pytest.mark.parametrize("n_decoys", [0, 3, 9])
def test_asked_for_numbers_are_met(n_decoys: int) -> None:
    planted = plant("gpt2", seed=1, n_planted=3, n_decoys=n_decoys, n_silent=1)
    assert (len(planted.retrieval), len(planted.decoys), len(planted.silent)) == (3, n_decoys, 1)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="no planted model of kind 'rnn'"):
        plant("rnn", seed=0)
    with pytest.raises(NoRoom, match="n_planted=100"):
        plant("llama", seed=0, n_planted=100)
    planted = plant("llama", seed=0)
    with pytest.raises(UsageError, match=r"126 \+ 5 tokens are more than the model's context of 128"):
        planted_task(planted, 1, 0, 126)
    with pytest.raises(UsageError, match="4 pairs of up to 6 tokens do not fit into 49 tokens"):
        planted_task(planted, 1, 0, 49)
    with pytest.raises(UsageError, match=r"no needle of \d tokens lies 59 places before the end"):
        planted_task(planted, 1, 0, 60, distance=59)
