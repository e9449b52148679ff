"""The study of double dissociation on a tiny model that knows some facts, and its tables on numbers made by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as hf
import yaml
from pydantic import ValidationError
from tokenizers import AddedToken
from typer.testing import CliRunner

import interp
from interp.cli import app
from interp.errors import NoAcceptedExample
from interp.intervene.ablate import ablate
from interp.locate.facts.fact_mlps import FactMLPs
from interp.measure.mlp_controls import matched_neurons
from interp.measure.outcomes import evaluate
from interp.models.sites import MLP, Head, components
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens
from interp.studies.dissociation import losses, neurons, sets, tables
from interp.studies.dissociation.cuts import cells, planned, window
from interp.studies.dissociation.spec import DissociationSpec
from interp.studies.dissociation.study import run
from interp.tasks.facts import relation
from tests.planted.facts import planted
from tests.tiny import _LLAMA_LIKE, FAMILIES, byte_tokenizer, tiny

RELATIONS = ("continent", "sport")
SMALL: dict[str, Any] = {
    "relations": RELATIONS, "asked": 40, "least": 2, "facts_n": 5, "reference_n": 2, "layers": (1, 2), "windows": (2,),
    "neuron_layers": 2, "neurons": 6, "exact": 5, "check": 1, "neuron_facts": 3, "own": 3, "heads_k": 2,
    "needle_length": 400, "reference_length": 400, "profile_length": 400, "needle_n": 4, "induction_n": 4,
    "induction_length": 8, "prose_n": 3, "profile_n": 2, "controls": 2,
}  # fmt: skip
"""Sizes for a model of three layers and a tokenizer of bytes."""

SAID = ("Africa", "Europe", "Asia", "tennis", "soccer", "basketball")

TABLES = (
    "facts",
    "census",
    "layers",
    "neurons",
    "fact_neurons",
    "heads",
    "profile",
    "vital",
    "sink",
    "neuron_facts",
)
TABLES += ("cells", "effects", "dissociation")


@pytest.fixture(scope="module")
def model() -> CausalLM:
    """A tiny model that answers every question with one of a few continents and sports, and so is right at times."""
    tokenizer = byte_tokenizer()
    words = [o for name in RELATIONS for o in relation(name).objects]
    tokenizer.add_tokens([AddedToken(f" {w}", normalized=False) for w in words])
    config = {**_LLAMA_LIKE, "vocab_size": len(tokenizer)}
    FAMILIES["wordy"] = lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**config))
    try:
        module = tiny("wordy")
    finally:
        del FAMILIES["wordy"]
    said = tokenizer.convert_tokens_to_ids([f" {w}" for w in SAID])
    with torch.no_grad():
        module.lm_head.weight[said] *= torch.tensor([6.0] * 3 + [14.0] * 3)[:, None]
    return CausalLM(module, Tokens(tokenizer), name="tiny")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> DissociationSpec:
    file = tmp_path_factory.mktemp("heads") / "heads.json"
    file.write_text(json.dumps([[f"{i}-{j}", 1.0 - (4 * i + j) / 12] for i in (1, 2, 0) for j in range(4)]))
    return DissociationSpec(model="tiny", heads=str(file), **SMALL)


@pytest.fixture(scope="module")
def study(spec: DissociationSpec, model: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dissociation") / "run"
    job = run(spec, folder, subject=model)
    assert "parts/cuts" in job.done and not job.skipped
    return folder


def table(study: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(study / f"{name}.parquet")


# -- the study on a tiny model -----------------------------------------------------------------------------------------


def test_it_goes_on_where_it_stopped(study: Path, spec: DissociationSpec, model: CausalLM) -> None:
    before = {name: (study / f"{name}.parquet").read_bytes() for name in TABLES}
    for part in ("cells-held-fact_neurons", "single_facts", "profile-prose"):
        (study / "parts" / f"{part}.parquet").unlink()
    job = run(spec, study, subject=model)
    assert job.done == ["parts/profile-prose", "parts/single_facts", "parts/cells-held-fact_neurons"]
    assert before == {name: (study / f"{name}.parquet").read_bytes() for name in TABLES}


def test_facts_are_known_and_split_by_subject(study: Path, model: CausalLM) -> None:
    found = table(study, "facts")
    census = table(study, "census").set_index("relation")
    for name, own in found.groupby("relation"):
        assert len(own) == 2 * SMALL["asked"] == census.loc[name, "asked"]
        asked = set(own["subject"])
        every = interp.task("facts", relations=[name], templates=[0, 1], n=None).examples(model)
        every = [e for e in every if e.meta["subject"] in asked]
        right = evaluate(model, every, {"clean": None}).values["clean"]["accuracy"]
        known = {(e.meta["subject"], e.meta["template"]): ok for e, ok in zip(every, right, strict=True)}
        assert [known[k] for k in zip(own["subject"], own["template"], strict=True)] == own["known"].tolist()
        assert census.loc[name, "known"] == own["known"].sum() > 4
    first = census["subjects"].idxmax()
    assert census["use"].to_dict() == {r: "fit" if r == first else "other" for r in RELATIONS}
    used = found[found["split"] != ""]
    assert used["known"].all() and not used["surface"].any() and used["twin"].all()
    assert {(s, u) for s, u in zip(used["split"], used["use"], strict=True)} == {
        ("fit", "fit"), ("held", "fit"), ("kin", "other"), ("other", "other")
    }  # fmt: skip
    fitted = set(used.loc[used["split"].isin(["fit", "kin"]), "subject"])
    assert not fitted & set(used.loc[used["split"].isin(["held", "other"]), "subject"])
    taken = found[found["taken"]]
    assert not taken.duplicated(["relation", "subject"]).any()
    assert taken.groupby("split").size().max() <= SMALL["facts_n"]


def examples(study: Path, spec: DissociationSpec, model: CausalLM, split: str) -> list[Any]:
    found = table(study, "facts")
    return sets.Questions(model, spec).of(sets.in_turn(found, split))


def test_layers_are_cut_at_all_tokens_but_the_first(
    study: Path, spec: DissociationSpec, model: CausalLM
) -> None:
    found = table(study, "layers").set_index("layer")
    facts = examples(study, spec, model, "fit")
    cut = {i: ablate(f"M{i}", scope=sets.CONTENT) for i in range(3)}
    values = evaluate(model, facts, {"clean": None, **cut}).values  # type: ignore[dict-item]
    chance = {name: np.exp(v["logprob"]) for name, v in values.items()}
    for i in range(3):
        assert found.loc[i, "fact_loss"] == pytest.approx((chance["clean"] - chance[i]).mean(), abs=1e-5)  # type: ignore[index]
    assert found["score"].rank(ascending=False).tolist() == found["rank"].tolist()
    assert found["chosen"].tolist() == (found["rank"] <= 2).tolist()
    best = window(found["score"].to_dict(), 2)
    assert found.index[found["window"]].tolist() == best


def test_effects_are_those_of_direct_cuts(study: Path, spec: DissociationSpec, model: CausalLM) -> None:
    effects = table(study, "effects")
    held = examples(study, spec, model, "held")
    own = effects[(effects["task"] == "held") & (effects["mechanism"] == "fact neurons")]
    cut = own[(own["condition"] == "cut") & (own["scope"] == "place")].set_index("metric")
    item = ablate(components(cut["components"].iloc[0]), scope=("place",))
    values = evaluate(model, held, {"clean": None, "cut": item}).values
    clean, after = (np.exp(-values[c]["nll"]) for c in ("clean", "cut"))
    assert cut.loc["probability", "loss"] == pytest.approx(1 - after.sum() / clean.sum(), abs=1e-5)
    assert cut.loc["nll", "loss"] == pytest.approx(
        (values["cut"]["nll"] - values["clean"]["nll"]).mean(), abs=1e-4
    )
    drawn = own[(own["condition"] == "control") & (own["scope"] == "place")]
    assert len(drawn) == 3 * SMALL["controls"]
    chosen = set(cut["components"].iloc[0].split())
    assert all(not chosen & set(c.split()) and len(c.split()) == len(chosen) for c in drawn["components"])
    mine = drawn[drawn["metric"] == "nll"]["loss"]
    row = cut.loc["nll"]
    assert row["control_mean"] == pytest.approx(mine.mean())
    assert row["excess"] == pytest.approx(row["loss"] - mine.mean())
    assert row["rank"] == 1 + (mine >= row["loss"]).sum()
    heads = effects[(effects["mechanism"] == tables.HEADS) & (effects["condition"] == "cut")]
    chosen_heads = table(study, "heads").query("chosen")["component"].tolist()
    assert set(heads["components"]) == {" ".join(chosen_heads)} and set(heads["mode"]) == {"mean"}
    # Contexts that a random model cannot read tell no loss.
    needle = effects[(effects["task"] == "needle") & (effects["condition"] != "clean")]
    assert set(needle["status"]) == {"at chance"} and needle["loss"].isna().all()
    assert set(table(study, "dissociation").query("context_task == 'needle'")["verdict"]) == {"at chance"}


def test_neurons_of_a_fact_are_those_it_lost_most_by(
    study: Path, spec: DissociationSpec, model: CausalLM
) -> None:
    measured = table(study, "fact_neurons")
    rows = pd.read_parquet(study / "parts" / "single_facts.parquet")
    facts = examples(study, spec, model, "fit")
    for (i, components_), own in rows[rows["condition"] == "cut"].groupby(["fact", "components"]):
        mine = measured[(measured["example"] == i) & (measured["exact"] > 0)].nlargest(3, "exact")
        assert components_.split() == mine["component"].tolist()
        values = evaluate(model, [facts[i]], {"cut": ablate(components_.split(), scope=("place",))}).values
        (row,) = own[own["group"] == "own"].to_dict("records")
        assert row["nll"] == pytest.approx(values["cut"]["nll"][0], abs=1e-4)
        assert row["cluster"] == facts[i].meta["subject"]
        # Controls are as active at this fact, whatever they do at the others.
        drawn = rows[(rows["condition"] == "control") & (rows["fact"] == i)].groupby("draw")["components"]
        alike = matched_neurons(model, components_.split(), 2, [facts[i]], scope="place", seed=0)
        assert [set(c.split()) for c in drawn.first()] == [set(map(repr, c)) for c in alike.sets]


def resumed(study: Path, spec: DissociationSpec, folder: Path, kept: str) -> Path:
    """A run of another spec that has some of the parts of the study already."""
    (folder / "parts").mkdir(parents=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    for part in (study / "parts").glob(f"{kept}.parquet"):
        shutil.copy(part, folder / "parts")
    return folder


def test_a_model_that_recalls_no_needle_has_no_heads_to_cut(
    study: Path, spec: DissociationSpec, model: CausalLM, tmp_path: Path
) -> None:
    other = spec.model_copy(update={"heads": None, "heads_n": 2, "parts": ("matrix",)})
    folder = resumed(study, other, tmp_path / "run", "*")
    for part in ("heads", "cuts", *(p.stem for p in (folder / "parts").glob("cells-*retrieval_heads*"))):
        (folder / "parts" / f"{part}.parquet").unlink()
    job = run(other, folder, subject=model)
    assert job.done == ["parts/heads", "parts/cuts"] and table(folder, "heads").empty
    remarks = json.loads((folder / "provenance.json").read_text())["remarks"]
    assert any("no retrieval heads are cut" in r and "recalls none" in r for r in remarks)
    found, before = table(folder, "dissociation"), table(study, "dissociation")
    assert set(found["verdict"]) <= {"no heads", "at chance"} and found["heads_gap"].isna().all()
    told = found["context_task"] == "induction"
    assert found["mlp_gap"][told].tolist() == pytest.approx(before["mlp_gap"][told].tolist(), nan_ok=True)


def test_facts_without_a_foil_are_fitted(
    study: Path, spec: DissociationSpec, model: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = sets.Questions.of
    bare = lambda self, rows: [replace(e, foil_ids=()) for e in of(self, rows)]  # noqa: E731
    monkeypatch.setattr(sets.Questions, "of", bare)
    other = spec.model_copy(update={"parts": ("layers",)})
    folder = resumed(study, other, tmp_path / "run", "known-*")
    run(other, folder, subject=model)
    # What the screen picks hangs on no foil; those drawn as a check are seeded by the example, foil and all.
    found, whole = (table(f, "fact_neurons").query("picked == 'screen'") for f in (folder, study))
    pd.testing.assert_frame_equal(found, whole)


def test_relations_take_turns_in_every_slice() -> None:
    names = [f"s{i}" for i in range(24)]
    asked = pd.DataFrame(
        [{"relation": r, "subject": s, "template": t} for r in "abcdef" for s in names for t in (0, 1)]
    )
    asked = asked.assign(known=True, surface=False, twin=True)
    found = sets.split(asked, DissociationSpec(model="tiny", facts_n=12))
    for split, relations in (("fit", "ace"), ("held", "ace"), ("other", "bdf")):
        assert sets.in_turn(found, split)["relation"].tolist() == [*relations] * 4
    assert set(found.loc[found["template"] == 1, "turn"]) == {-1}
    first = found[found["taken"]].groupby(["split", "relation"])["turn"]
    assert (first.min() == 0).all() and not found[found["taken"]].duplicated(
        ["split", "relation", "turn"]
    ).any()


def test_held_out_needles_differ_in_kind_and_haystack(spec: DissociationSpec, model: CausalLM) -> None:
    chosen, held = (sets.needles(spec, held=h, length=400, n=4).examples(model) for h in (False, True))
    assert {e.meta["kind"] for e in chosen} == {"names", "words"}
    assert {e.meta["kind"] for e in held} == {"numbers", "phrases"}
    texts = [{piece for e in part for piece in e.meta["haystack"]} for part in (chosen, held)]
    assert all(texts) and not texts[0] & texts[1]


# -- planted -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[(0, "gpt2"), (1, "llama")])
def built(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Cells of a planted model: each MLP, and its copying head, cut on its facts and on copies."""
    model = planted(*request.param)
    rng = np.random.default_rng(0)
    facts, copies = model.prompts(rng), model.copies(rng, 12)
    parts = {f"M{i}": [MLP(i)] for i in range(model.subject.n_layers)} | {
        tables.HEADS: [Head(*model.copying)]
    }
    told: list[str] = []
    plans = [
        planned(model.subject, name, own, ["content"], mode="zero", controls=8,
                data=[sets.marked(e) for e in facts], seed=0, remark=told.append)
        for name, own in parts.items()
    ]  # fmt: skip
    cuts = pd.concat(plans, ignore_index=True)
    found = [
        cells(model.subject, task, [sets.marked(e) for e in examples], cuts)
        for task, examples in (("held", facts), ("needle", copies))
    ]
    layers = FactMLPs("subject_swap", n_layers=0, scope=sets.CONTENT).fit(
        model.subject, [sets.marked(e) for e in facts], reference=[sets.marked(e) for e in copies]
    )
    return {"model": model, "cells": pd.concat(found, ignore_index=True), "layers": layers.layers_}


