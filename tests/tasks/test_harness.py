"""Files of other harnesses: what a line says becomes an example; what it does not say is refused with the reason."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import interp
import tests.tokenizers
from interp.cli import app
from interp.errors import BrokenData, MissingResource, UsageError
from interp.tasks.base import check_example
from interp.tasks.export import to_dataset
from interp.tasks.jsonl import write_jsonl

TOKENS = tests.tokenizers.tokens("gpt2")
PROMPT = "The pass code is 4711, as they said. What is the pass code? It is"
CHOICE = {
    "doc_id": 3,
    "doc": {"question": "..."},
    "target": "1",
    "arguments": {
        "gen_args_0": {"arg_0": "Grass is", "arg_1": " blue"},
        "gen_args_1": {"arg_0": "Grass is", "arg_1": " green"},
        "gen_args_2": {"arg_0": "Grass is", "arg_1": " loud"},
    },
    "resps": [[["-3.1", "False"]], [["-0.2", "True"]], [["-9.0", "False"]]],
    "acc": 1.0,
}
OLD = {**CHOICE, "target": 1, "arguments": [["Grass is", " blue"], ["Grass is", " green"]]}
OPEN = {"doc_id": 0, "target": "4711", "arguments": [[PROMPT, {"until": ["\n"], "max_gen_toks": 8}]]}
RULER = {
    "index": 7,
    "input": PROMPT.removesuffix(" It is"),
    "answer_prefix": " It is",
    "outputs": ["4711"],
    "length": 24,
    "token_position_answer": 5,
}


def file(tmp_path: Path, *lines: Any) -> Path:
    path = tmp_path / "file.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def one(path: Path, **how: Any) -> Any:
    (example,) = interp.task("samples", path=str(path), **how).examples(TOKENS)
    check_example(example, TOKENS)
    return example


@pytest.mark.parametrize("line", [CHOICE, OLD])
def test_a_logged_choice_has_its_candidates_and_chance(tmp_path: Path, line: dict[str, Any]) -> None:
    example = one(file(tmp_path, line))
    options = len(line["arguments"])
    assert example.text == "Grass is" and TOKENS.decode(example.answer_ids) == " green"
    assert [TOKENS.decode(c) for c in example.candidates] == [" green", " blue", " loud"][:options]
    assert TOKENS.decode(example.foil_ids) == " blue" and example.chance == pytest.approx(1 / options)
    assert example.cluster == "3"


@pytest.mark.parametrize("target", [" green", "green"])
def test_a_target_may_be_the_text_of_a_continuation(tmp_path: Path, target: str) -> None:
    assert TOKENS.decode(one(file(tmp_path, {**CHOICE, "target": target})).answer_ids) == " green"


@pytest.mark.parametrize("line", [OPEN, RULER])
def test_an_open_answer_follows_the_prompt(tmp_path: Path, line: dict[str, Any]) -> None:
    example = one(file(tmp_path, line))
    assert example.text == PROMPT and TOKENS.decode(example.answer_ids) == " 4711"
    assert not example.spans and not example.candidates


def test_several_outputs_are_one_answer_and_several_targets_are_alternatives(tmp_path: Path) -> None:
    listed = one(file(tmp_path, {**RULER, "outputs": ["4711", "12"]}))
    assert TOKENS.decode(listed.answer_ids) == " 4711, 12" and listed.meta["parts"] == ["4711", "12"]
    either = one(file(tmp_path, {**OPEN, "target": ["4711", "47 11"]}))
    assert [TOKENS.decode(a) for a in either.alternatives] == [" 47 11"]


@pytest.mark.parametrize(
    ("line", "why"), [(OPEN, "logs the prompt and no offsets"), (RULER, "counts tokens of another tokenizer")]
)
def test_spans_are_taken_where_they_are_told_and_else_refused(
    tmp_path: Path, line: dict[str, Any], why: str
) -> None:
    start = PROMPT.index("4711")
    told = {**line, "spans": [{"start": start, "end": start + 4, "role": "value", "item": 0}]}
    example = one(file(tmp_path, told), spans=True)
    (value,) = example.spans_of("value", 0)
    assert TOKENS.decode(example.ids[value.start : value.end]).strip() == "4711"
    made = interp.task("samples", path=str(file(tmp_path, told)))
    assert made.examples(TOKENS) and made.copies
    with pytest.raises(BrokenData, match=rf"line 2: it does not say where the answer stands.*{why}"):
        interp.task("samples", path=str(file(tmp_path, told, line)), spans=True)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({**CHOICE, "target": "7"}, "target 7 names none of the 3 continuations"),
        ({**CHOICE, "target": "purple"}, "target 'purple' names none"),
        ({**CHOICE, "arguments": [["a", " b"], ["c", " d"]]}, "2 requests have 2 contexts"),
        ({**CHOICE, "arguments": {}}, "no request"),
        ({"arguments": [["a", {"until": []}]]}, "'target' is missing"),
        ({**RULER, "outputs": []}, "'outputs' is empty"),
        ({"outputs": ["x"]}, "'input' is missing"),
        ({"question": "x"}, "neither a sample of lm-evaluation-harness"),
        (["x"], "neither a sample"),
    ],
)
def test_a_line_of_another_shape_is_named(tmp_path: Path, line: Any, says: str) -> None:
    with pytest.raises(BrokenData, match=r"file\.jsonl, line 1:.*" + says):
        interp.task("samples", path=str(file(tmp_path, line)))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokenData, match="no line in it"):
        interp.task("samples", path=str(file(tmp_path)))
    with pytest.raises(UsageError, match="no shape 'xml'; take of lm_eval, ruler"):
        interp.task("samples", path=str(file(tmp_path, RULER)), shape="xml")
    with pytest.raises(UsageError, match="reads a file"):
        interp.task("samples")
    with pytest.raises(BrokenData, match="line 1: a document is an object"):
        interp.task("samples", path=str(file(tmp_path, 3)), shape="ruler")
    two = interp.task("samples", path=str(file(tmp_path, RULER, RULER)), n=1)
    assert (
        len(two) == 1 and two.config() != interp.task("samples", path=str(file(tmp_path, OPEN)), n=1).config()
    )


def test_a_written_file_of_samples_is_a_task_again(tmp_path: Path) -> None:
    example = one(file(tmp_path, CHOICE))
    (again,) = interp.task(write_jsonl([example], TOKENS, tmp_path / "again.jsonl")).examples(TOKENS)
    assert again.key() == example.key() and again.chance == pytest.approx(example.chance)


def test_examples_become_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = interp.task("multi_key", length=300, needles=2, n=3)
    rows = to_dataset(made, TOKENS)
    assert len(rows) == 3
    for row, example in zip(rows, made.examples(TOKENS), strict=True):
        assert row["prompt"] == example.text and row["chance"] == example.chance
        assert len(row["spans"]) == len(example.spans)
        assert set(json.loads(row["corrupt"])) == set(example.corrupt)
        assert json.loads(row["meta"])["depth"] == example.meta["depth"]
    with pytest.raises(BrokenData, match="no example"):
        to_dataset([], TOKENS)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingResource, match="pip install datasets"):
        to_dataset(made, TOKENS)


def test_export_writes_what_reads_back(tmp_path: Path) -> None:
    TOKENS.hf.save_pretrained(tmp_path / "tokenizer")
    asked = ["--model", str(tmp_path / "tokenizer"), "-n", "3", "--set", "length=12"]
    done = CliRunner().invoke(
        app, ["tasks", "export", "induction", "--out", str(tmp_path / "x.jsonl"), *asked]
    )
    assert done.exit_code == 0, done.output
    wanted = [e.key() for e in interp.task("induction", n=3, length=12).examples(TOKENS)]
    assert [e.key() for e in interp.task(tmp_path / "x.jsonl").examples(TOKENS)] == wanted
    done = CliRunner().invoke(app, ["tasks", "export", "induction", "--out", str(tmp_path / "set"), *asked])
    assert done.exit_code == 0, done.output
    from datasets import load_from_disk

    assert len(load_from_disk(str(tmp_path / "set"))) == 3
