"""Recall beyond a literal needle: what is stated, read back from the spans, gives the answer, in every twin too."""

from __future__ import annotations

import re
from itertools import permutations

import numpy as np
import pytest

import tests.tokenizers
from interp.errors import BrokenData, UsageError
from interp.measure.answers import words
from interp.tasks import task
from interp.tasks.arithmetic import in_words as number_in_words
from interp.tasks.arithmetic import to_number
from interp.tasks.base import Example, Span
from interp.tasks.multi import in_words
from interp.tasks.paraphrase import relations
from interp.tasks.reading import passages

TOKENS = tests.tokenizers.tokens("smollm")
_LITTLE = """a an and any at be been by do does for from has have he her him his i in is it its must no not of on one or
she should that the their them they this to used was were what when where which who whom with"""
FUNCTION = set(_LITTLE.split())


def text_of(example: Example, span: Span) -> str:
    assert example.text is not None and example.offsets is not None
    return example.text[example.offsets[span.start][0] : example.offsets[span.end - 1][1]].strip()


def answer_of(example: Example) -> str:
    return TOKENS.decode(example.answer_ids).strip()


def with_twins(example: Example, *without: str) -> list[Example]:
    return [example, *(t for kind, t in example.corrupt.items() if kind not in without)]


def stated(example: Example, role: str) -> dict[tuple[int, int], str]:
    """What the statements of a context hold in a role, by chain and hop."""
    found = [*example.spans_of(role), *example.spans_of(f"distractor_{role}")]
    return {(s.item, s.hop): text_of(example, s) for s in found}


def asked_for(example: Example) -> str:
    first, *others = {text_of(example, s) for s in example.spans_of("query")}
    assert not others
    return first


# -- paraphrase --------------------------------------------------------------------------------------------------------


def content(text: str) -> set[str]:
    """Content words, with word forms that begin alike taken as one."""
    return {w[:5] for w in words(text) if w not in FUNCTION}


def test_no_question_shares_a_content_word_with_its_needle() -> None:
    links = 0
    for relation in relations().values():
        assert len(set(relation.links.values())) == len(relation.links)
        for key, asked in relation.links.items():
            links += 1
            for fact in relation.facts:
                needle = content(fact.format(name="", key=key))
                for question, stem in relation.questions:
                    other = content(f"{question} {stem}".format(asked=asked))
                    shared = {a for a in needle for b in other if a.startswith(b) or b.startswith(a)}
                    assert not shared, (relation.name, key, shared)
    assert links >= 60 and len(relations()) >= 5


def test_content_words_are_told_from_function_words() -> None:
    assert content("The person who has been to Dresden is") == {"perso", "dresd"}
    assert content("bakes bread") & content("a baker's bread") == {"bread"}
    assert content("travelled") == content("travelling")


def test_the_association_gives_the_answer() -> None:
    swaps = 0
    for example in task("paraphrase", n=18, length=400, shots=0).examples(TOKENS):
        links = relations()[example.meta["relation"]].links
        for one in with_twins(example, "needle_drop"):
            keys, names = stated(one, "key"), stated(one, "value")
            assert len(names) == 4 and len(set(names.values())) == 4
            (right,) = (names[at] for at, key in keys.items() if links[key] == asked_for(one))
            assert right == answer_of(one) == names[0, 0]
        dropped = example.corrupt["needle_drop"]
        assert answer_of(example) not in dropped.text[: dropped.text.rindex("Question")]
        assert {TOKENS.decode(c).strip() for c in example.candidates} == set(
            stated(example, "value").values()
        )
        swaps += "query_swap" in example.corrupt
    assert swaps >= 12


def test_depth_is_met_by_half_a_sentence() -> None:
    for depth in (0.0, 0.3, 0.8, 1.0):
        for e in task("paraphrase", n=6, length=512, depth=depth, shots=0).examples(TOKENS):
            assert e.meta["depth_asked"] == depth
            # Sentences have up to sixty tokens here, of a context of about 480.
            assert abs(e.meta["depth"] - depth) < 0.075
            (evidence,) = e.spans_of("evidence", 0)
            body = len(TOKENS.encode(e.text[: e.text.rindex("\n\nQuestion")]).ids)
            assert e.meta["depth"] == pytest.approx(evidence.start / (body - len(evidence)), abs=0.003)


