"""The training objective on single items: what a model has learned of an image or a sequence, as one number an item.

For a pipeline it is the denoising error: the mean squared difference of predicted and true noise, over draws of a
timestep t and noise eps. For a language model it is the mean negative log-likelihood of the suffix after its prefix, in
nats a token. Both can be differentiated: by embeddings, by whatever `replacing` puts into a part, and by weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Float, Int

from interp.errors import UsageError
from interp.models.engines.base import Frame, Tap
from interp.models.parts import Pass, passing
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, stable_seed

if TYPE_CHECKING:
    from interp.models.pipeline import Pipeline

ROWS = 256
"""Rows of one pass: items times draws of a pipeline, sequences of a language model."""


class Image(Protocol):
    """An image and the prompt that belongs to it; `ImageItem` is one."""

    @property
    def name(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def image(self) -> Float[torch.Tensor, "c h w"]: ...


class Text(Protocol):
    """A sequence and how many of its tokens are given; `TextItem` is one."""

    @property
    def ids(self) -> tuple[int, ...]: ...
    @property
    def prefix(self) -> int: ...


def loss(
    subject: CausalLM | Pipeline,
    items: Sequence[Any],
    *,
    draws: int = 8,
    seed: int = 0,
    embeddings: Float[torch.Tensor, "items n d"] | None = None,
    batch: int = ROWS,
) -> Float[torch.Tensor, " items"]:
    """The objective of each item; no item's number depends on the others.

    Those who watch or replace parts are told in `Pass.items` which item of the list a row is of.

    Args:
        subject: a pipeline, with items that have `name`, `prompt` and `image` (`ImageItem`); or a language model, with
            items that have `ids` and `prefix` (`TextItem`).
        draws: of (t, eps) for each image, see `draws_of`; a language model has none.
        seed: of the draws.
        embeddings: in a pipeline, what takes the place of the prompts' embeddings; in a language model, vectors that
            are put before the tokens (a soft prompt), as what its embedding layer would give.
        batch: rows of one pass.

    Returns:
        mean squared error of the predicted noise, or nats a token; with a graph where gradients are enabled.

    Raises:
        UsageError: no items, or embeddings of another number; a sequence of fewer than two tokens, or one that its
            prefix uses up.
    """
    found = _predicted(subject, items, draws, seed, embeddings, batch)
    if isinstance(subject, CausalLM):
        return torch.stack([-rows.gather(-1, ids[:, None]).mean() for rows, ids in found])
    return torch.stack([(noise - eps).square().mean() for noise, eps in found])


def predictions(
    subject: CausalLM | Pipeline,
    items: Sequence[Any],
    *,
    draws: int = 8,
    seed: int = 0,
    embeddings: Float[torch.Tensor, "items n d"] | None = None,
    batch: int = ROWS,
) -> list[torch.Tensor]:
    """What the objective judges; arguments as of `loss`.

    Returns:
        of each image the predicted noise, draws c h w; of each sequence the log-probabilities of its suffix, n v.
    """
    return [found for found, _ in _predicted(subject, items, draws, seed, embeddings, batch)]


def drift(
    subject: CausalLM | Pipeline, now: Sequence[torch.Tensor], before: Sequence[torch.Tensor]
) -> Float[torch.Tensor, " items"]:
    """How far predictions of each item have moved: KL(before, now) in nats a token, or the mean squared difference.

    For a pipeline the latter is the KL divergence of its denoising steps, up to a factor that depends on t alone.
    """
    if isinstance(subject, CausalLM):
        pairs = zip(now, before, strict=True)
        return torch.stack([(old.exp() * (old - new)).sum(-1).mean() for new, old in pairs])
    return torch.stack([(new - old).square().mean() for new, old in zip(now, before, strict=True)])


def ignorance(subject: CausalLM | Pipeline) -> float:
    """The objective of who knows nothing: a uniform guess of each token, or no noise predicted, whose variance is 1."""
    return math.log(int(subject.config.vocab_size)) if isinstance(subject, CausalLM) else 1.0


def draws_of(
    subject: Pipeline, item: Image, draws: int, seed: int
) -> tuple[Int[torch.Tensor, " draws"], Float[torch.Tensor, "draws c h w"]]:
    """The timesteps and the noise of an image's draws; they depend on its name, on the seed and on `draws` alone.

    Timesteps are stratified: the i-th is uniform on the i-th part of the training timesteps cut into `draws` equal
    parts. Over seeds each draw is uniform, so the mean is that of the training objective, with less scatter.
    """
    if draws < 1:
        raise UsageError(f"draws={draws}: at least one draw of (t, eps) is needed")
    entropy = stable_seed("denoising", seed, item.name)
    generator = torch.Generator().manual_seed(entropy[0] << 32 | entropy[1])
    top = subject.n_timesteps
    within = torch.rand(draws, generator=generator, dtype=torch.float64)
    t = ((torch.arange(draws) + within) / draws * top).long().clamp(max=top - 1)
    eps = torch.randn(draws, *subject.latent_shape, generator=generator)
    return t.to(subject.device), eps.to(subject.device, subject.dtype)


Judged = list[tuple[torch.Tensor, torch.Tensor]]
"""Of each item what the model says, in fp32, and what is true."""


def _predicted(
    subject: CausalLM | Pipeline,
    items: Sequence[Any],
    draws: int,
    seed: int,
    embeddings: torch.Tensor | None,
    batch: int,
) -> Judged:
    if not len(items):
        raise UsageError("the objective needs at least one item")
    if embeddings is not None and len(embeddings) != len(items):
        raise UsageError(f"{len(embeddings)} embeddings for {len(items)} items: give one each")
    if batch < 1:
        raise UsageError(f"batch={batch}: a pass takes at least one row")
    if not isinstance(subject, CausalLM):
        return _noise(subject, items, draws, seed, embeddings, batch)
    found: Judged = []
    for at in range(0, len(items), batch):
        found += _suffixes(subject, items, range(at, min(at + batch, len(items))), embeddings)
    return found


def _noise(
    subject: Pipeline,
    items: Sequence[Image],
    draws: int,
    seed: int,
    embeddings: torch.Tensor | None,
    batch: int,
) -> Judged:
    """Predicted and true noise of each image's draws."""
    images = torch.stack([item.image for item in items]).to(subject.device, subject.dtype)
    with torch.no_grad():
        latents = subject.encode(images)
    if embeddings is None:
        embeddings = subject.embed([item.prompt for item in items], grad=torch.is_grad_enabled())
    drawn = [draws_of(subject, item, draws, seed) for item in items]
    t = torch.cat([pair[0] for pair in drawn])
    eps = torch.cat([pair[1] for pair in drawn])
    owner = torch.arange(len(items)).repeat_interleave(draws)
    found = []
    for at in range(0, len(owner), batch):
        rows = slice(at, at + batch)
        own = owner[rows].to(subject.device)
        noised = subject.add_noise(latents[own], eps[rows], t[rows])
        pass_ = Pass(-1, owner[rows], torch.ones(len(own), dtype=torch.bool))
        found.append(subject.noise(noised, t[rows], embeddings[own], pass_=pass_).float())
    return list(zip(torch.cat(found).split(draws), eps.float().split(draws), strict=True))


