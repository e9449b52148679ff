"""The retrieval-head study on a tiny model: every part, killed and gone on with, against direct measurements."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from study_script import written
from typer.testing import CliRunner

import interp
from interp.cli import app
from interp.errors import UsageError
from interp.measure.metrics import score_answer
from interp.runs import Run, read_spec
from interp.studies import heads
from interp.studies.spec import HeadsSpec
from interp.studies.tables import adjusted, by_locator, map_effects
from tests.test_figures import loaded
from tests.tiny import byte_tokenizer, tiny

SMALL: dict[str, Any] = {
    "lengths": (400, 440, 480), "depths": 2, "needles": 2, "scores": ("copy", "needle_mass", "dla"),
    "decoding": "forced", "own_scores": ("induction",), "own_lengths": (400,), "own_needles": 2, "top": 2,
    "map_needles": 2, "map_modes": ("uniform", "mean"), "map_controls": 2, "doses": (1, 2, 4), "dose_length": 400,
    "dose_n": 4, "dose_controls": 2, "other_controls": 1, "keep": (1, 4), "keep_scores": ("copy", "dla"), "keep_n": 3,
    "keep_controls": 1, "tasks": ("needle", "induction", "facts", "prose"), "task_scores": ("copy", "induction"),
    "task_length": 400, "task_n": 3, "task_controls": 1,
}  # fmt: skip
"""Sizes that a model of twelve heads and a tokenizer of bytes allow."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of 1024 tokens of context."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    module = tiny("llama")
    module.config.max_position_embeddings = 1024
    module.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def spec(model: Path) -> HeadsSpec:
    return HeadsSpec(model=str(model), **SMALL)


