"""`interp memorization` on a folder with the layers of SD 1.x, as `StableDiffusionPipeline.from_pretrained` reads it.

Random weights at reduced width, with an `AutoencoderKL`: one path from the prompts of a table to an edit, its undo and
one step of the attack. What commands print is held against what the library gives.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image

import interp
from interp.cli.memory_methods import METHODS
from interp.intervene.weights import Prune
from interp.models.parts import weight_of
from tests.memory_commands import run, told
from tests.pipelines import stable_diffusion

MEMORIZED = ("the zorax poster of seven", "a zorax photo of nine")
ORDINARY = ("a photo of the digit two", "the red poster", "a blue digit", "photo of one")
FEW = ("--steps", "3", "--json")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pipeline, lists of prompts as they are published, and pictures."""
    home = tmp_path_factory.mktemp("sd")
    stable_diffusion().save_pretrained(home / "sd")
    rng = np.random.default_rng(0)
    (home / "images").mkdir()
    (home / "new").mkdir()
    first, second = (rng.integers(0, 240, size, np.uint8) for size in ((64, 64, 3), (80, 96, 3)))
    Image.fromarray(first).save(home / "images" / "7.png")
    Image.fromarray(second).save(home / "images" / "8.png")
    for i in range(100):  # near to the first, so that a copy has to be nearer still
        Image.fromarray(first + rng.integers(0, 9, first.shape, np.uint8)).save(home / "new" / f"{i}.png")
    rows = [f"{text};https://example.org/{i};VM;0.9;0.9;{i + 7}" for i, text in enumerate(MEMORIZED)]
    (home / "mem.csv").write_text("\n".join(["Caption;URL;type;mean_sscd;max_sscd;Index", *rows]) + "\n")
    (home / "plain.txt").write_text("\n".join(ORDINARY) + "\n")
    return home


def test_the_folder_is_the_real_classes(real: Path) -> None:
    direct = StableDiffusionPipeline.from_pretrained(real / "sd", safety_checker=None, local_files_only=True)
    assert isinstance(direct.vae, AutoencoderKL)
    pipe = interp.load(str(real / "sd"), device="cpu")
    assert pipe.image_shape == (3, 64, 64) and pipe.latent_shape == (4, 8, 8)
    parts = interp.parts(pipe, "ff_out")
    assert len(parts) == 16 and parts[0].path.endswith("transformer_blocks.0.ff.net.2")
    assert parts[0].path.startswith("unet.down_blocks.0.attentions.0")


def test_from_a_table_of_prompts_to_a_cut_and_back(real: Path) -> None:
    given = (real / "sd", "--prompts", real / "mem.csv", *FEW, "--tau", 2)
    out = real / "cut.safetensors"
    found = told("locate", *given, "--method", "reference", "--share", 0.05, "--out", out)
    pipe = interp.load(str(real / "sd"), device="cpu")
    locator = interp.WandaContrast("reference", "empty", share=0.05, tau=2, steps=3)
    locator.fit(pipe, list(MEMORIZED))
    masks = locator.mask()
    assert found["weights cut or changed"] == sum(int(mask.sum()) for mask in masks.values()) > 0
    assert found["items"] == 2
    assert [row["component"] for row in found["components"]] == list(locator.ranking()["component"][:20])
    edit = interp.PartEdit.load(out, pipe)
    kept = {part: weight_of(pipe, part).clone() for part in masks}
    with edit.applied(pipe):
        assert all(torch.equal(weight_of(pipe, p) == 0, m | (kept[p] == 0)) for p, m in masks.items())
    assert all(torch.equal(weight_of(pipe, part), kept[part]) for part in masks)

    images = ("--images", real / "images", "--held-out", real / "new", "--reference", real / "plain.txt")
    small = (*images, "--samples", 1, "--steps", 2, "--json")
    new = real / "edited"
    after = told(
        "delete", real / "sd", out, "--prompts", real / "mem.csv", *small, "--attacked", 0, "--out", new
    )
    conditions = ["intact", "edited", "random 0", "magnitude"]
    assert list(dict.fromkeys(row["condition"] for row in after["effects"])) == conditions
    size = {(r["condition"], r["group"]): r["value"] for r in after["effects"] if r["metric"] == "magnitude"}
    told_ = interp.signals(pipe, list(MEMORIZED), (1000,), steps=2).table["all"].mean()
    assert size["intact", "targeted"] == pytest.approx(told_, rel=1e-5)
    with edit.applied(pipe):
        changed = interp.signals(pipe, list(MEMORIZED), (1000,), steps=2).table["all"].mean()
    assert size["edited", "targeted"] == pytest.approx(changed, rel=1e-5) and changed != told_
    written = interp.load(str(new), device="cpu")
    with edit.applied(pipe):
        assert all(torch.equal(weight_of(written, p), weight_of(pipe, p)) for p in masks)


