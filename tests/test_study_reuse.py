"""The circuit-reuse study on a tiny model: every part, gone on with, against direct calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import transformers as hf
from pydantic import ValidationError
from tokenizers import AddedToken
from typer.testing import CliRunner

import interp
from interp.cli import app
from interp.intervene.attention import set_attention
from interp.locate.circuits.path_patching import path_patch
from interp.locate.circuits.sharing import overlap
from interp.measure import evaluate
from interp.measure.cross_task import cross_task
from interp.measure.effects import measure
from interp.models.sites import components
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens
from interp.studies.reuse import circuits, repair
from interp.studies.reuse.spec import ReuseSpec
from interp.studies.reuse.study import run
from interp.tasks.pairs import data
from tests.tiny import _LLAMA_LIKE, FAMILIES, byte_tokenizer, tiny

SMALL: dict[str, Any] = {
    "tasks": {"ioi": ({},), "induction": ({"length": 8}, {"length": 6})}, "n": 4, "keep_at_chance": True, "locate_n": 2,
    "stages": ("logits", "q"), "top": 0.17, "controls": 2, "match": ("layer",), "repair_train": 3,
    "repair_validation": 3, "repair_test": 8, "repair_sizes": (1, 2), "repair_paper": 2, "repair_controls": 3,
}  # fmt: skip
"""Sizes for a model of twelve heads and a tokenizer of bytes."""

FLOORS = ("ioi", "induction")


@pytest.fixture(scope="module")
def model() -> CausalLM:
    """A tiny model whose tokenizer has a token for each name, color and object, and bytes for the rest."""
    tokenizer = byte_tokenizer()
    words = [w for pool in ("names", "colors", "objects") for w in data("words")[pool]]
    tokenizer.add_tokens([AddedToken(f" {w}", normalized=False) for w in words])
    config = {**_LLAMA_LIKE, "vocab_size": len(tokenizer)}
    FAMILIES["wordy"] = lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**config))
    try:
        return CausalLM(tiny("wordy"), Tokens(tokenizer), name="tiny")
    finally:
        del FAMILIES["wordy"]


@pytest.fixture(scope="module")
def spec() -> ReuseSpec:
    return ReuseSpec(model="tiny", **SMALL)


@pytest.fixture(scope="module")
def study(spec: ReuseSpec, model: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reuse") / "run"
    job = run(spec, folder, subject=model)
    assert "repair" in job.done and not job.skipped
    return folder


def table(study: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(study / f"{name}.parquet")


def test_it_goes_on_where_it_stopped(study: Path, spec: ReuseSpec, model: CausalLM) -> None:
    names = (
        "tasks",
        "circuits",
        "overlap",
        "core",
        "matrix",
        "contrasts",
        "effects",
        "repair",
        "repair_contrast",
    )
    before = {name: (study / f"{name}.parquet").read_bytes() for name in names}
    (study / "parts" / "matrix-ioi.parquet").unlink()
    job = run(spec, study, subject=model)
    assert job.done == ["parts/matrix-ioi"] and "repair" in job.skipped
    assert before == {name: (study / f"{name}.parquet").read_bytes() for name in names}


def test_settings_are_tried_until_the_floor_is_passed(study: Path, spec: ReuseSpec, model: CausalLM) -> None:
    found = table(study, "tasks")
    assert found["task"].tolist() == ["ioi", "induction", "induction"]
    assert found["settings"].tolist() == ["{}", '{"length": 8}', '{"length": 6}']
    # A random model is at chance; it was asked to go on all the same, with the last setting.
    assert found["status"].tolist() == ["at chance"] * 3 and found["taken"].tolist() == [True, False, True]
    own = evaluate(model, interp.task("induction", length=6, n=4, seed=0).examples(model), {"clean": None})
    assert found["choice"].iloc[2] == own.values["clean"]["choice"].mean()
    assert found["chance"].iloc[2] == pytest.approx(np.mean([e.chance for e in own.examples]))


def test_circuits_are_the_union_of_path_patching_stages_on_the_first_seed(
    study: Path, model: CausalLM
) -> None:
    found = table(study, "circuits")
    own = found[found["task"] == "ioi"]
    examples = interp.task("ioi", n=2, seed=0).examples(model)
    first = path_patch(model, examples, "logits")
    logits = own[own["stage"] == "logits"].set_index("component")
    pd.testing.assert_series_equal(logits["score"], first.set_index("sender")["effect"], check_names=False)
    top = first.loc[first["effect"].abs().nlargest(2).index, "sender"].tolist()
    assert sorted(logits.index[logits["chosen"]]) == sorted(top)
    second = path_patch(model, examples, [f"{h}.q" for h in top if not h.startswith("L0")])
    queries = own[own["stage"] == "q"].set_index("component")
    pd.testing.assert_series_equal(queries["score"], second.set_index("sender")["effect"], check_names=False)
    assert queries["chosen"].sum() == 2 and set(queries[queries["chosen"]]["rank"]) == {1, 2}
    union = sorted({*top, *queries.index[queries["chosen"]]})
    assert list(map(repr, circuits.heads_of(own))) == union


def test_overlap_and_matrix_are_those_of_direct_calls(study: Path, model: CausalLM) -> None:
    found = table(study, "circuits")
    sets = {t: circuits.heads_of(found[found["task"] == t]) for t in FLOORS}
    told = table(study, "overlap")
    wanted = overlap(sets["ioi"], sets["induction"], model.heads())
    mine = told[told["stage"] == "all"].reset_index(drop=True)[wanted.columns]
    pd.testing.assert_frame_equal(mine, wanted)
    assert set(told["stage"]) == {"all", "logits", "q"}
    held = {
        "ioi": interp.task("ioi", n=4, seed=1),
        "induction": interp.task("induction", length=6, n=4, seed=1),
    }
    direct = cross_task(model, sets, held, controls=2, match=("layer",))
    for name in ("matrix", "contrasts"):
        assert table(study, name).astype(str).equals(getattr(direct, name).astype(str)), name


def test_a_repair_is_chosen_on_train_and_validation_and_measured_on_test(
    study: Path, spec: ReuseSpec, model: CausalLM
) -> None:
    splits = [
        interp.task("colored_objects", shots=1, n=n, seed=1000 + i).examples(model)
        for i, n in enumerate((3, 3, 8))
    ]
    keys = [{e.key() for e in part} for part in splits]
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
    search = table(study, "repair_search")
    assert len(search) == 2 * 12
    item = set_attention("L1H2", "value")
    values = evaluate(model, splits[0], {"clean": None, "set": item}).values
    row = search[(search["to"] == "value") & (search["component"] == "L1H2")].iloc[0]
    assert row["gain"] == pytest.approx(
        (values["set"]["logit_diff"] - values["clean"]["logit_diff"]).mean(), abs=1e-4
    )
    sizes = table(study, "repair_sizes")
    assert sizes[["to", "k"]].values.tolist() == [[r, k] for r in spec.repair_to for k in (1, 2)]
    assert sizes["chosen"].sum() == 1
    (chosen,) = sizes[sizes["chosen"]].to_dict("records")
    assert (chosen["choice"], chosen["logit_diff"]) == max(
        zip(sizes["choice"], sizes["logit_diff"], strict=True)
    )
    effects = table(study, "repair")
    cut = effects[(effects["condition"] == "cut") & (effects["metric"] == "logit_diff")].set_index("locator")
    assert cut.loc["chosen on validation", "components"] == chosen["components"]
    best = search[search["to"] == "value"].nlargest(2, "gain")["component"].tolist()
    assert (
        cut.loc["top 2 to value", "components"].split() == best
        and cut.loc["top 2 to value", "keys"] == "value"
    )
    found = table(study, "circuits")
    ioi = set(map(repr, circuits.heads_of(found[found["task"] == "ioi"])))
    among = search[(search["to"] == "value") & search["component"].isin(ioi)].nlargest(2, "gain")
    assert cut.loc["2 of ioi to value", "components"].split() == among["component"].tolist()
    after = evaluate(model, splits[2], {"clean": None, "set": set_attention(best, "value")}).values
    delta = after["set"]["logit_diff"] - after["clean"]["logit_diff"]
    assert cut.loc["top 2 to value", "delta"] == pytest.approx(delta.mean(), abs=1e-4)
    drawn = effects[(effects["locator"] == "top 2 to value") & (effects["condition"] == "control")]
    # Two heads of one layer leave a single other pair in it.
    draws = 1 if len({c.layer for c in components(" ".join(best))}) == 1 else 3
    assert drawn["draw"].nunique() == draws and not any(
        set(c.split()) & set(best) for c in drawn["components"]
    )
    layers = sorted(c.layer for c in components(" ".join(best)))
    assert all(sorted(c.layer for c in components(text)) == layers for text in drawn["components"])
    split = table(study, "repair_split")
    own = split[(split["set"] == "top 2 to value") & (split["metric"] == "logit_diff")]
    assert own["n"].tolist() == [2] * 4 and own["delta"].mean() == pytest.approx(delta.mean(), abs=1e-4)
    assert (own["sure_lo"].to_numpy()[1:] >= own["sure_hi"].to_numpy()[:-1]).all()
    sure = repair.confidence(model, splits[2])
    at = np.argsort(sure)[:2]
    assert own["delta"].iloc[0] == pytest.approx(delta[at].mean(), abs=1e-4)
    z = table(study, "repair_contrast")
    own = z[(z["locator"] == "top 2 to value") & (z["metric"] == "logit_diff")].iloc[0]
    assert own["n_controls"] == draws
    beaten = drawn[drawn["metric"] == "logit_diff"]["delta"] < own["delta"]
    assert own["rank"] == 1 + int((~beaten).sum())


def test_confidence_is_the_first_candidate_s_share(model: CausalLM) -> None:
    (e, *_) = interp.task("colored_objects", n=2, seed=3).examples(model)
    from interp.measure.metrics import score_at

    place = score_at(e)
    row = model.run([e]).logits[0, place].softmax(-1)
    among = [float(row[c[place]]) for c in e.candidates]
    assert repair.confidence(model, [e])[0] == pytest.approx(max(among) / sum(among), rel=1e-4)


@pytest.mark.parametrize("method", ["patch", "screen"])
def test_other_locators_give_frames_of_the_same_kind(method: str, spec: ReuseSpec, model: CausalLM) -> None:
    examples = interp.task("ioi", n=2, seed=0).examples(model)
    found = circuits.marked(circuits.LOCATORS[method](model, examples, spec, None), 2)
    assert found[circuits.COLUMNS].columns.tolist() == circuits.COLUMNS and len(found) == 12
    assert found["chosen"].sum() == 2 and set(found["stage"]) == {"z"}
    order = found["score"].abs().sort_values(ascending=False).index[:2]
    assert set(order) == set(found.index[found["chosen"]])


def test_attention_that_is_set_is_measured_like_a_cut(model: CausalLM) -> None:
    task = interp.task("colored_objects", n=4, seed=3)
    item = set_attention("L1H2 L2H0", "value", how="scale", factor=3)
    rows = measure(model, task, item, controls=2, floor="mark", metrics=("logit_diff",))
    assert rows["condition"].tolist() == ["clean", "cut", "control", "control"] and set(rows["task"]) == {
        task.name
    }
    cut = rows.iloc[1]
    assert (cut["mode"], cut["scope"], cut["keys"]) == ("scale", "answer", "value x3")
    values = evaluate(model, task.examples(model), {"clean": None, "set": item}).values
    assert cut["value"] == pytest.approx(values["set"]["logit_diff"].mean(), abs=1e-4)


def test_the_command_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def fake(spec: ReuseSpec, folder: Path, *, stage: Any = None) -> Any:
        seen.append((spec, folder))
        return type("Job", (), {"done": ["tasks"], "skipped": []})()

    monkeypatch.setattr("interp.studies.reuse.study.run", fake)
    out = CliRunner().invoke(
        app,
        ["study", "circuit-reuse", "smollm2", "--quick", "--set", "n=9", "--out", str(tmp_path), "--json"],
    )
    assert out.exit_code == 0 and json.loads(out.stdout)["done"] == ["tasks"]
    assert seen[0][0] == ReuseSpec.quick("smollm2", n=9) and seen[0][1] == tmp_path


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tasks": {}}, "tasks is empty"),
        ({"stages": ("q",)}, "begin with 'logits'"),
        ({"repair_sizes": ()}, "one entry or more"),
        ({"top": 1.5}, "less than 1"),
    ],
)
def test_bad_specs_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        ReuseSpec(model="tiny", **changes)
