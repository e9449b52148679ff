"""The published protocol end to end: on a planted model whose heads are known, and on a model with a text tokenizer."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import interp
from interp.cli import app
from interp.errors import NoAcceptedExample, UsageError
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens
from interp.plot.reproduction import reproduction
from interp.published import COLUMNS, MODELS, table
from interp.reproduce import MASKED_SHARE, ReproduceSpec, plan, rouge1, run, spaced
from tests.planted.retrieval import Planted, plant, planted_task
from tests.tiny import byte_tokenizer, tiny

SPEC = ReproduceSpec(model="planted", masked=(2, 40), controls=3, max_new_tokens=8)


def tasks(planted: Planted) -> tuple[Any, Any]:
    return planted_task(planted, 8, 0, 60), planted_task(planted, 6, 1, 60)


@pytest.fixture(scope="module")
def made() -> tuple[Planted, CausalLM]:
    planted = plant("llama", seed=0)  # two planted heads, of 48
    return planted, interp.load(planted.module, tokenizer=None)


@pytest.fixture(scope="module")
def folder(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped before it masked, and started again."""
    place = tmp_path_factory.mktemp("reproduce") / "run"

    def until_masking(name: str) -> Any:
        if name == "masked heads":
            raise KeyboardInterrupt
        return nullcontext(None)

    with pytest.raises(KeyboardInterrupt):
        run(SPEC, place, subject=made[1], tasks=tasks(made[0]), stage=until_masking)
    there = {p.name for p in place.glob("*.parquet")}
    assert there == {"instances.parquet", "copied.parquet", "scores.parquet"}
    job = run(SPEC, place, subject=made[1], tasks=tasks(made[0]), static=False)
    assert job.skipped == ["plan", "instances", "copied", "scores"]
    return place


def ours(folder: Path) -> pd.DataFrame:
    comparison = pd.read_parquet(folder / "comparison.parquet")
    assert list(comparison.columns) == COLUMNS
    return comparison[comparison["kind"] == "ours"].set_index("statistic")


def test_planted_heads_are_found_and_masking_them_destroys_recall(made: Any, folder: Path) -> None:
    planted, model = made
    at = ours(folder)
    assert {at.loc["top_1", "note"], at.loc["top_2", "note"]} == {f"L{i}H{h}" for i, h in planted.retrieval}
    assert (at.loc["top_1", "value"], at.loc["top_2", "value"]) == (1.0, 1.0)
    assert at.loc["top_3", "value"] < 0.5
    assert at.loc["heads", "value"] == 48
    assert at.loc["share_over_0.5", "value"] == 2 / 48
    direct = interp.RetrievalHeads(count=True).fit(model, tasks(planted)[0])
    mean = direct.per_instance_["copy"].mean(0)
    assert at.loc["share_over_0.1", "value"] == (mean >= 0.1).mean()
    assert at.loc["share_zero", "value"] == (mean == 0).mean()
    assert at.loc["always_active", "value"] == (direct.per_instance_["copy"] > 0).all(0).sum()
    assert at.loc["recall_clean", "value"] == at.loc["recall_matched_2", "value"] == 100.0
    assert at.loc["recall_top_2", "value"] == 0.0
    assert at.loc["recall_matched_2", "note"] == "2 of 48 heads (4.2%), mean of 3 draws"
    assert (at.loc["recall_clean", "n"], at.loc["top_1", "n"]) == (6, 8)
    # 2.9 % of 48 heads are one: recall that two heads share can stand it.
    assert at.loc["recall_top_1", "note"] == "1 of 48 heads (2.1%)"
    scores = pd.read_parquet(folder / "scores.parquet")
    assert scores["score"].tolist() == direct.scores_[direct.scores_["method"] == "copy"]["score"].tolist()


