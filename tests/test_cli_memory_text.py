"""`interp memorization locate` and `delete` on a tiny language model that recites what it says by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import interp
from interp.cli import memory_edits
from interp.cli.memory_items import Case, case_of
from interp.errors import UsageError
from interp.intervene.weights import Delta, MeanAblate
from interp.models.parts import parts, weight_of
from interp.models.subject import CausalLM
from interp.models.tokens import as_tokens
from interp.tasks.base import Example
from tests.memory_commands import run, told
from tests.tiny import byte_tokenizer, tiny

SIZE = ("--prefix", 8, "--suffix", 2)
STARTS = [
    f"{word} {i} is told" for i, word in enumerate(("alpha", "beta", "gamma", "delta", "omega", "sigma"))
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model, with passages of which it recites some: their first letters go on as it does."""
    home = tmp_path_factory.mktemp("lm")
    # The tokenizer numbers its alphabet: a to z are 64 to 89, and the model says nothing else.
    module = tiny("llama")
    with torch.no_grad():
        head = module.get_output_embeddings().weight
        head[:64] = head[90:] = 0
    module.save_pretrained(home / "lm")
    byte_tokenizer().save_pretrained(home / "lm")
    subject = interp.load(str(home / "lm"), device="cpu")
    lines = []
    for start in STARTS:
        ids = as_tokens(subject).encode(start[:8]).ids
        batch = subject.batch([Example("", ids, ())], forced=False)
        said = as_tokens(subject).decode(subject.generate(batch, 2)[0])
        lines.append(f"{start[:8]}{said} and no more")
    lines += [lines[0].upper().lower(), *(f"plain {i} words of none" for i in range(3))]
    (home / "texts.txt").write_text("\n".join(lines) + "\n")
    return home


def _case(model: Path, *size: int) -> Case:
    return case_of(str(model / "lm"), model / "texts.txt", None, None, None, None, *size, "cpu")


def test_halves_are_of_texts_and_not_of_what_else_is_recited(model: Path) -> None:
    whole = _case(model, 8, 2)
    both = {side: {item.name for item in whole.groups[side]} for side in ("targeted", "held_out")}
    assert both["targeted"] and both["held_out"] and len(both["targeted"] | both["held_out"]) == 6
    assert "line 7" not in {item.name for own in whole.groups.values() for item in own}, "a text twice"
    lines = (model / "texts.txt").read_text().splitlines()
    (model / "fewer.txt").write_text("\n".join(lines[1:]) + "\n")
    fewer = case_of(str(model / "lm"), model / "fewer.txt", None, None, None, None, 8, 1, "cpu")
    keys = {side: {whole.key(item) for item in whole.groups[side]} for side in both}
    for side, other in (("targeted", "held_out"), ("held_out", "targeted")):
        assert not {fewer.key(item) for item in fewer.groups[side]} & keys[other]


def test_from_locating_to_a_folder_with_the_edited_weights(model: Path, tmp_path: Path) -> None:
    given = (model / "lm", "--prompts", model / "texts.txt", *SIZE)
    small = (model / "lm", model / "cut.safetensors", *given[1:], "--attacked", 0, "--json")
    found = told("locate", *given, "--method", "activation", "--out", model / "cut.safetensors", "--json")
    case = _case(model, 8, 2)
    assert found["items"] == len(case.targets) and found["ordinary items"] == len(case.groups["ordinary"])
    out = tmp_path / "edited"
    after = told("delete", *small, "--out", out)
    assert {row["condition"] for row in after["effects"]} == {"intact", "edited", "random 0", "magnitude"}
    assert {"ordinary (used for locating)", "prose"} < {row["group"] for row in after["effects"]}
    assert "ordinary" not in {row["group"] for row in after["effects"]}
    edit, items = memory_edits.read(model / "cut.safetensors", case)
    assert items is not None and items.targets == {case.key(item) for item in case.targets}
    written = interp.load(str(out), device="cpu")
    assert as_tokens(written).encode("a b").ids == as_tokens(case.subject).encode("a b").ids
    with edit.applied(case.subject):
        for part in edit.parts:
            assert torch.equal(weight_of(written, part), weight_of(case.subject, part))
    leaked = Case(case.subject, {"held_out": case.targets[:1]}, keys=case.keys)
    with pytest.raises(UsageError, match="which is held out here"):
        memory_edits.read(model / "cut.safetensors", leaked)


def test_a_lent_bias_is_refused_before_anything_is_measured(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interp.cli import memory_cuts

    subject: CausalLM = _case(model, 8, 2).subject
    part = parts(subject, "ff_out")[0]
    rows, columns = weight_of(subject, part).shape
    monkeypatch.setattr(memory_cuts, "_measured", lambda *_: pytest.fail("it was measured"))
    for edit in (
        MeanAblate(part, torch.tensor([1]), torch.ones(1)),
        Delta(part, torch.zeros(rows, columns), torch.ones(rows)),
    ):
        edit.made_for(subject).save(tmp_path / "bias.safetensors")
        done = run(
            "delete", model / "lm", tmp_path / "bias.safetensors", "--prompts", model / "texts.txt", *SIZE,
            "--out", tmp_path / "no",
        )  # fmt: skip
        assert done.exit_code == 2 and "lends" in done.stderr and not (tmp_path / "no").exists()


def test_a_method_says_what_it_read_and_refuses_what_it_does_not_use(model: Path) -> None:
    given = (model / "lm", "--prompts", model / "texts.txt", *SIZE, "--method", "kfac", "--json")
    done = run("locate", *given, "--tau", 3)
    found = json.loads(done.stdout)
    assert found["items"] == 0 and found["ordinary items"] > 0
    assert "not used: --tau" in done.stderr
    assert "'kfac' has none" in " ".join(run("locate", *given, "--share", 0.1).stderr.split())