def test_planted_facts_and_copies_come_apart(built: dict[str, Any]) -> None:
    at = built["model"].layers
    found = tables.dissociation(built["cells"], "content", f"M{at['facts']}", 0)
    rows = found[found["metric"] == "probability"].set_index("mechanism")
    fact = rows.loc[f"M{at['facts']}"]
    assert fact["verdict"] == "holds" and fact["primary"]
    assert fact["mlp_fact"] > 0.8 and abs(fact["mlp_context"]) < 0.05
    assert fact["heads_context"] > 0.5 and abs(fact["heads_fact"]) < 0.05 and fact["interaction_lo"] > 1
    # The first MLP is vital for both, so its cut says nothing of facts; the loud one matters to neither.
    assert rows.loc["M0", "mlp_fact"] > 0.8 and rows.loc["M0", "verdict"] == "context only"
    assert rows.loc[f"M{at['loud']}", "verdict"] == "context only"


def test_planted_layers_that_are_vital_for_all_do_not_pass(built: dict[str, Any]) -> None:
    at = built["model"].layers
    ranked = built["layers"].assign(rank=built["layers"]["score"].rank(ascending=False), chosen=False)
    mlps = built["cells"][built["cells"]["mechanism"] != tables.HEADS]
    single = mlps[mlps["condition"] != "control"]
    # Held against copies alone no layer is judged, nor where one of the tasks is at chance.
    copies = single[single["task"] == "needle"]
    more = [copies.assign(task=t, status=s) for t, s in (("induction", "at chance"), ("prose", "ok"))]
    for cells_, judged in (
        (single, "needle"),
        (pd.concat([single, *more], ignore_index=True), "needle prose"),
    ):
        open_ = tables.vital(cells_, ranked, 0)
        assert set(open_["verdict"]) == {"not judged"} and not open_["passes"].any()
        assert set(open_["judged"]) == {judged}
    whole = pd.concat([single, *(m.assign(status="ok") for m in more)], ignore_index=True)
    found = tables.vital(whole, ranked, 0).query("metric == 'probability'").set_index("layer")
    assert set(found["judged"]) == {"needle induction prose"}
    assert found.loc[at["facts"], "passes"] and found.loc[at["facts"], "verdict"] == "store"
    assert found.loc[0, "fact_loss"] > 0.8 and found.loc[0, "verdict"] == "general"
    assert found.loc[at["loud"], "verdict"] == "none"
    # Facts need it and copies do not, but it is the same for every subject: restoring it brings no answer back.
    enabler = found.loc[at["enabler"]]
    assert enabler["own_lo"] > 0.5 and not enabler["passes"]
    assert found["passes"].sum() == 1