def test_masking_is_uniform_attention_at_the_answer_and_spares_the_selection(made: Any, folder: Path) -> None:
    masking = pd.read_parquet(folder / "masking.parquet")
    planted, model = made
    cut = masking[masking["condition"] == "cut"]
    assert set(cut[cut["k"] == 2]["components"].iloc[0].split()) == {
        f"L{i}H{h}" for i, h in planted.retrieval
    }
    control = masking[(masking["condition"] == "control") & (masking["k"] == 2)]
    assert control["draw"].nunique() == 3 and len(control) == 18
    assert set(cut["mode"]) == set(control["mode"]) == {"uniform"} and set(masking["scope"]) == {"", "answer"}
    taken = set(cut["components"].iloc[-1].split())
    assert not any(taken & set(c.split()) for c in control["components"])
    example = tasks(planted)[1].examples(model)[0]
    heads = cut[cut["k"] == 2]["components"].iloc[0]
    with model.apply(interp.ablate(heads, "uniform", "answer")):
        said = model.generate([example], 8)[0]
    output = cut[(cut["k"] == 2) & (cut["example"] == 0)]["output"].item().split()
    assert len(output) >= len(example.answer_ids)
    assert output == [str(t) for t in said[: len(output)]]


def test_what_was_cut_down_and_done_otherwise_is_said(folder: Path) -> None:
    deviations = json.loads((folder / "deviations.json").read_text())
    assert deviations[0] == "[40] heads are not masked: the model has 48, and as many controls are needed"
    assert any("given by the user" in d for d in deviations)
    assert any("control heads are drawn once from a seed" in d for d in deviations)
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["remarks"] == deviations[:1]
    assert (folder / "reproduction.html").stat().st_size > 10_000


def test_done_is_done_and_another_spec_is_refused(made: Any, folder: Path) -> None:
    before = {p: p.read_bytes() for p in folder.glob("*.parquet")}
    assert run(SPEC, folder, subject=made[1], tasks=tasks(made[0]), static=False).done == []
    assert {p: p.read_bytes() for p in folder.glob("*.parquet")} == before
    with pytest.raises(UsageError, match="another spec"):
        run(SPEC.model_copy(update={"seed": 1}), folder, subject=made[1], tasks=tasks(made[0]))


def test_rejected_instances_do_not_count(made: Any, tmp_path: Path) -> None:
    """A blurred model gets some needles wrong: the mean is over those with a recall above a half."""
    planted = plant("llama", seed=2, noise=0.15)
    model = interp.load(planted.module, tokenizer=None)
    spec = SPEC.model_copy(update={"controls": 0, "masked": (1,)})
    run(spec, tmp_path / "run", subject=model, tasks=tasks(planted), static=False)
    instances = pd.read_parquet(tmp_path / "run" / "instances.parquet")
    assert 0 < instances["accepted"].sum() < len(instances)
    assert (instances["accepted"] == (instances["recall"] > 0.5)).all()
    values = (
        pd.read_parquet(tmp_path / "run" / "copied.parquet")["score"].to_numpy().reshape(len(instances), -1)
    )
    best = values[instances["accepted"].to_numpy()].mean(0).max()
    assert ours(tmp_path / "run").loc["top_1", "value"] == pytest.approx(best)


def test_rouge_recall() -> None:
    assert rouge1("the red fox", "A RED, red fox!") == pytest.approx(2 / 3)
    assert rouge1("red red", "red") == 0.5
    assert rouge1("12 45 7", "7 12") == pytest.approx(2 / 3)
    assert rouge1("?!", " ?! ") == 1.0 and rouge1("?!", "no") == 0.0


def test_lengths_are_the_published_ones() -> None:
    assert spaced(0, 50000, 20)[:3] == [0, 2632, 5263] and len(spaced(0, 50000, 20)) == 20
    assert spaced(100, 101, 20) == [100, 101]


# -- the published table ---------------------------------------------------------------------------------------------


def test_published_figures_say_where_they_are_from() -> None:
    found = table()
    assert set(found["kind"]) == {"published"} and set(found["tag"]) == {"data", "code", "abs"}
    assert (found["source"].str.len() > 0).all()
    at = found[found["subject"] == "Llama-2-7b-80k"].set_index("statistic")["value"]
    assert at["share_over_0.1"] == 33 / 1024 and at["always_active"] == 12 and at["top_1"] == 0.943
    assert at["recall_top_30"] == 8.33
    assert all(list(m.top) == sorted(m.top, reverse=True) and m.over_half <= m.over for m in MODELS)
    # A head of 0.5 or more is among those told: the lists reach as far as they are published.
    assert all(
        sum(s >= 0.5 for s in m.top) in (m.over_half, len(m.top)) for m in MODELS if m.over_half <= len(m.top)
    )
    assert pytest.approx(0.0293, abs=1e-4) == MASKED_SHARE


