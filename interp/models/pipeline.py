"""`Pipeline`: a text-to-image diffusion pipeline with what is needed to run it step by step.

It holds the diffusers pipeline untouched. `denoise` is the pipeline's own loop, with its own scheduler, for rows that
do not depend on their batch; `noise` is one call of the UNet, differentiable. What the UNet reads is noised data at
the scale of training, sqrt(a) x0 + sqrt(1 - a) eps, and what `noise` gives is an estimate of eps, whatever scale the
scheduler keeps its latents at and whatever the UNet was trained to predict.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Num
from torch import nn

from interp.errors import UsageError
from interp.models import offload
from interp.models.cache import Progress, quiet
from interp.models.diffusion import check_pipeline, noise_scales
from interp.models.parts import Pass, passing, replaced

Prompts = Sequence[str] | torch.Tensor
"""Texts, or their embeddings (b, n, d)."""


@dataclass
class Spent:
    """UNet calls so far, and the rows in them (sample-forwards, what the calls cost)."""

    calls: int = 0
    rows: int = 0

    def reset(self) -> None:
        """Count from zero again."""
        self.calls = self.rows = 0


@dataclass(frozen=True, eq=False)
class Step:
    """One denoising step of a batch.

    Attributes:
        index: number of the step.
        timestep: the timestep, rounded where the scheduler has fractional ones.
        x: noised data as the UNet reads it, so `pipeline.noise(x, timestep, embedding)` is `conditional`.
        conditional, unconditional: the noise predicted with the prompt and without one (None where that was not run).
        items: numbers of the rows in the caller's list.
    """

    index: int
    timestep: int
    x: Float[torch.Tensor, "b c h w"]
    conditional: Float[torch.Tensor, "b c h w"]
    unconditional: Float[torch.Tensor, "b c h w"] | None
    items: Int[torch.Tensor, " b"]


class Pipeline:
    """A diffusers text-to-image pipeline with one UNet, one text encoder, a tokenizer and a scheduler.

    Args:
        pipe: the pipeline; its modules are put into eval mode, and it is otherwise left alone.
        name: what tables and figures call it.

    Attributes:
        spent: UNet calls and rows since it was reset.

    Raises:
        UnknownArchitecture: the pipeline needs more than a prompt's embedding and a timestep (SDXL, inpainting, ...).
    """

    kind: Literal["pipeline"] = "pipeline"

    def __init__(self, pipe: Any, *, name: str):
        check_pipeline(pipe, name)
        self.pipe = pipe
        self.name = name
        self.spent = Spent()
        self._hashed: tuple[Any, str] | None = None
        for module in self._modules().values():
            module.eval()

    def _modules(self) -> dict[str, nn.Module]:
        return {n: m for n, m in self.pipe.components.items() if isinstance(m, nn.Module)}

    # -- shape -------------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return next(self.pipe.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the UNet's weights."""
        return next(self.pipe.unet.parameters()).dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what is denoised."""
        config = self.pipe.unet.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(config.in_channels), int(height), int(width)

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of decoded images."""
        channels, height, width = self.decode(torch.zeros(1, *self.latent_shape)).shape[1:]
        return channels, height, width

    # -- text --------------------------------------------------------------------------------------------------------

    def embed(
        self, prompts: Sequence[str], *, items: Sequence[int] | None = None, grad: bool = False
    ) -> Float[torch.Tensor, "b n d"]:
        """The text encoder's output, as diffusers makes it; `embed([""])` is the unconditional one.

        Args:
            prompts: the texts; what is longer than the encoder's context is cut off.
            items: their numbers in the caller's list, for those who watch; default 0, 1, ...
            grad: keep the graph.
        """
        prompts = list(prompts)
        if not prompts:
            raise UsageError("no prompts to embed; give at least one, [''] for the unconditional embedding")
        return self._embed(prompts, items if items is not None else range(len(prompts)), True, grad)

    def _embed(
        self, prompts: list[str], items: Sequence[int], conditional: bool, grad: bool = False
    ) -> Float[torch.Tensor, "b n d"]:
        fed = self.pipe.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.pipe.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        valid = fed.attention_mask.bool().to(self.device)
        numbers = self._numbers(items)
        flags = torch.full_like(numbers, conditional, dtype=torch.bool)
        with passing(self, Pass(0, numbers, flags, valid)), torch.set_grad_enabled(grad):
            return self.pipe.encode_prompt(prompts, self.device, 1, False)[0].to(self.dtype)

    # -- images and latents ------------------------------------------------------------------------------------------

    def latents(self, seeds: Sequence[int]) -> Float[torch.Tensor, "b c h w"]:
        """Standard normal noise, one generator a seed, so that a sample does not depend on its batch."""
        return self._draw([torch.Generator().manual_seed(int(s)) for s in seeds])

    def _draw(self, generators: Sequence[torch.Generator]) -> Float[torch.Tensor, "b c h w"]:
        shape = self.latent_shape
        drawn = [torch.randn(shape, generator=g, dtype=self.dtype) for g in generators]
        return torch.stack(drawn).to(self.device)

    def encode(self, images: Float[torch.Tensor, "b c h w"]) -> Float[torch.Tensor, "b k p q"]:
        """Images in [0, 1] as latents: the mode of the encoder's distribution, scaled as the UNet knows it."""
        vae = self.pipe.vae
        out = vae.encode(images.to(self.device, vae.dtype) * 2 - 1)
        if hasattr(out, "latent_dist"):
            out = out.latent_dist.mode()
        elif hasattr(out, "latents"):
            out = out.latents
        return (out * vae.config.scaling_factor).to(self.dtype)

    @torch.no_grad()
    def decode(
        self, latents: Float[torch.Tensor, "b k p q"], batch: int = 32
    ) -> Float[torch.Tensor, "b c h w"]:
        """Latents as images in [0, 1], in fp32."""
        vae = self.pipe.vae
        scaled = latents.to(self.device, vae.dtype) / vae.config.scaling_factor
        images = [vae.decode(rows, return_dict=False)[0].float() for rows in scaled.split(batch)]
        return (torch.cat(images) / 2 + 0.5).clamp(0, 1)

    # -- noise -------------------------------------------------------------------------------------------------------

    def timesteps(self, steps: int) -> Num[torch.Tensor, " t"]:
        """The timesteps of the scheduler's own schedule, in the order of denoising, as the UNet gets them."""
        return self._scheduler(steps).timesteps

    def _scheduler(self, steps: int) -> Any:
        # A copy, for schedulers keep the state of the run they are in.
        scheduler = copy.deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(steps, device=self.device)
        return scheduler

    @property
    def n_timesteps(self) -> int:
        """Timesteps of the training's schedule."""
        return int(self.pipe.scheduler.config.num_train_timesteps)

    def add_noise(
        self,
        x0: Float[torch.Tensor, "b c h w"],
        eps: Float[torch.Tensor, "b c h w"],
        t: int | float | Num[torch.Tensor, " b"],
    ) -> Float[torch.Tensor, "b c h w"]:
        """Latents noised to timestep `t` at the scale of training, as `noise` reads them."""
        data, noise = noise_scales(self.pipe.scheduler, t, x0)
        return data * x0 + noise * eps

    def noise(
        self,
        x: Float[torch.Tensor, "b c h w"],
        t: int | float | Num[torch.Tensor, " b"],
        embedding: Float[torch.Tensor, "e n d"],
        *,
        pass_: Pass | None = None,
    ) -> Float[torch.Tensor, "b c h w"]:
        """The noise that one call of the UNet predicts; gradients flow where they are enabled.

        Args:
            x: noised latents at the scale of training, see `add_noise`.
            t: the timestep, of all rows or of each.
            embedding: of each row, or one for all.
            pass_: what those who watch are told; default: rows numbered as they come, all conditional.
        """
        if pass_ is None:
            times = {round(float(v)) for v in torch.as_tensor(t).reshape(-1)}
            pass_ = Pass.of(x, times.pop() if len(times) == 1 else -1)
        return self._as_noise(self._unet(x, t, embedding, pass_), x, t)

    def _unet(
        self,
        x: torch.Tensor,
        t: int | float | torch.Tensor,
        embedding: torch.Tensor,
        pass_: Pass,
    ) -> torch.Tensor:
        """What the UNet gives, be it noise, velocity or data."""
        self.spent.calls += 1
        self.spent.rows += len(x)
        if len(embedding) != len(x):
            embedding = embedding.expand(len(x), -1, -1)
        with passing(self, pass_):
            return self.pipe.unet(x, t, encoder_hidden_states=embedding, return_dict=False)[0]

    def _as_noise(self, out: torch.Tensor, x: torch.Tensor, t: int | float | torch.Tensor) -> torch.Tensor:
        target = self.pipe.scheduler.config.prediction_type
        if target == "epsilon":
            return out
        data, noise = noise_scales(self.pipe.scheduler, t, x)
        return data * out + noise * x if target == "v_prediction" else (x - data * out) / noise

    # -- denoising ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def denoise(
        self,
        prompts: Prompts,
        seeds: Sequence[int],
        *,
        steps: int = 25,
        guidance: float = 1.5,
        stop: int | None = None,
        unconditional: Float[torch.Tensor, "u n d"] | None = None,
        both: bool | None = None,
        each: Callable[[Step], None] | None = None,
        batch: int = 32,
        progress: Progress = quiet,
    ) -> Float[torch.Tensor, "b c h w"]:
        """The pipeline's own denoising loop, prompt i from the noise of seed i; the latents it ends with.

        Equal to calling the diffusers pipeline with one generator a seed.

        Args:
            prompts: texts, or their embeddings.
            seeds: one a prompt.
            steps: inference steps of the schedule.
            guidance: classifier-free guidance; at 1 or less there is none, as in diffusers.
            stop: run only this many steps of the loop.
            unconditional: in place of `embed([""])`: of each row, or one for all.
            both: run the unconditional half; default where there is guidance. Where there is none it is only shown.
            each: called before each update.
            batch: prompts at once; with both halves the UNet gets twice as many rows.
            progress: told about steps.

        Raises:
            UsageError: prompts and seeds differ in number, or `both=False` with guidance.
        """
        if len(prompts) != len(seeds) or not len(seeds):
            raise UsageError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one seed a prompt")
        if batch < 1 or steps < 1 or (stop is not None and stop < 1):
            raise UsageError(f"steps={steps}, stop={stop}, batch={batch}: each is at least 1")
        guided = guidance > 1
        both = guided if both is None else both
        if guided and not both:
            raise UsageError(f"guidance {guidance} needs the unconditional half: leave out both=False")
        if unconditional is not None and len(unconditional) not in (1, len(seeds)):
            raise UsageError(
                f"{len(unconditional)} unconditional embeddings for {len(seeds)} prompts: one, or one each"
            )
        rows = [list(range(i, min(i + batch, len(seeds)))) for i in range(0, len(seeds), batch)]
        total = len(rows) * len(self.timesteps(steps)[:stop])
        done, out = 0, []
        for items in rows:
            conditional, nothing = self._embeddings(prompts, unconditional, items, both)
            generators = [torch.Generator().manual_seed(int(seeds[i])) for i in items]
            scheduler = self._scheduler(steps)
            options = _step_options(scheduler, generators)
            x = self._draw(generators) * scheduler.init_noise_sigma
            for index, t in enumerate(scheduler.timesteps[:stop]):
                scaled = scheduler.scale_model_input(x, t)
                prompted, alone = self._halves(scaled, t, conditional, nothing, items, index)
                if each is not None:
                    shown = [None if p is None else self._as_noise(p, scaled, t) for p in (prompted, alone)]
                    assert shown[0] is not None
                    each(Step(index, round(float(t)), scaled, shown[0], shown[1], self._numbers(items)))
                guess = prompted if not guided or alone is None else alone + guidance * (prompted - alone)
                x = scheduler.step(guess, t, x, return_dict=False, **options)[0]
                done += 1
                progress(done, total, "denoising")
            out.append(x)
        return torch.cat(out)

    def _embeddings(
        self, prompts: Prompts, unconditional: torch.Tensor | None, items: list[int], both: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if isinstance(prompts, torch.Tensor):
            conditional = prompts[items].to(self.device, self.dtype)
        else:
            conditional = self._embed([prompts[i] for i in items], items, True)
        if not both:
            return conditional, None
        if unconditional is None:
            return conditional, self._embed([""] * len(items), items, False)
        own = unconditional if len(unconditional) == 1 else unconditional[items]
        return conditional, own.to(self.device, self.dtype).expand(len(items), -1, -1)

    def _halves(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        conditional: torch.Tensor,
        nothing: torch.Tensor | None,
        items: list[int],
        index: int,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the UNet gives with the prompts and without, in one call."""
        numbers, key = self._numbers(items), round(float(t))
        yes = torch.ones_like(numbers, dtype=torch.bool)
        if nothing is None:
            return self._unet(x, t, conditional, Pass(key, numbers, yes, index=index)), None
        pass_ = Pass(key, numbers.repeat(2), torch.cat([~yes, yes]), index=index)
        alone, prompted = self._unet(torch.cat([x, x]), t, torch.cat([nothing, conditional]), pass_).chunk(2)
        return prompted, alone

    def _numbers(self, items: Sequence[int]) -> Int[torch.Tensor, " b"]:
        return torch.tensor(list(items), device=self.device)

    def sample(
        self, prompts: Prompts, seeds: Sequence[int], **options: Any
    ) -> Float[torch.Tensor, "b c h w"]:
        """Images in [0, 1], prompt i from the noise of seed i; options as of `denoise`."""
        return self.decode(self.denoise(prompts, seeds, **options))

    # -- identity ----------------------------------------------------------------------------------------------------

    @property
    def edited(self) -> bool:
        """Whether inputs or outputs of parts are being replaced."""
        return replaced(self)

    @property
    def fingerprint(self) -> str:
        """Identity of the pipeline as it runs now: weights and configs of all its parts, and the vocabulary.

        It is computed once, and again when a weight has changed since. Replaced inputs are callables, which have no
        identity: they add a mark.
        """
        modules = self._modules()
        config = json.dumps(self._configs(), sort_keys=True, default=str)
        state = tuple((t.data_ptr(), t._version) for m in modules.values() for t in m.state_dict().values())
        if self._hashed is None or self._hashed[0] != (config, state):
            digest = hashlib.blake2b(config.encode(), digest_size=16)
            for part in sorted(modules):
                for name, tensor in offload.weights(modules[part]):
                    digest.update(f"{part} {name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                    digest.update(
                        tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data
                    )
            self._hashed = (config, state), digest.hexdigest()
        return self._hashed[1] + ("+replaced" if self.edited else "")

    def _configs(self) -> dict[str, Any]:
        found: dict[str, Any] = {"vocabulary": self.pipe.tokenizer.get_vocab()}
        for name, part in self.pipe.components.items():
            config = getattr(part, "config", None)
            if config is not None:
                items = config.to_dict() if hasattr(config, "to_dict") else dict(config)
                found[name] = {
                    k: v for k, v in items.items() if not k.startswith("_") and k not in _BOOKKEEPING
                }
        return found

    def __repr__(self) -> str:
        c, h, w = self.latent_shape
        n = sum(p.numel() for p in self.pipe.unet.parameters())
        scheduler = type(self.pipe.scheduler).__name__
        return f"Pipeline({self.name}: UNet of {n:,} weights on {c} x {h} x {w} latents, {scheduler}, {self.device})"


_BOOKKEEPING = frozenset({"transformers_version", "architectures", "dtype", "torch_dtype"})


def _step_options(scheduler: Any, generators: list[torch.Generator]) -> dict[str, Any]:
    """A stochastic scheduler draws on from the generators that made the latents, as in diffusers."""
    return {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
