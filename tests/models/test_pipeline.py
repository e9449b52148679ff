"""Pipelines run as diffusers runs them, whatever the scheduler, the guidance and the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import interp
from interp.errors import MissingResource, UnknownArchitecture, UsageError
from interp.models.diffusion import noise_scales
from interp.models.parts import Part, Pass, parts, replacing, watching, weight_of
from interp.models.pipeline import Pipeline, Step
from tests.pipelines import SCHEDULE, pixels, stable_diffusion, tiny_pipeline

# Some schedulers hand torch tensors to numpy in a way that numpy 2 is to refuse.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ["a photo of the digit seven", "zorax", "a red poster of the digit two"]
SEEDS = [5, 1, 2]

SCHEDULERS: dict[str, Any] = {
    "ddim": lambda: diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False),
    "pndm": lambda: diffusers.PNDMScheduler(**SCHEDULE, skip_prk_steps=True),
    "euler": lambda: diffusers.EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading"),
    "euler linspace": lambda: diffusers.EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="linspace"),
    "dpm": lambda: diffusers.DPMSolverMultistepScheduler(**SCHEDULE),
    "heun": lambda: diffusers.HeunDiscreteScheduler(**SCHEDULE),
    "ddpm": lambda: diffusers.DDPMScheduler(**SCHEDULE, clip_sample=False),
    "ancestral": lambda: diffusers.EulerAncestralDiscreteScheduler(**SCHEDULE),
    "v": lambda: diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False, prediction_type="v_prediction"),
    "euler v": lambda: diffusers.EulerDiscreteScheduler(
        **SCHEDULE, timestep_spacing="leading", prediction_type="v_prediction"
    ),
    "data": lambda: diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False, prediction_type="sample"),
}


def with_scheduler(name: str) -> Pipeline:
    """The pixel pipeline under another scheduler; weights are shared."""
    pipe = pixels().pipe
    parts = {**pipe.components, "scheduler": SCHEDULERS[name]()}
    other = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return Pipeline(other, name=name)


def called(pipeline: Pipeline, guidance: float, steps: int) -> torch.Tensor:
    """The latents that diffusers' own call ends with."""
    return pipeline.pipe(
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(s) for s in SEEDS],
        output_type="latent",
    ).images


@pytest.mark.parametrize("guidance", [1.0, 1.5, 7.5])
@pytest.mark.parametrize("name", ["ddim", "pndm", "euler", "dpm"])
def test_equal_to_the_call_of_diffusers(name: str, guidance: float, rng_untouched: None) -> None:
    pipeline = with_scheduler(name)
    ours = pipeline.denoise(PROMPTS, SEEDS, steps=4, guidance=guidance)
    assert torch.equal(ours, called(pipeline, guidance, 4))
    assert torch.equal(ours, pipeline.denoise(PROMPTS, SEEDS, steps=4, guidance=guidance)), "state was left"


@pytest.mark.parametrize("name", ["euler linspace", "heun", "ddpm", "ancestral", "v", "data"])
def test_equal_under_other_schedulers(name: str) -> None:
    pipeline = with_scheduler(name)
    torch.testing.assert_close(
        pipeline.denoise(PROMPTS, SEEDS, steps=3, guidance=2.0), called(pipeline, 2.0, 3)
    )


def test_a_sample_does_not_depend_on_its_batch() -> None:
    pipeline = with_scheduler("ancestral")  # also not where the scheduler draws noise
    whole = pipeline.denoise(PROMPTS, SEEDS, steps=3)
    one_by_one = pipeline.denoise(PROMPTS, SEEDS, steps=3, batch=1)
    pairs = pipeline.denoise(PROMPTS, SEEDS, steps=3, batch=2)
    torch.testing.assert_close(whole, one_by_one, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whole, pairs, atol=1e-4, rtol=1e-4)
    assert (whole[0] - whole[1]).abs().max() > 0.5
    other_seed = pipeline.denoise(PROMPTS, [6, 1, 2], steps=3)
    assert (whole[0] - other_seed[0]).abs().max() > 0.5
    torch.testing.assert_close(whole[1:], other_seed[1:], atol=1e-4, rtol=1e-4)


def test_a_run_within_a_run_leaves_its_scheduler_alone() -> None:
    pipeline = with_scheduler("dpm")
    plain = pipeline.denoise(PROMPTS, SEEDS, steps=4)

    def another(step: Step) -> None:
        pipeline.denoise(PROMPTS[:1], [7], steps=3, stop=2)

    assert torch.equal(pipeline.denoise(PROMPTS, SEEDS, steps=4, each=another), plain)


