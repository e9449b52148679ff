"""The study of indirect objects: rules, attention by role, scores of pairs, and all parts on a tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from interp.cli import app
from interp.locate.channels.components import component_scores
from interp.locate.channels.composition import composition
from interp.models.sites import Head
from interp.models.subject import CausalLM
from interp.studies.ioi.classes import STEPS, circuit, classed, judged, members
from interp.studies.ioi.roles import AFTER, KEYS, ROWS, marked, role_attention
from interp.studies.ioi.spec import IOISpec
from interp.studies.ioi.study import run
from interp.studies.ioi.weights import SCORES, auroc, pair_scores, predicted
from interp.tasks import task
from tests.subjects import subject
from tests.tiny import tiny
from tests.tokenizers import VOCAB, tokens


@pytest.fixture(scope="module")
def model() -> CausalLM:
    """A tiny model with a tokenizer that has names of one length."""
    module, words = tiny("llama"), tokens("smollm")
    generator = torch.Generator().manual_seed(0)
    for name in ("model.embed_tokens", "lm_head"):
        table = module.get_submodule(name)
        table.weight = torch.nn.Parameter(0.2 * torch.randn(VOCAB, 48, generator=generator))
    module.config.vocab_size = VOCAB
    return CausalLM(module, words, name="tiny")


def test_attention_by_role_is_that_of_the_whole_pattern(model: CausalLM) -> None:
    examples = [marked(e) for e in task("ioi", n=3, seed=0).examples(model)]
    found = role_attention(model, examples).set_index(["component", "row"])
    model.hf.set_attn_implementation("eager")
    total = {(r, k): torch.zeros(3, 4) for r in ROWS for k in (*KEYS, "before", "self", "first")}
    for e in examples:
        with torch.no_grad():
            every = model.hf(torch.tensor([e.ids]), output_attentions=True).attentions
        pattern = torch.stack([a[0] for a in every])
        where = {role: list(range(s.start, s.end)) for s in e.spans for role in [s.role]}
        for row in ROWS:
            at = where[row][-1]
            keys = {k: where[k] for k in KEYS} | {"before": [at - 1], "self": [at], "first": [0]}
            for name, columns in keys.items():
                total[row, name] += pattern[:, :, at, columns].sum(-1) / len(examples)
    model.hf.set_attn_implementation("sdpa")
    for (row, name), masses in total.items():
        for layer in range(3):
            for head in range(4):
                mine = found.loc[(f"L{layer}H{head}", row), name]
                assert mine == pytest.approx(float(masses[layer, head]), abs=1e-5)
    for e in examples:
        (after,), (s1,) = e.spans_of(AFTER), e.spans_of("s1")
        assert (after.start, len(after)) == (s1.end, 1)


def effects(values: dict[str, tuple[float, float]]) -> pd.DataFrame:
    rows = [
        {
            "sender": name,
            "layer": int(name[1]),
            "head": int(name[3]),
            "effect": effect,
            "p": p,
            "ci_lo": effect - 0.01,
            "ci_hi": effect + 0.01,
        }
        for name, (effect, p) in values.items()
    ]
    return pd.DataFrame(rows)


def test_chosen_are_strong_and_significant() -> None:
    table = effects(
        {
            "L0H0": (0.5, 1e-4),
            "L0H1": (-0.3, 1e-4),
            "L1H0": (0.9, 0.5),
            "L1H1": (0.001, 1e-4),
            "L2H0": (0.1, 0.01),
        }
    )
    found = judged(table, level=0.05, least=0.02, most=8)
    assert list(found.loc[found["chosen"], "sender"]) == ["L0H0", "L0H1", "L2H0"]
    assert found["q"].tolist() == pytest.approx([5e-4 / 3, 5e-4 / 3, 0.5, 5e-4 / 3, 0.0125])
    assert judged(table, level=0.05, least=0.02, most=2)["chosen"].sum() == 2
    assert judged(table, level=0.011, least=0.02, most=8)["chosen"].sum() == 2


def test_classes_follow_sign_and_look() -> None:
    names = ["L0H0", "L0H1", "L1H0", "L1H1", "L2H0"]
    steps = {s.name: s for s in STEPS}
    direct, query, values, induction = (
        steps[n] for n in ("direct", "mover_q", "inhibition_v", "induction_k")
    )
    masses = {
        "end": [(0.6, 0.1, 0.1), (0.5, 0.2, 0.2), (0.1, 0.3, 0.3), (0.1, 0.0, 0.4), (0.1, 0.05, 0.0)],
        "s2": [(0.0, 0.5, 0.1), (0.0, 0.1, 0.5), (0.4, 0.2, 0.2), (0.0, 0.1, 0.1), (0.0, 0.3, 0.2)],
        AFTER: [(0.0, 0.9, 0.1), (0.4, 0.3, 0.3), (0.0, 0.1, 0.8), (0.0, 0.5, 0.2), (0.0, 0.2, 0.1)],
    }
    last = {"end": "s2", "s2": AFTER, AFTER: AFTER}
    rows = []
    for row, found in masses.items():
        for name, (io, s1, other) in zip(names, found, strict=True):
            rows.append(
                {"component": name, "row": row, "io": io, "s1": s1, "s2": 0.0, AFTER: 0.0}
                | {last[row]: other}
            )
    attention = pd.DataFrame(rows)

    def of(step, signs: list[float]) -> list[str]:  # type: ignore[no-untyped-def]
        table = effects(
            {n: (s * (1 - 0.1 * i), 1e-4) for i, (n, s) in enumerate(zip(names, signs, strict=True))}
        )
        return list(classed(step, table.assign(q=0.0), attention, look=0.2)["class"])

    assert of(direct, [1, -1, 1, -1, 1]) == [
        "name mover",
        "negative mover",
        "subject suppressor",
        "subject mover",
        "other: direct",
    ]
    assert of(query, [1, 1, 1, 1, 1])[3] == "S-inhibition"
    assert of(query, [1, 1, 1, -1, 1])[3] == "other: mover_q"
    read = ["duplicate token", "induction", "other: inhibition_v", "other: inhibition_v", "duplicate token"]
    assert of(values, [1, -1, 1, 1, -1]) == read
    assert of(induction, [1, 1, 1, 1, 1])[::3] == ["previous token", "previous token"]
    assert of(induction, [1, 1, 1, 1, 1])[1:3] == ["other: induction_k"] * 2
    two = effects({"L0H0": (0.1, 0.0), "L0H1": (-0.9, 0.0)}).assign(q=0.0)
    table = classed(direct, two, attention, look=0.2)
    assert list(table["component"]) == ["L0H1", "L0H0"]
    assert circuit(table) == ["L0H0", "L0H1"] and members(table, "name mover") == ["L0H0"]


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    score = rng.integers(0, 6, 60).astype(float)
    positive = rng.random(60) < 0.3
    pairs = score[positive][:, None] - score[~positive][None]
    assert auroc(score, positive) == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2)
    assert np.isnan(auroc(score, np.zeros(60, bool)))


def test_what_only_knows_the_layer_predicts_nothing() -> None:
    rng = np.random.default_rng(1)
    layer = np.repeat(np.arange(10), 20)
    positive = rng.random(200) < layer / 20
    about_layer = layer + 0.01 * rng.random(200)
    found = predicted(about_layer, positive, layer, draws=400)
    assert found["auroc"] > 0.65 and found["expected"] == pytest.approx(found["auroc"], abs=0.02)
    assert found["p"] > 0.05 and found["within"] == pytest.approx(0.5, abs=0.12)
    knows = layer + 3.0 * positive
    found = predicted(knows, positive, layer, draws=400)
    assert found["p"] == pytest.approx(1 / 401) and found["within"] == 1.0
    assert (found["n"], found["positives"]) == (200, int(positive.sum()))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_scores_of_pairs_are_those_of_the_tables(family: str) -> None:
    model = subject(family)
    found = pair_scores(model, {"Q": [Head(2, 1)], "K": [Head(2, 3)], "V": [Head(1, 0), Head(2, 0)]})
    assert len(found) == 8 + 8 + 4 + 8
    every = composition(model).set_index(["mode", "writer", "reader"])
    single = component_scores(model, top=10**6)
    best = single.readers.groupby(["mode", "writer", "reader"])["value"].max()
    kernel = single.kernel.set_index(["mode", "writer", "reader"])["value"]
    for row in found.itertuples():
        reader = row.reader
        if family == "llama" and row.mode == "K":
            reader = {"L2H3": "L2KV1"}[reader]
        assert row.composition == pytest.approx(
            every.loc[(row.mode, row.writer, row.reader), "value"], rel=1e-5
        )
        assert row.z == pytest.approx(every.loc[(row.mode, row.writer, row.reader), "z"], rel=1e-4)
        assert row.component == pytest.approx(best.loc[(row.mode, row.writer, reader)], rel=1e-4)
        assert row.kernel == pytest.approx(kernel.loc[(row.mode, row.writer, reader)], rel=1e-4)
    assert found[list(SCORES)].notna().all().all()


def test_all_parts_and_going_on(model: CausalLM, tmp_path: Path) -> None:
    spec = IOISpec(model="tiny", n=8, held=8, level=0.999, least=0, most=3, look=0, controls=2, draws=50)
    job = run(spec, tmp_path / "run", subject=model)
    tables = {p.stem: pd.read_parquet(p) for p in (tmp_path / "run").glob("*.parquet")}
    assert set(tables) == {
        "attention",
        "edges",
        "heads",
        "templates",
        "confirm",
        "faithfulness",
        "knockout",
        "weights",
        "predicted",
    }
    edges, heads = tables["edges"], tables["heads"]
    assert (edges["stage"] == "direct").sum() == 12
    assert edges.groupby("stage")["chosen"].sum().max() <= 3
    assert set(heads["component"]) == set(edges.loc[edges["chosen"], "sender"])
    faithful = tables["faithfulness"]
    every = faithful[(faithful["kept"] == "circuit") & (faithful["mode"] == "resample")]
    whole = (every["logit_diff"] - every["empty"]) / (every["clean"] - every["empty"])
    assert every["faithfulness"].to_numpy() == pytest.approx(whole.to_numpy(), abs=1e-5)
    assert set(tables["confirm"]["sender"]) == set(edges.loc[edges["chosen"], "sender"])
    assert set(tables["predicted"]["stage"]) == {*tables["weights"]["stage"], "all"}
    every_pair = tables["predicted"].query("stage == 'all' and score == 'z'").iloc[0]
    assert every_pair["n"] == len(tables["weights"])
    assert every_pair["positives"] == tables["weights"]["chosen"].sum() > 0
    assert {"cut", "control", "clean"} <= set(tables["knockout"]["condition"])
    before = (tmp_path / "run" / "edges.parquet").read_bytes()
    (tmp_path / "run" / "predicted.parquet").unlink()
    again = run(spec, tmp_path / "run", subject=model)
    assert again.done == ["predicted"] and set(again.skipped) <= {*job.done}
    assert (tmp_path / "run" / "edges.parquet").read_bytes() == before
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "run" / "predicted.parquet"), tables["predicted"]
    )


def test_command_line(model: CausalLM, tmp_path: Path) -> None:
    model.hf.save_pretrained(tmp_path / "model")
    model.tokens.hf.save_pretrained(tmp_path / "model")
    runner = CliRunner()
    options = ["--set", "stages=[direct]", "--set", "n=4", "--set", "held=4", "--set", "controls=1"]
    options += ["--set", "level=0.999", "--set", "least=0", "--set", "look=0", "--out", str(tmp_path / "run")]
    found = runner.invoke(app, ["study", "ioi", str(tmp_path / "model"), *options, "--json"])
    assert found.exit_code == 0, found.output
    assert set(pd.read_parquet(tmp_path / "run" / "edges.parquet")["stage"]) == {"direct"}
    wrong = runner.invoke(app, ["study", "ioi", "x", "--set", "stages=[mover]"])
    assert wrong.exit_code == 2 and "stages" in wrong.output
    wrong = runner.invoke(app, ["study", "ioi"])
    assert wrong.exit_code == 2 and "interp study ioi smollm2" in wrong.output