@pytest.mark.parametrize("name", ["paraphrase", "multi_value", "multi_hop"])
def test_solved_questions_are_about_other_things(name: str) -> None:
    for e in task(name, n=4, length=700, shots=2).examples(TOKENS):
        assert e.text is not None
        assert e.text.count("Question: ") == e.text.count("Answer: ") == 3
        *_, second, _ = (found.end() for found in re.finditer("Answer: ", e.text))
        lead = e.text[: e.text.index("\n\n", second)]
        for role in ("key", "value", "link"):
            for text in stated(e, role).values():
                assert not re.search(rf"\b{re.escape(text)}\b", lead)
        assert 0 <= e.meta["depth"] <= 1


# -- several values, several hops --------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [2, 3, 4])
def test_values_are_listed_in_the_order_of_the_text(values: int) -> None:
    for example in task("multi_value", n=6, length=500, values=values, others=1, shots=0).examples(TOKENS):
        for one in with_twins(example):
            own = [text_of(one, s) for s in one.spans_of("value")]
            assert [s.item for s in one.spans_of("value")] == list(range(values))
            assert answer_of(one) == in_words(own)
        said = [TOKENS.decode(c).strip() for c in example.candidates]
        assert set(said) == {in_words(p) for p in permutations(example.meta["parts"])}
        assert len(said) == len(set(said)) == round(1 / example.chance)
        assert sorted(text_of(example, s) for s in example.spans_of("value")) == sorted(example.meta["parts"])
        assert len({text_of(example, s) for s in example.spans_of("key")}) == 1
        assert text_of(example, example.spans_of("distractor_key")[0]) != example.meta["key"]


def resolve(example: Example, name: str) -> str:
    """The value of a name, by following the statements of the context."""
    keys, values, links = (stated(example, role) for role in ("key", "value", "link"))
    (at,) = (at for at, key in keys.items() if key == name)
    return values[at] if at in values else resolve(example, links[at])


@pytest.mark.parametrize("style", ["story", "variables"])
@pytest.mark.parametrize("hops", [0, 1, 2])
def test_chains_lead_to_the_answer(style: str, hops: int) -> None:
    for ask in ("value", "chain"):
        made = task("multi_hop", n=5, length=500, hops=hops, style=style, ask=ask, shots=0)
        for example in made.examples(TOKENS):
            kinds = {"needle_drop", "query_swap"} | ({"link_swap"} if hops else set())
            assert set(example.corrupt) == kinds | ({"value_swap"} if ask == "value" else set())
            for one in with_twins(example, "needle_drop"):
                keys = stated(one, "key")
                assert len(keys) == 3 * (hops + 1)
                if ask == "value":
                    assert resolve(one, asked_for(one)) == answer_of(one)
                else:
                    order = sorted(
                        (s for s in [*one.spans_of("key"), *one.spans_of("distractor_key")]),
                        key=lambda s: s.start,
                    )
                    names = [text_of(one, s) for s in order]
                    assert in_words([n for n in names if resolve(one, n) == asked_for(one)]) == answer_of(one)
            # A link stands behind what it refers to.
            starts = {(s.item, s.hop): s.start for s in example.spans if s.role in ("key", "distractor_key")}
            for chain, hop in starts:
                assert hop == 0 or starts[chain, hop] > starts[chain, hop - 1]


def test_several_keys_answer_from_the_context_alone() -> None:
    for example in task("multi_key", n=8, needles=3, length=300).examples(TOKENS):
        held = {
            text_of(example, s) for s in [*example.spans_of("value"), *example.spans_of("distractor_value")]
        }
        assert {TOKENS.decode(c).strip() for c in example.candidates} == held and len(held) == 3
        assert example.chance == pytest.approx(1 / 3)
        assert example.corrupt["value_swap"].chance == pytest.approx(1 / 4)
        assert example.corrupt["query_swap"].chance == pytest.approx(1 / 3)


# -- reading -----------------------------------------------------------------------------------------------------------


def test_every_answer_stands_once_in_its_passage() -> None:
    assert len(passages()) >= 30
    for passage in passages():
        text = " ".join(passage.sentences)
        assert 3 <= len(passage.asked) <= 4 and 3 <= len(passage.sentences) <= 5
        answers = [a.answer for a in passage.asked]
        assert len(set(answers)) == len(answers)
        for asked in passage.asked:
            assert len(re.findall(rf" {re.escape(asked.answer)}\b", text)) == 1
            assert not any(asked.answer in other for other in answers if other != asked.answer)
            assert asked.answer not in asked.question


