"""The run of the tasks on a tiny model: its tables against direct measurements, and the whole of it gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import interp
from interp.cli import app
from interp.cli import recall as command
from interp.measure.effects import at_chance
from interp.measure.outcomes import evaluate
from interp.measure.recall_curves import curve
from interp.measure.staleness import choices, stale_rank
from interp.measure.stats import bootstrap_ci, proportion_ci
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens
from interp.studies.recall import study
from interp.studies.recall.spec import GRID, RecallSpec, Rung, natural
from interp.studies.recall.tables import axis_of, curves_table, rungs_table
from interp.tasks.induction import Induction
from interp.tasks.registry import NAMES
from tests.tiny import byte_tokenizer, tiny
from tests.tokenizers import tokens

LADDERS: dict[str, Any] = {"induction": {"length": (8, 32, 4000), "n_answer": (1, 2)}}
SMALL: dict[str, Any] = {"model": "tiny", "tasks": ("induction",), "n": 5, "seed": 3, "ladders": LADDERS}


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(tiny("llama"), Tokens(byte_tokenizer()), name="tiny")


@pytest.fixture(scope="module")
def folder(model: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left alone."""
    out = tmp_path_factory.mktemp("recall") / "run"
    job = study.run(RecallSpec(**SMALL), out, subject=model)
    # The default length and the default number of answer tokens are one question, asked once.
    assert job.done == [
        "parts/00-induction-length-0", "parts/00-induction-length-1", "parts/00-induction-length-2",
        "parts/00-induction-n_answer-1",
    ]  # fmt: skip
    return out


def table(folder: Path, name: str = "recall") -> pd.DataFrame:
    return pd.read_parquet(folder / f"{name}.parquet")


# -- a run -----------------------------------------------------------------------------------------------------------


def test_a_rung_says_what_a_direct_measurement_says(model: CausalLM, folder: Path) -> None:
    rows = table(folder)
    assert rows["size"].tolist() == ["8", "32", "4000", "1", "2"]
    examples = Induction(length=8, n=5, seed=3).examples(model)
    found = evaluate(model, examples, {"clean": None})
    row, values = rows.iloc[0], found.values["clean"]
    for metric in ("accuracy", "choice"):
        assert row[metric] == values[metric].mean()
        assert (row[f"{metric}_lo"], row[f"{metric}_hi"]) == proportion_ci(values[metric], found.clusters)
    assert row["logit_diff"] == pytest.approx(values["logit_diff"].mean())
    ends = bootstrap_ci(values["logit_diff"], found.clusters, seed=3)
    assert (row["logit_diff_lo"], row["logit_diff_hi"]) == pytest.approx(ends)
    assert row["chance"] == pytest.approx(np.mean([e.chance for e in examples])) and row["n"] == 5
    assert row["tokens"] == np.mean([len(e.ids) for e in examples])
    assert (row["status"] == "at chance") == at_chance(found) and row["judged"] == "choice"
    assert row["guess"] == row["chance"], "no two candidates share a token"
    assert row["family"] == "associative recall" and row["at"] == 8


def test_the_default_size_is_one_question_in_both_ladders(folder: Path) -> None:
    rows = table(folder).set_index(["param", "size"])
    about = ["rung", "at"]
    pd.testing.assert_series_equal(
        rows.loc[("length", "32")].drop(about), rows.loc[("n_answer", "1")].drop(about), check_names=False
    )


def test_what_does_not_fit_is_not_asked_and_says_why(folder: Path) -> None:
    row = table(folder).iloc[2]
    assert row["status"] == "not asked" and row["n"] == 0 and np.isnan(row["accuracy"])
    assert "this tokenizer has 255" in row["reason"]
    (remark,) = json.loads((folder / "provenance.json").read_text())["remarks"]
    assert remark.startswith("induction length=4000: ")
    assert "this tokenizer has 255" in (folder / "report.html").read_text()


