"""Biographies: the text answers the question in every form, and twins change what they say they change."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args

import pytest

import tests.tokenizers
from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks import task
from interp.tasks.base import Example
from interp.tasks.biographies import Form
from interp.tasks.life_words import OneLength
from interp.tasks.pairs import data

FORMS = get_args(Form)
TABLE = data("biographies")


def ask(family: str = "smollm", **params: Any) -> list[Example]:
    return task("biographies", **params).examples(tests.tokenizers.tokens(family))


def pattern(wording: str, **words: str) -> re.Pattern[str]:
    """A wording as a regular expression: given words as they are, others any word."""
    parts = re.split(r"\{(\w+)\}", wording)
    for i in range(1, len(parts), 2):
        parts[i] = words.get(parts[i], rf"(?P<{parts[i]}>\w+)")
    return re.compile(parts[0] + "".join(p if i % 2 else re.escape(p) for i, p in enumerate(parts[1:], 1)))


def sentences(attribute: str) -> Iterator[str]:
    """All that may say an attribute."""
    known = TABLE["attributes"][attribute]
    yield from known["paraphrases"]
    for wording in known["wordings"]:
        yield from (wording["third"], wording["first"])


def read(text: str) -> tuple[str, str, dict[str, dict[str, str]], dict[str, str]]:
    """Whom and what a prompt asks about, and what it says: values by name and attribute, links by name."""
    *lives, question = text.rsplit("\n\n", 1)
    said: dict[str, dict[str, str]] = {}
    links: dict[str, str] = {}
    for life in lives[0].split("\n\n"):
        heading = re.match(r"This is (?:about|what) (\w+)(?: writes)?\.", life)
        if heading is None:
            continue  # the instruction
        name = heading[1]
        said[name] = {}
        for attribute, known in TABLE["attributes"].items():
            for sentence in sentences(attribute):
                if found := pattern(f" {sentence}", key=name).search(life):
                    assert attribute not in said[name]
                    said[name][attribute] = found["value"]
            if found := pattern(known["link"], key=name).search(life):
                links[name] = found["link"]
    for attribute, known in TABLE["attributes"].items():
        for wording in known["wordings"]:
            if found := pattern(f"Question: {wording['question']}\n").match(question):
                return found["asked"], attribute, said, links
    raise AssertionError(f"no question in {question!r}")


def answer_of(text: str) -> str:
    name, attribute, said, links = read(text)
    return said[links.get(name, name)].get(attribute, "not stated")


def words(tokens: Tokens, ids: tuple[int, ...]) -> str:
    return tokens.decode(ids).strip()


@pytest.mark.parametrize("family", ["llama", "llama3"])
@pytest.mark.parametrize("form", FORMS)
def test_the_text_answers_the_question(form: str, family: str) -> None:
    tokens = tests.tokenizers.tokens(family)
    for e in ask(family, form=form, n=12, people=4):
        assert e.text is not None
        _, attribute, said, links = read(e.text)
        assert len(said) == 4 == len(e.meta["names"]) and list(said) == e.meta["names"]
        stated = {s[attribute] for s in said.values() if attribute in s}
        told = {v for v in e.meta["values"] if v}
        assert stated == told and len(stated) == e.meta["stating"]
        assert len(links) == (2 if form == "multihop" else 0)
        unsaid = {"not stated"} if form == "unstated" else set()
        assert {words(tokens, c) for c in e.candidates} == stated | unsaid
        for kind, twin in {"": e, **e.corrupt}.items():
            assert twin.text is not None
            if kind == "needle_drop":
                assert answer_of(twin.text) == "not stated"
                continue
            assert answer_of(twin.text) == words(tokens, twin.answer_ids)
            assert twin.chance == 1 / len(twin.candidates)


@pytest.mark.parametrize("form", FORMS)
def test_spans_hold_what_they_are_called(form: str, smollm2_tokens: Tokens) -> None:
    for e in task("biographies", form=form, n=12).examples(smollm2_tokens):
        assert e.text is not None
        name, attribute, said, links = read(e.text)

        def texts(role: str, item: int | None = None, e: Example = e) -> list[tuple[str, int, int]]:
            spans = e.spans_of(role, item)
            return [(words(smollm2_tokens, e.ids[s.start : s.end]), s.item, s.hop) for s in spans]

        assert {(t, i) for t, i, _ in texts("query")} == {(name, 0)}
        (value,) = texts("value")
        assert value == (words(smollm2_tokens, e.answer_ids), 0, 0)
        heading = "key" if form == "pronoun" else "subject"
        in_headings = (
            texts("subject") if form != "pronoun" else sorted(texts("key") + texts("distractor_key"))
        )
        assert {t for t, _, _ in in_headings} == set(said)
        own = links.get(name, name)
        assert (own, 0, 0) in texts(heading)
        evidence = texts("evidence", 0)
        if form == "multihop":
            assert sorted(hop for _, _, hop in evidence) == [0, 1]
            assert texts("link") == [(own, 0, 1)] and (name, 0, 1) in texts("key")
            other = next(other for other in links if other != name)
            assert texts("distractor_link") == [(links[other], i, 1) for _, i, _ in texts("distractor_link")]
        elif not e.meta["stated"]:
            assert not evidence and len(texts("filler", 0)) == 1
        else:
            assert len(evidence) == 1 and e.answer_ids in e.candidates
            ((sentence, _, _),) = evidence
            assert said[name][attribute] in sentence and (name in sentence) == (form != "pronoun")
        others = {s[attribute] for n, s in said.items() if attribute in s and n != own}
        unsaid = {"not stated"} if form == "unstated" and e.meta["stated"] else set()
        assert {t for t, _, _ in texts("distractor_value")} == others | unsaid
        places = [i for _, i, _ in texts("distractor_value")]
        assert len(set(places)) == len(places)
        assert texts("instruction") == [] or form == "unstated"


def changed(e: Example, twin: Example) -> set[str]:
    """Roles of the tokens that a twin changes (innermost)."""
    at = [i for i, (a, b) in enumerate(zip(e.ids, twin.ids, strict=True)) if a != b]
    spans = sorted(e.spans, key=len)
    return {next(s.role for s in spans if s.start <= i < s.end) for i in at}


KINDS = {
    "standard": {"query_swap", "value_swap", "needle_drop"},
    "paraphrase": {"query_swap", "value_swap", "needle_drop"},
    "pronoun": {"query_swap", "value_swap", "needle_drop", "key_swap"},
    "multihop": {"query_swap", "value_swap", "needle_drop", "link_swap"},
}
CHANGES = {
    "query_swap": {"query"},
    "value_swap": {"value", "distractor_value"},
    "key_swap": {"key", "distractor_key"},
    "link_swap": {"link", "distractor_link"},
}


@pytest.mark.parametrize("form", list(KINDS))
def test_twins_change_what_they_name(form: str, smollm2_tokens: Tokens) -> None:
    for e in task("biographies", form=form, n=12).examples(smollm2_tokens):
        assert set(e.corrupt) == KINDS[form]
        for kind, twin in e.corrupt.items():
            if kind == "needle_drop":
                assert changed(e, twin) <= {"evidence", "key", "value"}
                assert twin.answer_ids == e.answer_ids and len(twin.spans_of("filler", 0)) == 1
                assert e.answer_ids[0] not in twin.ids
            else:
                assert changed(e, twin) == CHANGES[kind]
                assert twin.answer_ids == e.foil_ids and twin.foil_ids == e.answer_ids
                assert set(twin.candidates) == set(e.candidates)


def test_unstated_goes_both_ways(smollm2_tokens: Tokens) -> None:
    examples = task("biographies", form="unstated", n=48).examples(smollm2_tokens)
    for e in examples:
        stated = e.meta["stated"]
        unsaid = next(c for c in e.candidates if words(smollm2_tokens, c) == "not stated")
        assert (e.answer_ids == unsaid) == (not stated)
        assert set(e.corrupt) == {"query_swap", "evidence_drop" if stated else "evidence_add"}
        for kind, twin in e.corrupt.items():
            assert (twin.answer_ids == unsaid) == stated
            assert changed(e, twin) <= (
                {"query"} if kind == "query_swap" else {"evidence", "key", "value", "filler"}
            )
        # One of the two answers is always the other example's, so that both can be told apart by one difference.
        assert (e.foil_ids == unsaid) == stated and e.corrupt["query_swap"].answer_ids == e.foil_ids
    assert Counter(e.meta["stated"] for e in examples) == {True: 36, False: 12}
    assert {e.chance for e in examples} == {1 / 4}, "who always says 'not stated' scores chance"


def test_places_and_attributes_take_turns() -> None:
    examples = ask(n=48, people=4)
    assert Counter(e.meta["position"] for e in examples) == dict.fromkeys((1, 2, 3, 4), 12)
    assert (
        set(Counter(e.cluster for e in examples).values()) == {4} and len({e.cluster for e in examples}) == 12
    )
    assert {e.meta["line"] for e in examples} == {1, 2, 3, 4}
    assert len({(e.meta["position"], e.meta["foil_position"]) for e in examples}) == 12
    linked = ask(form="multihop", n=48, people=5)
    assert {e.meta["value_position"] > e.meta["position"] for e in linked} == {True, False}


@pytest.mark.parametrize(("form", "density", "stating"), [
    ("standard", 0, 2), ("standard", 0.5, 4), ("standard", 1, 7), ("multihop", 0, 2), ("multihop", 1, 5),
    ("unstated", 0, 2), ("unstated", 1, 6),
])  # fmt: skip
def test_density_is_how_many_state_it(form: str, density: float, stating: int) -> None:
    for e in ask("llama", form=form, density=density, people=7, attributes=2, n=8):
        assert e.text is not None
        _, attribute, said, _ = read(e.text)
        assert sum(attribute in s for s in said.values()) == stating == e.meta["stating"]
        assert e.chance == 1 / (stating + (form == "unstated"))
        other = {a for s in said.values() for a in s} - {attribute}
        assert len(other) == 1 and all(len(set(s) - {attribute}) == 1 for s in said.values())


@pytest.mark.parametrize("form", FORMS)
def test_shots_are_solved_and_about_other_people(form: str, smollm2_tokens: Tokens) -> None:
    for e in task("biographies", form=form, n=8, shots=2, people=4).examples(smollm2_tokens):
        assert e.text is not None
        solved = re.findall(r"Question: (.*)\nAnswer: (.*)\n\n", e.text)
        assert len(solved) == 2
        answers = []
        rest = e.text
        for _, answer in solved:
            prompt, rest = re.split(r"(?<=\nAnswer: )[^\n]*\n\n", rest, maxsplit=1)
            name, attribute, said, links = read(prompt)
            said_answer = said[links.get(name, name)].get(attribute, "not stated")
            answers.append(said_answer)
            assert answer.endswith(said_answer) and len(said) == (4 if form == "multihop" else 2)
            assert not set(said) & set(e.meta["names"])
        assert answers.count("not stated") == (form == "unstated"), "one of each kind is shown"
        assert not set(answers) & set(e.meta["values"])


def test_words_are_told_apart(smollm2_tokens: Tokens) -> None:
    pools = {name: known["values"] for name, known in TABLE["attributes"].items()}
    every = [v for pool in pools.values() for v in pool] + data("words")["names"]
    assert len(set(every)) == len(every)
    known = {word.lower() for word in every}
    fixed = [s for a in pools for s in sentences(a)] + [n[t] for n in TABLE["neutral"] for t in n]
    fixed += [TABLE["attributes"][a]["link"] for a in pools]
    for text in fixed:
        assert not known & set(re.findall(r"\w+", re.sub(r"\{\w+\}", "", text).lower())), text
    assert not [v for a in ("job", "pet") for v in pools[a] if v[0] in "aeiou"], "all of them take 'a'"
    for e in task("biographies", n=24, people=8).examples(smollm2_tokens):
        assert all(len(c) == 1 for c in e.candidates) and len(set(e.candidates)) == 8


def test_paraphrases_do_not_say_what_the_stem_says() -> None:
    for known in TABLE["attributes"].values():
        assert len(set(known["paraphrases"])) == 6
        for wording in known["wordings"]:
            before = " ".join(wording["stem"].split()[-2:])
            assert wording["third"].startswith(wording["stem"].replace("asked", "key"))
            for sentence in (*known["paraphrases"], known["link"]):
                assert f"{before} {{value}}" not in sentence.replace("{key}", "{asked}"), sentence
    for e in ask(form="paraphrase", n=24, people=6, attributes=1):
        starts = [re.sub(rf"\b({'|'.join(e.meta['names'])}|{'|'.join(e.meta['values'])})\b", "_", s) for s in
                  (e.text or "").split("\n\n")[:-1]]  # fmt: skip
        assert len(set(starts)) == 6, "each is worded in its own way"


@pytest.mark.parametrize("form", FORMS)
def test_draws_are_seldom_spoiled(form: str, smollm2_tokens: Tokens) -> None:
    made = task("biographies", form=form, n=30, people=8, density=0.5)
    made.examples(smollm2_tokens)
    assert sum(made.redraws.values()) <= 3


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"form": "rhyme"}, "form is 'rhyme'; take of standard, paraphrase, pronoun, multihop, unstated"),
        ({"people": 1}, "people is 1; take a whole number, 2 or more"),
        ({"people": 9}, "people is 9; take 8 at most"),
        ({"people": 3, "form": "multihop"}, "people is 3; take a whole number, 4 or more"),
        ({"attributes": 0}, "attributes is 0; take a whole number, 1 or more"),
        ({"attributes": 7}, "attributes is 7; take 6 at most"),
        ({"density": 1.5}, "density is 1.5; take a number from 0 to 1"),
        ({"shots": 3}, "shots is 3; take 2 at most"),
    ],
)
def test_bad_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        task("biographies", **params)


def test_a_tokenizer_without_enough_words() -> None:
    message = "3 jobs of one length are needed, and this tokenizer has 2; take fewer people or shots"
    with pytest.raises(UsageError, match=message):
        OneLength(tests.tokenizers.tokens("gpt2"), ["the", "of", "extraordinary"], 3, "jobs")