def test_twins_of_reading_change_what_they_say() -> None:
    kinds = {"value_swap": 0, "query_swap": 0}
    for e in task("reading", n=40, shots=1).examples(TOKENS):
        (evidence,) = e.spans_of("evidence", 0)
        assert e.meta["answer"] in text_of(e, evidence)
        passage = e.text[e.text.rindex("Passage:") :]
        dropped = e.corrupt["needle_drop"]
        assert e.meta["answer"] not in dropped.text[dropped.text.rindex("Passage:") :]
        if "value_swap" in e.corrupt:
            twin = e.corrupt["value_swap"]
            assert text_of(twin, twin.spans_of("value", 0)[0]) == answer_of(twin)
            assert answer_of(twin) not in passage
            assert twin.foil_ids == e.answer_ids and twin.chance == 1 / len(set(twin.candidates))
        if "query_swap" in e.corrupt:
            assert text_of(
                e.corrupt["query_swap"], e.corrupt["query_swap"].spans_of("value", 0)[0]
            ) == answer_of(e.corrupt["query_swap"])
        for kind in kinds:
            kinds[kind] += kind in e.corrupt
    assert kinds["value_swap"] >= 25 and kinds["query_swap"] >= 5


# -- arithmetic --------------------------------------------------------------------------------------------------------


def test_numbers_in_words_and_back() -> None:
    for number in range(1000):
        assert to_number(f"so {number_in_words(number)}.") == number
    assert number_in_words(317) == "three hundred and seventeen"
    assert to_number("Add 3: 12. The answer is 12.") == 12
    assert to_number("someone, often") is None


@pytest.mark.parametrize("form", ["digits", "words"])
def test_both_styles_pose_the_same_problems(form: str) -> None:
    direct = task("arithmetic", n=12, terms=3, form=form, seed=3).examples(TOKENS)
    cot = task("arithmetic", n=12, terms=3, form=form, style="cot", seed=3).examples(TOKENS)
    for one, other in zip(direct, cot, strict=True):
        assert one.meta["terms"] == other.meta["terms"]
        own = one.text[one.text.rindex("Question") :]
        assert own == other.text[other.text.rindex("Question") :]
        assert to_number(answer_of(one)) == to_number(answer_of(other)) == sum(one.meta["terms"])
        # The steps keep a running total.
        steps = [to_number(s) for s in answer_of(other).split(". ")]
        assert steps == [*np.cumsum(one.meta["terms"])[1:], sum(one.meta["terms"])]
        for example in (one, other):
            twin = example.corrupt["value_swap"]
            terms = [to_number(text_of(twin, s)) for s in twin.spans_of("term")]
            assert to_number(answer_of(twin)) == sum(terms) == twin.meta["number"] != sum(one.meta["terms"])
            assert sum(a != b for a, b in zip(terms, one.meta["terms"], strict=True)) == 1
            assert to_number(TOKENS.decode(twin.foil_ids)) == sum(one.meta["terms"])


# -- what cannot be asked ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("paraphrase", {"relations": "sports"}, r"no relation 'sports' \(did you mean 'sport'\?\)"),
        ("paraphrase", {"depth": 2}, "depth is 2; take a number from 0 to 1"),
        ("paraphrase", {"names": 1}, "names is 1; take a whole number, 2 or more"),
        ("multi_key", {"needles": 1}, "needles is 1; take a whole number, 2 or more"),
        ("multi_value", {"values": 5}, "values is 5; take 2 to 4"),
        ("multi_value", {"kinds": "phrases"}, "no kind 'phrases'; take of names, words, numbers"),
        ("multi_hop", {"style": "tale"}, "style is 'tale'; take of variables, story"),
        ("multi_hop", {"chains": 1}, "chains is 1; take a whole number, 2 or more"),
        ("reading", {"n": 500}, "n is 500, and there are 127 questions"),
        ("reading", {"shots": 40}, "40 shots, but there are 32 passages"),
        ("arithmetic", {"style": "slow"}, "style is 'slow'; take of direct, cot"),
        ("arithmetic", {"terms": 10, "largest": 99}, "10 numbers up to 99 may add up to more than 900"),
    ],
)
def test_bad_parameters(name: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task(name, **params)


def test_too_many_names_or_too_short_a_context() -> None:
    with pytest.raises(UsageError, match="relation sport has 18 links; take fewer names"):
        task("paraphrase", relations="sport", names=19, n=1, length=2000, shots=0).examples(TOKENS)
    with pytest.raises(BrokenData, match="100 tokens leave no room for a haystack around the statements"):
        task("multi_hop", n=1, length=100).examples(TOKENS)
