"""Closed-book facts: the tables, the wordings, where an answer is scored, and the swapped subject."""

from __future__ import annotations

import re
from typing import Any

import pytest

import tests.tokenizers
from interp.errors import UsageError
from interp.models.subject import CausalLM
from interp.tasks import task
from interp.tasks.base import Example
from interp.tasks.facts import common_prefix, names, relation, wording_pieces


def ask(family: str = "smollm", **params: Any) -> list[Example]:
    return task("facts", **params).examples(tests.tokenizers.tokens(family))


def text_of(example: Example, role: str, item: int = 0) -> str:
    assert example.text is not None and example.offsets is not None
    (span,) = example.spans_of(role, item)
    return example.text[example.offsets[span.start][0] : example.offsets[span.end - 1][1]].strip()


def test_there_are_enough_relations() -> None:
    assert len(names()) >= 8
    assert sum(len(relation(name).facts) for name in names()) > 1500


@pytest.mark.parametrize("name", names(every=True))
def test_table(name: str) -> None:
    table = relation(name)
    assert 30 <= len(table.facts) <= 200
    assert len(table.templates) >= 4 and len(table.wordings) >= 6
    assert len(set(table.wordings)) == len(table.wordings)
    assert len(table.objects) >= 6
    for template in table.wordings:
        assert template.count("{s}") == 1 and len(re.findall(r"\[[^\]]+\]", template)) == 1, template
        assert template == template.strip() and "  " not in template
        assert not template.startswith("{s}"), "the first token of a text draws attention to itself"
        assert not template.endswith("{s}"), "the words after the subject ask for the object"
    for subject, answer in table.facts.items():
        assert subject == subject.strip() and answer == answer.strip() and answer
        assert not re.search(rf"\b{re.escape(answer)}\b", subject, re.IGNORECASE), f"{subject} names {answer}"
        assert answer not in table.others.get(subject, ())
    assert set(table.others) <= set(table.facts)


@pytest.mark.parametrize(
    ("name", "subject", "answer"),
    [
        ("capital", "Australia", "Canberra"),
        ("capital", "Kazakhstan", "Astana"),
        ("largest_city", "Turkey", "Istanbul"),
        ("language", "Brazil", "Portuguese"),
        ("element_symbol", "tungsten", "W"),
        ("atomic_number", "gold", "79"),
        ("us_state_capital", "New York", "Albany"),
        ("past_tense", "teach", "taught"),
    ],
)
def test_facts_that_are_often_got_wrong(name: str, subject: str, answer: str) -> None:
    assert relation(name).facts[subject] == answer


def test_tables_agree_with_each_other() -> None:
    symbols, numbers = relation("element_symbol").facts, relation("atomic_number").facts
    assert list(symbols) == list(numbers)
    assert len(set(symbols.values())) == len(set(numbers.values())) == len(symbols)
    capitals, largest = relation("capital").facts, relation("largest_city").facts
    other = {s for s in set(capitals) & set(largest) if capitals[s] != largest[s]}
    assert {"Australia", "Brazil", "Canada", "China", "Turkey", "Vietnam"} <= other
    assert len(other) < 20


def test_all_is_every_fact_in_every_wording() -> None:
    every = ask(relations="animal_young", n="all")
    table = relation("animal_young")
    assert len(every) == len(table.facts) * len(table.templates)
    assert {(e.meta["subject"], e.meta["template"]) for e in every} == {
        (s, t) for s in table.facts for t in range(len(table.templates))
    }
    assert [e.key() for e in ask(relations="animal_young")] == [e.key() for e in every]


def test_further_wordings_are_asked_on_request_only() -> None:
    # What was measured with all wordings was measured with the first ones: their numbers and draws stay.
    default = task("facts")
    assert {t for _, _, t in default._order} == set(range(5))
    assert "person_country" not in default.params["relations"] and len(default.params["relations"]) == 18
    table = relation("painter")
    assert all(e.meta["template"] < len(table.templates) for e in ask(relations="painter"))
    (asked,) = (e for e in ask(relations="painter", templates=[5]) if e.meta["subject"] == "Guernica")
    assert asked.text == "Everybody who has seen Guernica knows the name of its painter,"
    assert "Akira Kurosawa" in {e.meta["subject"] for e in ask(relations="person_country", templates=0)}