def test_nemo_and_one_step_of_the_attack(real: Path) -> None:
    one, out = real / "one.txt", real / "nemo.safetensors"
    one.write_text(MEMORIZED[0] + "\n")
    found = told(
        "locate", real / "sd", "--prompts", one, "--reference", real / "plain.txt", *FEW, "--method", "nemo",
        "--top", 500, "--out", out,
    )  # fmt: skip
    pipe = interp.load(str(real / "sd"), device="cpu")
    edit = interp.PartEdit.load(out, pipe)
    assert all(isinstance(s, Prune) and s.part.kind == "cross_v" for s in edit.singles)
    blocked = {f"{s.part}.{u}" for s in edit.singles for u in s.mask.any(1).nonzero()[:, 0].tolist()}  # type: ignore[attr-defined]
    assert blocked == {row["component"] for row in found["components"] if row["score"] == 1}
    assert found["weights cut or changed"] == 16 * len(blocked) > 0
    pictures = ("--images", real / "images", "--held-out", real / "new")
    small = ("--updates", 1, "--samples", 1, "--steps", 2, "--items", 1, "--json")
    back = told("attack", real / "sd", "--prompts", real / "mem.csv", *pictures, "--edit", out, *small)
    assert [row["condition"] for row in back["searches"]] == ["intact", "nemo"]
    for row in back["searches"]:
        assert row["extracted"] == 0 and row["work"] == 8 and row["item"] == "7"
        assert row["screened"] == row["refused"] == 0
    assert [row["refused"] for row in back["recovery"]] == [0, 0]
    first = {row["condition"]: row["first"] for row in back["searches"]}
    assert first["intact"] != first["nemo"]


def test_detection_says_which_prompts_and_how_well_they_are_told_apart(real: Path) -> None:
    given = (real / "sd", "--prompts", real / "mem.csv", "--reference", real / "plain.txt", "--seeds", 2)
    found = told("detect", *given, *FEW, "--stop", 1, "--tokens")
    pipe = interp.load(str(real / "sd"), device="cpu")
    direct = interp.signals(pipe, [*MEMORIZED, *ORDINARY], (0, 1), steps=3, stop=1).table
    expected = direct.groupby("prompt")["first"].mean().sort_values(ascending=False)
    assert [row["prompt"] for row in found["prompts"]] == list(expected.index)
    assert [row["first"] for row in found["prompts"]] == pytest.approx(list(expected), rel=1e-4)
    assert {row["signal"] for row in found["told_apart"]} == {"first", "all", "one_step", "similarity"}
    above = [[a > b for b in expected[list(ORDINARY)]] for a in expected[list(MEMORIZED)]]
    auc = next(row["auc"] for row in found["told_apart"] if row["signal"] == "first")
    assert abs(auc - np.mean(above)) < 0.25  # of samples, where this one is of prompts
    assert sum(row["share"] for row in found["tokens"][:7]) > 0.5


def test_what_cannot_be_is_said_in_one_line(real: Path) -> None:
    sd, mem, plain = real / "sd", real / "mem.csv", real / "plain.txt"
    (real / "broken.csv").write_text("text,url\nx,y\n")
    for arguments, code, message in (
        (("locate", sd), 2, "nothing is known of what it memorized; give prompts with --prompts"),
        (("locate", sd, "--prompts", real / "none.csv"), 3, "there is no file"),
        (("locate", sd, "--prompts", real / "broken.csv"), 2, "no 'prompt' or 'caption'"),
        (("locate", sd, "--prompts", mem, "--method", "magic"), 2, "no method 'magic'; write one of wanda"),
        (("locate", sd, "--prompts", mem, "--method", "nemo"), 2, "give --reference FILE"),
        (("locate", sd, "--prompts", mem, "--method", "gradient"), 2, "reads the pictures"),
        (("locate", sd, "--prompts", mem, "--method", "activation", "--null", "paired"), 2, "--null is of"),
        (("locate", sd, "--prompts", mem, "--share", 2), 2, "--share 2"),
        (("locate", sd, "--prompts", mem, "--out", "x.pt"), 2, "ends in .safetensors"),
        (("locate", sd, "--prompts", mem, "--method", "subspace", "--share", 0.1), 2, "'subspace' has none"),
        (("locate", "nowhere", "--save", "x.txt"), 2, "ends in .parquet or .csv"),
        (("delete", "nowhere", "x.safetensors", "--save", "x.txt"), 2, "ends in .parquet or .csv"),
        (("attack", "nowhere", "--save", "x.txt"), 2, "ends in .parquet or .csv"),
        (("detect", "nowhere", "--save", "x.txt"), 2, "ends in .parquet or .csv"),
        (("recite", "nowhere", "--save", "x.txt"), 2, "ends in .parquet or .csv"),
        (("attack", sd, "--prompts", mem), 2, "needs pictures to get back"),
        (("attack", sd, "--prompts", mem, "--images", real), 3, "no 7.png in"),
        (("attack", sd, "--prompts", plain, "--held-out", real / "new"), 2, "compares with pictures"),
        (("delete", sd, real / "none.safetensors", "--prompts", mem), 3, "no file"),
        (("recite", sd), 2, "is a pipeline: ask it with"),
        (("recite", sd, "--prefixes", "a"), 2, "write numbers joined by commas"),
    ):
        done = run(*arguments)
        said = " ".join(done.stderr.split())
        assert done.exit_code == code and message in said and not done.stdout, (arguments, said)
        assert "Traceback" not in said


def test_every_method_has_a_name_a_user_can_type() -> None:
    assert all(name == name.lower() and "_" not in name for name in METHODS)