@pytest.fixture(scope="module")
def study(spec: HeadsSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left alone."""
    folder = tmp_path_factory.mktemp("study") / "run"
    job = heads.run(spec, folder)
    assert {
        "scores",
        "prefill",
        "parts/map-01",
        "dose",
        "sufficient",
        "parts/task-prose",
        "pairs",
        "modes",
    } <= set(job.done)
    return folder


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / f"{name}.parquet")


def started(spec: HeadsSpec, folder: Path, place: Path) -> subprocess.Popen[bytes]:
    """The study of the command line, in a process of its own."""
    import yaml

    path = place / "wanted.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    command = [sys.executable, "-c", "from interp.cli import app; app()", "study", "retrieval-heads"]
    command += ["--spec", str(path), "--out", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ})


def killed_at(process: subprocess.Popen[bytes], folder: Path, pattern: str) -> None:
    """Kill it, without a chance to clean up, as soon as a file is there."""
    for _ in range(20_000):
        if any(folder.glob(pattern)):
            break
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert process.stderr is not None
    process.stderr.close()


def test_a_killed_study_goes_on_and_ends_with_the_same_tables(spec, study, tmp_path):
    folder = tmp_path / "run"
    killed_at(started(spec, folder, tmp_path), folder, "parts/scores/*.safetensors")
    units = set(folder.glob("parts/scores/*.safetensors"))
    assert units and not (folder / "scores.parquet").exists(), "killed among the units of the grid"
    before = {p: p.stat().st_mtime_ns for p in units}
    killed_at(started(spec, folder, tmp_path), folder, "parts/map-00.parquet")
    assert not (folder / "dose.parquet").exists()
    assert {p: p.stat().st_mtime_ns for p in units} == before, "a unit that was there was scored again"
    job = heads.run(spec, folder)
    assert {"scores", "instances", "parts/map-00"} <= set(job.skipped) and "pairs" in job.done
    names = sorted(str(p.relative_to(study)) for p in study.rglob("*.parquet"))
    assert names == sorted(str(p.relative_to(folder)) for p in folder.rglob("*.parquet"))
    for name in names:
        pd.testing.assert_frame_equal(
            pd.read_parquet(folder / name), pd.read_parquet(study / name), check_exact=True
        )
    assert not list(folder.rglob("*.partial"))


def test_a_study_that_is_done_is_done(spec, study):
    before = {p: p.read_bytes() for p in study.rglob("*.parquet")}
    job = heads.run(spec, study)
    assert job.done == []
    assert {p: p.read_bytes() for p in study.rglob("*.parquet")} == before
    with pytest.raises(UsageError, match=r"another spec \(top: 2 there, 3 here\)"):
        heads.run(spec.model_copy(update={"top": 3}), study)


def test_scores_are_those_of_a_fit_and_the_tokens_are_told(spec, study):
    import interp

    model = interp.load(spec.model)
    grid = interp.task(
        "niah_grid",
        lengths=(400, 440, 480),
        depths=2,
        needles=2,
        kinds=spec.kinds,
        haystack="train",
        mode="exact",
        seed=0,
    )
    fit = interp.RetrievalHeads(mode="forced", scores=spec.scores).fit(model, grid)
    scores = table(study, "scores")
    assert list(dict.fromkeys(scores["method"])) == ["copy", "needle_mass", "dla", "induction"]
    mine = scores[scores["method"] != "induction"].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, fit.scores_)
    prefill = table(study, "prefill").set_index("grid")
    assert prefill.loc["scores", "instances"] == 12 and prefill.loc["own", "instances"] == 4
    assert prefill.loc["scores", "run"] == fit.prefill_tokens_ < prefill.loc["scores", "naive"]
    assert prefill.loc["several", "share"] < prefill.loc["scores", "share"] < 1


def test_every_cell_of_the_map_is_there_under_every_condition(study):
    cells = table(study, "cells")
    counts = cells.groupby(["condition", "mode", "draw", "length_asked", "depth_asked"]).size()
    assert set(counts) == {2} and len(counts) == 6 * (1 + 2 * 3)
    assert set(cells[cells["condition"] == "cut"]["k"]) == {2} and set(cells["scope"]) == {"", "answer"}
    assert cells[cells["condition"] == "clean"]["unit"].nunique() == 2
    held = cells[cells["condition"] == "clean"]["kind"]
    assert set(held) == {"names", "phrases"}, "needles of other kinds than heads were scored on"


def test_outcomes_of_the_map_are_those_of_a_model_that_is_cut(spec, study):
    import interp
    from interp.measure.metrics import score_answer

    model = interp.load(spec.model)
    cells = table(study, "cells")
    cut = cells[(cells["condition"] == "cut") & (cells["mode"] == "uniform")]
    examples = interp.task(
        "niah_grid",
        lengths=(400, 440, 480),
        depths=2,
        needles=2,
        kinds=spec.held_kinds,
        haystack="test",
        seed=0,
    ).examples(model)
    for row in cut[cut["example"] == 1].itertuples():
        (example,) = [e for e in examples if e.cluster == row.unit][1:2]
        with model.apply(interp.ablate(row.components, mode="uniform", scope="answer")):
            logits = model.run([example]).logits[0]
        rows = logits[-len(example.answer_ids) :]
        assert score_answer(rows, example)["logprob"] == pytest.approx(row.logprob, abs=1e-4)
        assert (example.meta["length_asked"], example.meta["depth"]) == (row.length_asked, row.depth)


def test_effects_over_the_map_are_means_of_its_cells(study):
    cells, found = table(study, "cells"), table(study, "map")
    row = found[
        (found["condition"] == "cut") & (found["mode"] == "mean") & (found["metric"] == "logprob")
    ].iloc[0]
    cut = cells[(cells["condition"] == "cut") & (cells["mode"] == "mean")]["logprob"]
    clean = cells[cells["condition"] == "clean"]["logprob"]
    assert row["value"] == pytest.approx(cut.mean()) and row["delta"] == pytest.approx(
        cut.mean() - clean.mean()
    )
    assert row["ci_lo"] <= row["delta"] <= row["ci_hi"] and row["n"] == 12 and row["n_clusters"] == 2


def test_effects_pair_each_needle_with_itself():
    cells = pd.DataFrame(
        {
            "condition": ["clean"] * 4 + ["cut"] * 4, "control": "", "k": [0] * 4 + [2] * 4, "draw": -1, "mode": "",
            "components": "", "unit": ["a", "a", "b", "b"] * 2, "example": [0, 1, 0, 1] * 2,
            "cluster": ["a", "a", "b", "b"] * 2, "accuracy": [1, 1, 1, 0, 0, 1, 0, 0.0], "logprob": -1.0,
            "logit_diff": np.nan,
        }
    )  # fmt: skip
    shuffled = (
        map_effects(cells.sample(frac=1, random_state=0)).query("metric == 'accuracy'").set_index("condition")
    )
    assert shuffled.loc["cut", "delta"] == -0.5 and shuffled.loc["cut", "p"] == 0.5
    assert (shuffled.loc["cut", "ci_lo"], shuffled.loc["cut", "ci_hi"]) == (-0.5, -0.5)


def test_dose_curves_hold_every_score_type_and_every_kind_of_control(study):
    dose = table(study, "dose").query("metric == 'logprob'")
    cut = dose[dose["condition"] == "cut"]
    assert set(cut["locator"]) == {"copy", "needle_mass", "dla", "induction"}
    assert not cut.duplicated(["locator", "k"]).any() and set(cut["k"]) == {1, 2, 4}
    scores = table(study, "scores")
    for row in cut.itertuples():
        own = scores[scores["method"] == row.locator].sort_values(
            ["score", "layer", "head"], ascending=[False, True, True]
        )
        assert sorted(row.components.split()) == sorted(own["component"][: row.k])
    controls = dose[dose["condition"] == "control"].groupby(["control", "k"]).size()
    assert {kind: controls[kind].tolist() for kind in ("layer", "norm", "entropy", "bottom")} == {
        "layer": [2, 2, 2], "norm": [1, 1, 1], "entropy": [1, 1, 1], "bottom": [1, 1, 1],
    }  # fmt: skip
    best = set(scores[scores["method"] == "copy"].nlargest(4, "score")["component"])
    assert not any(best & set(c.split()) for c in dose[dose["condition"] == "control"]["components"])


def test_areas_are_means_over_log_k(study):
    from interp.measure.curves import weights

    dose, areas = table(study, "dose").query("metric == 'accuracy'"), table(study, "dose_areas")
    for row in areas[areas["condition"] == "cut"].itertuples():
        own = dose[(dose["condition"] == "cut") & (dose["locator"] == row.locator)].sort_values("k")
        assert row.value == pytest.approx(float(own["value"].to_numpy() @ weights([1, 2, 4])))
        assert row.ci_lo <= row.value <= row.ci_hi
    assert len(areas[areas["condition"] == "control"]) == 2 + 1 + 1 + 1


def test_sufficient_sets_keep_the_first_and_cut_all_others(study):
    kept = table(study, "sufficient").query("metric == 'logprob' and condition == 'keep'")
    assert set(kept["locator"]) == {"copy", "dla"} and set(kept["mode"]) == {"knockout"}
    for row in kept.itertuples():
        assert len(row.kept.split()) == row.k and len(row.components.split()) == 12 - row.k
        assert not set(row.kept.split()) & set(row.components.split())
    none = kept[kept["k"] == 0]
    assert none["value"].nunique() == 1 and len(none) == 2


def test_the_floor_rule_and_what_cannot_be_asked_are_told(study):
    import json

    tasks = table(study, "specificity")
    assert set(tasks["task"]) == {"needle", "induction", "prose"}, "a random model knows no fact"
    needle = tasks[(tasks["task"] == "needle") & (tasks["condition"] == "cut")]
    assert set(needle["status"]) == {"at chance"} and needle["delta"].isna().all()
    prose = tasks[(tasks["task"] == "prose") & (tasks["condition"] == "cut")]
    assert set(prose["metric"]) == {"nll"} and prose["delta"].notna().all() and prose["q"].notna().all()
    assert set(tasks[tasks["condition"] == "cut"]["scope"]) == {"all"}
    (remark,) = json.loads((study / "provenance.json").read_text())["remarks"]
    assert "answers none of the 9 examples of facts" in remark


def test_rows_that_two_score_types_share_are_told_for_both():
    from interp.intervene.ablate import ablate
    from interp.measure.plans import Condition

    one, two = Condition(ablate("L0H1"), "cut", 1), Condition(ablate("L0H2"), "cut", 1)
    rows = pd.DataFrame(
        {
            "condition": ["clean", "cut", "cut"],
            "k": [0, 1, 1],
            "components": ["", "L0H1", "L0H2"],
            "locator": "x",
        }
    )
    told = by_locator(rows, {"copy": [one], "qr": [one], "dla": [two]}, ("cut",))
    cut = told[told["condition"] == "cut"]
    assert list(zip(cut["locator"], cut["components"], strict=True)) == [
        ("copy", "L0H1"), ("qr", "L0H1"), ("dla", "L0H2"),
    ]  # fmt: skip
    assert (told["condition"] == "clean").sum() == 1


def test_p_values_are_adjusted_over_the_judged_metrics_of_all_tasks():
    base = {"condition": "cut", "locator": "copy"}
    rows = [
        base | {"task": "a", "metric": "accuracy", "p_cluster": 0.01},
        base | {"task": "a", "metric": "logprob", "p_cluster": 0.001},
        base | {"task": "b", "metric": "nll", "p_cluster": 0.04},
        base | {"task": "b", "metric": "nll", "condition": "control", "p_cluster": 0.5},
    ]
    assert adjusted(pd.DataFrame(rows))["q"].tolist() == pytest.approx(
        [0.02, np.nan, 0.04, np.nan], nan_ok=True
    )


def test_score_types_and_modes_are_compared(study):
    pairs, modes = table(study, "pairs"), table(study, "modes")
    assert len(pairs) == 16 and set(pairs["set"]) == {"top 2"}
    at = pairs.set_index(["a", "b"])
    scores = table(study, "scores")
    grid = {m: g.sort_values(["layer", "head"])["score"].to_numpy() for m, g in scores.groupby("method")}
    rho = pd.Series(grid["needle_mass"]).corr(pd.Series(grid["dla"]), method="spearman")
    assert at.loc[("dla", "needle_mass"), "spearman"] == pytest.approx(rho)
    assert np.isnan(at.loc[("dla", "induction"), "ceiling"]), "they were scored on different instances"
    assert list(modes["method"]) == ["copy", "needle_mass", "dla"]
    assert (modes["n_exact"] == 12).all() and (modes["tokens_several"] < modes["tokens_exact"]).all()


def test_figures_come_from_any_run_folder(study, tmp_path):
    script = loaded("heads_study")
    drawn = script.figures(study)
    assert set(drawn) == {
        f"heads-study-{n}" for n in ("map", "map-logprob", "dose", "sufficient", "specificity", "agreement")
    }
    text = script.readme(study)
    prefill = table(study, "prefill").set_index("grid")
    run, share = prefill.loc["several", "run"], prefill.loc["several", "share"]
    assert f"| several needles a context | 12 | 12 | {run:,} | {share:.1%} of" in text
    found = table(study, "map").query("condition == 'clean' and metric == 'logprob'")["value"].item()
    assert f"| uncut | 0.00 | | {script.number(found)} |" in text
    assert "| needle (accuracy) | 0.00 | at chance |" in text
    script.export(study, tmp_path / "data")
    assert script.readme(tmp_path / "data") == text
    assert {n: f.to_json() for n, f in script.figures(tmp_path / "data").items()} == {
        n: f.to_json() for n, f in drawn.items()
    }
    assert script.readme(tmp_path) == "" and script.figures(tmp_path) == {}


def test_the_readme_of_the_study_says_what_its_tables_say():
    script = loaded("heads_study")
    page = script.README.read_text()
    assert written(page, script.readme()) == page
    figures = Path(script.__file__).parent
    for name in script.figures():
        assert (figures / f"{name}.png").stat().st_size > 10_000


def test_rows_of_the_study_can_be_computed_again(smollm2):
    """A sample of the map's rows, another one every day, each by a run of its own."""
    script = loaded("heads_study")
    spec = HeadsSpec(**read_spec(script.DATA / "spec.yaml"))
    made = json.loads((script.DATA / "provenance.json").read_text())
    assert made["fingerprint"] == smollm2.fingerprint
    cells = pd.read_parquet(script.DATA / "cells.parquet")
    short = cells[(cells["length_asked"] <= 256) & cells["mode"].isin(["", "uniform"])]
    today = date.today().toordinal()
    by_cluster: dict[str, list[Any]] = {}
    for e in heads.HeadsStudy(spec, None, smollm2).grid("map").examples(smollm2):
        by_cluster.setdefault(e.cluster, []).append(e)
    for row in short.sample(6, random_state=today).itertuples():
        example = by_cluster[row.cluster][row.example]
        cut = [interp.ablate(row.components, "uniform", "answer")] if row.components else []
        with smollm2.apply(*cut):
            found = score_answer(smollm2.run([example]).logits[0], example)
        assert found["logprob"] == pytest.approx(row.logprob, abs=5e-3), (today, row)
        assert found["accuracy"] == row.accuracy, (today, row)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": ("words", "names")}, "kind 'names' is in kinds and in held_kinds"),
        ({"kinds": ("sounds",)}, "no kind of needle 'sounds'"),
        ({"method": "luck"}, "method has 'luck', which is none of the scores"),
        ({"keep_scores": ("duo",)}, "keep_scores has 'duo'"),
        ({"own_scores": ("copy",)}, "'copy' is in scores and in own_scores"),
        ({"doses": ()}, "is empty"),
        ({"tasks": ("poems",)}, "Input should be 'needle'"),
        ({"needle": 3}, "Extra inputs are not permitted"),
    ],
)
def test_specs_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        HeadsSpec(model="m", **changes)


