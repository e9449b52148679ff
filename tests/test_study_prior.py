"""The study of priors on a tiny model: all parts, gone on with, against direct calls; tuning that leaves no trace."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as hf
from pydantic import ValidationError
from typer.testing import CliRunner

import interp
from interp.cli import app
from interp.errors import NoAcceptedExample, UsageError
from interp.locate.facts.prior_layers import PriorLayers
from interp.measure.outcomes import evaluate
from interp.measure.priors import answer_priors, gap_ci, prior_effect, thirds
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens
from interp.studies.prior import items as questions
from interp.studies.prior import tables, tuning
from interp.studies.prior.spec import PriorSpec
from interp.studies.prior.study import PriorStudy, run
from tests.subjects import subject
from tests.tiny import _LLAMA_LIKE, FAMILIES, byte_tokenizer, tiny

SMALL: dict[str, Any] = {
    "tasks": {"acronym": ({"shots": 0},), "counting": ({},)}, "floor_n": 6, "n": 6, "keep_at_chance": True,
    "locate_n": 20, "permutations": 20, "prompt_n": 6, "tune_layers": 1, "tune_seeds": 2, "tune_random": 1,
    "tune_steps": 2, "tune_batch": 4, "tune_n": 9, "off_target": ("prose", "induction"), "off_n": 3,
}  # fmt: skip
TABLES = (
    "tasks", "items", "accuracy", "gaps", "layers", "prompts", "prompts_contrast", "arms", "tuning", "tuning_contrast",
    "tuning_gaps", "drift",
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> CausalLM:
    """A tiny model of four layers with a tokenizer of bytes and room for long lists."""
    tokenizer = byte_tokenizer()
    config = {
        **_LLAMA_LIKE,
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 4,
        "max_position_embeddings": 1024,
    }
    FAMILIES["listed"] = lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**config))
    try:
        return CausalLM(tiny("listed"), Tokens(tokenizer), name="tiny")
    finally:
        del FAMILIES["listed"]


@pytest.fixture(scope="module")
def spec() -> PriorSpec:
    return PriorSpec(model="tiny", **SMALL)


@pytest.fixture(scope="module")
def study(spec: PriorSpec, model: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prior") / "run"
    job = run(spec, folder, subject=model)
    assert "parts/arm-all-0" in job.done and not job.skipped
    return folder


def table(study: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(study / f"{name}.parquet")


def test_it_goes_on_where_it_stopped(study: Path, spec: PriorSpec, model: CausalLM) -> None:
    before = {name: (study / f"{name}.parquet").read_bytes() for name in TABLES}
    for part in ("layers-counting", "drift-random-0-0"):
        (study / "parts" / f"{part}.parquet").unlink()
    job = run(spec, study, subject=model)
    assert job.done == ["parts/layers-counting", "parts/drift-random-0-0"]
    assert before == {name: (study / f"{name}.parquet").read_bytes() for name in TABLES}


def test_floors_are_told_and_never_passed_over(study: Path, spec: PriorSpec, model: CausalLM) -> None:
    found = table(study, "tasks")
    assert found["task"].tolist() == ["acronym", "counting"] and found["status"].tolist() == ["at chance"] * 2
    assert found["taken"].all()  # asked for all the same; every row says so
    for name in ("accuracy", "gaps", "layers", "prompts", "tuning", "tuning_contrast", "tuning_gaps"):
        assert (table(study, name)["status"] == "at chance").all(), name
    remarks = json.loads((study / "provenance.json").read_text())["remarks"]
    assert len([r for r in remarks if "at chance at every setting" in r]) == 2
    strict = PriorStudy(spec.model_copy(update={"keep_at_chance": False}), _Kept(study), model)
    assert strict.taken == {}


class _Kept:
    """A run that has the floors of another, none taken."""

    def __init__(self, folder: Path):
        self.folder = folder

    def table(self, name: str, make: Any) -> pd.DataFrame:
        return pd.read_parquet(self.folder / f"{name}.parquet").assign(taken=False)


def test_items_and_accuracy_are_those_of_direct_calls(study: Path, model: CausalLM) -> None:
    found = table(study, "items")
    own = found[found["task"] == "acronym"].reset_index(drop=True)
    examples = interp.task("acronym", shots=0, n=6, seed=1).examples(model)
    values = evaluate(model, examples, {"clean": None}).values["clean"]
    foils = [replace(e, answer_ids=e.foil_ids) for e in examples]
    other = evaluate(model, foils, {"clean": None}).values["clean"]["logprob"]
    assert np.allclose(own["logprob"], values["logprob"], atol=1e-4)
    assert np.allclose(own["margin"], values["logprob"] - other, atol=1e-4)
    assert (own["pair"] == (own["margin"] > 0)).all() and 0 < own["pair"].mean() < 1
    assert np.allclose(own["log_prior"], answer_priors(model, examples), atol=1e-4)
    assert np.allclose(own["foil_log_prior"], answer_priors(model, foils), atol=1e-4)
    acc = table(study, "accuracy")
    pair = acc[(acc["task"] == "acronym") & (acc["metric"] == "pair")].set_index("prior")
    odds = (own["log_prior"] - own["foil_log_prior"]).to_numpy()
    at = thirds(odds)
    assert pair.loc["low", "value"] == own["pair"][at == 0].mean()
    assert pair.loc["high", "mean_prior"] == pytest.approx(odds[at == 2].mean())
    assert pair.loc["all", "chance"] == 0.5 and pair.loc["all", "value"] == own["pair"].mean()
    gap = table(study, "gaps").set_index(["task", "metric"]).loc[("acronym", "pair")]
    wanted = prior_effect(own["pair"].to_numpy(), odds, list(own["cluster"]))
    assert gap["gap"] == wanted["gap"] and gap["gap_lo"] == wanted["gap_lo"] and gap["rho"] == wanted["rho"]


def test_held_out_answers_are_seen_nowhere_in_training(model: CausalLM) -> None:
    for name, settings, stem, n, n_held in (
        ("acronym", {"shots": 2}, "First letters:", 12, 30),
        ("counting", {}, "Count:", 10, 6),
    ):
        train, held = questions.split(model, name, settings, n, n_held, 0.375, 0)
        assert len(train) == n and len(held) == n_held
        out = {str(e.meta[k]) for e in held for k in ("answer", "foil")}
        for e in train:
            lines = [x.removeprefix(stem).strip() for x in str(e.text).split("\n") if x.startswith(stem)]
            assert not ({str(e.meta["answer"]), str(e.meta["foil"]), *lines} & out)
        if name == "acronym":
            assert all(len(questions.solved(e, stem)) == 2 for e in train)
    again = questions.split(model, "counting", {}, 10, 6, 0.375, 0)
    assert [e.key() for e in train] == [e.key() for e in again[0]]
    other = questions.split(model, "counting", {}, 10, 6, 0.375, 1)[1]
    assert {questions.likely(e) for e in other} != {questions.likely(e) for e in held}


def test_layers_are_scored_on_answers_that_are_not_held_out(
    study: Path, spec: PriorSpec, model: CausalLM
) -> None:
    found = table(study, "layers")
    train, _ = questions.split(model, "acronym", {"shots": 0}, 20, 9, spec.held, 0)
    wanted = PriorLayers(permutations=20, n=20).fit(model, train).scores_
    own = found[found["task"] == "acronym"].drop(columns=["task", "status"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(own[wanted.columns], wanted)
    arms = table(study, "arms")
    assert arms["arm"].tolist() == ["chosen 0", "random 0 0", "chosen 1", "random 1 0", "all 0"]
    means = found[found["method"] == "added"].groupby("layer")["score"].mean()
    chosen = f"L{means.idxmax()}"
    assert arms["layers"].tolist()[::2] == [chosen, chosen, "all"]
    others = arms["layers"][arms["kind"] == "random"].tolist()
    assert chosen not in others and len(set(others)) == 2
    assert arms["restored"].all() and (arms["moved"] > 0).all() and (arms["examples"] == 8).all()


def test_prefaces_stand_in_front_and_change_nothing_else(
    study: Path, spec: PriorSpec, model: CausalLM
) -> None:
    examples = interp.task("acronym", shots=0, n=6, seed=1).examples(model)
    told = questions.prefaced(model, examples, "Do not rely on it.")
    for e, t in zip(examples, told, strict=True):
        assert model.tokens.decode(t.ids) == f"Do not rely on it.\n\n{e.text}"
        assert t.ids[-len(e.ids) :] == e.ids and t.answer_ids == e.answer_ids
        for a, b in zip(e.spans, t.spans, strict=True):
            assert e.ids[a.start : a.end] == t.ids[b.start : b.end]
    found = table(study, "prompts")
    assert set(found["preface"]) == set(spec.prefaces)
    assert set(found["preface"][found["control"]]) == {p for p in spec.prefaces if p.startswith("control")}
    text = spec.prefaces["do not rely"]
    after = evaluate(model, questions.prefaced(model, examples, text), {"c": None}).values["c"]["logprob"]
    before = evaluate(model, examples, {"c": None}).values["c"]["logprob"]
    row = found[(found["preface"] == "do not rely") & (found["task"] == "acronym")]
    row = row.set_index(["metric", "prior"]).loc[("logprob", "all")]
    assert row["delta"] == pytest.approx((after - before).mean(), abs=1e-4)
    contrast = table(study, "prompts_contrast")
    row = contrast[contrast["task"] == "acronym"].set_index(["metric", "prior"]).loc[("logprob", "all")]
    controls = [
        evaluate(model, questions.prefaced(model, examples, t), {"c": None}).values["c"]["logprob"]
        for p, t in spec.prefaces.items()
        if p.startswith("control")
    ]
    assert row["delta"] == pytest.approx((after - np.mean(controls, axis=0)).mean(), abs=1e-4)


def test_tuning_is_measured_on_held_out_answers(study: Path, spec: PriorSpec, model: CausalLM) -> None:
    splits = [
        questions.split(model, t, s, 20, 9, spec.held, 0)
        for t, s in (("acronym", {"shots": 0}), ("counting", {}))
    ]
    told = table(study, "arms").set_index("arm")
    layer = int(told.loc["chosen 1", "layers"][1:])
    examples = tuning.mixed([s[0] for s in splits], 4, 1, spec)
    assert [e.task for e in examples] == ["acronym", "counting"] * 4
    assert {e.key() for e in examples} != {e.key() for e in tuning.mixed([s[0] for s in splits], 4, 0, spec)}
    held = splits[0][1]
    before = evaluate(model, held, {"c": None}).values["c"]["logprob"]
    with tuning.tuned(model, [layer], examples, batch=4, rate=spec.tune_rate):
        after = evaluate(model, held, {"c": None}).values["c"]["logprob"]
    found = table(study, "tuning")
    own = found[(found["arm"] == "chosen 1") & (found["task"] == "acronym")].set_index(["metric", "prior"])
    assert own.loc[("logprob", "all"), "delta"] == pytest.approx((after - before).mean(), abs=1e-4) != 0
    gap = own.loc[("margin", "gap")]
    assert gap["delta"] == pytest.approx(gap["after"] - gap["before"], abs=1e-9)
    contrast = table(study, "tuning_contrast").set_index(["task", "metric", "prior"])
    by = found[(found["task"] == "acronym") & (found["metric"] == "logprob") & (found["prior"] == "all")]
    means = by.groupby("kind")["delta"].mean()
    row = contrast.loc[("acronym", "logprob", "all")]
    assert row["chosen"] == pytest.approx(means["chosen"]) and row["random"] == pytest.approx(means["random"])
    assert row["delta"] == pytest.approx(means["chosen"] - means["random"])
    assert row["beaten"] == (by[by["kind"] == "random"]["delta"] < means["chosen"]).mean()
    gaps = table(study, "tuning_gaps")
    assert set(gaps["run"]) == {"untuned", *told.index}
    drift = table(study, "drift").set_index(["arm", "task", "metric"])
    assert len(drift) == 5 * 3 and drift.loc[("all 0", "prose", "nll"), "delta"] != 0


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_tuning_learns_and_leaves_no_trace(family: str) -> None:
    model = subject(family)
    rng = np.random.default_rng(0)
    from interp.tasks.base import Example

    ids = [tuple(int(x) for x in rng.integers(0, 256, 9)) for _ in range(4)]
    examples = [Example("t", p, (p[1], p[2]), cluster=str(i)) for i, p in enumerate(ids)]
    before, flags = model.weights_hash, [w.requires_grad for w in model.hf.parameters()]
    kept = {name: w.detach().clone() for name, w in model.hf.named_parameters()}
    with tuning.tuned(model, [1], examples * 12, batch=4, rate=1e-2) as told:
        changed = {name for name, w in model.hf.named_parameters() if not torch.equal(w, kept[name])}
        assert model.weights_hash != before
        assert changed and {id(w) for w in model.blocks[1].parameters()} >= {
            id(w) for name, w in model.hf.named_parameters() if name in changed
        }
        assert (
            float(tuning.answer_loss(model, examples).detach()) < told["last_loss"] < told["first_loss"] - 0.5
        )
    assert model.weights_hash == before and [w.requires_grad for w in model.hf.parameters()] == flags
    assert all(w.grad is None for w in model.hf.parameters())
    with pytest.raises(RuntimeError, match="stop"), tuning.tuned(model, [0, 2], examples, batch=4):
        raise RuntimeError("stop")
    assert model.weights_hash == before
    parameters = sum(w.numel() for w in model.blocks[1].parameters())
    assert told["parameters"] == parameters and told["steps"] == 12
    with pytest.raises(UsageError, match="take of 0 to 2"), tuning.tuned(model, [3], examples):
        pass
    with pytest.raises(NoAcceptedExample), tuning.tuned(model, [1], []):
        pass


def test_the_loss_is_that_of_the_answers_alone() -> None:
    model = subject("llama")
    from interp.tasks.base import Example

    examples = [Example("t", (5, 6, 7, 8), (9, 10)), Example("t", (5, 6), (11,))]
    logs = []
    for e in examples:
        row = model.run([e]).logits[0].log_softmax(-1)
        logs += [float(row[j, t]) for j, t in enumerate(e.answer_ids)]
    assert float(tuning.answer_loss(model, examples).detach()) == pytest.approx(-np.mean(logs), abs=1e-4)


def test_the_interval_of_a_gap_resamples_both_sides() -> None:
    rng = np.random.default_rng(0)
    high = np.arange(60) % 2 == 0
    clusters = [f"c{i // 3}" for i in range(60)]
    assert gap_ci(np.ones(60), high, clusters) == (0.0, 0.0)  # a mean of signed values would have a wide one
    values = rng.normal(size=60) + high
    low, top = gap_ci(values, high, clusters)
    names, at = np.unique(clusters, return_inverse=True)
    drawn = []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(at == c) for c in rng.integers(0, len(names), len(names))])
        drawn.append(values[rows][high[rows]].mean() - values[rows][~high[rows]].mean())
    assert (low, top) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.06)
    assert np.isnan(gap_ci(values, high, ["one"] * 60)).all()


def test_changes_by_third_and_of_the_gap() -> None:
    before = pd.DataFrame(
        {"log_prior": np.arange(9.0), "foil_log_prior": 0.0, "cluster": [str(i) for i in range(9)]}
    )
    before = before.assign(**{m: 0.0 for m in questions.METRICS})
    after = before.assign(logprob=[1, 1, 1, 0, 0, 0, 3, 3, 3])
    found = tables.paired(before, after, 0).set_index(["metric", "prior"]).loc["logprob"]
    assert found["delta"].to_dict() == {
        "low": 1,
        "middle": 0,
        "high": 3,
        "all": pytest.approx(4 / 3),
        "gap": 2,
    }
    assert found.loc["gap", ["ci_lo", "ci_hi"]].tolist() == [2, 2] and found.loc["all", "ci_lo"] < 4 / 3


def test_random_layers_are_others_and_no_two_sets_are_alike() -> None:
    scores = pd.DataFrame({"method": "added", "layer": range(6), "score": [0, 5, 1, 4, 2, 3]})
    spec = PriorSpec(model="x", tune_layers=2, tune_seeds=3, tune_random=2, tune_all=False)
    found = tuning.arms(scores, 6, spec)
    assert [a.layers for a in found if a.kind == "chosen"] == [(1, 3)] * 3
    drawn = [a.layers for a in found if a.kind == "random"]
    assert len(drawn) == 6 == len(set(drawn)) and all(not set(d) & {1, 3} and len(set(d)) == 2 for d in drawn)
    with pytest.raises(UsageError, match="has no 4 others"):
        tuning.arms(scores, 6, spec.model_copy(update={"tune_layers": 4}))


def test_the_command_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def fake(spec: PriorSpec, folder: Path, *, stage: Any = None) -> Any:
        seen.append((spec, folder))
        return type("Job", (), {"done": ["tasks"], "skipped": []})()

    monkeypatch.setattr("interp.studies.prior.study.run", fake)
    asked = ["study", "prior", "smollm2", "--quick", "--set", "n=9", "--out", str(tmp_path), "--json"]
    out = CliRunner().invoke(app, asked)
    assert out.exit_code == 0 and json.loads(out.stdout)["done"] == ["tasks"]
    assert seen[0] == (PriorSpec.quick("smollm2", n=9), tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tasks": {}}, "tasks is empty"),
        ({"tasks": {"ioi": ({},)}}, "'ioi' is no task of priors"),
        ({"tune_by": "norm"}, "tune_by is 'norm'"),
        ({"held": 1.0}, "less than 1"),
    ],
)
def test_bad_specs_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        PriorSpec(model="tiny", **changes)