# -- tables on numbers made by hand ------------------------------------------------------------------------------------


def made(losses_of: dict[tuple[str, str], float], controls: float = 0.0, n: int = 24) -> pd.DataFrame:
    """Cells of facts and needles with the losses of each mechanism, and controls that lose as much of both."""
    rng = np.random.default_rng(0)
    rows = []
    for task in ("held", "needle"):
        clean = rng.uniform(0.7, 0.9, n)
        sides = {("", "", "clean", -1): 0.0}
        for mechanism in ("fact layers 3", tables.HEADS):
            sides[mechanism, "content", "cut", -1] = losses_of[mechanism, task]
            sides |= {(mechanism, "content", "control", d): controls for d in range(3)}
        for name, loss in sides.items():
            value = clean * (1 - loss - (rng.uniform(-0.02, 0.02, n) if name[0] else 0))
            frame = pd.DataFrame({"example": range(n), "cluster": [f"c{i // 2}" for i in range(n)]})
            frame["probability"], frame["nll"], frame["accuracy"] = value, -np.log(value), 1.0
            label = dict(zip(("mechanism", "scope", "condition", "draw"), name, strict=True))
            rows.append(frame.assign(task=task, status="ok", relation="", **label))
    return pd.concat(rows, ignore_index=True)


@pytest.mark.parametrize(
    ("mlp", "heads", "controls", "verdict"),
    [
        ((0.5, 0.1), (0.1, 0.5), 0.0, "holds"),
        ((0.5, 0.1), (0.5, 0.5), 0.0, "facts only"),
        ((0.5, 0.5), (0.1, 0.5), 0.0, "context only"),
        ((0.5, 0.5), (0.5, 0.5), 0.0, "does not hold"),
        ((0.1, 0.5), (0.5, 0.1), 0.0, "does not hold"),
        ((0.5, 0.1), (0.1, 0.5), 0.5, "holds"),
    ],
)
def test_verdicts(
    mlp: tuple[float, float], heads: tuple[float, float], controls: float, verdict: str
) -> None:
    wanted = dict(zip((("fact layers 3", "held"), ("fact layers 3", "needle")), mlp, strict=True))
    wanted |= dict(zip(((tables.HEADS, "held"), (tables.HEADS, "needle")), heads, strict=True))
    found = tables.dissociation(made(wanted, controls), "content", "fact layers 3", 0)
    (row,) = found[found["primary"]].to_dict("records")
    assert row["verdict"] == verdict and row["metric"] == "probability"
    assert row["mlp_gap"] == pytest.approx(mlp[0] - mlp[1], abs=0.01)
    assert row["heads_gap"] == pytest.approx(heads[1] - heads[0], abs=0.01)
    assert row["interaction"] == pytest.approx(row["mlp_gap"] + row["heads_gap"])
    assert row["mlp_gap_lo"] < row["mlp_gap"] < row["mlp_gap_hi"]


