"""The grid: every cell once, at its length and depth, over contexts that are prefixes of one another."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.tokenizers
from interp.errors import BrokenData, UsageError
from interp.models.tokens import Tokens
from interp.tasks import task
from interp.tasks.base import Example, Span, check_example
from interp.tasks.distinct import stems
from interp.tasks.grid import NiahGrid, prefill_tokens
from interp.tasks.haystack import Ruler, pieces, select
from interp.tasks.streams import Place, deal, openings
from tests.tasks.test_contract import check, vars_of
from tests.tasks.test_niah import changed, covered, text_of

FAMILIES = list(tests.tokenizers.KINDS)
TENTHS = [i / 10 for i in range(11)]
FULL = [128, 256, 512, 1024, 1536, 2048, 3072, 4096]


def ask(family: str = "smollm", **params: Any) -> list[Example]:
    return task("niah_grid", **params).examples(tests.tokenizers.tokens(family))


def grid_of(**params: Any) -> NiahGrid:
    grid = task("niah_grid", **params)
    assert isinstance(grid, NiahGrid)
    return grid


def common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# Cells.


@pytest.mark.parametrize(
    ("mode", "needles", "depths", "haystacks"),
    [
        ("exact", 3, 2, None),
        ("exact", 5, [0, 0.3, 1], 2),
        ("several", 3, 3, None),
        ("several", 2, 5, 3),
        ("several", 5, 2, None),
    ],
)
def test_every_cell_occurs_once(mode: str, needles: int, depths: Any, haystacks: int | None) -> None:
    grid = grid_of(lengths=[256, 512], depths=depths, needles=needles, haystacks=haystacks, mode=mode)
    cells = grid.cells()
    asked = depths if isinstance(depths, list) else np.linspace(0, 1, depths).tolist()
    every = Counter(zip(cells.length_asked, cells.depth_asked, cells.needle, strict=True))
    assert every == Counter(product([256, 512], asked, range(needles)))
    assert len(grid) == grid.n == len(cells) == 2 * len(asked) * needles
    # A haystack, then a rotation in it, then a length: each in one run.
    for columns in (["haystack"], ["haystack", "rotation"], ["haystack", "rotation", "length_asked"]):
        if mode == "exact" and columns[-1] == "length_asked":
            columns = ["haystack", "needle", "length_asked"]
        rows = [tuple(row) for row in cells[columns].to_numpy()]
        assert 1 + sum(a != b for a, b in pairwise(rows)) == len(set(rows))
    units = needles if mode == "exact" else max(needles, len(asked))
    assert cells.haystack.nunique() == (haystacks or units)
    if mode == "several":
        inside = cells.groupby(["rotation", "length_asked"])
        assert inside.depth_asked.nunique().eq(inside.size()).all(), "one needle a depth"
        if needles <= len(asked):
            assert inside.size().eq(needles).all(), "all needles are there"
            slots = {d: i for i, d in enumerate(asked)}
            for row in cells.itertuples():
                assert slots[row.depth_asked] == (row.needle + row.rotation) % len(asked)


@pytest.mark.parametrize("mode", ["exact", "several"])
def test_meta_says_which_cell_it_is(mode: str) -> None:
    grid = grid_of(lengths=[300, 400], depths=3, needles=2, mode=mode)
    examples = grid.examples(tests.tokenizers.tokens("llama3"))
    cells = grid.cells()
    for e, row in zip(examples, cells.itertuples(), strict=True):
        for name in ("haystack", "rotation", "length_asked", "depth_asked", "needle", "kind"):
            assert e.meta[name] == getattr(row, name), name
        assert e.cluster == row.haystack == e.meta["haystack"]
        assert e.meta["distance"] == len(e.ids) - 1 - e.spans_of("value", 0)[0].start
    for needle in (0, 1):
        own = [e for e in examples if e.meta["needle"] == needle]
        assert len({(e.meta["key"], e.meta["value"], e.meta["template"], e.answer_ids) for e in own}) == 1
    first = grid_of(lengths=[300, 400], depths=3, needles=2, mode=mode, n=5)
    assert len(first) == len(first.cells()) == 5
    kept = first.examples(tests.tokenizers.tokens("llama3"))
    assert [e.key() for e in kept] == [e.key() for e in examples[:5]]


# Length and depth.


def bounds(e: Example) -> tuple[int, int, list[int]]:
    """From the text alone: tokens before the needle, tokens without it, and all places between sentences."""
    assert e.text is not None and e.offsets is not None
    (evidence,) = e.spans_of("evidence")
    body = e.text.index("\n\nQuestion: ")
    special = sum(1 for a, b in e.offsets[:1] if a == b)
    end = next(i for i, (a, _) in enumerate(e.offsets) if a >= body)
    inside = [i for i in range(special, end) if not evidence.start <= i < evidence.end]
    starts = {0, len(inside)}
    for m in re.finditer(r"(?<=[.!?])(\n\n| )(?=[A-Z])", e.text[:body]):
        # The space belongs to the sentence; white space between paragraphs does not.
        at = m.start() if m.group() == " " else m.end()
        token = next(i for i, (_, b) in enumerate(e.offsets) if b > at)
        starts.add(sum(1 for i in inside if i < token))
    return sum(1 for i in inside if i < evidence.start), len(inside), sorted(starts)


def stands_nearest(e: Example) -> float:
    """Tokens by which another place between sentences is nearer to the depth asked for."""
    realised, total, places = bounds(e)
    asked = e.meta["depth_asked"] * total
    after = min(max(int(np.searchsorted(places, asked, side="right")), 1), len(places) - 1)
    half = (places[after] - places[after - 1]) / 2
    excess = abs(realised - asked) - min(abs(p - asked) for p in places)
    # Half of the sentence that the asked place falls in is more than the way to the nearest of its ends.
    assert abs(realised - asked) <= half + excess + 1e-9
    assert e.meta["depth"] == pytest.approx(realised / total)
    if "half_sentence" in e.meta:
        assert e.meta["half_sentence"] == pytest.approx([abs(realised - asked), half])
    return excess


@pytest.mark.parametrize("mode", ["exact", "several"])
@pytest.mark.parametrize("family", FAMILIES)
def test_needles_stand_at_the_boundary_nearest_to_their_depth(family: str, mode: str) -> None:
    lengths, needles = ([600], 4) if mode == "several" else ([300, 500], 1)
    examples = ask(family, lengths=lengths, needles=needles, depths=TENTHS, mode=mode)
    assert len(examples) == 11 * len(lengths) * needles
    excess = [stands_nearest(e) for e in examples]
    # A tie may turn by a token, where the needle takes a seam along as it moves.
    assert max(excess) <= 1 and np.mean(np.array(excess) > 0) <= 0.05
    for e in examples:
        assert e.meta["length_asked"] - 2 <= len(e.ids) == e.meta["length"] <= e.meta["length_asked"]
        body = str(e.text)[: str(e.text).index("\n\nQuestion: ")]
        if e.meta["depth_asked"] == 0:
            assert body.startswith(text_of(e, "evidence")[0])
        if e.meta["depth_asked"] == 1:
            assert body.endswith(text_of(e, "evidence")[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_needles_stand_as_near(family: str) -> None:
    tokens = tests.tokenizers.tokens(family)
    excess = [stands_nearest(e) for e in task("niah", length=500, depth=TENTHS, n=22).examples(tokens)]
    # Its boundaries are those of the haystack as laid out, counted sentence by sentence: seams cost a token or two.
    assert max(excess) <= 4 and np.mean(np.array(excess) > 0) <= 0.1


def test_what_half_a_sentence_is() -> None:
    place = Place(at=20, width=9, asked=28.0, total=60, bounds=(0, 20, 38, 60))
    assert place.off == 8 and place.half_sentence == 9 and place.excess == 0
    assert replace(place, at=38).excess == 2
    assert replace(place, asked=60.0, at=60).half_sentence == 11
    assert replace(place, asked=0.0, at=0).half_sentence == 10


# Shared prefixes.


@pytest.mark.parametrize("family", FAMILIES)
def test_contexts_of_a_haystack_are_prefixes_of_one_another(family: str) -> None:
    grid = grid_of(lengths=[300, 500, 900], depths=[0, 0.25, 0.5, 1], needles=2, haystacks=1, seed=2)
    tokens = tests.tokenizers.tokens(family)
    examples = grid.examples(tokens)
    (name,) = {e.cluster for e in examples}
    starts = [e.spans_of("evidence")[0].start for e in examples]
    prose = [
        max(e.text.index(s.text) + len(s.text) for s in pieces()[name] if s.text in str(e.text))
        for e in examples
        if e.text
    ]
    for (i, a), (k, b) in product(enumerate(examples), repeat=2):
        before = min(starts[i], starts[k])
        if 1 in (a.meta["depth_asked"], b.meta["depth_asked"]):
            # There a needle stands behind the fillers, which come last.
            assert a.offsets and b.offsets
            last = min(prose[i], prose[k])
            before = min(before, sum(1 for _, stop in a.offsets if stop <= last) - 1)
        assert common(a.ids, b.ids) >= before
        if a.meta["needle"] == b.meta["needle"] and a.meta["depth_asked"] == b.meta["depth_asked"] == 0:
            # One place, one needle: they part where the shorter one ends, at most a sentence and its fillers earlier.
            end = min(a.spans_of("question")[0].start, b.spans_of("question")[0].start)
            assert common(a.ids, b.ids) >= end - 60
    widest = max(e.meta["length"] for e in examples)
    assert widest == max(e.meta["length_asked"] for e in examples)


def test_paragraphs_before_a_needle_stay_as_they_are() -> None:
    """A needle before a paragraph opens it, so that the text before it is that of the haystack."""
    opened = 0
    for e in ask("qwen", lengths=[900], depths=TENTHS, needles=2, haystacks=1):
        (evidence,) = e.spans_of("evidence")
        assert e.text is not None and e.offsets is not None
        start = e.offsets[evidence.start][0]
        opened += start > 0 and e.text[:start].endswith("\n\n")
        after = e.text[e.offsets[evidence.end - 1][1] :]
        if start == 0 or e.text[:start].endswith("\n\n"):
            assert re.match(r"\.? [A-Z]", after), "the sentence behind it goes on in its paragraph"
    assert opened


@pytest.mark.parametrize("mode", ["exact", "several"])
def test_prefill_tokens_count_each_prefix_once(mode: str) -> None:
    examples = ask(lengths=[256, 300], depths=3, needles=2, haystacks=1, mode=mode)
    prefixes: set[tuple[int, ...]] = set()
    questions = 0
    for e in examples:
        (question,) = e.spans_of("question")
        prefixes |= {e.ids[:i] for i in range(1, question.start + 1)}
        questions += len(e.ids) - question.start
    assert prefill_tokens(examples) == {
        "naive": sum(len(e.ids) for e in examples),
        "shared": len(prefixes) + questions,
    }


def test_prefill_tokens_of_bare_ids() -> None:
    def bare(*ids: int, question: int | None = None) -> Example:
        spans = () if question is None else (Span(question, question + 1, "question", 0),)
        return Example(task="t", ids=ids, answer_ids=(1,), spans=spans, chance=1.0)

    assert prefill_tokens([bare(1, 2, 3), bare(1, 2, 4), bare(1, 2, 3, 5)]) == {"naive": 10, "shared": 5}
    assert prefill_tokens([bare(1, 2, 3)] * 3) == {"naive": 9, "shared": 5}, "the last token is always read"
    asked = [bare(1, 2, 7, 8, question=2), bare(1, 2, 7, 9, question=2)]
    assert prefill_tokens(asked) == {"naive": 8, "shared": 6}, "nothing of a question is shared"
    assert prefill_tokens([]) == {"naive": 0, "shared": 0}


def test_a_long_grid_shares_most_of_its_prefills(smollm2_tokens: Tokens) -> None:
    """In the mode `exact` each needle pays for its own haystack, so that one stands for any number."""
    exact = task("niah_grid", lengths=FULL, depths=6, needles=1).examples(smollm2_tokens)
    spent = prefill_tokens(exact)
    assert 0.35 < spent["shared"] / spent["naive"] <= 0.55
    several = task("niah_grid", lengths=[128, 4096], depths=6, needles=8, mode="several")
    spent = prefill_tokens(several.examples(smollm2_tokens))
    assert 0.12 < spent["shared"] / spent["naive"] <= 0.20
    for e in [*exact, *several.examples(smollm2_tokens)]:
        assert e.meta["length_asked"] - 2 <= len(e.ids) <= e.meta["length_asked"]
        off, half = e.meta["half_sentence"]
        assert off <= half + 1


# Needles that share a context.


def test_needles_of_a_context_differ_and_are_all_asked() -> None:
    examples = ask(lengths=[128, 700], depths=4, needles=6, mode="several", kinds=["names", "numbers"])
    contexts: dict[str, list[Example]] = {}
    for e in examples:
        contexts.setdefault(e.group, []).append(e)
    known = {e.meta["needle"]: (e.meta["key"], e.meta["value"]) for e in examples}
    for i, k in product(known, repeat=2):
        for a, b in zip(known[i], known[k], strict=True):
            assert i == k or not stems(a) & stems(b)
    for group in contexts.values():
        assert len(group) == group[0].meta["needles"] == len({e.meta["needle"] for e in group})
        assert len({str(e.text)[: str(e.text).index("\n\nQuestion: ")] for e in group}) == 1
        assert len(group) == (4 if group[0].meta["length_asked"] == 700 else 1)
        for e in group:
            others = {known[o.meta["needle"]] for o in group if o is not e}
            items = range(1, len(group))
            shown = {
                (text_of(e, "distractor_key", i)[0], text_of(e, "distractor_value", i)[0]) for i in items
            }
            assert shown == others
            assert text_of(e, "key") == [e.meta["key"]] and text_of(e, "value") == [e.meta["value"]]
            kin = [o.answer_ids for o in group if o is not e and o.meta["kind"] == e.meta["kind"]]
            assert set(kin) <= set(e.candidates), "values of its kind in the context are candidates"
            assert len(e.candidates) == 10
            assert len(e.ids) >= e.meta["length_asked"] - 2


def test_which_keys_and_values_are_confusable() -> None:
    assert stems("the boathouse at Tarnbeck") & stems("the boatyard at Corvale")
    assert not stems("the boathouse at Tarnbeck") & stems("the chapel at Corvale")
    assert stems("48213") & stems("4877") and not stems("48213") & stems("8421")
    assert stems("feed two sleepy otters") & stems("Sleepy foxes")


@pytest.mark.parametrize("mode", ["exact", "several"])
def test_twins_change_what_they_say(mode: str) -> None:
    for e in ask("qwen", lengths=[500], depths=TENTHS[::2], needles=4, mode=mode):
        assert set(e.corrupt) == {"value_swap", "needle_drop"}
        swap, drop = e.corrupt["value_swap"], e.corrupt["needle_drop"]
        assert changed(e, "value_swap") <= covered(e, "value")
        (at,) = swap.spans_of("value", 0)
        assert swap.ids[at.start : at.end] == swap.answer_ids != e.answer_ids
        present = {e.ids[s.start : s.end] for s in e.spans_of("distractor_value")}
        assert swap.answer_ids not in present, "the value is new to the prompt"
        assert changed(e, "needle_drop") <= covered(e, "evidence")
        assert drop.answer_ids == e.answer_ids and not drop.spans_of("evidence")
        assert e.meta["value"] not in str(drop.text)
        assert text_of(e, "question") == text_of(drop, "question")
        check_example(e, tests.tokenizers.tokens("qwen"), copies=True)


def test_a_question_span_excuses_nothing() -> None:
    e = ask(lengths=[256], depths=1, needles=1)[0]
    (question,) = e.spans_of("question")
    inside = [i for i in range(question.start, question.end) if i not in covered(e, "query")]
    ids = list(e.corrupt["value_swap"].ids)
    ids[inside[-1]] += 1
    broken = replace(e.corrupt["value_swap"], ids=tuple(ids))
    with pytest.raises(BrokenData, match="outside the declared spans"):
        check_example(replace(e, corrupt={"value_swap": broken}), copies=True)


# Haystacks.


def test_eight_long_haystacks_start_apart(smollm2_tokens: Tokens) -> None:
    grid = grid_of(lengths=[1024, 4096], depths=1, needles=8, n=1)
    shares = grid.overlap(smollm2_tokens)
    assert len(shares) == 2 * 8 * 7 and shares.haystack.nunique() == 8
    apart, far = (shares[shares.length == n].share for n in (1024, 4096))
    assert apart.max() == 0, "no two have a sentence in common"
    assert 0 < far.mean() < 0.3 and far.max() < 0.6
    (example,) = grid.examples(smollm2_tokens)
    own = shares[(shares.length == 1024) & (shares.haystack == example.cluster)]
    assert example.meta["overlap"] == own.share.max()


@pytest.mark.parametrize("family", FAMILIES)
def test_streams_know_where_their_sentences_are(family: str) -> None:
    tokens = tests.tokenizers.tokens(family)
    ruler, rng = Ruler(tokens), np.random.default_rng(0)
    for stream in deal(ruler, openings(3, ["bees", "soup"], rng), ["bees", "soup"], 700, rng):
        assert stream.ends[-1] >= 700
        assert len({s.text for s in stream.sentences}) == len(stream.sentences)
        text = "".join(s.gap(i == 0) + s.text for i, s in enumerate(stream.sentences))
        prompt = tokens.encode(text)
        at = 0
        for i, sentence in enumerate(stream.sentences):
            at = text.index(sentence.text, at)
            first = ruler.n_special + stream.starts[i]
            last = ruler.n_special + stream.ends[i] - 1
            # A space is the start of the sentence behind it; line breaks are not.
            start = at - (text[at - 1 : at] == " ")
            assert prompt.offsets[first][1] > start and (first == 0 or prompt.offsets[first - 1][1] <= start)
            assert prompt.offsets[last][0] < at + len(sentence.text) <= prompt.offsets[last][1]


def test_shares_of_streams_are_counted_in_tokens() -> None:
    ruler, rng = Ruler(tests.tokenizers.tokens("gpt2")), np.random.default_rng(1)
    a, b = deal(ruler, [("soup", 0), ("soup", 2)], ["soup"], 10_000, rng)
    assert a.name == "soup" and b.name == "soup.2"
    assert (
        {s.text for s in a.sentences} == {s.text for s in b.sentences} == {s.text for s in pieces()["soup"]}
    )
    assert a.share(b, 10_000) == 1
    assert a.share(b, a.ends[0] + 1) == 0
    number = next(i for i, s in enumerate(a.sentences) if s.text == b.sentences[0].text)
    upto = a.ends[number]
    held = {s.text for s, end in zip(b.sentences, b.ends, strict=True) if end <= upto}
    lengths = np.diff([0, *a.ends[: number + 1]])
    expected = sum(n for s, n in zip(a.sentences, lengths, strict=False) if s.text in held) / upto
    assert 0 < expected < 1
    assert a.share(b, upto) == pytest.approx(expected)


def test_haystack_holds_what_was_asked() -> None:
    for e in ask(lengths=[600], depths=2, needles=3, haystack="test"):
        assert set(e.meta["pieces"]) <= set(select("test"))
        assert e.meta["pieces"][0] == e.cluster.partition(".")[0]


# The contract.

grids = st.fixed_dictionaries(
    {
        # Needles in sixty small tokens, and their questions, have to fit.
        "lengths": st.lists(st.integers(280, 450), min_size=1, max_size=2, unique=True),
        "depths": st.one_of(
            st.integers(3, 4), st.lists(st.floats(0, 1), min_size=3, max_size=3, unique=True)
        ),
        "needles": st.integers(2, 3),
        "haystacks": st.sampled_from([None, 1, 2]),
        "kinds": st.lists(
            st.sampled_from(["names", "words", "numbers", "phrases"]), min_size=1, max_size=4, unique=True
        ),
        "haystack": st.sampled_from(["all", "train", "test", ["soup", "bees"]]),
        "mode": st.sampled_from(["exact", "several"]),
        "n": st.just(3),
        "seed": st.integers(0, 2**31),
    }
)


@settings(max_examples=6)
@given(family=st.sampled_from(FAMILIES), params=grids)
def test_contract(family: str, params: dict[str, Any]) -> None:
    tokens = tests.tokenizers.tokens(family)
    few = check(task("niah_grid", **params), tokens)
    more = task("niah_grid", **{**params, "n": 5}).examples(tokens)
    assert [vars_of(e) for e in few] == [vars_of(e) for e in more[:3]]
    other = task("niah_grid", **{**params, "seed": params["seed"] + 1}).examples(tokens)
    assert [e.key() for e in few] != [e.key() for e in other]


def test_a_swapped_value_is_found_where_the_first_ones_all_begin_like_the_answer() -> None:
    params = {"lengths": [280], "depths": 3, "needles": 3, "kinds": ["names"], "mode": "several", "seed": 227}
    tokens = tests.tokenizers.tokens("smollm")
    for example in check(task("niah_grid", **params, n=3), tokens):
        assert example.corrupt["value_swap"].answer_ids != example.answer_ids


PRINT_KEYS = """
import tests.tokenizers
from interp.tasks import task
for mode in ("exact", "several"):
    grid = task("niah_grid", lengths=[300, 500], depths=2, needles=3, mode=mode)
    for e in grid.examples(tests.tokenizers.tokens("llama")):
        print(e.key(), *(t.key() for t in e.corrupt.values()), repr(e.text), sorted(e.meta.items()))
