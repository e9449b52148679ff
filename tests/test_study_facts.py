"""The study of fact recall: its statistics on made numbers, and the whole of it on a tiny model, gone on with."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as hf
from pydantic import ValidationError
from scipy import stats
from tokenizers import AddedToken
from typer.testing import CliRunner

import interp.measure.scenarios as recipe
from interp.cli import app
from interp.intervene.ablate import Ablate
from interp.intervene.trace import How, aggregate, trace_maps, window_of
from interp.intervene.tracing.places import LAST, LAST_OF
from interp.locate.facts.flow import knockout_map
from interp.locate.facts.lens import extraction
from interp.measure import evaluate
from interp.measure.scenarios import EXACT, GENERIC, GUESSWORK, HEURISTICS, SCENARIOS
from interp.models.sites import MLP
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens
from interp.studies.facts import census, findings, flow, maps
from interp.studies.facts.findings import FAILS, FEW, FINDINGS, FLOOR, HOLDS, MISSING, UNDECIDED
from interp.studies.facts.means import UNIT, Means
from interp.studies.facts.spec import FactsSpec
from interp.studies.facts.study import FactsStudy, run
from interp.tasks.base import Ids, stable_seed
from interp.tasks.facts import Facts, relation, worded
from interp.tasks.fictional import sort_of
from interp.tasks.generic import openings
from tests.tiny import _LLAMA_LIKE, FAMILIES, byte_tokenizer, tiny

RELATIONS = ("capital", "continent")

SMALL: dict[str, Any] = {
    "model": "tiny", "relations": RELATIONS, "shots": (0, 1), "asked": 4, "subjects": 12, "sentences": 12,
    "popular": None, "prompts": 3, "noise_prompts": 2, "noise_draws": 2, "noise_step": 1, "step": 1, "window": 2,
    "severed": 2, "flow": 6, "knockout_window": 2, "cut": 8, "resamples": 100,
}  # fmt: skip
"""Sizes for a model of three layers and a tokenizer of bytes."""


@cache
def answers() -> dict[str, str]:
    """What is said in each wording: every third real subject is recalled, others are guessed, and two words go around
    among those that do not exist or say nothing."""
    out = {}
    for table in map(relation, RELATIONS):
        options = [o for o in table.objects if " " not in o]
        for t, wording in enumerate(table.wordings):
            for i, s in enumerate(sorted(table.facts)):
                out[worded(wording, s)] = table.facts[s] if i % 3 == 0 else options[(i + t) % len(options)]
            for i, s in enumerate((*sort_of(table.name).fictional, *sort_of(table.name).neutral)):
                out[worded(wording, s)] = ("Europe", "Africa")[i % 2]
    return out


def said(tokens: Tokens, prompts: Sequence[Ids]) -> torch.Tensor:
    """Logits of a speaker of `answers`; after plain sentences it says some continent."""
    rows = torch.zeros(len(prompts), tokens.n_vocab)
    for row, ids in zip(rows, prompts, strict=True):
        text = tokens.decode(list(ids))
        options = relation("continent").objects
        plain = options[stable_seed(text)[0] % len(options)].split()[0]
        token = tokens.encode("of " + answers().get(text, plain)).ids[len(tokens.encode("of").ids)]
        row += torch.linspace(0.1, 0, tokens.n_vocab)
        row[token] += 9.0
    return rows


@pytest.fixture(scope="module")
def model() -> CausalLM:
    """A tiny model whose tokenizer has a token for each word of the prompts and answers, and bytes for the rest."""
    tokenizer = byte_tokenizer()
    tables = [relation(r) for r in RELATIONS]
    texts = [t for r in tables for t in (*r.wordings, *r.facts, *r.objects, *sort_of(r.name).fictional)]
    texts += [f"{o.lead}{o.subject}{o.rest}" for o in openings(12)]
    words = dict.fromkeys(w for t in texts for w in re.findall(r"[A-Za-z]+", t))
    tokenizer.add_tokens([AddedToken(f" {w}", normalized=False) for w in words])
    tokenizer.add_tokens([AddedToken(w, normalized=False) for w in words if w[0].isupper()])
    config = {**_LLAMA_LIKE, "vocab_size": len(tokenizer)}
    FAMILIES["wordy"] = lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**config))
    try:
        return CausalLM(tiny("wordy"), Tokens(tokenizer), name="tiny")
    finally:
        del FAMILIES["wordy"]


@pytest.fixture(scope="module")
def asked(model: CausalLM) -> Iterator[None]:
    """Scenarios are of the speaker: a random model recalls nothing."""
    before = recipe.scenarios
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "scenarios", partial(before, speak=partial(said, model.tokens)))
        yield


@pytest.fixture(scope="module")
def spec() -> FactsSpec:
    return FactsSpec(**SMALL)


@pytest.fixture(scope="module")
def study(
    spec: FactsSpec, model: CausalLM, asked: None, tmp_path_factory: pytest.TempPathFactory
) -> FactsStudy:
    folder = tmp_path_factory.mktemp("facts") / "run"
    job = run(spec, folder, subject=model)
    assert "parts/cuts-generic" in job.done and not job.skipped
    return FactsStudy(spec, job, model)


def table(study: FactsStudy, name: str) -> pd.DataFrame:
    return pd.read_parquet(study.job.folder / f"{name}.parquet")


# -- the whole study ---------------------------------------------------------------------------------------------------


def test_it_goes_on_where_it_stopped(
    study: FactsStudy, spec: FactsSpec, model: CausalLM, tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(study.job.folder, folder)
    before = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.parquet")}
    gone = [
        "parts/known-1-capital",
        "parts/said-continent",
        "parts/maps-noise-generic-00",
        "parts/cuts-generic",
    ]
    for name in gone:
        (folder / f"{name}.parquet").unlink()
    # What is made of parts is made again, whatever an earlier run left there.
    for path in (*folder.glob("*.parquet"), folder / "noise.json", folder / "peak.json"):
        path.write_bytes(b"stale")
    job = run(spec, folder, subject=model)
    assert sorted(job.done) == sorted(gone)
    assert before == {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.parquet")}


def test_the_census_is_what_is_answered_right(study: FactsStudy, model: CausalLM) -> None:
    part = table(study, "parts/known-1-capital")
    task = Facts(relations=["capital"], templates=[0], shots=1, n=4, seed=0)
    own = evaluate(model, task.examples(model), {"clean": None}).values["clean"]
    assert part["known"].tolist() == (own["accuracy"] > 0.5).tolist()
    np.testing.assert_allclose(part["probability"], np.exp(own["logprob"]), rtol=1e-3)
    found = table(study, "known")
    assert list(zip(found["shots"], found["relation"], strict=True)) == [
        (n, r) for n in (0, 1) for r in ("capital", "continent", "all")
    ]
    assert found["asked"].tolist() == [4, 4, 8] * 2
    assert any(
        "not above chance" in r
        for r in json.loads((study.job.folder / "provenance.json").read_text())["remarks"]
    )


def test_every_scenario_has_prompts_with_twins_relations_in_turn(study: FactsStudy) -> None:
    assert list(study.sets) == list(SCENARIOS)
    for scenario, own in study.sets.items():
        found = [(e.meta["relation"], e.cluster) for e in own]
        assert all(e.corrupt and e.meta["scenario"] == scenario for e in own)
        names = sorted({name for name, _ in found})
        assert sorted(name for name, _ in found[: len(names)]) == names, "relations take turns"
        # No subject comes again before every one of its relation has come.
        for name in names:
            subjects = [s for n, s in found if n == name]
            distinct = len(set(subjects))
            assert len(set(subjects[:distinct])) == distinct
    listed = table(study, "prompts")
    assert listed.groupby("scenario")["traced"].sum().to_dict() == dict.fromkeys(SCENARIOS, 3)
    exact = listed[listed["scenario"] == EXACT]
    assert exact["correct"].all() and (exact["answer"] != exact["twin_answer"]).all()


def test_maps_are_those_of_direct_calls(study: FactsStudy, model: CausalLM) -> None:
    how = How(
        kinds=("attn_out", "mlp_out"),
        window=2,
        corruption=("subject_swap",),
        metrics=("probability", "logit_diff"),
    )
    own = trace_maps(model, study.sets[GUESSWORK][:3], how, by=["scenario"])
    wanted = aggregate(own, ["scenario"], n_resamples=100)
    found = table(study, "aie")
    assert set(found["way"]) == {"single", "wide", "noise"}
    mine = found[(found["way"] == "wide") & (found["scenario"] == GUESSWORK)].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine[["kind", "layer", "place", "metric", "aie", "share"]],
                                  wanted[["kind", "layer", "place", "metric", "aie", "share"]])  # fmt: skip
    noise = found[found["way"] == "noise"]
    assert set(zip(noise["kind"], noise["window"], strict=True)) == {
        ("resid_post", 1),
        ("attn_out", 2),
        ("mlp_out", 2),
    }
    severed = table(study, "severed")
    assert set(severed["severed"]) == {"", "attn_out", "mlp_out"} and set(severed["place"]) == {LAST_OF}
    # Nothing is severed behind the last layer.
    last = severed[(severed["layer"] == 2) & (severed["metric"] == "logit_diff")]
    assert (last.groupby("scenario")["aie"].nunique() == 1).all()
    effects = table(study, "effects").set_index(["way", "scenario", "metric"])
    direct = own.drop_duplicates(["example", "metric"])
    te = (direct["high"] - direct["low"])[direct["metric"] == "logit_diff"].mean()
    assert effects.loc[("wide", GUESSWORK, "logit_diff"), "te"] == pytest.approx(te)


def test_flow_is_that_of_direct_calls(study: FactsStudy, model: CausalLM) -> None:
    own = knockout_map(model, study.sets[EXACT][:6], window=2)
    found = table(study, "knockout").set_index(["scenario", "source", "layer"])
    part = own[(own["source"] == "subject") & (own["layer"] == 1)]
    relative = 100 * (part["value"].sum() - part["clean"].sum()) / part["clean"].sum()
    row = found.loc[(EXACT, "subject", 1)]
    assert row["relative"] == pytest.approx(relative) and row["lo"] <= relative <= row["hi"] and row["n"] == 6
    rates = table(study, "extraction")
    mine = rates[rates["scenario"] == GENERIC].drop(columns="scenario").reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, extraction(model, study.sets[GENERIC][:6]))
    vital = table(study, "vital").set_index(["scenario", "scope", "layer"])
    some = study.sets[EXACT][:8]
    for scope in ("content", "all"):
        clean, left = 0.0, 0.0
        for e in some:
            at = "all" if scope == "all" else tuple(range(1, len(e.ids)))
            values = evaluate(model, [e], {"clean": None, "cut": Ablate((MLP(1),), scope=at)}).values
            clean += float(np.exp(values["clean"]["logprob"]).sum())
            left += float(np.exp(values["cut"]["logprob"]).sum())
        assert vital.loc[(EXACT, scope, 1), "loss"] == pytest.approx(1 - left / clean, rel=1e-3)
    assert vital.loc[(EXACT, "content", 1), "loss"] != vital.loc[(EXACT, "all", 1), "loss"]
    enriched = table(study, "enrichment")
    assert set(enriched["scenario"]) == {EXACT} and (enriched["n"] == 6).all()


def test_findings_are_judged_on_what_was_measured(study: FactsStudy) -> None:
    found = table(study, "findings")
    assert found[found["main"]]["finding"].tolist() == [f.name for f in FINDINGS]
    # Hiding the subject costs this model nothing, so there is no layer at which it does.
    # Nor is a window of two layers around the only first one whole.
    missing = set(found.loc[found["verdict"] == MISSING, "finding"])
    short = {"no first site of MLPs", "middle site of MLPs", "subject read late"}
    assert short <= missing <= short | {"relation first"}
    main = found[found["main"]].set_index("finding")
    assert main.loc["early site of MLPs", "ways"] == 6 and main.loc["early site of MLPs", "way"] == "wide"
    aie = table(study, "aie")
    own = aie[(aie["way"] == "wide") & (aie["metric"] == "probability") & (aie["kind"] == "mlp_out")]
    own = own[(own["scenario"] == EXACT) & (own["place"] == LAST_OF)].set_index("layer")["aie"]
    assert main.loc["early site of MLPs", "value"] == pytest.approx(own[1] - own[2])
    for row in found.itertuples():
        sign = HOLDS if row.lo > 0 else FAILS if row.hi < 0 else UNDECIDED
        assert row.verdict == (
            FEW if row.n_clusters < 5 and not np.isnan(row.lo) else sign
        ) or row.verdict in (FLOOR, MISSING)


def test_a_scenario_that_is_lacking_is_remarked(model: CausalLM, asked: None, tmp_path: Path) -> None:
    small = {**SMALL, "relations": ("continent",), "subjects": 2, "asked": 2, "shots": (0,), "sentences": 5}
    small |= {"prompts": 2, "step": 3, "noise_step": 3, "noise_draws": 1, "flow": 2, "cut": 2}
    job = run(FactsSpec(**small), tmp_path / "run", subject=model)
    remarks = json.loads((job.folder / "provenance.json").read_text())["remarks"]
    assert any(r.startswith(f"{EXACT}: 0 prompts with a twin") for r in remarks)
    found = pd.read_parquet(job.folder / "findings.parquet")
    lacking = found[found["scenarios"].str.contains(EXACT)]
    assert set(lacking["verdict"]) == {MISSING} and lacking["n"].eq(0).all()
    assert not (job.folder / "enrichment.parquet").exists()


# -- statistics --------------------------------------------------------------------------------------------------------


def test_known_has_exact_intervals_and_counts_facts() -> None:
    rows = pd.DataFrame(
        {
            "relation": ["capital"] * 20,
            "shots": 0,
            "subject": [f"s{i // 2}" for i in range(20)],
            "template": [0, 1] * 10,
            "known": [True, True] * 3 + [True, False] * 2 + [False] * 10,
            "chance": 0.01,
        }
    )
    one, every = census.known(rows).to_dict("records")
    assert one["known"] == 8 and one["facts"] == 10 and one["facts_known"] == 3 and one["facts_some"] == 5
    assert every["relation"] == "all" and every["accuracy"] == 0.4 and one["above"]
    alone = census.known(rows[rows["template"] == 0]).iloc[0]
    exact = stats.binomtest(5, 10).proportion_ci(method="exact")
    assert (alone["lo"], alone["hi"]) == pytest.approx((exact.low, exact.high), abs=0.02)


def test_kinds_add_up(study: FactsStudy) -> None:
    found = table(study, "kinds").set_index("relation")
    for name in (EXACT, HEURISTICS, GUESSWORK):
        assert found.loc["all", name] == found.loc[list(RELATIONS), name].sum() > 0
    assert found.loc["all", GENERIC] == 12
    frame = study.found.frame
    best = frame[
        (frame["rank"] == 0) & ~frame["fictional"] & frame["correct"] & (frame["relation"] != GENERIC)
    ]
    row = found.loc["all"]
    assert (
        row["known"] == len(best) and row["known_subjects"] == best.groupby(["relation", "subject"]).ngroups
    )
    assert row["biased"] == pytest.approx((best["bias"] != "none").mean())
    assert (
        row["biased_lo"] <= row["biased"] <= row["biased_hi"]
        and row["pure_lo"] < row["pure"] <= row["pure_hi"]
    )
    own = census.attributes(study.found, ["Algeria", "nobody"])
    both = frame[(frame["subject"] == "Algeria") & (frame["rank"] == 0) & frame["correct"]]
    assert own == (
        {"Algeria": sorted(set(both["token_id"]), key=list(both["token_id"]).index)} if len(both) else {}
    )


def unit_rows(values: dict[str, dict[str, Callable[[int], float]]], n: int = 12) -> pd.DataFrame:
    """Rows of prompts `0..n-1` of subjects of their own, by scenario and feature."""
    return pd.DataFrame(
        {"scenario": s, "cluster": f"{s} {i}", "example": i, "draw": 0, "feature": f, "value": float(make(i))}
        for s, own in values.items()
        for f, make in own.items()
        for i in range(n)
    )


def test_means_resample_whole_subjects() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=200)
    means = Means(unit_rows({EXACT: {"a": lambda i: noise[i], "b": lambda i: 2 * noise[i]}}, 200), 4000, 0)
    value, lo, hi = means.ends(EXACT, means(EXACT, "a"))
    assert value == pytest.approx(noise.mean())
    half = 1.96 * noise.std() / np.sqrt(200)
    assert (lo, hi) == pytest.approx((value - half, value + half), abs=0.02)
    np.testing.assert_allclose(means(EXACT, "b"), 2 * means(EXACT, "a"))
    # A subject that is in two scenarios is drawn in both: their difference has no spread.
    shared = pd.concat([unit_rows({s: {"a": lambda i: noise[i]}}, 50).assign(cluster=lambda f: f["example"].map(str))
                        for s in (EXACT, GENERIC)])  # fmt: skip
    both = Means(shared, 200, 0)
    assert np.ptp(both(EXACT, "a") - both(GENERIC, "a")) == 0 and np.ptp(both(EXACT, "a")) > 0.1
    alone = Means(unit_rows({EXACT: {"a": lambda i: 1.0}}, 3).assign(cluster="one"), 200, 0)
    assert np.isnan(alone.ends(EXACT, alone(EXACT, "a"))[1:]).all()


N = 12
"""Layers of made profiles: 0 and 1 are first ones, 2 to 7 middle, 8 to 11 late."""


def made(sign: float, spread: float = 0.01) -> dict[tuple[str, str], Means]:
    """Measurements in which every published finding is so (or with a minus, the contrary)."""
    rng = np.random.default_rng(1)

    def bump(
        place: str, band: str, height: float, kind: str, severed: str = ""
    ) -> dict[str, Callable[[int], float]]:
        def at(layer: int) -> Callable[[int], float]:
            own = sign * height * maps.in_band(layer, N, band)
            return lambda i: own + spread * rng.normal()

        return {maps.cell(kind, place, layer, severed): at(layer) for layer in range(N)}

    def site(subject: float, last: float) -> dict[str, Callable[[int], float]]:
        whole = bump(LAST_OF, "middle", subject, "mlp_out") | bump(LAST, "late", last, "mlp_out")
        whole |= bump(LAST_OF, "middle", 0.1, "attn_out") | bump(LAST, "late", 0.4, "attn_out")
        whole |= bump(LAST_OF, "middle", 0.5, "resid_post") | bump(LAST, "middle", 0.1, "resid_post")
        return whole | {maps.TE: lambda i: 1.0}

    sites = {
        EXACT: site(0.5, 0.1),
        GENERIC: site(0.4, 0.1),
        GUESSWORK: site(0.1, 0.4),
        HEURISTICS: site(0.1, 0.4),
    }
    severed = bump(LAST_OF, "middle", 0.1, "resid_post", "mlp_out")
    severed |= bump(LAST_OF, "middle", 0.5, "resid_post", "attn_out")
    knocked: dict[str, Callable[[int], float]] = {}
    for layer in range(N):
        late = (layer if sign > 0 else N - layer) / N
        for source, loss in (("subject", late), ("other", 1 - late)):
            knocked[f"{source}|{layer}"] = lambda i, loss=loss: loss + spread * rng.normal()
            knocked[f"clean|{source}|{layer}"] = lambda i: 1.0
    hits: dict[str, Callable[[int], float]] = {
        f"attn_out|{n}": lambda i, n=n: 0.5 + sign * 0.4 * maps.in_band(n, N, "late") for n in range(N)
    }
    hits |= {"attn_out|-1": lambda i: 0.5 + sign * 0.3, "mlp_out|-1": lambda i: 0.5}
    shown: dict[str, Callable[[int], float]] = {
        str(n): lambda i, n=n: sign * (0.1 + 0.3 * maps.in_band(n, N, "middle")) for n in range(N)
    }
    peak = {EXACT: 0.5 + 0.1 * sign, GENERIC: 0.25}
    lost = {s: {"peak": lambda i, p=p: p, "clean|peak": lambda i: 1.0} for s, p in peak.items()}
    rows = {"wide": sites, "single": sites, "severed": {EXACT: severed}, "knockout": {EXACT: knocked}}
    rows |= {"extraction": {EXACT: hits}, "enrichment": {EXACT: shown}, "peak": lost}
    return {(way, "probability"): Means(unit_rows(own), 200, 0) for way, own in rows.items()}


NO_FLOOR = pd.DataFrame({"way": [], "metric": [], "scenario": [], "status": []})


@pytest.mark.parametrize(("sign", "verdict"), [(1.0, HOLDS), (-1.0, FAILS)])
def test_every_finding_can_come_out_either_way(sign: float, verdict: str) -> None:
    found = findings.findings(made(sign), N, NO_FLOOR)
    assert dict(zip(found["finding"], found["verdict"], strict=True)) == {f.name: verdict for f in FINDINGS}
    main = found[found["main"]].set_index("finding")
    assert main.loc["facts at the subject", ["alike", "ways"]].tolist() == [2, 2]
    assert main.loc["facts at the subject", "value"] == pytest.approx(sign * 0.4, abs=0.02)
    assert main.loc["relation first", "unit"] == "layers"


def profile(kind: Callable[[int], float], window: int = 1) -> Means:
    """Exact recall whose MLPs at the subject bring back so much by layer."""
    own = {maps.cell("mlp_out", LAST_OF, n): lambda i, n=n: kind(n) + 1e-3 * (i % 3) for n in range(N)}
    return Means(unit_rows({EXACT: own}), 100, 0, window)


def verdicts(means: Means, way: str = "wide") -> dict[str, str]:
    found = findings.findings({(way, "probability"): means}, N, NO_FLOOR)
    return dict(zip(found["finding"], found["verdict"], strict=True))


def test_a_site_in_the_first_layers_is_no_middle_one(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("early site of MLPs", "no first site of MLPs", "middle site of MLPs")
    monkeypatch.setattr(findings, "FINDINGS", [f for f in FINDINGS if f.name in names])
    decaying, rising = (verdicts(profile(f)) for f in (lambda n: np.exp(-n / 3), lambda n: np.exp(n - N)))
    middle = verdicts(profile(lambda n: float(maps.in_band(n, N, "middle"))))
    assert [decaying[n] for n in names] == [HOLDS, FAILS, FAILS]
    assert [rising[n] for n in names] == [FAILS, HOLDS, FAILS]
    assert [middle[n] for n in names] == [HOLDS] * 3
    # Short windows at the edge bring less back: without them a flat profile has no middle.
    flat = verdicts(profile(lambda n: len(window_of(n, 3, N)) / 3, window=3))
    assert flat["no first site of MLPs"] == flat["early site of MLPs"] == UNDECIDED


def test_windows_that_are_cut_off_do_not_make_reading_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "FINDINGS", [f for f in FINDINGS if f.name == "subject read late"])

    def knocked(loss: Callable[[int], float], window: int) -> str:
        sizes = {n: sum(map(loss, window_of(n, window, N))) / window for n in range(N)}
        own = {f"subject|{n}": lambda i, n=n: sizes[n] * (1 + 0.01 * (i % 3)) for n in range(N)}
        own |= {f"clean|subject|{n}": lambda i: 1.0 for n in range(N)}
        return verdicts(Means(unit_rows({EXACT: own}), 100, 0, window), "knockout")["subject read late"]

    assert knocked(lambda n: 0.5, 3) == UNDECIDED and knocked(lambda n: n / N, 3) == HOLDS
    assert knocked(lambda n: 1 - n / N, 3) == FAILS
    assert knocked(lambda n: n / N, 9) == MISSING, "no window around a first layer is whole"


def test_bands_are_weighed_by_their_layers() -> None:
    found = maps.band_mean(profile(float), EXACT, "mlp_out", LAST_OF, ("first", "middle"), N)
    assert found[0] == pytest.approx(np.mean(range(8)), abs=0.01)


def test_noise_decides_nothing_and_floors_are_told() -> None:
    loud = findings.findings(made(0.0, 5.0), N, NO_FLOOR).set_index("finding")
    assert loud.loc["facts at the subject", "verdict"].tolist() == [UNDECIDED] * 2
    low = pd.DataFrame({"way": ["wide"], "metric": ["probability"], "scenario": [GENERIC], "status": [FLOOR]})
    found = findings.findings(made(1.0), N, low)
    told = {(r.finding, r.way): r.verdict for r in found.itertuples()}
    assert (
        told["language at the subject", "wide"] == FLOOR
        and told["language at the subject", "single"] == HOLDS
    )
    assert told["facts at the subject", "wide"] == HOLDS
    assert found.set_index(["finding", "way"]).loc[("language at the subject", "wide"), "alike"] == 1
    # A finding of two scenarios needs both.
    told = findings.findings(made(1.0), N, low.assign(scenario=GUESSWORK)).set_index(["finding", "way"])[
        "verdict"
    ]
    assert told["facts against guesswork", "wide"] == told["guesswork against facts", "wide"] == FLOOR
    assert told["facts against heuristics recall", "wide"] == HOLDS
    few = made(1.0)
    few["wide", "probability"].clusters[GENERIC] = 4
    told = findings.findings(few, N, NO_FLOOR).set_index(["finding", "way"])["verdict"]
    assert told["language at the subject", "wide"] == FEW and told["facts at the subject", "wide"] == HOLDS
    nothing = findings.findings({}, N, NO_FLOOR)
    assert len(nothing) == len(FINDINGS) and set(nothing["verdict"]) == {MISSING}


def test_peaks_and_the_difference_from_generic_prompts() -> None:
    means = made(1.0)["single", "probability"]
    found = maps.peaks(means).set_index(["scenario", "kind", "place"])
    row = found.loc[(EXACT, "mlp_out", LAST_OF)]
    assert 2 <= row["layer_lo"] <= row["layer"] <= row["layer_hi"] <= 7 and row["aie"] == pytest.approx(
        0.5, abs=0.03
    )
    assert row["share"] == pytest.approx(row["aie"])
    against = maps.against_generic(means).set_index(["scenario", "kind", "place", "layer"])
    row = against.loc[(EXACT, "mlp_out", LAST_OF, 4)]
    assert row["difference"] == pytest.approx(0.1, abs=0.02) and row["lo"] > 0.05
    assert against.loc[(GUESSWORK, "mlp_out", LAST_OF, 4), "hi"] < 0
    assert GENERIC not in against.index.get_level_values("scenario")


def test_layers_that_are_vital_for_all_are_told_apart() -> None:
    losses = [(0.45, 0.4), (0.3, 0.0), (-0.1, -0.1)]
    cuts = [
        {"scenario": s, "example": i, "cluster": f"{s}{i}", "scope": scope, "layer": n, "clean": 0.5,
         "value": 0.5 - (loss[s == GENERIC] if scope == "content" else 0.45) - 0.001 * (i % 3)}
        for s in (EXACT, GENERIC)
        for i in range(8)
        for scope in ("content", "all")
        for n, loss in enumerate(losses)
    ]  # fmt: skip
    means = Means(flow.lost(pd.DataFrame(cuts), ["scope", "layer"]), 200, 0)
    every = flow.vital(means, 3)
    # The third layer costs all prompts dearly, but through the first token alone.
    assert every[(every["scope"] == "all") & (every["scenario"] == EXACT)]["status"].tolist()[2] == "none"
    assert every[every["scope"] == "all"]["loss"].min() > 0.9
    found = every[every["scope"] == "content"].set_index(["scenario", "layer"])
    assert found.loc[EXACT, "status"].tolist() == ["vital", "own", "none"]
    assert found.loc[GENERIC, "status"].tolist()[0] == "vital"
    assert found.loc[(EXACT, 1), "loss"] == pytest.approx(0.602, abs=0.002)
    assert found.loc[(EXACT, 1), "difference"] == pytest.approx(0.6, abs=0.002)


def test_units_average_tokens_of_a_place() -> None:
    rows = pd.DataFrame(
        {"scenario": EXACT, "cluster": "a", "example": 0, "draw": 0, "kind": "mlp_out", "severed": "", "place": LAST_OF,
         "layer": [0, 0, 1], "metric": ["probability"] * 3, "value": [0.3, 0.5, 0.9], "low": 0.1, "high": 0.8}
    )  # fmt: skip
    found = maps.units(rows, "probability").set_index("feature")["value"]
    assert found[maps.cell("mlp_out", LAST_OF, 0)] == pytest.approx(0.3)
    assert found[maps.cell("mlp_out", LAST_OF, 1)] == pytest.approx(0.8) and found[maps.TE] == pytest.approx(
        0.7
    )
    assert set(UNIT) <= set(maps.units(rows, "probability"))


def test_the_centre_of_a_profile_leaves_gains_out() -> None:
    found = maps.centre(np.array([[0.0, 1.0, 3.0, -9.0], [-1.0, -1.0, -1.0, -1.0]]), range(4))
    assert found[0] == pytest.approx(1.75) and np.isnan(found[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relations": ("nothing",)}, "no relation 'nothing'"),
        ({"relations": ("capital", "capital")}, "twice"),
        ({"shots": (0, 0)}, "different numbers"),
        ({"unsure": 0.8}, "not below"),
        ({"prompts": 1}, "greater than or equal to 2"),
    ],
)
def test_specs_that_are_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FactsSpec(model="tiny", **options)


def test_the_command_names_the_field() -> None:
    found = CliRunner().invoke(app, ["study", "facts", "smollm2", "--set", "relations=nothing"])
    assert found.exit_code == 2
    assert FactsSpec.quick("m").asked == 12 and FactsSpec(model="m").asked is None