def test_controls_that_come_apart_as_much_undo_a_verdict() -> None:
    wanted = {("fact layers 3", "held"): 0.5, ("fact layers 3", "needle"): 0.1}
    wanted |= {(tables.HEADS, "held"): 0.1, (tables.HEADS, "needle"): 0.5}
    frame = made(wanted, 0.0)
    drawn = (frame["condition"] == "control") & (frame["mechanism"] == "fact layers 3")
    frame.loc[drawn & (frame["task"] == "held"), "probability"] *= 0.6
    row = tables.dissociation(frame, "content", "fact layers 3", 0).query("primary").iloc[0]
    assert row["mlp_gap_lo"] > 0.3 and row["mlp_beyond"] == pytest.approx(0, abs=0.02)
    assert row["verdict"] == "context only"


def test_losses_are_shares_of_what_was_there_and_paired_over_resamples() -> None:
    rng = np.random.default_rng(0)
    clean, cut = rng.uniform(0.5, 1, 30), rng.uniform(0, 0.5, 30)
    clusters = [f"c{i % 10}" for i in range(30)]
    sample = losses.Sample.of(clusters, "t", 0)
    loss, before, after = sample.loss(clean, cut, "probability")
    assert loss[0] == pytest.approx(1 - cut.sum() / clean.sum())
    assert (before, after) == (clean.mean(), cut.mean())
    nats = sample.loss(clean, cut, "nll")[0]
    assert nats[0] == pytest.approx((cut - clean).mean())
    again = losses.Sample.of(clusters, "t", 0)
    assert (again.weights == sample.weights).all() and losses.interval(loss - loss) == (0.0, 0.0)
    low, high = losses.interval(nats)
    # As wide as the error over clusters says, within what 2000 resamples leave open.
    means = (cut - clean).reshape(3, 10).mean(0)
    assert (high - low) / 2 == pytest.approx(1.96 * means.std() / 10**0.5, rel=0.1)
    assert all(np.isnan(x) for x in losses.interval(loss, 1))