def _suffixes(
    subject: CausalLM, items: Sequence[Text], numbers: Sequence[int], embeddings: torch.Tensor | None
) -> Judged:
    """Log-probabilities and tokens of each suffix; without a prefix, of all tokens after the first."""
    soft = 0 if embeddings is None else embeddings.shape[1]
    examples = []
    for i in numbers:
        ids, given = tuple(items[i].ids), max(1, items[i].prefix)
        if given >= len(ids):
            raise UsageError(
                f"item {i}: {len(ids)} tokens, {given} of them given: none is left to be predicted"
            )
        examples.append(Example("memorized", (ids[0],) * soft + ids[:given], ids[given:]))
    batch = subject.batch(examples)
    taps: dict[Site, Tap] = {}
    if embeddings is not None:
        taps[Site("embed")] = _Before(embeddings[list(numbers)])
    every = torch.ones(len(examples), dtype=torch.bool)
    with passing(subject, Pass(0, torch.tensor(list(numbers)), every, batch.mask.bool())):
        logits = subject.run(batch, taps, grad=torch.is_grad_enabled()).logits
    first = batch.width - logits.shape[1]
    found = []
    for row, example in enumerate(examples):
        columns = batch.answer_columns(row)
        rows = logits[row, columns.start - first : columns.stop - first].float().log_softmax(-1)
        found.append((rows, torch.tensor(example.answer_ids, device=rows.device)))
    return found


class _Before:
    """Puts a soft prompt over the first columns of each row, which hold placeholders."""

    def __init__(self, vectors: torch.Tensor):
        self.vectors = vectors

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        soft = self.vectors.to(value.device, value.dtype)
        columns = frame.batch.pad[:, None] + torch.arange(soft.shape[1], device=frame.batch.pad.device)
        rows = torch.arange(len(soft), device=value.device)[:, None]
        return value.index_put((rows, columns.to(value.device)), soft)