"""


def test_same_bytes_in_another_process(capsys: pytest.CaptureFixture[str]) -> None:
    there = subprocess.run(
        [sys.executable, "-c", PRINT_KEYS],
        env={"PYTHONHASHSEED": "4711", "PATH": "", "HF_HUB_OFFLINE": "1", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    exec(PRINT_KEYS, {})
    assert capsys.readouterr().out == there
    assert there.count("\n") == 24


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"lengths": 63}, "lengths is 63; take a whole number, 64 or more"),
        ({"lengths": [128, 128]}, "hold one of them twice"),
        ({"lengths": []}, "lengths is"),
        ({"depths": 0}, "depths is 0; take a whole number, 1 or more"),
        ({"depths": [0, 2]}, "take how many, or a list of numbers from 0 to 1"),
        ({"depths": "middle"}, "depths is 'middle'"),
        ({"depths": [0.5, 0.5]}, "hold one of them twice"),
        ({"needles": 0}, "needles is 0"),
        ({"mode": "some"}, "mode is 'some'; take of exact, several"),
        ({"haystacks": 5}, "5 haystacks for 4 needles; take no more than that"),
        ({"haystacks": 6, "mode": "several"}, "6 haystacks for 5 rotations"),
        ({"kinds": "nmbers"}, r"task niah_grid: no kind of needle 'nmbers' \(did you mean 'numbers'\?\)"),
        ({"n": 81}, "n is 81, and the grid has 80 cells"),
        ({"needles": 40, "haystack": "soup"}, "there are 40 haystacks, and too little prose"),
    ],
)
def test_bad_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task("niah_grid", **params)


def test_what_cannot_be_laid_out_says_so() -> None:
    with pytest.raises(UsageError, match=r"the haystack holds \d+ tokens of prose, and \d+ are asked for"):
        ask(lengths=[5000], needles=1, haystack="soup", depths=1)
    with pytest.raises(BrokenData, match="needles for prompts of 64 tokens could not be drawn, 1 in all"):
        ask(lengths=[64], needles=1, depths=1)