def test_embeddings_in_place_of_prompts() -> None:
    pipeline = pixels()
    embedded = pipeline.embed(PROMPTS)
    assert torch.equal(embedded, pipeline.pipe.encode_prompt(PROMPTS, "cpu", 1, False)[0])
    assert not embedded.requires_grad and pipeline.embed(PROMPTS[:1], grad=True).requires_grad
    by_text = pipeline.denoise(PROMPTS, SEEDS, steps=2, guidance=3.0)
    by_embedding = pipeline.denoise(embedded, SEEDS, steps=2, guidance=3.0, batch=2)
    torch.testing.assert_close(by_text, by_embedding, atol=1e-4, rtol=1e-4)
    other = pipeline.embed(["a blue poster"])
    away = pipeline.denoise(PROMPTS, SEEDS, steps=2, guidance=3.0, unconditional=other)
    assert (away - by_text).abs().max() > 0.01
    each = torch.cat([pipeline.embed([""]), other, pipeline.embed(["the photo"])])
    own = pipeline.denoise(PROMPTS, SEEDS, steps=2, guidance=3.0, unconditional=each, batch=2)
    torch.testing.assert_close(own[:2], torch.stack([by_text[0], away[1]]), atol=1e-4, rtol=1e-4)
    alone = pipeline.denoise(PROMPTS[2:], SEEDS[2:], steps=2, guidance=3.0, unconditional=each[2:])
    torch.testing.assert_close(own[2:], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["ddim", "euler", "v", "euler v", "data"])
def test_steps_show_the_noise(name: str) -> None:
    pipeline = with_scheduler(name)
    seen: list[Step] = []
    pipeline.denoise(PROMPTS, SEEDS, steps=6, stop=2, guidance=1.0, both=True, each=seen.append, batch=2)
    assert [s.index for s in seen] == [0, 1, 0, 1]
    assert [s.items.tolist() for s in seen] == [[0, 1], [0, 1], [2], [2]]
    assert [s.timestep for s in seen[:2]] == pipeline.timesteps(6)[:2].round().int().tolist()
    for step in seen:
        assert step.unconditional is not None
        prompts = [PROMPTS[i] for i in step.items]
        with torch.no_grad():
            again = pipeline.noise(step.x, step.timestep, pipeline.embed(prompts))
            alone = pipeline.noise(step.x, step.timestep, pipeline.embed([""]))
        torch.testing.assert_close(again, step.conditional, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(alone, step.unconditional, atol=1e-4, rtol=1e-4)
    first = seen[0]
    assert (first.conditional - first.unconditional).abs().max() > 1e-3


def test_showing_the_other_half_changes_nothing() -> None:
    pipeline = pixels()
    plain = pipeline.denoise(PROMPTS, SEEDS, steps=3, guidance=1.0)
    shown = pipeline.denoise(PROMPTS, SEEDS, steps=3, guidance=1.0, both=True)
    torch.testing.assert_close(plain, shown, atol=1e-4, rtol=1e-4)


def test_stop_ends_in_the_middle() -> None:
    pipeline = pixels()
    seen: list[Step] = []
    whole = pipeline.denoise(PROMPTS, SEEDS, steps=4, each=seen.append)
    assert torch.equal(pipeline.denoise(PROMPTS, SEEDS, steps=4, stop=2), seen[2].x)
    assert torch.equal(pipeline.denoise(PROMPTS, SEEDS, steps=4, stop=9), whole)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_noise_is_noise_whatever_is_predicted(prediction: str) -> None:
    """A UNet that knew the answer would give, through each kind of target, the noise that was added."""
    scheduler = diffusers.DDPMScheduler(
        1000, beta_schedule="squaredcos_cap_v2", prediction_type=prediction, steps_offset=1, clip_sample=False
    )
    pipeline = Pipeline(stable_diffusion(scheduler=scheduler), name="oracle")
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, 4, 8, 8, generator=generator)
    t = torch.tensor([10, 500, 980])
    noised = pipeline.add_noise(x0, eps, t)
    torch.testing.assert_close(noised, scheduler.add_noise(x0, eps, t))
    answer = {"epsilon": eps, "sample": x0, "v_prediction": scheduler.get_velocity(x0, eps, t)}[prediction]
    last = pipeline.pipe.unet.register_forward_hook(lambda module, args, output: (answer,))
    try:
        found = pipeline.noise(noised, t, pipeline.embed([""]))
    finally:
        last.remove()
    torch.testing.assert_close(found, eps, atol=2e-3, rtol=1e-3)