def test_intervals_of_controls_are_over_their_sets_too() -> None:
    flat = [np.full(2001, value) for value in (0.0, 0.3, 0.6)]
    mean = losses.over_sets(flat, "t")
    assert mean[0] == pytest.approx(0.3)
    low, high = losses.interval(mean)
    assert 0 <= low < 0.15 and 0.45 < high <= 0.6


def test_gaps_of_groups_are_of_the_same_cuts() -> None:
    lost = [
        (0, "own", 0.8),
        (1, "own", 0.2),
        (2, "own", 0.4),
        (1, "other wording", 0.1),
        (2, "other wording", 0.1),
    ]
    rows = [
        {"fact": i, "cluster": f"c{i}", "condition": "cut", "draw": -1, "group": group, "accuracy": 1.0 - loss,
         "probability": 1.0 - loss, "nll": loss, "clean_accuracy": 1.0, "clean_probability": 1.0, "clean_nll": 0.0}
        for i, group, loss in lost
    ]  # fmt: skip
    found = neurons.summary(pd.DataFrame(rows), 0).query("metric == 'probability'").set_index("group")
    assert found.loc["own", "loss"] == pytest.approx(1.4 / 3) and found.loc["own", "gap"] == 0
    # The fact that was asked in one wording only takes no part.
    assert found.loc["other wording", "gap"] == pytest.approx(0.3 - 0.1)
    assert found.loc["other wording", "gap_lo"] == pytest.approx(0.1)


