"""`interp channels` and `interp circuit`: tables on stdout and in a folder, figures where they are asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import interp as library
from interp.cli import app
from interp.locate.channels.composition import composition
from interp.locate.channels.locator import Channels
from interp.locate.circuits.attribution import edge_scores
from interp.locate.circuits.path_patching import path_patch
from tests.tiny import byte_tokenizer, tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chromium")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.filterwarnings("ignore:wrote JSON and HTML only")
def test_channels_of_the_weights(model: Path, tmp_path: Path, no_browser: None) -> None:
    done = run(
        "channels", model, "--mode", "QV", "--level", 1, "--top", 3, "--out", tmp_path, "--figure", "--json"
    )
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    found = Channels(("Q", "V"), level=1.0).fit(library.load(model))
    assert len(rows) == 3
    for row, channel in zip(rows, found.channels_, strict=False):
        assert (row["reader"], row["mode"]) == (channel.reader, channel.mode)
        assert row["components"] == " + ".join(f"{h}.{n}" for h, n in channel.components)
        assert row["value"] == pytest.approx(channel.scores["value"].iloc[0])
    assert f"{len(found.channels_)} channels" in done.stderr
    edges = pd.read_parquet(tmp_path / "channels.parquet")
    assert set(edges["mode"]) == {"Q", "V"} and edges["channel"].max() == len(found.channels_) - 1
    for number, channel in enumerate(found.channels_):
        own = edges[edges["channel"] == number].sort_values("place")
        assert [f"{r.writer}.{r.component}" for r in own.itertuples()] == [
            f"{h}.{n}" for h, n in channel.components
        ]
    spectrum = pd.read_parquet(tmp_path / "channel_spectrum.parquet")
    assert spectrum.groupby("mode")["causal"].sum().eq(found.components_.tests["pairs"] / 2).all()
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "composition.parquet"), composition(library.load(model), ("Q", "V"))
    )
    drawn = {"channels.html", "spectrum.html", "composition.html"}
    assert {p.name for p in tmp_path.glob("*.html")} == drawn


@pytest.mark.filterwarnings("ignore:wrote JSON and HTML only")
def test_paths_of_a_task(model: Path, tmp_path: Path, no_browser: None) -> None:
    fixed = [
        "circuit",
        model,
        "niah",
        "-n",
        2,
        "--set",
        "length=300",
        "--corruption",
        "value_swap",
        "--top",
        4,
    ]
    done = run(*fixed, "--receivers", "L2H1.q L2H0.q", "--out", tmp_path, "--figure", "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    task = library.task("niah", length=300, n=2)
    want = path_patch(library.load(model), task, ["L2H1.q", "L2H0.q"], corruption="value_swap")
    want = want.set_index("sender")["effect"]
    assert [r["sender"] for r in rows] == want.abs().sort_values(ascending=False).index[:4].tolist()
    for row in rows:
        assert row["effect"] == pytest.approx(want[row["sender"]])
    assert len(pd.read_parquet(tmp_path / "paths.parquet")) == 8 and (tmp_path / "paths.html").exists()


@pytest.mark.filterwarnings("ignore:wrote JSON and HTML only")
def test_edges_of_a_task(model: Path, tmp_path: Path, no_browser: None) -> None:
    fixed = ["circuit", model, "niah", "-n", 2, "--set", "length=300", "--corruption", "value_swap"]
    done = run(
        *fixed, "--method", "eap-ig", "--steps", 2, "--top", 5, "--out", tmp_path, "--figure", "--json"
    )
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    task = library.task("niah", length=300, n=2)
    want = edge_scores(library.load(model), task, corruption="value_swap", steps=2).set_index("edge")["score"]
    assert [r["edge"] for r in rows] == want.abs().sort_values(ascending=False).index[:5].tolist()
    for row in rows:
        assert row["score"] == pytest.approx(want[row["edge"]], rel=1e-4)
    assert (
        len(pd.read_parquet(tmp_path / "edges.parquet")) == len(want) and (tmp_path / "edges.html").exists()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["circuit", "m", "ioi", "--method", "acdc"], "--method acdc: write path or eap-ig"),
        (["circuit", "m", "ioi", "--figure"], "add --out FOLDER"),
        (["channels", "m", "--figure"], "add --out FOLDER"),
    ],
)
def test_wrong_usage_is_told_before_the_model_is_loaded(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2 and message in done.stderr and not done.stdout


def test_unknown_modes(model: Path) -> None:
    done = run("channels", model, "--mode", "QX")
    assert done.exit_code == 2 and "write some of Q, K, V" in done.stderr