def test_curves_are_of_the_examples_of_one_ladder(folder: Path) -> None:
    curves = table(folder, "recall_curves")
    assert set(curves["axis"]) == {"length", "distance", "other sizes"}
    own = curves[(curves["by"] == "length") & (curves["metric"] == "choice")]
    rows = table(folder).iloc[:2]
    assert own["x"].tolist() == [8, 32] and own["value"].tolist() == rows["choice"].tolist()
    assert own["chance"].tolist() == pytest.approx(rows["chance"].tolist())
    parts = [pd.read_parquet(folder / f"parts/00-induction-length-{i}.parquet") for i in (0, 1)]
    told = curves[
        (curves["by"] == "distance") & (curves["metric"] == "choice") & (curves["task"] == "induction")
    ]
    wanted = curve(pd.concat(parts), "distance", "choice", bins=5, seed=3)
    assert told["value"].tolist() == wanted["value"].tolist() and told["n"].sum() == 10


def test_a_run_goes_on_where_it_stopped(model: CausalLM, folder: Path) -> None:
    before = table(folder)
    (folder / "parts/00-induction-n_answer-1.parquet").unlink()
    (folder / "recall.parquet").unlink()
    told: list[tuple[int, int, str]] = []

    class Stage:
        def __init__(self, name: str):
            self.name = name

        def __enter__(self) -> Any:
            return lambda *done: told.append(done)

        def __exit__(self, *why: object) -> None:
            pass

    job = study.run(RecallSpec(**SMALL), folder, subject=model, stage=Stage)  # type: ignore[arg-type]
    assert job.done == ["parts/00-induction-n_answer-1"] and len(job.skipped) == 3
    pd.testing.assert_frame_equal(table(folder), before)
    assert told[-1] == (400, 400, "induction n_answer=2")


def test_candidates_that_share_the_token_of_the_choice_make_a_guess_better(
    model: CausalLM, tmp_path: Path
) -> None:
    # Of four candidates three begin like the answer, and the choice is read off the first token.
    words = ["ab", "ac", "ad", "b"]
    lines = [{"prompt": f"{i}: a", "answer": "ab", "candidates": words} for i in range(40)]
    file = tmp_path / "alike.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    study.run(RecallSpec(model="tiny", tasks=(str(file),), n=40), tmp_path / "run", subject=model)
    (row,) = table(tmp_path / "run").to_dict("records")
    assert row["chance"] == 0.25 and row["guess"] == 0.75 and row["judged"] == "choice"
    assert (row["status"] == "ok") == (row["choice_lo"] > 0.75)


# -- tables ----------------------------------------------------------------------------------------------------------


def planted(n: int, *, right: float, size: float, chance: float = 0.25, **columns: Any) -> pd.DataFrame:
    """Examples of which the first share is right, each a cluster of its own."""
    hit = (np.arange(n) < round(right * n)).astype(float)
    above = "ok" if proportion_ci(hit, [str(i) for i in range(n)])[0] > chance else "at chance"
    return pd.DataFrame(
        {
            "accuracy": 0.0, "choice": hit, "logit_diff": 2 * hit - 1, "logprob": -1.0, "rank": 1.0, "nll": 0.5,
            "cluster": [f"{size} {i}" for i in range(n)], "chance": chance, "guess": chance, "tokens": 40, "redraws": 1,
            "judged": "choice", "status": above, **columns,
        }
    )  # fmt: skip


def test_positions_have_a_line_for_each_length_of_list() -> None:
    rungs = [Rung("laundry", "items", n, i, {"items": n}) for i, n in enumerate((2, 4))]
    frames = {
        r.question: planted(8, right=1 - 0.5 * r.place, size=r.at, chance=1 / r.size,
                            position=np.arange(8) % r.size + 1, items=r.size)
        for r in rungs
    }  # fmt: skip
    curves = curves_table(rungs, frames, 0)
    own = curves[(curves["by"] == "position") & (curves["metric"] == "choice")]
    assert own.groupby("line", sort=False)["x"].apply(list).to_dict() == {
        "2 items": [1, 2], "4 items": [1, 2, 3, 4],
    }  # fmt: skip
    assert own[own["line"] == "4 items"]["value"].tolist() == [0.5] * 4 and own["n"].tolist() == [
        4,
        4,
        2,
        2,
        2,
        2,
    ]
    sizes = curves[(curves["axis"] == "set size") & (curves["metric"] == "choice")]
    assert sizes[["x", "value", "chance"]].values.tolist() == [[2, 1, 0.5], [4, 0.5, 0.25]]
    found = rungs_table(rungs, frames, 0)
    assert found["choice"].tolist() == [1, 0.5] and found["redraws"].tolist() == [1, 1]
    assert found["status"].tolist() == ["ok", "at chance"]


