"""`interp facts`, `interp trace` and `interp edit`: what they print is what the library says, and edits can be read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import interp as library
from interp import atlas_facts
from interp.cli import app
from interp.errors import UsageError
from interp.intervene.facts import common_text
from interp.measure.edits import drift
from interp.measure.known import census
from interp.models.subject import CausalLM
from interp.tasks.base import FixedTask
from interp.tasks.prose import unseen
from interp.tasks.stated import answered, stated
from tests.tiny import byte_tokenizer, tiny

PROMPT = "The town of Arles lies in"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    tiny("llama").save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def model(folder: Path) -> CausalLM:
    return library.load(folder)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Moments of tiny models do not go into the user's cache."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def rows_of(done: Any) -> Any:
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


# -- one prompt ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [PROMPT, "The town of {} lies in", "{} is old, they say"])
def test_a_stated_prompt_marks_its_subject(model: CausalLM, prompt: str) -> None:
    example = stated(model.tokens, prompt, "Arles", other="Baden")
    (span,) = example.spans_of("subject")
    assert example.text == prompt.replace("{}", "Arles")
    assert model.tokens.decode(example.ids[span.start : span.end]).strip() == "Arles"
    twin = example.corrupt["subject_swap"]
    assert twin.text == example.text.replace("Arles", "Baden") and twin.spans == example.spans
    assert next(i for i in range(len(example.ids)) if example.ids[i] != twin.ids[i]) >= span.start


@pytest.mark.parametrize(
    ("prompt", "about", "other", "says"),
    [
        ("The town lies in", "Arles", None, "names 'Arles' 0 times"),
        ("Arles is Arles in", "Arles", None, "names 'Arles' 2 times"),
        ("{} and {} in", "Arles", None, "names 'Arles' 2 times"),
        (PROMPT, "", None, "names ''"),
        (PROMPT, "Arles", "Avignon", "take another subject of as many"),
        (PROMPT, "Arles", "Arles", "take another subject of as many"),
    ],
)
def test_prompts_that_cannot_be_stated(
    model: CausalLM, prompt: str, about: str, other: str | None, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        stated(model.tokens, prompt, about, other)


def test_an_answer_comes_with_its_space(model: CausalLM) -> None:
    example = stated(model.tokens, PROMPT, "Arles")
    ids = answered(model.tokens, example, "France")
    assert model.tokens.decode(ids) == " France" and ids == answered(model.tokens, example, " France ")
    with pytest.raises(UsageError, match="the answer is empty"):
        answered(model.tokens, example, " ")


# -- interp trace ----------------------------------------------------------------------------------------------------


def test_trace_by_noise_is_the_map_of_the_answer(folder: Path, model: CausalLM, tmp_path: Path) -> None:
    kinds = "resid_post,mlp_out"
    done = run(
        "trace", folder, PROMPT, "--subject", "Arles", "--answer", "F", "--samples", 2, "--kind", kinds,
        "--window", 2, "--save", tmp_path / "map.csv", "--json",
    )  # fmt: skip
    rows = pd.DataFrame(rows_of(done))
    example = stated(model.tokens, PROMPT, "Arles")
    want = library.trace_map(
        model, replace(example, answer_ids=answered(model.tokens, example, "F")), kinds.split(","), samples=2, window=2
    )  # fmt: skip
    assert len(rows) == len(want) == 2 * model.n_layers * len(example.ids)
    for column in ("kind", "layer", "position", "window"):
        assert rows[column].tolist() == want[column].tolist()
    assert rows["value"].to_numpy() == pytest.approx(want["value"].to_numpy(), abs=1e-6)
    assert rows["low"].nunique() == 1 and rows["low"][0] != pytest.approx(rows["high"][0], abs=1e-5)
    assert pd.read_csv(tmp_path / "map.csv")["effect"].to_numpy() == pytest.approx(
        want["effect"].to_numpy(), abs=1e-6
    )


@pytest.mark.filterwarnings("ignore:wrote JSON and HTML only")
def test_trace_by_another_subject_asks_for_what_the_model_says(
    folder: Path, model: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chromium")
    done = run(
        "trace", folder, PROMPT, "--subject", "Arles", "--other", "Baden", "--kind", "resid_post", "--json",
        "--figure", tmp_path / "map.html",
    )  # fmt: skip
    rows = pd.DataFrame(rows_of(done))
    example = stated(model.tokens, PROMPT, "Arles", other="Baden")
    twin = example.corrupt["subject_swap"]
    logits = [model.run([e], keep=1).logits[0, -1].softmax(-1) for e in (example, twin)]
    said = int(logits[0].argmax())
    assert set(rows["token_id"]) == {said} and set(rows["corruption"]) == {"subject_swap"}
    assert rows["high"][0] == pytest.approx(float(logits[0][said]), abs=1e-5)
    assert rows["low"][0] == pytest.approx(float(logits[1][said]), abs=1e-5)
    first = example.spans_of("subject")[0].start
    assert rows[rows["position"] < first]["effect"].abs().max() == 0
    last = rows[(rows["layer"] == model.n_layers - 1) & (rows["position"] == len(example.ids) - 1)]
    assert last["recovery"].item() == pytest.approx(1, abs=1e-4)
    assert f"answer {model.tokens.decode([said])!r}" in done.stderr
    assert (tmp_path / "map.html").exists()


# -- interp edit -----------------------------------------------------------------------------------------------------

EDIT = ["--prompt", "The town of {} lies in", "--subject", "Arles", "--target", "Q", "--layer", 1]


def test_an_edit_is_made_measured_written_and_read(folder: Path, model: CausalLM, tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    others = ["--paraphrase", "They say {} is in", "--neighbour", "Baden", "--true", "F"]
    done = run("edit", folder, *EDIT, *others, "--passages", 2, "--out", path, "--json")
    told = rows_of(done)
    rows = pd.DataFrame(told["prompts"])
    assert rows["what"].tolist() == ["efficacy", "paraphrase", "neighbour"]
    assert rows["prompt"].tolist() == [
        "The town of Arles lies in", "They say Arles is in", "The town of Baden lies in"
    ]  # fmt: skip
    edit = library.FactEdit.load(path, model)
    assert [e.layer for e in edit.edits] == [1] and edit.rewrites[0].true == answered(
        model.tokens, stated(model.tokens, PROMPT, "Arles"), "F"
    )
    prompts = [model.tokens.encode(p).ids for p in rows["prompt"]]
    new = answered(model.tokens, stated(model.tokens, PROMPT, "Arles"), "Q")
    # Both answers begin with a space, so that they are compared at the token behind it.
    for state, edits in (("before", ()), ("after", (edit,))):
        with model.apply(*edits):
            for ids, row in zip(prompts[:2], rows.to_dict("records"), strict=False):
                example = library.Example("x", (*ids, new[0]), (new[1],))
                p = float(model.run([example], keep=1).logits[0, -1].softmax(-1)[new[1]])
                assert row[f"p(new) {state}"] == pytest.approx(p, rel=1e-3)
    assert rows["p(new) after"][0] > 2 * rows["p(new) before"][0]
    assert f"{path.stat().st_size:,} bytes" in done.stderr and "FactEdit.load(" in done.stderr
    again = rows_of(run("edit", folder, "--load", path, *others[:4], "--passages", 2, "--json"))
    assert again["perplexity"] == pytest.approx(told["perplexity"]) and again["perplexity"] != 1
    pd.testing.assert_frame_equal(rows, pd.DataFrame(again["prompts"]), rtol=1e-5)
    plain = FixedTask(unseen(model, common_text(2).examples(model)))
    assert again["perplexity"] == pytest.approx(
        drift(model, {"edit": edit}, plain)["perplexity"].item(), rel=1e-4
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompt", "{} is", "--subject", "x"], "--target is missing"),
        (["--load", "a.safetensors", "--target", "x"], "--target and --load"),
        (["--load", "a.safetensors", "--layer", 0], "--layer and --load"),
        ([*EDIT, "--out", "delta.bin"], "ends in .safetensors"),
    ],
)
def test_wrong_usage_of_edit_is_told_before_the_model_is_loaded(arguments: list[object], says: str) -> None:
    done = run("edit", "no-such-model", *arguments)
    assert done.exit_code == 2 and says in done.stderr and not done.stdout


def test_an_edit_that_says_what_is_said_already(folder: Path) -> None:
    done = run("edit", folder, *EDIT[:4], "--target", "Q", "--true", "Q")
    assert done.exit_code == 2 and "is answered with 'Q' already" in done.stderr


def test_a_file_that_is_not_there(folder: Path) -> None:
    done = run("edit", folder, "--load", folder / "nothing.safetensors")
    assert done.exit_code == 3 and "no file" in done.stderr


# -- interp facts ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:wrote JSON and HTML only")
def test_facts_of_a_model_that_knows_none(
    folder: Path, model: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chromium")
    asked = ["-n", 8, "--relations", "capital,currency", "--figure"]
    done = run("facts", folder, *asked, "--scenarios", 1, "--out", tmp_path / "out", "--json")
    told = rows_of(done)
    want = census(model, library.task("facts", relations=["capital", "currency"], n=8)).set_index("relation")
    own = pd.DataFrame(told["fact_census"]).set_index("relation")
    assert own.index.tolist() == ["capital", "currency", "all"]
    assert own["asked"].tolist() == [*want["n"], 8] and own["known"].tolist() == [
        *want["known"],
        want["known"].sum(),
    ]
    assert (own["lo"] <= own["accuracy"]).all() and (own["hi"] > own["accuracy"]).all()
    found = library.scenarios(model, relations=["capital", "currency"], subjects=1).census()
    assert pd.DataFrame(told["scenario_census"])["prompts"].tolist() == found["prompts"].tolist()
    assert set(told) == {"fact_census", "scenario_census"} and "0 of 8 facts known" in done.stderr
    assert len(pd.read_parquet(tmp_path / "out" / "scenarios.parquet")) > 0
    assert {p.name for p in (tmp_path / "out").glob("*.html")} == {"fact-census.html"}


def test_wrong_relations(folder: Path) -> None:
    done = run("facts", folder, "--relations", "capitol")
    assert done.exit_code == 2 and "did you mean 'capital'?" in done.stderr


def test_layers_and_neurons_are_those_of_the_locator(
    folder: Path, model: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model knows nothing, so some of its answers are taken for right: what is done with them is real."""
    real = atlas_facts.ask
    monkeypatch.setattr(
        atlas_facts, "ask", lambda *a: real(*a).assign(known=[i < 4 for i in range(len(a[1]))])
    )
    asked = ["-n", 6, "--relations", "capital", "--scenarios", 0, "--traced", 3, "--exact", 2, "--window", 2]
    told = rows_of(run("facts", folder, *asked, "--top", 5, "--json"))
    examples = library.task("facts", relations=["capital"], n=6).examples(model)
    chosen = atlas_facts.traceable(examples[:4], 3)
    found = library.FactMLPs("subject_swap", window=2, metric="logprob", n_layers=3, exact=2, check=8)
    found.fit(model, chosen, reference=library.task("prose", prompt=24, answer=24, n=8))
    want = found.layers_.sort_values("score", ascending=False, kind="stable")
    layers = pd.DataFrame(told["fact_layers"])
    assert layers["component"].tolist() == want["component"].tolist() and layers["n"].eq(len(chosen)).all()
    for column in ("score", "aie", "fact_loss", "off_loss"):
        assert layers[column].to_numpy() == pytest.approx(want[column].to_numpy(), abs=1e-6)
    neurons = pd.DataFrame(told["fact_neurons"])
    assert neurons["component"].tolist() == found.ranking("neurons")["component"].head(5).tolist()
