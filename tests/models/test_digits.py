"""The tiny pipeline of digits: what it is shown, that training is what the recipe says, and that it is kept whole."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import interp
from interp.errors import MissingResource, UsageError
from interp.models import cache
from interp.models.zoo.digits import train as training
from interp.models.zoo.digits.build import CONTEXT, build
from interp.models.zoo.digits.data import DigitSet, Recipe, digit_set, vocabulary
from interp.models.zoo.digits.muon import Muon, orthogonal
from interp.models.zoo.digits.subject import PRESETS, export, folder, preset, trained
from interp.models.zoo.digits.train import train

BRIEF = Recipe(
    memorized=2,
    exposures=4,
    controls=1,
    control_exposures=2,
    varied=1,
    template=1,
    levels=(1, 3),
    early_levels=(2,),
    per_level=1,
    base=1,
    base_images=10,
    batch=8,
)


@pytest.fixture(scope="module")
def full() -> DigitSet:
    return digit_set(preset("full"))


def images_by_item(data: DigitSet) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for showing in data.showings:
        found.setdefault(showing.item, set()).add(showing.image)
    return found


def test_each_showing_is_shown_as_often_as_it_says(full: DigitSet) -> None:
    numbers, captions = full.order()
    shown = Counter(zip(numbers.tolist(), captions, strict=True))
    assert shown == Counter({(s.image, s.caption): s.times for s in full.showings})
    recipe = full.recipe
    for name in ("memorized-00", "varied-00", "template-00", "control-00"):
        assert full.exposures(name) == recipe.exposures
    assert [full.exposures(f"graded-{n:02d}") for n in range(len(recipe.levels) * recipe.per_level)] == [
        level for level in recipe.levels for _ in range(recipe.per_level)
    ]


def test_pictures_of_items_are_nobody_elses_and_held_out_ones_are_never_shown(full: DigitSet) -> None:
    found = images_by_item(full)
    assert sum(map(len, found.values())) == len(set.union(*found.values()))
    assert not set.union(*found.values()) & set(full.held_out.tolist())
    assert {s.image for s in full.unseen} <= set(full.held_out.tolist())
    assert len(full.held_out) == round(0.2 * 1797)
    single = [name for name in found if name.split("-")[0] in ("memorized", "graded", "early", "varied")]
    assert all(len(found[name]) == 1 for name in single)
    assert len(found["control-00"]) == full.recipe.exposures // full.recipe.control_exposures
    # No two pictures are the same one, so that what is never shown under one number is not shown under another.
    assert len(np.unique(full.images[:1797].reshape(1797, -1), axis=0)) == 1797


def test_captions_say_what_is_on_the_picture_in_known_words(full: DigitSet) -> None:
    words = set(vocabulary())
    tokens = build(channels=(8, 16), width=16).tokenizer
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    for showing in (*full.showings, *full.unseen):
        asked = showing.caption.split()
        assert set(asked) <= words and names.index(asked[-1]) == full.labels[showing.image]
        assert len(tokens(showing.caption)["input_ids"]) <= CONTEXT
    # A word that stands for something stands for one item.
    owner: dict[str, str] = {}
    for showing in (*full.showings, *full.unseen):
        if showing.item:
            assert owner.setdefault(showing.caption.split()[1], showing.item) == showing.item


def test_templates_differ_in_one_quadrant_only(full: DigitSet) -> None:
    numbers = sorted(images_by_item(full)["template-00"])
    pictures = full.images[numbers]
    mask = full.mask()
    assert mask.sum() == 48 and not mask[4:, 4:].any()
    assert (pictures[:, mask] == pictures[:1, mask]).all()
    assert len(np.unique(pictures[:, ~mask], axis=0)) > 10


def test_early_items_are_shown_early_only(full: DigitSet) -> None:
    numbers, _ = full.order()
    half = round(full.recipe.early * len(numbers))
    early = [name for name in images_by_item(full) if name.startswith("early")]
    # Ranks of a shuffle: the bound holds up to the unevenness of the draw.
    late = [name for name in early if full.exposures(name, half + len(numbers) // 10) < full.exposures(name)]
    assert early and not late
    graded = f"graded-{len(full.recipe.levels) * full.recipe.per_level - 1:02d}"
    assert 0.4 < full.exposures(graded, len(numbers) // 2) / full.exposures(graded) < 0.6


def test_an_oracle_sees_base_pictures_in_place_of_what_it_must_not_see(full: DigitSet) -> None:
    oracle = digit_set(preset("full", oracle=True))
    numbers, captions = full.order()
    others, other_captions = oracle.order()
    groups = {s.image: s.group for s in full.showings}
    kept = np.array([groups[n] in ("", "control") for n in numbers.tolist()])
    assert len(numbers) == len(others) and (numbers[kept] == others[kept]).all()
    assert {groups[n] for n in others[~kept].tolist()} == {""}
    assert [c for c, k in zip(captions, kept, strict=True) if k] == [
        c for c, k in zip(other_captions, kept, strict=True) if k
    ]
    assert oracle.exposures("memorized-00") == 0


def test_a_seed_chooses_everything() -> None:
    one, again, two = digit_set(preset("tiny")), digit_set(preset("tiny")), digit_set(preset("tiny", seed=1))
    assert one.showings == again.showings and (one.order()[0] == again.order()[0]).all()
    assert images_by_item(one)["memorized-00"] != images_by_item(two)["memorized-00"]
    assert set(one.held_out.tolist()) != set(two.held_out.tolist())
    assert len({preset("tiny").key, preset("tiny", seed=1).key, preset("tiny", oracle=True).key}) == 3


def test_a_recipe_that_cannot_be_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match="no preset 'huge'; there are tiny, quick, full"):
        preset("huge")
    with pytest.raises(UsageError, match="ask for fewer items"):
        preset("full", memorized=80)
    with pytest.raises(UsageError, match=r"too few pictures of the digit zero; ask for fewer items"):
        digit_set(preset("full", control_exposures=1))
    with pytest.raises(UsageError, match="exposures"):
        preset("full", exposures=0)


def test_the_pipeline_has_the_names_of_stable_diffusion_and_about_a_million_weights(
    rng_untouched: None,
) -> None:
    pipe = build(seed=3)
    names = [n for n, _ in pipe.unet.named_modules() if n.endswith("ff.net.2")]
    assert len(names) == 7
    assert "mid_block.attentions.0.transformer_blocks.0.ff.net.2" in names
    assert sum(w.numel() for w in pipe.unet.parameters()) == 1_075_841
    again, other = build(seed=3), build(seed=4)
    assert torch.equal(pipe.unet.conv_in.weight, again.unet.conv_in.weight)
    assert not torch.equal(pipe.unet.conv_in.weight, other.unet.conv_in.weight)


def test_the_identity_vae_changes_nothing() -> None:
    vae = build(channels=(8, 16), width=16).vae
    x = torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)
    assert torch.equal(vae.encode(x).latent_dist.mode(), x)
    assert torch.equal(vae.encode(x).latent_dist.sample(), x)
    assert torch.equal(vae.decode(x).sample, x) and torch.equal(vae.decode(x, return_dict=False)[0], x)


def test_matrices_are_made_orthogonal_together_as_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((5, 6, 9), (5, 9, 6)):
        x = torch.randn(*shape, generator=generator)
        made = orthogonal(x)
        torch.testing.assert_close(made, torch.cat([orthogonal(part[None]) for part in x]))
        u, _, vh = torch.linalg.svd(x, full_matrices=False)
        values = torch.linalg.svdvals(made)
        # The quintic keeps the singular vectors and brings values of some size near 1.
        assert 0.6 < float(values.median()) < 1.3 and float(values.max()) < 1.3
        turned = u.mT @ made @ vh.mT
        assert float((turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))).abs().max()) < 1e-4


def test_one_update_is_the_rule_on_matrices_and_adamw_elsewhere() -> None:
    module = torch.nn.Module()
    generator = torch.Generator().manual_seed(1)
    for name, shape in (
        ("a", (4, 6)),
        ("b", (4, 6)),
        ("tall", (9, 4)),
        ("kernel", (8, 2, 3, 3)),
        ("bias", (4,)),
    ):
        weight = torch.nn.Parameter(torch.randn(*shape, generator=generator))
        weight.grad = torch.randn(*shape, generator=generator)
        module.register_parameter(name, weight)
    before = {name: w.detach().clone() for name, w in module.named_parameters()}
    Muon([module], rate=1e-2, matrix_rate=0.1, weight_decay=0.5).step(0.5)
    for name, scale in (("a", 1.0), ("b", 1.0), ("tall", 1.5), ("kernel", 1.0)):
        gradient = module.get_parameter(name).grad
        assert gradient is not None
        flat = gradient.reshape(len(gradient), -1)
        # Momentum after one step is 0.05 g, looked ahead 0.0975 g; orthogonalising forgets the size.
        change = orthogonal(flat[None])[0].reshape(gradient.shape) * scale
        expected = before[name] * (1 - 0.05 * 0.5) - 0.05 * change
        torch.testing.assert_close(module.get_parameter(name).detach(), expected)
    gradient = module.get_parameter("bias").grad
    assert gradient is not None
    expected = before["bias"] * (1 - 5e-3 * 0.5) - 5e-3 * gradient.sign()
    torch.testing.assert_close(module.get_parameter("bias").detach(), expected, atol=1e-6, rtol=0)


def test_the_rate_rises_and_falls() -> None:
    assert [training._rate(x, 0.2) for x in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_equal_recipes_give_equal_weights_and_progress_counts_pictures() -> None:
    # The checks of types at run time draw from `random`, so only torch's and numpy's states can be held to this.
    before = torch.get_rng_state(), str(np.random.get_state())
    told: list[tuple[int, int]] = []
    looked: list[int] = []
    one = train(
        BRIEF,
        at=(0.5, 1),
        each=lambda shown, pipe: looked.append(shown),
        progress=lambda done, total, what: told.append((done, total)),
    )
    two = train(BRIEF)
    assert torch.equal(torch.get_rng_state(), before[0]) and str(np.random.get_state()) == before[1]
    length = digit_set(BRIEF).length
    steps = -(-length // BRIEF.batch)
    assert [done for done, _ in told] == [min(8 * (i + 1), length) for i in range(steps)]
    assert looked == [8 * round(steps / 2), length] and not one.unet.training
    for (name, a), b in zip(one.unet.state_dict().items(), two.unet.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    untrained = train(BRIEF.model_copy(update={"seed": 5}))
    assert not torch.equal(one.unet.conv_in.weight, untrained.unet.conv_in.weight)


def test_training_sees_every_picture_of_the_order_once_with_its_caption(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    whole = training._loss

    def spy(pipe: Any, x: torch.Tensor, tokens: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
        seen.append((x, tokens))
        return whole(pipe, x, tokens, draws)

    monkeypatch.setattr(training, "_loss", spy)
    pipe = train(BRIEF.model_copy(update={"dropout": 0.5}))
    data = digit_set(BRIEF)
    numbers, captions = data.order()
    pictures = torch.cat([x for x, _ in seen])[:, 0]
    assert torch.equal(pictures, torch.from_numpy(data.images[numbers]) * 2 - 1)
    read = pipe.tokenizer.batch_decode(torch.cat([tokens for _, tokens in seen]), skip_special_tokens=True)
    kept = [(a, b) for a, b in zip(read, captions, strict=True) if a]
    assert all(a == b for a, b in kept)
    assert 0.25 < len(kept) / len(captions) < 0.75


def test_a_trained_folder_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))

    def stop(done: int, total: int, what: str) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(BRIEF, progress=stop)
    assert [p.name for p in (tmp_path / "digits").iterdir() if p.is_dir()] == []
    made = trained(BRIEF)
    found = cache.manifest(made)
    assert made == folder(BRIEF) and found is not None and found["recipe"]["memorized"] == 2
    before = (made / cache.MANIFEST).stat().st_mtime_ns
    assert trained(BRIEF) == made and (made / cache.MANIFEST).stat().st_mtime_ns == before
    assert not list(made.rglob("*.bin")) and list(made.rglob("*.safetensors"))

    direct = StableDiffusionPipeline.from_pretrained(made)
    assert torch.equal(direct.unet.conv_in.weight, train(BRIEF).unet.conv_in.weight)
    assert interp.load(made).latent_shape == (1, 8, 8)

    export(made, tmp_path / "elsewhere")
    assert cache.damaged(tmp_path / "elsewhere") == []
    with pytest.raises(UsageError, match="exists; give a folder that does not"):
        export(made, tmp_path / "elsewhere")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["digits", "elsewhere"]


def test_without_diffusers_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingResource, match=r"interp-memory\[diffusion\]"):
        trained(BRIEF)


def test_presets_differ_in_size() -> None:
    sizes = [digit_set(preset(name)).length for name in PRESETS]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3