def test_depths_are_pooled_over_lengths_and_binned() -> None:
    rungs = [Rung("niah", "length", n, i, {"length": n}) for i, n in enumerate((256, 512))]
    rungs = [Rung("niah", "haystack", "all", 0, {"haystack": "all"}), *rungs]
    rungs += [Rung("niah", "needles", 9, 0, {"needles": 9})]
    frames = {r.question: planted(20, right=1, size=r.at, depth=np.linspace(0, 1, 20)) for r in rungs}
    curves = curves_table(rungs, frames, 0)
    own = curves[(curves["axis"] == "depth") & (curves["metric"] == "choice")]
    assert len(own) == 5 and own["n"].sum() == 40, "the other ladders are left out"
    assert own["x_lo"].iloc[0] == 0 and own["x_hi"].iloc[-1] == 1 and set(own["line"]) == {""}
    assert curves[curves["by"] == "needles"].empty, "a single size is no curve"


def test_sizes_that_are_no_numbers_have_rungs_and_no_curve() -> None:
    rungs = [Rung("biographies", "form", f, i, {"form": f}) for i, f in enumerate(("standard", "pronoun"))]
    frames = {r.question: planted(6, right=1, size=i) for i, r in enumerate(rungs)}
    found = rungs_table([r for r in rungs if r.task in NAMES], frames, 0)
    assert curves_table([r for r in rungs if r.task in NAMES], frames, 0).empty
    assert found.empty or found["size"].tolist() == ["standard", "pronoun"]
    assert str(rungs[0]) == "biographies form=standard" and np.isnan(rungs[0].at)
    assert axis_of("items") == "set size" and axis_of("form") == "other sizes" and axis_of("hops") == "steps"
    assert axis_of("facts", "stories") == "steps" and axis_of("facts", "consolidation") == "set size"


# -- what is asked for -----------------------------------------------------------------------------------------------


