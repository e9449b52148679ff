"""A user's own examples from a file: read, refused with the line's number, and written back the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.tokenizers
from interp.errors import BrokenData, MissingResource, UsageError
from interp.tasks import task
from interp.tasks.base import Example, Span, check_example
from interp.tasks.jsonl import write_jsonl

GOOD: dict[str, Any] = {
    "prompt": "Ann has a cat. Bob has a dog. Ann has a",
    "answer": " cat",
    "foil": " dog",
    "candidates": [" dog", " cat"],
    "alternatives": [" kitten"],
    "spans": [
        {"start": 0, "end": 3, "role": "key"},
        {"start": 9, "end": 13, "role": "value", "item": 0},
        {"start": 15, "end": 18, "role": "distractor_key", "item": 1},
    ],
    "cluster": "pets",
    "group": "ann",
    "meta": {"animals": 2},
    "corrupt": {"value_swap": {"prompt": "Ann has a dog. Bob has a dog. Ann has a", "answer": " dog"}},
}
TOKENS = tests.tokenizers.tokens("smollm")


def write(path: Path, *records: Any) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n", "utf-8")
    return path


def changed(**fields: Any) -> dict[str, Any]:
    return {k: v for k, v in {**GOOD, **fields}.items() if v is not None}


@pytest.mark.parametrize("family", list(tests.tokenizers.KINDS))
def test_a_line_is_an_example(tmp_path: Path, family: str) -> None:
    tokens = tests.tokenizers.tokens(family)
    made = task(str(write(tmp_path / "mine.jsonl", GOOD, "", changed(corrupt=None))))
    e, plain = made.examples(tokens)
    check_example(e, tokens, copies=True)
    assert made.copies and len(made) == 2 and e.task == "jsonl"
    assert e.text == GOOD["prompt"] and e.ids == tokens.encode(GOOD["prompt"]).ids
    assert tokens.decode(e.ids + e.answer_ids).endswith("Ann has a cat")
    assert [(s.role, s.item) for s in e.spans] == [("key", 0), ("value", 0), ("distractor_key", 1)]
    assert e.candidates == (e.answer_ids, e.foil_ids) and e.chance == 0.5
    assert len(e.alternatives) == 1 and e.cluster == "pets" and e.group == "ann" and e.meta["animals"] == 2
    twin = e.corrupt["value_swap"]
    assert twin.answer_ids == e.foil_ids and twin.foil_ids == e.answer_ids and twin.spans == e.spans
    assert twin.candidates == (e.foil_ids, e.answer_ids) and not twin.alternatives
    assert not plain.corrupt and plain.key() == e.key()


def test_the_least_a_line_needs(tmp_path: Path) -> None:
    (e,) = task(write(tmp_path / "a.jsonl", {"prompt": "Two and two are", "answer": " four"})).examples(
        TOKENS
    )
    assert e.chance == 1 / TOKENS.n_vocab and not e.candidates and not e.spans
    made = task(write(tmp_path / "b.jsonl", GOOD, GOOD, GOOD), n=2)
    assert len(made.examples(TOKENS)) == 2


def test_a_twin_keeps_what_it_does_not_name(tmp_path: Path) -> None:
    twin = {"prompt": "Ann has a dog. Bob has a dog. Ann has a"}
    (e,) = task(write(tmp_path / "a.jsonl", changed(corrupt={"drop": twin}))).examples(TOKENS)
    drop = e.corrupt["drop"]
    assert (drop.answer_ids, drop.foil_ids, drop.candidates) == (e.answer_ids, e.foil_ids, e.candidates)
    assert drop.alternatives == e.alternatives and drop.cluster == "pets"


BAD: list[tuple[Any, str]] = [
    ('{"prompt": "a", ', r"not JSON: .* at column \d+"),
    ("[1]", r"an example is a JSON object"),
    (changed(answer=None), "'answer' is missing"),
    ({"answer": " b"}, "'prompt' is missing"),
    (changed(propmt="x"), "unknown field 'propmt'; known are prompt, answer"),
    (changed(prompt=3), "'prompt' takes a string"),
    (changed(spans={"start": 0}), "'spans' takes a list"),
    (changed(spans=[{"start": 0, "end": 3}]), "a span takes start, end, role"),
    (changed(spans=[{"start": 0, "end": 3.5, "role": "key"}]), "a span has whole numbers and a role"),
    (
        changed(spans=[{"start": 9, "end": 99, "role": "value"}]),
        r"span 9:99 \(value\) lies outside the prompt of 39 characters",
    ),
    (changed(spans=[{"start": 4, "end": 4, "role": "value"}]), r"span 4:4 \(value\) lies outside"),
    (
        changed(spans=[{"start": 0, "end": 8, "role": "key"}, {"start": 4, "end": 9, "role": "key"}]),
        "of one role overlap",
    ),
    (changed(answer="cat"), "'cat' does not start a token of its own behind the prompt; end the prompt without"),
    (changed(answer=""), "does not start a token of its own"),
    (changed(candidates=[" dog", " horse"]), "the answer is not among the candidates"),
    (changed(candidates=[" cat", " dog", " dog"]), "two candidates are the same"),
    (changed(candidates=[" cat", 4]), "'candidates' takes text, not 4"),
    (changed(foil=" cat"), "the foil is a right answer"),
    (changed(chance=0), "chance is 0.0, not in"),
    (changed(chance="half"), "'chance' takes a number"),
    (changed(corrupt={"swap": {"answer": " dog"}}), "corruption swap takes an object with 'prompt'"),
    (changed(corrupt={"swap": {"prompt": "Ann has a", "answer": " dog"}}), "swap has 5 tokens, the clean prompt 20"),
    (changed(corrupt={"swap": {"prompt": GOOD["prompt"]}}), "corruption swap changes nothing"),
    (changed(corrupt={"swap": {"prompt": "Ann has a cat. Bob has a cat. Ann has a"}}), "outside the declared"),
    (changed(corrupt={"swap": {"prompt": GOOD["prompt"], "corrupt": {}}}), "swap: unknown field 'corrupt'"),
    ({"ids": [1, 2], "answer_ids": [3], "tokenizer": "0123"}, "its ids belong to tokenizer 0123"),
    ({"ids": [1, 99999], "answer_ids": [3]}, r"ids are whole numbers from 0 to \d+"),
    ({"ids": [1, 2]}, "'answer_ids' is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "message"), BAD)
def test_a_broken_line_is_named(tmp_path: Path, record: Any, message: str) -> None:
    path = write(tmp_path / "mine.jsonl", GOOD, "", record, GOOD)
    with pytest.raises(BrokenData, match=rf"mine\.jsonl, line 3: .*{message}"):
        task(path).examples(TOKENS)


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match=r"none\.jsonl cannot be read: No such file"):
        task(tmp_path / "none.jsonl")
    with pytest.raises(BrokenData, match=r"empty\.jsonl holds no example"):
        task(write(tmp_path / "empty.jsonl", "", ""))
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}')
    with pytest.raises(BrokenData, match=r"latin\.jsonl is not UTF-8 text \(byte 15\)"):
        task(tmp_path / "latin.jsonl")
    with pytest.raises(UsageError, match="has no parameter 'length'; it has n, seed"):
        task(tmp_path / "none.jsonl", length=3)


def test_config_knows_the_data(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD)
    before = task(path).config()
    write(path, changed(foil=None))
    assert task(path).config()["data"] != before["data"]


def state(example: Example) -> dict[str, Any]:
    out = {**vars(example), "corrupt": {k: state(t) for k, t in example.corrupt.items()}}
    return {**out, "meta": {k: list(v) if isinstance(v, tuple) else v for k, v in example.meta.items()}}


@pytest.mark.parametrize("family", list(tests.tokenizers.KINDS))
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("niah", {"length": 150, "needles": 2, "n": 4}),
        ("facts", {"n": 15, "shots": 1}),
        ("induction", {"n": 4, "n_answer": 2}),
        ("prose", {"n": 4, "prompt": 40, "answer": 20}),
    ],
)
def test_written_examples_read_back_the_same(
    tmp_path: Path, family: str, name: str, params: dict[str, Any]
) -> None:
    tokens = tests.tokenizers.tokens(family)
    examples = task(name, **params).examples(tokens)
    path = write_jsonl(examples, tokens, tmp_path / "out.jsonl")
    again = task(path).examples(tokens)
    assert [state(e) for e in again] == [
        state(e) if e.text is not None and b.text is not None else {**state(b)}
        for e, b in zip(examples, again, strict=True)
    ]
    assert [e.key() for e in again] == [e.key() for e in examples]
    assert [e.full_ids for e in again] == [e.full_ids for e in examples]
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    if name in ("niah", "facts"):
        assert all("prompt" in line for line in lines), "text where text says it all"
    if name == "induction":
        assert all("ids" in line for line in lines)
    assert write_jsonl(again, tokens, tmp_path / "twice.jsonl").read_bytes() == path.read_bytes()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@settings(max_examples=60)
@given(
    words=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=12), min_size=2, max_size=8
    ),
    family=st.sampled_from(list(tests.tokenizers.KINDS)),
)
def test_any_text_reads_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], family: str
) -> None:
    """Whatever the text, as text or as ids: what is written is what is read."""
    tokens = tests.tokenizers.tokens(family)
    prompt = "a " + " ".join(words[:-1])
    encoded = tokens.encode(prompt)
    answer = tokens.encode("b" + words[-1]).ids[-1:]
    spans = (Span(0, 1, "key", 0), Span(len(encoded) - 1, len(encoded), "query", 2, 1))
    example = Example(
        "mine",
        encoded.ids,
        answer,
        prompt,
        encoded.offsets,
        spans,
        chance=0.25,
        cluster="c\n",
        meta={"x": prompt},
    )
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    (again,) = task(write_jsonl([example], tokens, path)).examples(tokens)
    assert again.key() == example.key()
    assert again.meta["x"] == prompt and again.cluster == "c\n" and again.task == "mine"
    assert again.text in (prompt, None)


def test_an_unwritable_place(tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match=r"out\.jsonl cannot be written"):
        write_jsonl(
            task(write(tmp_path / "a.jsonl", GOOD)).examples(TOKENS), TOKENS, tmp_path / "no" / "out.jsonl"
        )