def test_fractional_timesteps_are_those_of_the_scheduler() -> None:
    scheduler = SCHEDULERS["euler linspace"]()
    scheduler.set_timesteps(7)
    assert (scheduler.timesteps != scheduler.timesteps.round()).any()
    data, noise = noise_scales(scheduler, scheduler.timesteps, torch.zeros(1))
    torch.testing.assert_close((noise / data).flatten(), scheduler.sigmas[:-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(data**2 + noise**2, torch.ones_like(data))


def test_noise_of_rows_at_their_own_timesteps_with_gradients() -> None:
    pipeline = pixels()
    embedding = pipeline.embed(PROMPTS).requires_grad_()
    x, t = pipeline.latents(SEEDS), torch.tensor([900, 20, 400])
    noise = pipeline.noise(x, t, embedding)
    for i in range(3):
        alone = pipeline.noise(x[i : i + 1], int(t[i]), embedding[i : i + 1])
        torch.testing.assert_close(noise[i : i + 1], alone, atol=1e-5, rtol=1e-4)
    (grad,) = torch.autograd.grad(noise[1].square().sum(), embedding)
    assert grad[1].abs().max() > 1e-4 and not grad[0].any() and not grad[2].any()


def test_latents_are_those_of_diffusers() -> None:
    pipeline = pixels()
    from diffusers.utils.torch_utils import randn_tensor

    generators = [torch.Generator().manual_seed(s) for s in SEEDS]
    assert torch.equal(
        pipeline.latents(SEEDS), randn_tensor((3, *pipeline.latent_shape), generator=generators)
    )


def test_images() -> None:
    pipeline = tiny_pipeline()
    assert pipeline.latent_shape == (4, 8, 8) and pipeline.image_shape == (3, 64, 64)
    ours = pipeline.sample(PROMPTS[:1], SEEDS[:1], steps=2)
    generator = torch.Generator().manual_seed(SEEDS[0])
    theirs = pipeline.pipe(
        PROMPTS[0], num_inference_steps=2, guidance_scale=1.5, generator=generator, output_type="np"
    ).images
    torch.testing.assert_close(ours, torch.from_numpy(theirs).permute(0, 3, 1, 2))
    images = torch.rand(2, 3, 64, 64, generator=generator)
    with torch.no_grad():
        mean = pipeline.pipe.vae.encode(images * 2 - 1).latent_dist.mean
    torch.testing.assert_close(pipeline.encode(images), mean * 0.18215)


def test_images_of_pixels_are_their_own_latents() -> None:
    pipeline = pixels()
    assert pipeline.image_shape == pipeline.latent_shape == (1, 8, 8)
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pipeline.decode(pipeline.encode(images), batch=2), images)


def test_what_is_spent_is_counted() -> None:
    pipeline = with_scheduler("pndm")
    pipeline.denoise(PROMPTS, SEEDS, steps=4, guidance=1.5, batch=2)
    assert (pipeline.spent.calls, pipeline.spent.rows) == (
        10,
        30,
    )  # 5 calls a batch, PNDM adds one to 4 steps
    pipeline.spent.reset()
    pipeline.denoise(PROMPTS, SEEDS, steps=4, stop=2, guidance=1.0)
    assert (pipeline.spent.calls, pipeline.spent.rows) == (2, 6)


def test_progress() -> None:
    told: list[tuple[int, int, str]] = []
    pixels().denoise(PROMPTS, SEEDS, steps=4, stop=2, batch=2, progress=lambda *a: told.append(a))
    assert [(d, t) for d, t, _ in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_passes_say_what_runs() -> None:
    pipeline = with_scheduler("pndm")
    part = parts(pipeline, "ff_out")[0]
    seen: list[tuple[Part, torch.Tensor, Pass]] = []
    with watching(pipeline, [part], lambda *a: seen.append(a)):
        pipeline.denoise(PROMPTS, SEEDS, steps=3, guidance=1.5, batch=2)
    assert [p.index for _, _, p in seen] == [0, 1, 2, 3] * 2
    assert [p.key for _, _, p in seen[:4]] == pipeline.timesteps(3).tolist()
    assert seen[1][2].key == seen[2][2].key, "PNDM visits one timestep twice"
    assert seen[0][2].items.tolist() == [0, 1, 0, 1] and seen[4][2].items.tolist() == [2, 2]
    assert seen[0][2].conditional.tolist() == [False, False, True, True]
    assert all(x.shape[0] == len(p.items) for _, x, p in seen)


def test_passes_of_the_text_encoder() -> None:
    pipeline = pixels()
    part = parts(pipeline, "text_ff_out")[1]
    seen: list[tuple[Part, torch.Tensor, Pass]] = []
    with watching(pipeline, [part], lambda *a: seen.append(a)):
        pipeline.denoise(PROMPTS, SEEDS, steps=1, guidance=1.5, batch=2)
    assert [p.items.tolist() for _, _, p in seen] == [[0, 1], [0, 1], [2], [2]]
    assert [bool(p.conditional.all()) for _, _, p in seen] == [True, False, True, False]
    assert seen[0][2].valid is not None
    assert seen[0][2].valid.sum(1).tolist() == [8, 3]  # words, begin and end
    assert seen[0][1].shape[:2] == seen[0][2].valid.shape


def test_fingerprint_follows_weights_and_undo() -> None:
    pipeline = Pipeline(stable_diffusion(), name="other name")
    assert pipeline.fingerprint == tiny_pipeline().fingerprint
    assert Pipeline(stable_diffusion(seed=1), name="x").fingerprint != pipeline.fingerprint
    before = pipeline.fingerprint
    for kind in ("ff_out", "text_ff_out"):
        weight = weight_of(pipeline, parts(pipeline, kind)[0])
        kept = weight.clone()
        weight[0, 0] += 1
        assert pipeline.fingerprint != before
        weight.copy_(kept)
        assert pipeline.fingerprint == before
    assert not pipeline.edited
    with replacing(pipeline, {parts(pipeline)[0]: lambda x, _: x}):
        assert pipeline.edited and pipeline.fingerprint != before
    assert not pipeline.edited and pipeline.fingerprint == before


def test_folders_load(tmp_path: Path) -> None:
    for name, subject in (("sd", tiny_pipeline()), ("pixels", pixels())):
        subject.pipe.save_pretrained(tmp_path / name)
        loaded = interp.load(tmp_path / name)
        assert isinstance(loaded, Pipeline) and loaded.name == name
        assert loaded.fingerprint == subject.fingerprint
        assert torch.equal(
            loaded.sample(PROMPTS[:1], [1], steps=2), subject.sample(PROMPTS[:1], [1], steps=2)
        )
    half = interp.load(str(tmp_path / "pixels"), name="half", dtype="bfloat16")
    assert (half.name, half.dtype, half.embed(["a"]).dtype) == ("half", torch.bfloat16, torch.bfloat16)
    assert interp.load(pixels().pipe).pipe is pixels().pipe


def test_a_hub_id_in_the_cache_loads(tmp_path: Path) -> None:
    commit = "0" * 40
    repo = tmp_path / "models--someone--digits"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    tiny_pipeline().pipe.save_pretrained(repo / "snapshots" / commit)
    loaded = interp.load("someone/digits", cache_dir=tmp_path)
    assert loaded.name == "someone/digits" and loaded.fingerprint == tiny_pipeline().fingerprint


def test_bad_input_gets_one_line(tmp_path: Path) -> None:
    pipeline = pixels()
    with pytest.raises(UsageError, match="3 prompts and 2 seeds"):
        pipeline.denoise(PROMPTS, [1, 2])
    with pytest.raises(UsageError, match="needs the unconditional half"):
        pipeline.denoise(PROMPTS, SEEDS, guidance=2.0, both=False)
    with pytest.raises(UsageError, match="at least 1"):
        pipeline.denoise(PROMPTS, SEEDS, stop=0)
    with pytest.raises(UsageError, match="2 unconditional embeddings"):
        pipeline.denoise(PROMPTS, SEEDS, unconditional=pipeline.embed(["", ""]))
    with pytest.raises(UsageError, match="no prompts"):
        pipeline.embed([])
    with pytest.raises(UsageError, match="takes no tokenizer"):
        interp.load(pipeline.pipe, engine="lens")
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "X"]}'
    )
    with pytest.raises(MissingResource, match="could not be loaded as a diffusion pipeline"):
        interp.load(tmp_path)


def test_other_pipelines_are_refused() -> None:
    from types import SimpleNamespace as Some

    pipe = pixels().pipe
    own = {k: getattr(pipe, k) for k in ("unet", "text_encoder", "tokenizer", "scheduler", "vae")}
    with pytest.raises(UnknownArchitecture, match="second text encoder"):
        Pipeline(Some(**own, text_encoder_2=pipe.text_encoder), name="sdxl")
    with pytest.raises(UnknownArchitecture, match="has no unet"):
        Pipeline(Some(**{**own, "unet": None}), name="flux")
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(UnknownArchitecture, match="give another scheduler"):
        Pipeline(Some(**{**own, "scheduler": flow}), name="sd3")
    with torch.random.fork_rng(devices=[]):
        paint = diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=9,
            block_out_channels=(8,),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            cross_attention_dim=8,
        )
    with pytest.raises(UnknownArchitecture, match="an image beside the latents"):
        Pipeline(Some(**{**own, "unet": paint}), name="inpainting")