def test_what_a_layer_does_at_the_first_token() -> None:
    frame = made({(m, t): 0.2 for m in ("fact layers 3", tables.HEADS) for t in ("held", "needle")})
    content = frame[frame["mechanism"] == "fact layers 3"].assign(mechanism="M4")
    content = content[content["condition"] == "cut"]
    whole = content.assign(scope="all", probability=content["probability"] * 0.5)
    clean = frame[frame["condition"] == "clean"]
    found = tables.sink(pd.concat([clean, content, whole], ignore_index=True), 0)
    row = found[(found["metric"] == "probability") & (found["task"] == "held")].iloc[0]
    assert row["layer"] == 4 and row["first"] == pytest.approx(row["loss_all"] - row["loss_content"])
    assert row["first"] == pytest.approx(0.4, abs=0.01) and row["first_lo"] > 0.35


def test_groups_of_facts(model: CausalLM) -> None:
    every = interp.task("facts", relations=list(RELATIONS), templates=[0, 1], n=None).examples(model)
    first = every[0]

    def one(**wanted: Any) -> str:
        return neurons.group_of(
            first, next(e for e in every if all((e.meta[k] == first.meta[k]) == v for k, v in wanted.items()))
        )

    assert neurons.group_of(first, first) == "own"
    assert one(subject=True, relation=True, template=False) == "other wording"
    assert one(subject=False, relation=True) == "same relation"
    assert one(subject=False, relation=False) == "other"


