"""Generated answers: their scores, batched decoding under many cuts, and what a cut of planted heads does to them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import interp
from interp.errors import AtChance, EngineError, NoAcceptedExample, UsageError
from interp.intervene.ablate import ablate
from interp.measure.answers import Reference, f1, guess_levels, said, score_output, words
from interp.measure.effects import AT_CHANCE, COLUMNS
from interp.measure.generation import ends_of, generate_each, measure_generated
from interp.models.sites import Head
from interp.models.subject import CausalLM
from interp.tasks.base import FixedTask
from tests.planted.retrieval import Planted, plant, planted_task
from tests.subjects import examples, subject
from tests.tokenizers import KINDS, tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Eiffel Tower.", ("eiffel", "tower")),
        ("  an  APPLE, a day\n", ("apple", "day")),
        ("half-past five", ("halfpast", "five")),
        ("theatre", ("theatre",)),
        ("the", ()),
    ],
)
def test_words_are_compared_as_squad_does(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("output", "answer", "expected"),
    [
        (("x",), ("x",), 1.0),
        (("x",), ("y",), 0.0),
        (("x", "y"), ("y",), 2 / 3),
        # A word counts as often as it stands in both.
        (("x", "x", "x"), ("x", "y"), 0.4),
        ((), ("x",), 0.0),
        ((), (), 1.0),
    ],
)
def test_f1(output, answer, expected):
    assert f1(output, answer) == pytest.approx(expected)


def test_scores_take_the_best_reference_and_count_parts():
    several = Reference(
        (words("tin, lead and zinc"), words("zinc and tin")), (("tin",), ("lead",), ("zinc",)), 12
    )
    scores = score_output(words("Zinc and tin"), several, "Zinc and tin")
    assert scores == {"exact": 1.0, "f1": 1.0, "contains": pytest.approx(2 / 3), "number": 0.0}
    scores = score_output(words("zinc is 7, so 12"), several, "zinc is 7, so 12")
    assert (scores["exact"], scores["contains"], scores["number"]) == (0.0, pytest.approx(1 / 3), 1.0)
    # A part stands in the output as whole words, in their order.
    one = Reference((("night", "bus"),), (("night", "bus"),))
    assert score_output(("bus", "night"), one)["contains"] == 0.0
    assert score_output(("nights", "bus"), one)["contains"] == 0.0
    assert score_output(("last", "night", "bus"), one)["contains"] == 1.0
    assert math.isnan(score_output((), one)["number"])


CUTS = {
    "clean": None,
    "zero answer": ablate("L0H1 L1H2", "zero", "answer"),
    "zero all": ablate("L0H0", "zero", "all"),
    "uniform answer": ablate("L1H0 L2H3", "uniform", "answer"),
    "zero key": ablate("L0H2", "zero", "key"),
    "other zero answer": ablate("L2H1 L2H2", "zero", "answer"),
}


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3"])
def test_batched_generation_equals_one_by_one(family):
    s = subject(family)
    first, *others = examples((24, 17, 40, 9))
    # Outputs are as long as their own answer allows, whatever the batch.
    data = [replace(first, answer_ids=first.answer_ids[:1]), *others]
    together = generate_each(s, data, CUTS, extra=3)
    apart = generate_each(s, data, CUTS, extra=3, share=False)
    for name, cut in CUTS.items():
        assert together[name] == apart[name], name
        for example, output in zip(data, together[name], strict=True):
            with s.apply(*([cut] if cut else [])):
                alone = s.generate([example], len(example.answer_ids) + 3)[0]
            assert output.ids == tuple(alone), name
    # The cuts differ in what they do, or the equalities above would say little.
    assert len({tuple(o.ids for o in found) for found in together.values()}) >= 5


def test_a_prompt_that_conditions_leave_alone_is_run_once():
    s = subject("llama")
    data = examples((24, 24))
    seen = []
    original = s.run

    def counted(batch, *args, **kwargs):
        seen.append(batch.width)
        return original(batch, *args, **kwargs)

    widths = []
    generate = s.generate

    def watched(batch, *args, **kwargs):
        cache = kwargs.get("past_key_values")
        widths.append((len(batch), batch.width - (cache.get_seq_length() if cache is not None else 0)))
        return generate(batch, *args, **kwargs)

    s.run, s.generate = counted, watched  # type: ignore[method-assign]
    try:
        generate_each(s, data, {k: c for k, c in CUTS.items() if k == "clean" or k.endswith("answer")})
    finally:
        del s.run, s.generate
    assert seen == [23]
    assert widths == [(8, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_end_where_a_line_does(kind):
    t = tokens(kind)
    ends = ends_of(t)
    assert t.eos_id in ends
    for text in ("is.\n", "yes\n\nno", "a\nb"):
        ids = t.encode(text).ids
        assert any(i in ends for i in ids)
    assert not ends & set(t.encode("Everything took a while.").ids)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def planted(request) -> Planted:
    return plant(request.param, seed=3)


def loaded(planted: Planted) -> CausalLM:
    return interp.load(planted.module, tokenizer=None)


def test_cut_retrieval_heads_make_generated_answers_wrong(planted):
    model = loaded(planted)
    task = planted_task(planted, 8, 1, 60)
    cut = ablate([Head(*place) for place in sorted(planted.retrieval)], "zero", "answer")
    found = measure_generated(
        model, task, cut, controls=3, extra=0, locator="planted", mechanism="retrieval heads"
    )
    rows = found.effects.set_index(["metric", "condition"])
    assert list(found.effects.columns) == COLUMNS
    assert set(found.effects.status) == {"ok"}
    for metric in ("exact", "f1", "contains"):
        assert rows.loc[(metric, "clean")].value.item() == 1.0
        assert found.floor[metric] < 0.5
    assert rows.loc[("exact", "cut")].value.item() == 0.0
    assert rows.loc[("exact", "cut")].delta.item() == -1.0
    assert rows.loc[("exact", "cut")].p.item() == pytest.approx(2 / 2**8)
    assert rows.loc[("f1", "cut")].value.item() < 0.3
    controls = found.effects[found.effects.condition == "control"]
    assert len(controls) == 9 and (controls.control == "layer").all()
    assert (controls.value == 1.0).all() and (controls.delta == 0.0).all()
    # The outputs are kept, and the rows are their means.
    out = found.outputs
    assert len(out) == 5 * 8
    clean = out[out.condition == "clean"]
    assert (clean.output == clean.answer).all()
    lost = out[out.condition == "cut"]
    assert (lost.output != lost.answer).all() and (lost.output.str.len() > 0).all()
    assert lost.f1.mean() == pytest.approx(rows.loc[("f1", "cut")].value.item())


def test_guesses_by_hand(planted):
    model = loaded(planted)
    data = planted_task(planted, 3, 0, 60).examples(model)
    outputs = [said(model, e.answer_ids) for e in data]
    levels = guess_levels(model, data, outputs, [""] * 3, ("exact", "f1"))
    shuffled = np.mean([f1(outputs[i], outputs[j]) for i in range(3) for j in range(3) if i != j])
    of_four = np.mean([f1(c, e.answer_ids) for e in data for c in e.candidates])
    assert levels["f1"] == pytest.approx(max(shuffled, of_four))
    assert levels["exact"] == pytest.approx(1 / 4)
    # Without a closed set only other examples' answers are left to guess.
    open_set = [replace(e, candidates=()) for e in data]
    levels = guess_levels(model, open_set, outputs, [""] * 3, ("exact", "f1"))
    assert levels == {"exact": 0.0, "f1": pytest.approx(shuffled)}


def test_at_chance_nothing_is_reported():
    s = subject("llama")
    task = FixedTask(examples((20, 20, 20, 20)), name="hopeless")
    cut = ablate("L0H1", "zero", "answer")
    with pytest.raises(
        AtChance, match=r"llama is at chance on the generated answers of hopeless.*: exact 0\.00"
    ):
        measure_generated(s, task, cut, controls=0)
    marked = measure_generated(s, task, cut, controls=0, floor="mark")
    assert set(marked.effects.status) == {AT_CHANCE}
    lost = marked.effects[marked.effects.condition == "cut"]
    assert lost[["delta", "ci_lo", "ci_hi", "p"]].isna().all().all()
    assert len(marked.outputs) == 8


def test_what_cannot_be_measured_is_refused():
    s = subject("llama")
    task = FixedTask(examples(), name="tiny")
    with pytest.raises(
        UsageError, match="unknown metric 'rouge'; generated answers have exact, f1, contains"
    ):
        measure_generated(s, task, metrics=("rouge",))
    with pytest.raises(UsageError, match="has layers 0 to 2"):
        measure_generated(s, task, ablate("L7H0"))
    with pytest.raises(NoAcceptedExample, match="no example to generate from"):
        generate_each(s, [], {"clean": None})
    with pytest.raises(EngineError, match="cannot generate"):
        measure_generated(s.with_engine("lens"), task)


def test_reading_with_the_default_model(smollm2):
    """What it says is text of one line, scored as text; numbers are the task's own metric."""
    found = measure_generated(smollm2, interp.task("reading", n=3, shots=1, seed=0), floor="mark")
    assert found.outputs.output.str.contains("\n").sum() == 0
    assert set(found.effects.metric) == {"exact", "f1", "contains"}
    assert found.effects.set_index("metric").value["f1"] > 0.3
    by_hand = [
        f1(words(o), words(a)) for o, a in zip(found.outputs.output, found.outputs.answer, strict=True)
    ]
    assert found.outputs.f1.to_numpy() == pytest.approx(by_hand)
    sums = measure_generated(smollm2, interp.task("arithmetic", n=1, style="cot", shots=2), floor="mark")
    assert set(sums.effects.metric) == {"number"}
    assert sums.outputs.output.str.contains("The answer is").all()
