"""Corpora of pipelines and language models, and one pass over them under a reader of parts.

    moments = ColumnMoments(len(corpus))
    stream(subject, corpus, parts(subject, "ff_out"), moments)

A reader is told what enters a part each time it runs, and of which items it is; nothing is kept but what it sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from interp.errors import UsageError
from interp.models.batch import plan
from interp.models.cache import Progress, quiet
from interp.models.subject import CausalLM

if TYPE_CHECKING:
    from interp.models.parts import Part, Pass
    from interp.models.pipeline import Pipeline

Reader = Callable[["Part", torch.Tensor, "Pass"], None]
"""Called as `reader(part, x, pass_)` with x (b t in) at the part's input."""

ROWS = 32
"""Items of one pass."""


@dataclass(frozen=True)
class Prompts:
    """Prompts that a pipeline denoises, each from its own seed.

    Attributes:
        texts: the prompts.
        seeds: the seed of each prompt's first latents; a single one is that of all.
        steps: steps of the scheduler. stop: of them, how many are run; None for all.
        guidance: scale of classifier-free guidance.
        both: whether the unconditional half runs beside the conditional one; None: where guidance is above 1.

    Raises:
        UsageError: no prompts, or seeds of another number.
    """

    texts: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    steps: int = 25
    stop: int | None = 10
    guidance: float = 1.5
    both: bool | None = True

    def __post_init__(self) -> None:
        if not self.texts:
            raise UsageError("a corpus needs at least one prompt")
        if len(self.seeds) == 1:
            object.__setattr__(self, "seeds", self.seeds * len(self.texts))
        if len(self.seeds) != len(self.texts):
            raise UsageError(f"{len(self.seeds)} seeds for {len(self.texts)} prompts: give one, or one each")

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Sequences:
    """Sequences of tokens that a language model reads.

    Attributes:
        ids: the tokens of each sequence.
        read_from: the first token that is read, in all or in each sequence; those before it run and do not count.

    Raises:
        UsageError: no sequences, or one of which no token is read.
    """

    ids: tuple[tuple[int, ...], ...]
    read_from: int | tuple[int, ...] = 0

    def __post_init__(self) -> None:
        if not self.ids:
            raise UsageError("a corpus needs at least one sequence")
        if len(self.firsts) != len(self.ids):
            raise UsageError(f"read_from has {len(self.firsts)} numbers for {len(self.ids)} sequences")
        for i, (own, first) in enumerate(zip(self.ids, self.firsts, strict=True)):
            if not 0 <= first < len(own):
                raise UsageError(f"sequence {i}: read from token {first}, and it has {len(own)}")

    @property
    def firsts(self) -> tuple[int, ...]:
        """The first token that is read, of each sequence."""
        return (self.read_from,) * len(self.ids) if isinstance(self.read_from, int) else tuple(self.read_from)

    def __len__(self) -> int:
        return len(self.ids)


Corpus = Prompts | Sequences


def corpus_of(subject: CausalLM | Pipeline, items: Corpus | Sequence[Any], **options: Any) -> Corpus:
    """What a subject runs for items.

    Args:
        items: a corpus, which is taken as it is; for a pipeline, prompts or things that have a `prompt`; for a language
            model, things that have `ids` and `prefix`, read from the token that predicts the first of the suffix.
        options: of `Prompts` (seeds, steps, stop, guidance, both).

    Raises:
        UsageError: no items, or items of the other kind of subject.
    """
    if isinstance(items, (Prompts, Sequences)):
        found: Corpus = items
    elif not len(items):
        raise UsageError("no items: give at least one")
    elif subject.kind == "pipeline":
        if not all(isinstance(item, str) or hasattr(item, "prompt") for item in items):
            raise UsageError(f"{subject.name} is a pipeline: its items are prompts, or have a `prompt`")
        return Prompts(tuple(i if isinstance(i, str) else i.prompt for i in items), **options)
    else:
        if not all(hasattr(item, "ids") and hasattr(item, "prefix") for item in items):
            raise UsageError(f"{subject.name} is a language model: its items have `ids` and `prefix`")
        first = tuple(max(0, item.prefix - 1) for item in items)
        found = Sequences(tuple(tuple(item.ids) for item in items), first)
    if (subject.kind == "pipeline") != isinstance(found, Prompts):
        raise UsageError(f"{subject.name} is a {subject.kind}, and cannot run {type(found).__name__}")
    return found


def stream(
    subject: CausalLM | Pipeline,
    corpus: Corpus,
    parts: Sequence[Part],
    reader: Reader,
    *,
    batch: int = ROWS,
    progress: Progress = quiet,
) -> None:
    """Run a corpus once, with the reader at the input of each part.

    Args:
        reader: its passes' `items` are the numbers of the corpus' prompts or sequences. Of a sequence only the tokens
            from `read_from` on are `valid`.
        batch: items of one pass.
        progress: told about items done.

    Raises:
        UsageError: a corpus of the other kind of subject, or no rows in a batch.
        EngineError: a part did not run.
    """
    from interp.models.parts import watching

    if batch < 1:
        raise UsageError(f"batch={batch}: a pass takes at least one item")
    corpus = corpus_of(subject, corpus)
    with torch.no_grad(), watching(subject, parts, reader):
        if isinstance(corpus, Prompts):
            _denoise(subject, corpus, batch, progress)
        else:
            _read(subject, corpus, batch, progress)


def _denoise(subject: Any, corpus: Prompts, batch: int, progress: Progress) -> None:
    subject.denoise(
        list(corpus.texts),
        list(corpus.seeds),
        steps=corpus.steps,
        stop=corpus.stop,
        guidance=corpus.guidance,
        both=corpus.both,
        batch=batch,
        progress=progress,
    )


def _read(subject: Any, corpus: Sequences, batch: int, progress: Progress) -> None:
    from interp.models.parts import run_ids

    done = 0
    for first in sorted(set(corpus.firsts)):
        members = [i for i, own in enumerate(corpus.firsts) if own == first]
        lengths = [len(corpus.ids[i]) for i in members]
        for group in plan(lengths, batch * max(lengths)):
            items = [members[i] for i in group]
            run_ids(subject, [corpus.ids[i] for i in items], items=items, read_from=first, keep=1)
            done += len(items)
            progress(done, len(corpus), "sequences")
