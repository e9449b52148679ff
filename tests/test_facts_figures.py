"""The figures of the fact-recall study from small tables in the shapes that the studies write."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from study_script import written

from tests.plot import fact_frames as f

MINUS = "\u2212"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return importlib.import_module("facts_study")


def facts() -> dict[str, pd.DataFrame]:
    few = f.averages_frame(scenarios=("exact recall", "generic"), layers=12)
    wide = few.assign(way="wide", window=4)
    early = (wide["kind"] == "mlp_out") & (wide["layer"] == 0) & (wide["place"] == "last subject")
    wide["aie"] = wide["aie"].where(~early, 0.9)
    aie = pd.concat([few.assign(way="single"), wide[wide["kind"] != "resid_post"]])
    aie = pd.concat([aie, aie.assign(metric="logit_diff", aie=9.0)])
    peak = {"scenario": "exact recall", "kind": "mlp_out", "way": "wide", "metric": "probability"}
    ends = {"aie": [0.31, 0.02], "aie_lo": 0.01, "aie_hi": [0.4, 0.03]}
    effects = pd.DataFrame(
        [{"scenario": "exact recall", "way": "wide", "metric": "probability", "te": 0.512}]
    )
    findings = {
        "finding": ["early site", "early site", "late site"], "statistic": "IE", "value": [0.2, 0.5, -0.1], "lo": -0.3,
        "hi": [0.3, 0.6, -0.05], "verdict": ["undecided", "holds", "does not"], "main": [True, False, True],
        "alike": [1, -1, 1], "ways": [2, -1, 1],
    }  # fmt: skip
    enriched = pd.DataFrame({"layer": range(12), "rate": 0.2, "control": 0.1, "scenario": "exact recall"})
    vital = pd.DataFrame({"layer": range(12), "scenario": "generic", "loss": 0.1, "lo": 0.0, "hi": 0.2})
    vital = pd.concat([vital.assign(scope="content"), vital.assign(scope="all", loss=0.9)])
    return {
        "known": f.known_frame().assign(above=True), "kinds": f.kinds_frame(), "aie": aie, "effects": effects,
        "peaks": pd.DataFrame(peak | {"place": ["last subject", "last"], "layer": [4, 11]} | ends),
        "knockout": f.knockout_frame(), "extraction": f.rates_frame(), "enrichment": enriched, "vital": vital,
        "findings": pd.DataFrame(findings),
    }  # fmt: skip


def dissociation() -> dict[str, pd.DataFrame]:
    effects = f.losses_frame(chance=("induction",)).assign(control_mean=0.07)
    vital = pd.DataFrame(
        {"layer": range(6), "rank": [6, 5, 4, 1, 2, 3], "scope": "content", "metric": "probability"}
    )
    for name, mean in (("aie", 0.1), ("fact_loss", 0.5), ("off_loss", 0.2), ("gap", 0.3)):
        short = name.removesuffix("_loss")
        vital = vital.assign(**{name: mean, f"{short}_lo": mean - 0.1, f"{short}_hi": mean + 0.1})
    vital = vital.assign(passes=vital["layer"] == 3, verdict="store", off_task="needle")
    return {
        "effects": pd.concat([effects, effects.assign(scope="all", loss=0.99)]),
        "dissociation": pd.concat([f.gaps_frame(), f.gaps_frame().assign(metric="nll")]),
        "vital": pd.concat([vital, vital.assign(scope="all", passes=True)]),
    }  # fmt: skip


def editing() -> dict[str, pd.DataFrame]:
    effects = pd.concat(
        f.traces_frame().assign(kind=kind, corruption=corruption, metric=metric)
        for kind in ("mlp_out", "resid_post")
        for corruption in ("noise", "subject_swap")
        for metric in ("probability", "logit_diff")
    )
    told = f.localisation_frame().assign(metric="probability")
    told = pd.concat(
        [told.assign(trace=t, corruption=c) for t in ("mlp_out", "resid_post") for c in ("noise", "none")]
    )
    layers = pd.DataFrame({"layer": [2, 6, 10], "ES": 1.0, "PS": 0.8, "NS": 0.7, "S": [0.5, 0.8, 0.7]})
    edits = {"record": ["a", "b", "c"], "bytes": [20480, 40960, 61440], "restored": [True, True, False]}
    drift = {"method": "rome", "at_once": 1, "nll_before": 3.0, "nll_after": [3.01, 3.03]}
    findings = {
        "finding": ["rome writes", "a trace says where"],
        "statistic": "ES",
        "value": 0.9,
        "ci_lo": 0.8,
    }
    return {
        "scoreboard": f.scoreboard_frame(), "scan": f.scan_frame(), "effects": effects, "localisation": told,
        "layers": layers.assign(chosen=layers["layer"] == 6), "edits": pd.DataFrame(edits),
        "drift": pd.DataFrame(drift), "findings": pd.DataFrame(findings | {"ci_hi": 1.0, "n": 50, "verdict": "holds"}),
    }  # fmt: skip


def conflict() -> dict[str, pd.DataFrame]:
    ratios = pd.concat(
        [
            f.ratios_frame().assign(by="all"),
            f.ratios_frame(("capital", "largest_city")).assign(by="relation"),
            f.ratios_frame(("low", "middle", "high")).assign(by="third"),
        ]
    )
    mlps = f.knockout_frame().rename(columns={"relative": "margin_lost", "lo": "ci_lo", "hi": "ci_hi"})
    mlps = mlps[mlps["scenario"].isin(["generic", "guesswork"])]
    mlps = mlps.assign(question=mlps["scenario"].map({"generic": "conflict", "guesswork": "closed"}))
    over = {"task": "conflict", "statistic": "memory", "family": "cut context", "k": [4, 8], "factor": np.nan}
    over |= {"scope": "answer", "control": "layer", "d_move": [0.2, 0.61], "d_control": 0.04, "value": 0.57}
    findings = {"finding": "receptive", "statistic": "ratio", "value": 0.2, "ci_lo": 0.1, "ci_hi": 0.3}
    return {
        "ratios": ratios, "heads": f.context_heads_frame(), "mlps": mlps.assign(scope=mlps["source"]),
        "moves": f.moves_frame(), "over_controls": pd.DataFrame(over | {"ci_lo": 0.4, "ci_hi": 0.7}),
        "findings": pd.DataFrame([findings | {"verdict": "holds"}]),
    }  # fmt: skip


def prior() -> dict[str, pd.DataFrame]:
    tasks = {
        "task": ["acronym", "counting"],
        "settings": ["{}", "{1}"],
        "judged": "choice",
        "choice": [0.6, 0.2],
    }
    tasks |= {
        "ci_lo": 0.1,
        "ci_hi": 0.7,
        "chance": 0.125,
        "taken": [True, False],
        "status": ["ok", "at chance"],
    }
    gaps = {"task": "acronym", "metric": "choice", "gap": 0.21, "gap_lo": 0.1, "gap_hi": 0.3, "rho": -0.2}
    gaps |= {"rho_within": -0.1, "p_within": 0.04, "status": ["ok", "at chance"]}
    prefaces = f.prefaces_frame().assign(metric="choice", status="ok")
    prefaces = prefaces.assign(control=prefaces["preface"].str.startswith("control"))
    tuned = f.tuning_frame().assign(metric="choice", status="ok")
    contrast = {
        "task": "acronym",
        "metric": "choice",
        "prior": "low",
        "chosen": 0.1,
        "random": 0.05,
        "delta": 0.051,
    }
    drift = {
        "kind": ["chosen", "chosen", "random"],
        "task": "prose",
        "metric": "nll",
        "delta": [0.01, 0.03, 0.5],
    }
    return {
        "tasks": pd.DataFrame(tasks), "accuracy": f.accuracy_frame(), "gaps": pd.DataFrame(gaps),
        "layers": f.prior_layers_frame(), "prompts": prefaces, "tuning": tuned,
        "prompts_contrast": prefaces[prefaces["preface"] == "do not rely"],
        "tuning_contrast": pd.DataFrame([contrast | {"ci_lo": -0.01, "ci_hi": 0.1, "beaten": 0.75, "status": "ok"}]),
        "arms": pd.DataFrame({"arm": ["a", "b"], "restored": [True, True]}), "drift": pd.DataFrame(drift),
    }  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data")
    parts = {
        "facts": facts(), "dissociation": dissociation(), "editing": editing(), "conflict": conflict(),
        "prior": prior(),
    }  # fmt: skip
    for part, tables in parts.items():
        (place / part).mkdir()
        for name, frame in tables.items():
            frame.to_parquet(place / part / f"{name}.parquet")
        (place / part / "spec.yaml").write_text("model: m\n")
    return place


@pytest.fixture(scope="module")
def drawn(study: ModuleType, data: Path) -> dict[str, go.Figure]:
    figures: dict[str, go.Figure] = study.figures(data)
    return figures


def test_every_figure_from_its_tables(drawn: dict[str, go.Figure]) -> None:
    assert set(drawn) == {
        f"facts-study-{n}"
        for n in (
            "census", "map-resid", "map-mlp", "map-attn", "profiles", "profiles-single", "knockout", "extraction",
            "enrichment", "vital", "dissociation", "gaps", "stores", "edits", "edit-layers", "localisation", "balance",
            "balance-relation", "balance-third", "context-heads", "memory-mlps", "dose", "dose-margin",
            "prior-accuracy", "prior-layers", "prior-prompts", "prior-tuning",
        )
    }  # fmt: skip


def test_maps_are_of_one_metric_and_way_and_end_their_colours_where_a_first_layer_outshines(
    study: ModuleType, drawn: dict[str, go.Figure]
) -> None:
    wide = facts()["aie"].query("way == 'wide' and metric == 'probability' and kind == 'mlp_out'")
    later = wide[wide["layer"] > 2]["aie"].abs().max()
    assert drawn["facts-study-map-mlp"].layout.coloraxis.cmax == pytest.approx(later) and later < 0.3
    assert drawn["facts-study-map-resid"].layout.coloraxis.cmax < 1.0, "no logits among probabilities"
    assert study.limit(wide[wide["layer"] > 0]) is None


def test_figures_take_one_scope_and_one_metric(drawn: dict[str, go.Figure]) -> None:
    facts_lost = next(t for t in drawn["facts-study-dissociation"].data if t.name == "facts")
    assert max(facts_lost.y) < 0.9
    shaded = {s.x0 + 0.5 for s in drawn["facts-study-stores"].layout.shapes if s.name == "marked"}
    assert shaded == {3}
    (lost,) = [t for t in drawn["facts-study-vital"].data if t.name == "generic"]
    assert list(lost.y) == pytest.approx([0.1] * 12)
    gaps = drawn["facts-study-gaps"]
    assert len(gaps.data[0].x) == len(f.gaps_frame())


def test_settings_are_told_in_words(study: ModuleType) -> None:
    told = {name: study.setting(name) for name in f.SETTINGS}
    assert told["closed"] == "no context" and told["1:0"] == "1 against"
    assert told["2:1 memory first"] == "2 against, 1 for; for first"
    assert told["1:2 counter first"] == "1 against, 2 for; against first"
    assert told["1:0 +3"] == "1 against, 3 about others"
    assert len(set(told.values())) == len(told)


def test_what_is_not_there_is_left_out(study: ModuleType, data: Path, tmp_path: Path) -> None:
    copied = study.export({"conflict": data / "conflict"}, tmp_path)
    assert {p.name for p in copied} == {*(f"{n}.parquet" for n in conflict()), "spec.yaml"}
    assert {n.removeprefix("facts-study-") for n in study.figures(tmp_path)} == {
        "balance", "balance-relation", "balance-third", "context-heads", "memory-mlps", "dose", "dose-margin",
    }  # fmt: skip
    assert "no context" in study.numbers(tmp_path) and "ROME" not in study.numbers(tmp_path)
    assert study.numbers(tmp_path / "none") == "" and study.figures(tmp_path / "none") == {}


def test_numbers_are_those_of_the_tables(study: ModuleType, data: Path) -> None:
    text = study.numbers(data)
    assert "with 0 solved examples 148 of 320 questions, 46%, above chance in 8 of 8 relations" in text
    assert "Of 1,480 right predictions in all wordings 45% are exact recall by the rules, and 25% may" in text
    assert (
        "| exact recall | 0.512 | 0.310 [0.010, 0.400] at layer 4 | 0.020 [0.010, 0.030] at layer 11 |"
        in text
    )
    assert (
        "| early site | IE | 0.200 [" in text and "| undecided | 1 of 2 |" in text and "0.500 [" not in text
    )
    assert f"| late site | IE | {MINUS}0.100 [{MINUS}0.300, {MINUS}0.050] | does not | 1 of 1 |" in text
    assert "| **fact layers 3** | held / needle | 0.27 [0.17, 0.36] | 0.70 [0.60, 0.79] | 0.97" in text
    assert text.count("| held / needle |") == 4, "of one metric"
    assert "| fact layers 1 | 0.38 (0.07) |" in text and "| at chance |" in text and "0.99 (" not in text
    assert "Layers that pass as stores of facts: 3." in text
    assert re.search(r"\| 3 \| 0\.100 \[.*\| store \|\n\| 4 \|", text), "best first"
    assert "| memit, 10 at once | 0.88 [0.82, 0.94] | 0.65 [0.59, 0.71] |" in text
    assert "after 2 of 3 edits; the file of one takes 40 KiB" in text and "rome 1 at once 0.0200" in text
    assert "| rome writes | ES |" in text and "a trace says where" not in text
    assert (
        "| mlp_out | noise | probability | efficacy | 0.05 | 0.10 | 0.31 | 0.004 [0.001, 0.050] | 0.410 |"
        in text
    )
    assert "| sum of 50 edits by ROME | " in text and "| NS same | NS other | S |" in text
    assert "NS same: neighbours with the edited fact's object, as all of CounterFact's are" in text
    assert "| no context | 95% | 2% | 3% | 0.98 [0.90, 1.00] | 96 |" in text
    assert "| cut context | 8 | answer | 0.61 | layer: 0.04 | 0.57 [0.40, 0.70] |" in text
    assert "| counting | {1} | choice 0.20 [0.10, 0.70] | 0.12 | at chance |" in text
    assert f"| acronym | choice | 0.21 [0.10, 0.30] | {MINUS}0.20 | {MINUS}0.10 | 0.0400 |" in text
    assert text.count("| acronym | choice | 0.21") == 1, "the floor rule"
    assert "| acronym, choice | low | 0.06 [0.01, 0.12] |" in text
    assert f"| acronym, choice | low | 0.10 | 0.05 | 0.05 [{MINUS}0.01, 0.10] | 75% |" in text
    assert "after 2 of 2 tunings" in text and "| chosen | 0.020 |\n| random | 0.500 |" in text


def test_the_readme_says_what_the_committed_tables_say(study: ModuleType) -> None:
    page = (study.DATA / "README.md").read_text()
    assert written(page, study.numbers(study.DATA)) == page
    # A number that the tables do not have is not in it.
    assert written(page, "none of it") != page