def test_all_is_every_natural_task_over_the_ladders_of_the_catalogue() -> None:
    spec = RecallSpec(model="tiny")
    assert spec.tasks == natural() and "induction" not in spec.tasks and "niah" in spec.tasks
    for name in spec.tasks:
        sizes = [(r.param, r.size) for r in spec.rungs(name)]
        ladder = NAMES[name].ladder
        assert sizes == ([(p, s) for p, all_ in ladder.items() for s in all_] or [("", None)])
        assert spec.ladders.get(name, {}) == dict(ladder), "every size is in the spec of the run"
    assert spec.params == GRID and spec.n == 32 and RecallSpec.quick("tiny").n == 4
    again = RecallSpec(**json.loads(spec.model_dump_json()))
    assert again == spec


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tasks": ("niah", "niha")}, "no task 'niha'"),
        ({"tasks": ("niah", "niah")}, "something twice"),
        ({"tasks": ()}, "at least 1 item"),
        ({"tasks": ("niah",), "ladders": {"laundry": {"items": [2]}}}, "'laundry' is not among the tasks"),
        ({"tasks": ("niah",), "ladders": {"niah": {"size": [2]}}}, "no parameter 'size'"),
        ({"tasks": ("niah",), "ladders": {"niah": {"length": []}}}, "niah.length has no sizes"),
        ({"tasks": ("niah",), "params": {"niah": {"wide": 2}}}, "no parameter 'wide'"),
        ({"ladders": 3}, "valid dictionary"),
    ],
)
def test_what_cannot_be_is_said(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RecallSpec(model="tiny", **given)


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    tiny("llama").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_command_runs_named_tasks_and_files(tiny_folder: Path, tmp_path: Path) -> None:
    lines = [{"prompt": f"{a}{b}{a}", "answer": b, "candidates": [b, "z"]} for a, b in ("xy", "uv", "st")]
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    options = ["-n", "2", "--set", "ladders={induction: {length: [8, 16]}}", "--out", str(tmp_path / "out")]
    args = ["tasks", "run", str(tiny_folder), "induction", str(file), *options]
    found = CliRunner().invoke(app, args)
    assert found.exit_code == 0, found.output
    assert "length 16" in found.stdout and "3 sizes: " in found.stderr and "report.html" in found.stderr
    again = CliRunner().invoke(app, [*args, "--json"])
    told = json.loads(again.stdout)
    assert told["done"] == [] and len(told["skipped"]) == 3
    assert [r["task"] for r in told["rungs"]] == ["induction", "induction", str(file)]
    assert told["rungs"][2]["n"] == 2 and told["rungs"][2]["chance"] == 0.5
    other = CliRunner().invoke(app, [*args, "--seed", "9"])
    assert other.exit_code == 2 and "holds a run of another spec (seed: 0 there, 9 here)" in other.stderr


def test_the_command_says_what_it_needs() -> None:
    for args, said in (
        (["tiny"], "name tasks, or take all of them with --all"),
        (["tiny", "niah", "--all"], "name tasks, not both"),
        (["tiny", "niha"], "no task 'niha'"),
        (["tiny", "niah", "--set", "n=1"], "spec field 'n'"),
    ):
        found = CliRunner().invoke(app, ["tasks", "run", *args])
        assert found.exit_code == 2 and said in " ".join(found.stderr.split())


def test_all_asks_for_every_natural_task(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[RecallSpec] = []

    def stop(spec: RecallSpec, *rest: Any, **more: Any) -> Any:
        asked.append(spec)
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "run", stop)
    found = CliRunner().invoke(app, ["tasks", "run", "tiny", "--all", "--quick"])
    assert found.exit_code == 130 and asked[0].tasks == natural() and asked[0].n == 4


def test_the_table_on_the_terminal_leaves_out_what_there_is_not() -> None:
    base = {"task": "a", "param": "length", "size": "8", "n": 4, "guess": 0.25, "status": "ok"}
    values = {f"{m}{end}": v for m in command.METRICS for end, v in (("", 0.5), ("_lo", 0.25), ("_hi", 0.75))}
    nothing = dict.fromkeys(values, np.nan)
    gone = base | {"n": 0, "guess": np.nan, "param": "", "size": "", "status": "not asked"}
    rows = command.shown(pd.DataFrame([base | values | {"logit_diff_lo": np.nan}, gone | nothing]))
    assert rows[0]["size"] == "length 8" and rows[0]["choice"] == "0.50 [0.25, 0.75]"
    assert rows[0]["logit diff"] == "0.50" and rows[1]["choice"] == "-" and rows[1]["a guess"] == "-"


def test_of_updated_values_the_age_of_the_answer_is_told(tmp_path: Path) -> None:
    words = tokens("smollm")  # one that has words as tokens, as the task needs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=len(words.hf), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                             num_attention_heads=2)  # fmt: skip
        model = CausalLM(LlamaForCausalLM(config).eval(), words, name="tiny")
    asked: dict[str, Any] = {"tasks": ("updates",), "ladders": {"updates": {"updates": (2, 4), "keys": (1,)}}}
    spec = RecallSpec(**SMALL | asked)
    job = study.run(spec, tmp_path / "run", subject=model)
    ages = table(job.folder, "recall_ages")
    assert set(ages["updates"]) == {2, 4} and (ages["task"] == "updates").all()
    for updates, rows in ages.groupby("updates"):
        examples = interp.task("updates", updates=updates, n=5, seed=3).examples(model)
        wanted = stale_rank(examples, choices(model, examples))
        pd.testing.assert_frame_equal(rows.drop(columns="task").reset_index(drop=True), wanted)
        assert rows["share"].sum() == pytest.approx(1)
    assert "Which update is answered" in (job.folder / "report.html").read_text()
