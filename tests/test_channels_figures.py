"""The figures of the channel study from small tables in the shapes that the studies write."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from study_script import written

from tests.plot import circuit_frames as frames

SCRIPT = Path(__file__).parents[1] / "figures" / "channels_study.py"
EDITS = ("suppress", "learned", "scaled", "swapped", "last")


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("channels_study", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ioi() -> dict[str, pd.DataFrame]:
    paths = frames.paths_frame()
    stage = paths["receivers"].map(
        {"logits": "direct", "movers, q": "mover_q", "S-inhibition, v": "inhibition_v"}
    )
    ends = {"stage": "direct", "effect": 0.3, "ci_lo": 0.2, "ci_hi": 0.4}
    heads = pd.DataFrame([{"component": c, "class": k} | ends for c, k in frames.CLASSES.items()])
    confirm = pd.DataFrame(
        {
            "sender": list(frames.CLASSES),
            "stage": "direct",
            "effect": 0.25,
            "confirmed": [False, *[True] * (len(heads) - 1)],
        }
    )
    kept = {
        "kept": ["circuit", "matched", "matched"],
        "k": 9,
        "faithfulness": [0.9, 0.1, 0.3],
        "logit_diff": [3.0, 1.0, 2.0],
    }
    alone = pd.DataFrame({"mode": "mean", "ci_lo": 0.8, "ci_hi": 1.1} | kept)
    cut = {"class": "name mover", "components": "L22H3", "metric": "logit_diff", "value": 1.5}
    cut |= {
        "condition": ["cut", "control", "control"],
        "delta": [-2.0, -0.1, -0.3],
        "ci_lo": -2.5,
        "ci_hi": -1.5,
    }
    own = paths[(paths["head"] >= 0)].assign(stage=stage)
    own = own[own["stage"] == "mover_q"].assign(chosen=lambda f: f["effect"] > 0.1, q=0.01)
    weights = own.assign(component=own["effect"] + np.linspace(0, 0.02, len(own)), composition=0.1)
    predicted = pd.DataFrame(
        {
            "stage": ["all", "all", "mover_q", "mover_q", "mover_k"],
            "score": ["component", "z", "component", "z", "z"],
            "auroc": [0.9, 0.8, 0.99, 0.5, np.nan],
        }
    ).assign(p=[0.03, 0.04, 0.002, 0.5, np.nan], expected=0.62, positives=3, n=40)
    return {
        "edges": paths.assign(stage=stage, receivers="L22H3.q L24H8.q", token_layers=10, naive_token_layers=65),
        "heads": heads, "weights": weights, "predicted": predicted, "confirm": confirm, "faithfulness": alone,
        "knockout": pd.DataFrame(cut),
    }  # fmt: skip


def laundry() -> dict[str, pd.DataFrame]:
    drawn = {f"suppress: random directions, draw {i}": "suppress: random directions" for i in range(3)}
    others = {"suppress: other components, draw 0": "suppress: other components"}
    kinds = (
        {"clean": "clean"}
        | {e: e for e in EDITS}
        | drawn
        | others
        | {"learned: random directions, draw 0": "learned: r"}
    )
    rows: list[dict[str, Any]] = []
    for templates in ("all", "held"):
        for items in (0, 3, 6, 10):
            for i, name in enumerate(kinds):
                value = 0.5 + 0.01 * i
                gain = {"base": 0.5, "gain": value - 0.5, "gain_lo": value - 0.55, "gain_hi": value - 0.45}
                ends = {
                    "accuracy": value,
                    "ci_lo": value - 0.04,
                    "ci_hi": value + 0.04,
                    "chance": 1 / max(items, 1),
                }
                rows.append(
                    {"condition": name, "items": items, "templates": templates, "n": 500} | ends | gain
                )
    grid = frames.grid_frame(3).rename(columns={"c0": "s0", "c1": "s1", "c2": "s2", "share": "wins"})
    grid = grid.assign(place=grid["item"] + 1, point=0, items=6).drop(columns="item")
    flat = frames.grid_frame(1).rename(columns={"c0": "s0", "share": "wins"})
    flat = pd.concat([flat.assign(place=flat["item"] + 1, point=0, items=n) for n in (3, 4)])
    intact = flat.head(4).assign(point=-1, s0=np.nan)
    edits = pd.DataFrame({"condition": list(kinds), "kind": list(kinds.values())})
    return {
        "gains": pd.DataFrame(rows).assign(full=0.31),
        "conditions": edits[edits["condition"] != "clean"].assign(edit="L1H2", size="2.5"),
        "over_controls": pd.DataFrame(
            {"condition": "suppress", "control": "suppress: random directions", "items": [0, 3], "gain": [0.07, 0.5]}
        ),
        "neutral": pd.DataFrame({"condition": list(kinds), "change": 0.26}),
        "grid-1": pd.concat([flat, intact]).drop(columns="item"), "grid-3": grid,
    }  # fmt: skip


def reuse() -> dict[str, pd.DataFrame]:
    effects = frames.cross_frame(4)
    control = effects["condition"].eq("control").map({True: "layer", False: ""})
    effects = pd.concat([effects.assign(metric=m, control=control) for m in ("choice", "logit_diff")])
    more = effects[effects["condition"] == "control"].assign(control="any")
    overlap = pd.concat([frames.overlap_frame(), frames.overlap_frame().assign(null="hypergeometric")])
    floor = {
        "task": ["a", "a"],
        "settings": ["{}", "{1}"],
        "choice": [0.4, 0.8],
        "ci_lo": [0.2, 0.7],
        "ci_hi": 0.9,
    }
    floor |= {"chance": 0.25, "taken": [False, True], "status": ["at chance", "ok"]}
    cells = {
        "task": ["a", "a", "b", "b"],
        "circuit": ["a", "b"] * 2,
        "metric": "choice",
        "control": "layer",
        "clean": 0.8,
    }
    cells |= {
        "delta": [-0.5, -0.1, 0.0, 0.0],
        "excess": [-0.4, 0.05, 0.0, 0.0],
        "status": ["ok", "ok", *["at chance"] * 2],
    }
    repair = {
        "components": "L1H2 L3H4",
        "keys": "value",
        "locator": "two",
        "metric": ["choice", "logit_diff"],
    }
    repair |= {
        "value": 0.9,
        "delta": 0.4,
        "ci_lo": 0.3,
        "ci_hi": 0.5,
        "control_mean": 0.1,
        "control_sd": 0.02,
        "rank": 2,
    }
    sure = {"set": "two", "class": [0, 1], "metric": "choice", "excess": [0.33, 0.22]}
    return {
        "effects": pd.concat([effects, more]),
        "overlap": pd.concat(
            [overlap.assign(stage=s, n_a=9, n_b=8, expected=1.4, q=0.004) for s in ("all", "direct")]
        ),
        "tasks": pd.DataFrame(floor), "matrix": pd.DataFrame(cells), "repair_split": pd.DataFrame(sure),
        "repair_contrast": pd.DataFrame(repair).assign(n_controls=20),
    }  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data")
    channels = {"channels": frames.channels_frame(), "channel_spectrum": frames.spectrum_frame()}
    channels["composition"] = frames.composition_frame()
    parts = {"channels": channels, "ioi": ioi(), "laundry": laundry(), "reuse": reuse()}
    for part, tables in parts.items():
        (place / part).mkdir()
        for name, frame in tables.items():
            frame.to_parquet(place / part / f"{name}.parquet")
        (place / part / "spec.yaml").write_text("model: m\n")
    return place


def test_every_figure_from_its_tables(study: ModuleType, data: Path) -> None:
    drawn = study.figures(data)
    assert set(drawn) == {
        f"channels-study-{n}"
        for n in (
            "graph", "spectrum", "composition", "ioi", "ioi-edges", "laundry", "grid-1", "grid-3", "reuse", "overlap"
        )
    }  # fmt: skip
    assert {t.name for t in drawn["channels-study-graph"].data} >= set(frames.CLASSES.values())
    assert any("AUROC 1.00" in str(t.name) for t in drawn["channels-study-ioi-edges"].data)
    notes = " ".join(a.text for a in drawn["channels-study-ioi-edges"].layout.annotations).replace(
        "<br>", " "
    )
    assert "(p = 0.03" in notes, "of the score that is drawn, over all stages"


def test_of_many_classes_those_with_a_name_are_marked(study: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "ioi").mkdir()
    kinds = ["other: direct", *(f"class {i}" for i in range(8))]
    heads = pd.DataFrame({"component": [f"L1H{i}" for i in range(9)], "class": kinds})
    heads.to_parquet(tmp_path / "ioi" / "heads.parquet")
    assert list(study.classes(tmp_path).values()) == kinds[1:]


def test_of_the_laundry_list_the_first_edits_and_the_controls_of_the_first(
    study: ModuleType, data: Path
) -> None:
    fig = study.figures(data)["channels-study-laundry"]
    names = {t.name for t in fig.data if t.name}
    assert names >= {"clean", *EDITS[:4], "control: random directions", "control: other components"}
    assert not names & {EDITS[4], "control: r"}
    (median,) = [t for t in fig.data if t.name == "control: random directions" and t.xaxis == "x"]
    assert list(median.x) == [3, 6, 10] and set(median.customdata) == {3}
    assert [a.text for a in fig.layout.annotations if a.text.startswith("templates")] == [
        "templates: all", "templates: held",
    ]  # fmt: skip


def test_walks_leave_out_the_intact_model_and_have_a_panel_a_length(study: ModuleType, data: Path) -> None:
    drawn = study.figures(data)
    flat = drawn["channels-study-grid-1"]
    first = [t for t in flat.data if t.name == "item 1"]
    assert len(first) == 2 and all(np.isfinite(t.x.astype(float)).all() for t in first)
    cuts = [a.text for a in drawn["channels-study-grid-3"].layout.annotations if a.text.startswith("third")]
    assert cuts == [f"third coordinate, sd = {v}" for v in ("\u22122", "0", "2")]


def test_the_matrix_is_of_the_choice_and_of_one_kind_of_control(study: ModuleType) -> None:
    rows = study.judged(reuse()["effects"])
    assert set(rows["metric"]) == {"choice"} and set(rows["control"]) == {"", "layer"}
    assert (rows["condition"] == "clean").sum() == 5


def test_what_is_not_there_is_left_out(study: ModuleType, data: Path, tmp_path: Path) -> None:
    copied = study.export({"reuse": data / "reuse"}, tmp_path)
    assert {p.name for p in copied} == {*(f"{n}.parquet" for n in study.TABLES["reuse"]), "spec.yaml"}
    assert set(study.figures(tmp_path)) == {"channels-study-reuse", "channels-study-overlap"}
    assert "by layers alone" not in study.numbers(tmp_path) and "| things" not in study.numbers(tmp_path)
    assert study.numbers(tmp_path / "none") == "" and study.figures(tmp_path / "none") == {}


def test_of_composition_the_highest_of_two_layers_is_kept(
    study: ModuleType, data: Path, tmp_path: Path
) -> None:
    whole = pd.read_parquet(data / "channels" / "composition.parquet")
    study.export({"channels": data / "channels"}, tmp_path)
    kept = pd.read_parquet(tmp_path / "channels" / "composition.parquet")
    keys = ["mode", "writer_layer", "reader_layer"]
    assert len(kept) == len(whole[keys].drop_duplicates()) < len(whole)
    pd.testing.assert_series_equal(
        kept.set_index(keys)["value"].sort_index(), whole.groupby(keys)["value"].max().sort_index()
    )
    before, after = (
        study.figures(where)["channels-study-composition"].to_dict() for where in (data, tmp_path)
    )
    assert str(before["data"]) == str(after["data"])


def test_numbers_are_those_of_the_tables(study: ModuleType, data: Path) -> None:
    text = study.numbers(data)
    assert (
        "| mover_q | 3 of 40 | 0.62 | 0.99 (p 0.0020) | 0.50 (p 0.5000) |" in text
        and "| mover_k |" not in text
    )
    assert "| name mover | L22H3 | direct | 0.30 [0.20, 0.40] | 0.25 |" in text
    assert f"{len(frames.CLASSES) - 1} of {len(frames.CLASSES)} chosen paths have the same sign" in text
    assert "Paths of all heads took 6.5 to 6.5 times fewer token-layers" in text
    assert "| mean | circuit | 9 | 3.00 | 0.90 [0.80, 1.10] |" in text
    assert "| mean | matched | 9 | 1.50 | 0.20 (of 2 draws, 0.10 to 0.30) |" in text
    assert (
        "| name mover | L22H3 | 1.50 | \u22122.00 [\u22122.50, \u22121.50] | \u22120.20 (of 2 draws) |"
        in text
    )
    assert "| a | {} | 0.40 [0.20, 0.90] | 0.25 | at chance |" in text
    assert (
        "| a (0.80) | \u22120.50 (\u22120.40) | \u22120.10 (0.05) |" in text
        and "| b (at chance) | | |" in text
    )
    assert "| L1H2 L3H4 | value | two | choice | 0.90 | 0.40 [0.30, 0.50] | 0.10 (0.02) | 2 of 21 |" in text
    assert "| 9, 8 | " in text and "| 1.4 | 0.004 |" in text
    assert "logit_diff | 0.90" not in text and "| two | 0.33 | 0.22 |" in text
    row = "| suppress | L1H2, 2.5 | 0.51 | 0.01 [\u22120.04, 0.06] | random directions 0.07 | 0.51 | 0.31 | 0.26 |"
    assert row in text and "random directions, draw" not in text
    assert "| things | 3 | 6 | 10 |" in text and "| chance | 0.33 | 0.17 | 0.10 |" in text


def test_the_readme_says_what_the_committed_tables_say(study: ModuleType) -> None:
    page = study.README.read_text()
    assert written(page, study.numbers()) == page
    # A number that the tables do not have is not in it.
    assert written(page, "none of it") != page