def test_figure_shows_both(folder: Path) -> None:
    comparison = pd.read_parquet(folder / "comparison.parquet")
    fig = reproduction(comparison, "LlamaForCausalLM")
    shares = next(t for t in fig.data if t.name == "LlamaForCausalLM" and t.xaxis == "x")
    assert shares.y[0] == ours(folder).loc["share_over_0.1", "value"]
    assert len([t for t in fig.data if t.xaxis == "x2"]) == len(MODELS) + 1
    recall = [t for t in fig.data if t.xaxis == "x3"]
    assert list(recall[0].y) == [8.33] and 100.0 in recall[1].y
    assert "published 2.1% to 6.2%, for 10 other models" in fig.layout.meta["alt"]
    with pytest.raises(UsageError, match="no figure of 'x'"):
        reproduction(comparison, "x")


# -- plans and the command line --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoken() -> CausalLM:
    return CausalLM(tiny("llama"), Tokens(byte_tokenizer()), name="tiny")


def test_plan_is_cut_to_the_model(spoken: CausalLM) -> None:
    found = plan(ReproduceSpec(model="tiny", max_length=5000, masked=(2, 30)), spoken)
    assert found["lengths"][0] == 128 and found["lengths"][-1] == 512 - 50 and len(found["lengths"]) == 20
    assert found["masked"] == [1, 2]  # 12 heads, of which 2.9 % are one at the least
    assert found["capped"] == [
        "[30] heads are not masked: the model has 12, and as many controls are needed",
        "lengths end at 462 tokens in place of 5000: the model's context",
    ]
    with pytest.raises(UsageError, match="lengths go from 128 to 100 tokens"):
        plan(ReproduceSpec(model="tiny", max_length=100), spoken)


def test_a_model_that_recalls_nothing_ends_with_what_it_said(spoken: CausalLM, tmp_path: Path) -> None:
    """The grids themselves, with one token a byte; a random model answers none of them."""
    spec = ReproduceSpec(
        model="tiny", start=330, max_length=360, lengths=2, depths=2, needles=2, max_new_tokens=6, masked=(1,)
    )
    with pytest.raises(NoAcceptedExample, match=r"tiny answers none of 8 needles .* it said .* --max-length"):
        run(spec, tmp_path / "run", subject=spoken)
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["lengths"] == [330, 360]


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["reproduce", "retrieval-heads", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "--model"),
        (["--model", "x", "--max-length", "10"], 2, "max-length"),
        (["--model", "x", "--set", "depths=0"], 2, "spec field 'depths'"),
        (["--model", "x", "--set", "deep=3"], 2, "spec field 'deep'"),
        (["--model", "no-such-model"], 3, "no model 'no-such-model'"),
    ],
)
def test_wrong_usage_is_said_in_one_line(arguments: list[str], code: int, words: str, tmp_path: Path) -> None:
    done = command(*arguments, *(["--out", tmp_path / "run"] if arguments else []))
    assert done.exit_code == code and words in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_the_command_shows_both_and_says_what_differs(
    made: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command on the folder of a finished run: it reads what is there."""
    from interp import reproduce

    real = reproduce.run

    def on_planted(spec: ReproduceSpec, out: Path, **more: Any) -> Any:
        return real(SPEC, out, subject=made[1], tasks=tasks(made[0]), static=False, **more)

    monkeypatch.setattr(reproduce, "run", on_planted)
    done = command("--model", "planted", "--out", folder)
    assert done.exit_code == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert (
        lines["recall_top_2"].split()[:2] == ["recall_top_2", "0"]
        and "2 of 48 heads" in lines["recall_top_2"]
    )
    assert "8.33" in lines["recall_top_30"] and "Llama-2-7b-80k" in lines["recall_top_30"]
    for part in ("0.04167", "0.000625 … 0.01128", "10 models", "data", "nightdessert/Retrieval_Head 3ac171a"):
        assert part in lines["share_over_0.5"], part
    assert "all models of the paper (an" in done.stdout
    assert "interp: deviation: ROUGE-1 recall" in done.stderr
    told = json.loads(command("--model", "planted", "--out", folder, "--json").stdout)
    assert told["skipped"] and not told["done"]
    assert np.isclose([f["value"] for f in told["figures"] if f["statistic"] == "recall_clean"], 100).all()


def test_help_names_the_protocol() -> None:
    done = CliRunner().invoke(app, ["reproduce", "--help"])
    assert "retrieval-heads" in done.stdout