def test_spans() -> None:
    for e in ask(shots=2, n=40):
        table = relation(e.meta["relation"])
        subject, answer = e.meta["subject"], e.meta["object"]
        words = "".join(p.text for p in wording_pieces(table.templates[e.meta["template"]], subject))
        assert e.text is not None and e.text.endswith("\n" + words)
        assert text_of(e, "subject") == subject
        assert text_of(e, "relation") in words
        assert text_of(e, "query") == words
        assert e.cluster == e.group == subject
        shown = [(text_of(e, "distractor_key", i), text_of(e, "distractor_value", i)) for i in (1, 2)]
        for other, value in shown:
            assert table.facts[other] == value and other != subject and value != answer
        assert len({value for _, value in shown}) == 2
        assert e.text.count("\n") == 2


@pytest.mark.parametrize("family", list(tests.tokenizers.KINDS))
def test_scored_where_the_answer_differs_from_all_others(family: str) -> None:
    for e in ask(family, n=300):
        at = e.meta["score_at"]
        assert 0 <= at < len(e.answer_ids)
        alike = [c for c in e.candidates if c[: at + 1] == e.answer_ids[: at + 1]]
        assert e.chance == len(alike) / len(e.candidates)
        # Only a longer answer that begins with the whole of this one may be left.
        assert all(c[: len(e.answer_ids)] == e.answer_ids for c in alike)
        if at:
            assert any(c[:at] == e.answer_ids[:at] for c in e.candidates[1:]), "an earlier token would do"
        first = common_prefix(e.candidates)
        assert e.foil_ids[:first] == e.answer_ids[:first] and e.foil_ids[first] != e.answer_ids[first]


def test_a_lone_space_before_numbers_decides_nothing() -> None:
    tokens = tests.tokenizers.tokens("smollm")
    for e in ask(relations="atomic_number", n=60):
        assert tokens.decode(e.answer_ids[:1]) == " " and common_prefix(e.candidates) == 1
        assert e.meta["score_at"] >= 1
        assert tokens.decode(e.answer_ids) == " " + e.meta["object"]


def test_swapped_subject() -> None:
    with_twin = 0
    for e in ask(n=300, shots=1):
        table = relation(e.meta["relation"])
        twin = e.corrupt.get("subject_swap")
        if twin is None:
            continue
        with_twin += 1
        (span,) = e.spans_of("subject")
        changed = [i for i, (a, b) in enumerate(zip(e.ids, twin.ids, strict=True)) if a != b]
        assert span.start <= changed[0] and changed[-1] < span.end
        assert twin.meta["object"] == table.facts[twin.meta["subject"]] != e.meta["object"]
        assert text_of(twin, "subject") == twin.meta["subject"]
        assert twin.meta["object"] != text_of(e, "distractor_value", 1), "the answer is not in the prompt"
        assert twin.foil_ids == e.answer_ids
    assert with_twin > 0.9 * 300


def test_other_right_answers_are_known() -> None:
    tokens = tests.tokenizers.tokens("smollm")
    (ukraine,) = (e for e in ask(relations="capital", templates=0) if e.meta["subject"] == "Ukraine")
    assert [tokens.decode(a) for a in ukraine.alternatives] == [" Kiev"]
    assert tokens.decode(ukraine.answer_ids) == " Kyiv"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"relations": "captal"}, r"no relation 'captal' \(did you mean 'capital'\?\); take of animal_young"),
        ({"relations": []}, "relations is"),
        ({"templates": 99}, "relation animal_young has no template 99; it has 0 to"),
        ({"templates": ["first"]}, "has no template first"),
        ({"shots": -1}, "shots is -1"),
        ({"relations": "continent", "shots": 6}, "6 shots of other answers, but relation continent has 6"),
        ({"n": 0}, "n is 0"),
        ({"n": "many"}, "n is 'many'"),
        ({"relations": "capital", "n": 10_000}, r"n is 10000, and there are \d+; take fewer, or 'all'"),
    ],
)
def test_bad_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task("facts", **params)


def test_the_default_model_knows_capitals(smollm2: CausalLM) -> None:
    from interp.measure.outcomes import evaluate

    examples = task("facts", relations=["capital", "language"], n=64).examples(smollm2)
    right = evaluate(smollm2, examples, {"clean": None}).values["clean"]["accuracy"]
    assert right.mean() > 0.5