def test_scopes_are_marked(model: CausalLM) -> None:
    fact = interp.task("facts", relations=["continent"], n=1).examples(model)[0]
    needle = interp.task("niah", length=400, n=1).examples(model)[0]
    prose = interp.task("prose", n=1).examples(model)[0]
    for example, place in (
        (fact, fact.spans_of("subject")[-1].end - 1),
        (needle, needle.spans_of("query")[-1].end - 1),
        (prose, len(prose.ids) - 1),
    ):
        marked = sets.marked(example)
        batch = model.batch([marked])
        content = batch.scope_columns(sets.CONTENT, 0, batch.width)[0]
        assert not content[0] and content[1:].all()
        assert batch.scope_columns("place", 0, batch.width)[0].nonzero().ravel().tolist() == [place]


# -- the command and what is refused -----------------------------------------------------------------------------------


def test_a_model_that_knows_too_little_is_told_so(
    spec: DissociationSpec, model: CausalLM, tmp_path: Path
) -> None:
    small = spec.model_copy(update={"least": 30, "asked": 4, "relations": ("sport",)})
    with pytest.raises(NoAcceptedExample, match="no relation has 30 subjects"):
        run(small, tmp_path / "run", subject=model)


def test_the_command_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def fake(spec: DissociationSpec, folder: Path, *, stage: Any = None) -> Any:
        seen.append((spec, folder))
        return type("Job", (), {"done": ["facts"], "skipped": []})()

    monkeypatch.setattr("interp.studies.dissociation.study.run", fake)
    given = ["--quick", "--set", "controls=9", "--heads", "heads.json", "--out", str(tmp_path), "--json"]
    out = CliRunner().invoke(app, ["study", "dissociation", "smollm2", *given])
    assert out.exit_code == 0 and json.loads(out.stdout)["done"] == ["facts"]
    assert seen == [(DissociationSpec.quick("smollm2", controls=9, heads="heads.json"), tmp_path)]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"wordings": ()}, "one entry or more"),
        ({"layers": ()}, "one entry or more"),
        ({"windows": (0,)}, "1 or more"),
        ({"needle_length": 10}, "greater than or equal to 64"),
    ],
)
def test_bad_specs_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        DissociationSpec(model="tiny", **changes)
