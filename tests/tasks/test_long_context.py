"""Passkey, RULER's needles, variable tracking and kinship: what is asked, and that the text says what the answer is."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

import tests.tokenizers
from interp.errors import BrokenData, UsageError
from interp.tasks import task
from interp.tasks.base import Example, Span
from interp.tasks.kinship import MOST_STEPS
from interp.tasks.noise import verses
from interp.tasks.pairs import data
from interp.tasks.ruler import SETTINGS, ruler_data
from interp.tasks.tracking import made_up

TOKENS = tests.tokenizers.tokens("smollm")


def ask(name: str, **params: Any) -> list[Example]:
    return task(name, **{"n": 6, **params}).examples(TOKENS)


def said(example: Example, span: Span) -> str:
    return TOKENS.decode(example.ids[span.start : span.end]).strip()


def spans(example: Example, role: str, item: int | None = None) -> list[str]:
    return [said(example, s) for s in example.spans_of(role, item)]


def answer(example: Example) -> str:
    return TOKENS.decode(example.answer_ids).strip()


def context(example: Example) -> str:
    """The text before the last question, without solved questions."""
    assert example.text is not None
    before = example.text[: example.text.rindex("\n\nQuestion: ")]
    solved = list(re.finditer(r"\nAnswer: .*\n\n", before))
    return before[solved[-1].end() :] if solved else before


# Passkey.


@pytest.mark.parametrize("digits", [3, 5])
def test_the_passkey_stands_in_its_sentence_twice(digits: int) -> None:
    for e in ask("passkey", length=256, digits=digits, n=8):
        found = re.findall(r"\d+", context(e))
        assert found == [answer(e)] * 2
        assert len(answer(e)) == digits
        assert spans(e, "value", 0) == found
        (evidence,) = spans(e, "evidence", 0)
        assert evidence == f"The pass key is {found[0]}. Keep it in mind: {found[0]} is the pass key."
        assert spans(e, "query") == ["pass key"]
        assert len(e.candidates) == 10 and e.chance == 0.1
        (swap, drop) = e.corrupt["value_swap"], e.corrupt["needle_drop"]
        assert re.findall(r"\d+", context(swap)) == [answer(swap)] * 2 != found
        assert swap.answer_ids == e.foil_ids and swap.foil_ids == e.answer_ids
        assert not re.search(r"\d", context(drop)) and drop.answer_ids == e.answer_ids


def test_noise_is_one_set_of_sentences_over_and_over() -> None:
    for e in ask("passkey", length=300):
        body = context(e).split("\n\n", 1)[1]
        own = {s.text for s in verses()[e.cluster]}
        assert e.meta["haystack"] == [e.cluster]
        assert min(body.count(text) for text in own) >= 3
        assert not any(s.text in body for name, v in verses().items() if name != e.cluster for s in v)


def test_depths_of_the_passkey_and_its_length() -> None:
    for length in (128, 512):
        examples = ask("passkey", length=length, depth=[0, 0.5, 1], n=6)
        for e, depth in zip(examples, [0, 0.5, 1] * 2, strict=True):
            assert abs(e.meta["depth"] - depth) < 0.12
            assert 0 <= length - len(e.ids) <= 2
            assert e.meta["distance"] == len(e.ids) - 1 - e.spans_of("value", 0)[0].start


# RULER.


def parsed(e: Example, setting: str, index: int) -> list[tuple[str, str]]:
    """Keys and values of all needles, in the order of the text."""
    wordings = ruler_data()["wordings"]
    fact = wordings[index % len(wordings)]["fact_one" if SETTINGS[setting].asked == "all" else "fact"]
    what = ruler_data()[SETTINGS[setting].values]
    key = r"(the \w+ \w+|[0-9a-f-]{36})"
    value = r"(\d{7}|[0-9a-f-]{36})"
    pattern = re.escape(fact.replace("{what}", what)).replace(r"\{key\}", key)
    return re.findall(pattern.replace(r"\{value\}", value), context(e))


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_ruler(setting: str) -> None:
    what = SETTINGS[setting]
    for index, e in enumerate(ask("ruler_niah", setting=setting, length=512, n=6)):
        assert e.meta["setting"] == setting
        needles = parsed(e, setting, index)
        held = dict(needles)
        count = e.meta["needles"]
        assert len(needles) == count
        assert count == what.needles or (what.needles == 0 and count >= 3)
        asked = spans(e, "query")
        if what.asked == "one":
            assert answer(e) == held[asked[0]]
            assert len(held) == len(set(held.values())) == count
            assert len(e.candidates) == (10 if count == 1 else count)
            in_context = {answer(e), *spans(e, "distractor_value")}
            assert in_context == set(held.values())
        elif what.asked == "all":
            assert set(asked) == {needles[0][0]} and len(set(k for k, _ in needles)) == 1
            assert re.split(", | and ", answer(e)) == [v for _, v in needles]
            assert len(e.candidates) == 24
        else:
            assert re.split(", | and ", answer(e)) == [held[k] for k in asked]
            assert [spans(e, "key", i) for i in range(4)] == [[k] for k in asked]
            assert len(e.candidates) == 24
        assert all(
            re.fullmatch(r"\d{7}" if what.values == "numbers" else r"[0-9a-f-]{36}", v) for v in held.values()
        )


@pytest.mark.parametrize("setting", SETTINGS)
def test_twins_of_ruler(setting: str) -> None:
    what = SETTINGS[setting]
    for index, e in enumerate(ask("ruler_niah", setting=setting, length=512, n=3)):
        swap = parsed(e.corrupt["value_swap"], setting, index)
        clean = parsed(e, setting, index)
        if what.asked == "one":
            changed = [(a, b) for a, b in zip(clean, swap, strict=True) if a != b]
            assert len(changed) == 1 and changed[0][0][1] == answer(e)
            assert changed[0][1][1] == answer(e.corrupt["value_swap"])
            drop = e.corrupt["needle_drop"]
            assert parsed(drop, setting, index) == [n for n in clean if n[1] != answer(e)]
        else:
            assert sorted(v for _, v in swap) == sorted(v for _, v in clean) and swap != clean
            assert set(e.corrupt) == {"value_swap", *(["query_swap"] if what.asked == "each" else [])}
        if "query_swap" in e.corrupt:
            twin = e.corrupt["query_swap"]
            asked = spans(twin, "query")
            assert parsed(twin, setting, index) == clean and asked != spans(e, "query")
            held = dict(clean)
            assert (
                re.split(", | and ", answer(twin))
                == [held[k] for k in asked][: 4 if what.asked == "each" else 1]
            )


def test_needles_fill_the_text_where_they_are_the_haystack() -> None:
    short, long = (ask("ruler_niah", setting="multikey_2", length=n)[0] for n in (300, 900))
    assert long.meta["needles"] > 2.5 * short.meta["needles"]
    inside = sum(len(s) for role in ("evidence", "distractor") for s in long.spans_of(role))
    assert inside > 0.8 * len(long.ids)
    with pytest.raises(BrokenData, match="leave no room for a second needle"):
        ask("ruler_niah", setting="multikey_3", length=128)


# Variable tracking.


def chains(e: Example) -> dict[str, str]:
    """What every variable comes to, by following the assignments."""
    given = dict(re.findall(r"VAR (\w+) = (\d+|VAR \w+)\.", context(e)))
    out = {}
    for name in given:
        value = given[name]
        while value.startswith("VAR "):
            value = given[value[4:]]
        out[name] = value
    return out


@pytest.mark.parametrize("names", ["words", "letters"])
@pytest.mark.parametrize("hops", [0, 2, 4])
def test_variables_come_to_their_values(names: str, hops: int) -> None:
    for e in ask("variable_tracking", length=900, hops=hops, names=names, n=4):
        comes_to = chains(e)
        (asked,) = set(spans(e, "query"))
        assert comes_to[asked] == answer(e)
        assert len(comes_to) == 3 * (hops + 1) and Counter(comes_to.values()).most_common()[-1][1] == hops + 1
        assert {TOKENS.decode(c).strip() for c in e.candidates} == set(comes_to.values())
        assert e.chance == pytest.approx(1 / 3)
        assert [s.hop for s in e.spans_of("evidence", 0)] == list(range(hops + 1))
        assert all(re.fullmatch("[A-Z]{5}" if names == "letters" else "[a-z]+", v) for v in comes_to)
        for kind in ("value_swap", "query_swap", *(["link_swap"] if hops else [])):
            twin = e.corrupt[kind]
            assert chains(twin)[spans(twin, "query")[0]] == answer(twin) != answer(e)


def test_all_variables_of_a_value() -> None:
    for e in ask("variable_tracking", length=500, ask="chain", n=4):
        (value,) = set(spans(e, "query"))
        own = [name for name, comes_to in chains(e).items() if comes_to == value]
        assert re.split(", | and ", answer(e)) == own


def test_made_up_names_are_the_same_everywhere() -> None:
    assert len(made_up()) > 590 and made_up()[:2] == (made_up()[0], made_up()[1])
    assert all(re.fullmatch("[A-Z]{5}", name) for name in made_up())


# Kinship.

TERMS = {"mother": 1, "father": 1, "grandmother": 2, "grandfather": 2}


def parents(e: Example) -> dict[str, tuple[str, int]]:
    """Who is the forebear of whom, and by how many generations, as the sentences say."""
    out = {}
    for fact in data("kinship")["facts"]:
        names = {"elder": r"(?P<elder>\w+)", "younger": r"(?P<younger>\w+)", "term": r"(?P<term>\w+)"}
        pattern = re.escape(fact).replace(r"\{", "{").replace(r"\}", "}").format(**names)
        for m in re.finditer(pattern, context(e)):
            assert m["younger"] not in out
            out[m["younger"]] = m["elder"], TERMS[m["term"]]
    return out


def solved(e: Example, how: str) -> str:
    above = parents(e)
    (person,) = set(spans(e, "query"))
    if how == "eldest":
        while person in above:
            person = above[person][0]
        return person
    below = {elder: (younger, n) for younger, (elder, n) in above.items()}
    left, step = e.meta.get("generations", 0), above if how == "ancestor" else below
    while left > 0:
        person, by = step[person]
        left -= by
    assert left == 0 and person in step  # the line goes on
    return person


@pytest.mark.parametrize("how", ["eldest", "ancestor", "descendant"])
@pytest.mark.parametrize("prose", [None, 400])
def test_relatives_are_found_by_the_sentences(how: str, prose: int | None) -> None:
    for steps in (1, 3):
        shots = 0 if prose else 1
        for e in ask("kinship", ask=how, steps=steps, grandparents=True, length=prose, shots=shots, n=6):
            assert solved(e, how) == answer(e)
            assert (
                f"{data('kinship')['numbers'][e.meta['generations'] - 1]} from" in str(e.text)
                or how == "eldest"
            )
            links = steps + (how != "eldest")
            assert len(parents(e)) == 2 * links
            persons = {*parents(e), *(elder for elder, _ in parents(e).values())}
            assert len(persons) == e.meta["persons"] == 2 * (links + 1)
            assert {TOKENS.decode(c).strip() for c in e.candidates} == persons - set(spans(e, "query"))
            assert e.chance == 1 / (len(persons) - 1)
            assert sorted(s.hop for s in e.spans_of("evidence", 0)) == list(range(steps))
            assert set(e.corrupt) == {
                "value_swap",
                "query_swap",
                "needle_drop",
                *(["link_swap"] if steps > 1 else []),
            }
            for kind in set(e.corrupt) - {"needle_drop"}:
                twin = e.corrupt[kind]
                meta = {**twin.meta, "generations": e.meta["generations"]}
                object.__setattr__(twin, "meta", meta)
                assert solved(twin, how) == answer(twin) != answer(e)
            other = e.corrupt["query_swap"].answer_ids
            column = next(c for c in zip(*e.candidates, strict=False) if len(set(c)) > 1)
            alike = column[0] == column[e.candidates.index(other)]
            assert (e.foil_ids == other) != alike
            dropped = parents(e.corrupt["needle_drop"])
            assert dict(dropped.items() - parents(e).items()) == {} and len(dropped) == 2 * links - 1


def test_terms_agree_with_names_and_places_are_spread() -> None:
    people = data("kinship")
    assert not set(people["women"]) & set(people["men"])
    examples = ask("kinship", steps=3, families=3, shots=0, n=60)
    for e in examples:
        for elder, by in parents(e).values():
            term = people["terms"]["women" if elder in people["women"] else "men"][by - 1]
            assert re.search(rf"{term}\b", context(e))
    places = Counter(e.meta["position"] for e in examples)
    assert set(places) == set(range(1, 10)) and max(places.values()) < 18
    assert len({e.cluster for e in examples}) == 60


def test_hops_lead_from_the_person_asked_about_to_the_answer() -> None:
    for e in ask("kinship", steps=4, ask="ancestor", n=4):
        at = spans(e, "query")[0]
        for hop in (3, 2, 1, 0):
            (key,) = (said(e, s) for s in e.spans_of("key", 0) if s.hop == hop)
            (on,) = (said(e, s) for s in e.spans_of("link" if hop else "value", 0) if s.hop == hop)
            assert key == at
            at = on
        assert at == answer(e)
        assert np.isclose(e.meta["hops"], 3)


# Errors.


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("passkey", {"digits": 1}, "digits is 1; take a whole number, 2 or more"),
        ("passkey", {"depth": 2}, "task passkey: depth is 2; take a number from 0 to 1"),
        ("passkey", {"length": 10}, "length is 10"),
        ("ruler_niah", {"setting": "multikey1"}, "no setting 'multikey1' .did you mean 'multikey_1'"),
        ("ruler_niah", {"haystack": "hay"}, "no haystack 'hay'"),
        ("variable_tracking", {"names": "greek"}, "names is 'greek'; take of words, letters"),
        ("variable_tracking", {"ask": "all"}, "task variable_tracking: ask is 'all'; take of value, chain"),
        ("variable_tracking", {"chains": 1}, "chains is 1"),
        ("kinship", {"ask": "cousin"}, "ask is 'cousin'; take of eldest, ancestor, descendant"),
        ("kinship", {"steps": MOST_STEPS + 1}, "9 steps in 2 families; take 8 of each at most"),
        ("kinship", {"families": 1}, "families is 1; take a whole number, 2 or more"),
    ],
)
def test_bad_parameters(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task(name, **params)


@pytest.mark.parametrize("name", ["passkey", "ruler_niah", "variable_tracking", "kinship"])
def test_a_task_can_be_made_again_from_its_configuration(name: str) -> None:
    made = task(name, n=2, seed=3)
    config = made.config()
    again = task(config.pop("task"), **config)
    assert [e.key() for e in again.examples(TOKENS)] == [e.key() for e in made.examples(TOKENS)]