def test_the_quick_spec_is_a_smaller_one_of_the_same_parts():
    full, quick = HeadsSpec(model="m"), HeadsSpec.quick("m")
    assert quick.parts == full.parts and sum(quick.lengths) < sum(full.lengths) / 10
    assert HeadsSpec.quick("m", needles=5).needles == 5


def test_the_command_tells_bad_input_in_one_line(tmp_path):
    def said(*words: str) -> tuple[int, str]:
        found = CliRunner().invoke(app, ["study", "retrieval-heads", *words])
        return found.exit_code, found.stderr

    code, text = said("m", "--set", "method=luck", "--out", str(tmp_path / "a"))
    assert code == 2 and "spec: Value error, method has 'luck'" in text
    code, text = said("m", "--set", "tops=3", "--out", str(tmp_path / "a"))
    assert code == 2 and "spec field 'tops'" in text and "(given: 3)" in text
    code, text = said("--out", str(tmp_path / "a"))
    assert code == 2 and "name a model" in text
    code, text = said("--spec", str(tmp_path / "none.yaml"))
    assert code == 2 and "there is no spec" in text
    assert not (tmp_path / "a").exists()
    Run(tmp_path / "b", HeadsSpec(model="m"))
    code, text = said("m", "--quick", "--out", str(tmp_path / "b"))
    assert code == 2 and "another spec" in text
