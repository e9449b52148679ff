"""What is asked of an edit of facts: `Rewrite`, one fact to be written, and `Prefixes`, the contexts it is to hold in.

Everything is ids of one tokenisation, so that models without a tokenizer can be edited too. A prefix goes in front of
a prompt, behind the special tokens that the prompt begins with; its own tokens and the prompt's are not merged anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from interp.errors import UsageError
from interp.models.batch import Batch
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Ids, Piece, assemble, overlapping, stable_seed

ESSENCE = "{} is a"
"""Where an edited model should go on as before: what kind of thing the subject is (Meng et al. 2022)."""


@dataclass(frozen=True)
class Rewrite:
    """One fact to be written: after `ids` the model is to say `target`.

    Attributes:
        ids: token ids of the prompt.
        span: half-open token range of the fact's subject in the prompt.
        target: ids that are to follow.
        true: ids that follow now, or that are right; empty where nobody said.
        essence: ids of "<subject> is a"; of the subject alone for models without a tokenizer.
        essence_at: position of the subject's last token there.
        lead: special tokens that the prompt begins with; prefixes come after them.
        text: the request in words, for people.

    Raises:
        UsageError: no target, or a span outside the prompt.
    """

    ids: Ids
    span: tuple[int, int]
    target: Ids
    true: Ids = ()
    essence: Ids = ()
    essence_at: int = 0
    lead: int = 0
    text: str = ""

    def __post_init__(self) -> None:
        if not self.target:
            raise UsageError("a rewrite needs a target: ids that are to follow the prompt")
        if not 0 <= self.span[0] < self.span[1] <= len(self.ids):
            raise UsageError(
                f"the subject's span {self.span} lies outside the prompt of {len(self.ids)} tokens"
            )
        if not self.essence:
            ids = self.ids[: self.lead] + self.ids[self.span[0] : self.span[1]]
            object.__setattr__(self, "essence", ids)
            object.__setattr__(self, "essence_at", len(ids) - 1)

    @property
    def last(self) -> int:
        """Position of the subject's last token, where the fact is written."""
        return self.span[1] - 1

    @classmethod
    def of(cls, subject: CausalLM, example: Example, target: Ids | None = None) -> Rewrite:
        """The fact that an example asks for, with another answer.

        Args:
            example: has a span with the role `subject`; of several the last one with item 0 (or without items) counts.
            target: the new answer; default the example's foil.

        Raises:
            UsageError: the example has no such span, or neither foil nor target.
        """
        spans = example.spans_of("subject", 0) or example.spans_of("subject")
        if not spans:
            raise UsageError(f"{example.task}: an example has no span with the role 'subject' to edit at")
        new = tuple(example.foil_ids if target is None else target)
        if not new:
            raise UsageError(f"{example.task}: an example has no foil to be the new answer; give target ids")
        span = (spans[-1].start, spans[-1].end)
        about: dict[str, Any] = {}
        if subject.has_tokens:
            words = subject.tokens.decode(example.ids[slice(*span)]).strip()
            about = _essence(subject, str(example.meta.get("subject", words)))
            about["text"] = f"{subject.tokens.decode(example.ids)} ->{subject.tokens.decode(new)}"
            about["lead"] = _lead(subject, example.ids)
        return cls(example.ids, span, new, example.answer_ids, **about)

    @classmethod
    def of_text(cls, subject: CausalLM, prompt: str, about: str, target: str, true: str = "") -> Rewrite:
        """A fact in words.

        Args:
            prompt: with `{}` in the place of the fact's subject; it ends where the answer follows.
            about: the fact's subject.
            target, true: answers, with or without the space before them.

        Raises:
            UsageError: the prompt has no place for the subject, or more than one.
            Redraw: prompt and answer merge into one token.

        Example:
            Rewrite.of_text(model, "The capital of {} is", "France", "Rome", true="Paris")
        """
        if prompt.count("{}") != 1:
            raise UsageError(f"prompt '{prompt}': write {{}} once, where the fact's subject stands")
        before, after = prompt.split("{}")
        gap = " " if before.endswith(" ") else ""
        pieces = [Piece(before.removesuffix(" ")), Piece(gap + about, "subject", 0), Piece(after)]
        new, old = (" " + a.strip() if a.strip() else "" for a in (target, true))
        encoded, ids, spans, text = assemble(subject.tokens, [p for p in pieces if p.text], new)
        was = assemble(subject.tokens, [Piece(text)], old)[1] if old else ()
        return cls(
            encoded.ids,
            (spans[0].start, spans[0].end),
            ids,
            was,
            lead=_lead(subject, encoded.ids),
            text=f"{text} ->{new}",
            **_essence(subject, about),
        )


def _essence(subject: CausalLM, about: str) -> dict[str, Any]:
    encoded = subject.tokens.encode(ESSENCE.format(about))
    ((_, end),) = overlapping(encoded, [(0, len(about))])
    return {"essence": encoded.ids, "essence_at": end - 1}


def _lead(subject: CausalLM, ids: Ids) -> int:
    special = subject.tokens.special_ids
    return next((i for i, token in enumerate(ids) if token not in special), len(ids))


# -- contexts --------------------------------------------------------------------------------------------------------

OPENINGS = ("The", "Therefore", "Because", "I", "You")
"""Words that a model is given to begin a context with."""


@dataclass(frozen=True)
class Prefixes:
    """Contexts that prompts are put behind; keys and targets are means over them.

    Attributes:
        ids: the contexts; an empty one is the prompt as it stands.
        rule: how they were made; it is part of what an edit says of itself.
    """

    ids: tuple[Ids, ...] = ((),)
    rule: str = "none"

    def __post_init__(self) -> None:
        if not self.ids:
            raise UsageError("no prefixes at all; write Prefixes() for the prompt as it stands")

    @classmethod
    def given(cls, ids: Sequence[Ids]) -> Prefixes:
        """These contexts, and none."""
        return cls(((), *map(tuple, ids)), f"given ({len(ids)}), and none")

    @classmethod
    def random(cls, subject: CausalLM, n: int = 10, length: int = 5, seed: int = 0) -> Prefixes:
        """Uniformly random tokens, and no context; special tokens are left out."""
        special = subject.tokens.special_ids if subject.has_tokens else frozenset()
        choice = [i for i in range(int(subject.config.vocab_size)) if i not in special]
        rng = np.random.default_rng(stable_seed("prefixes", n, length, seed))
        drawn = rng.choice(choice, size=(n, length)).tolist()
        return cls(((), *map(tuple, drawn)), f"{n} of {length} random tokens, and none; seed {seed}")

    @classmethod
    def written(
        cls, subject: CausalLM, n: int = 10, lengths: Sequence[int] = (5, 10), seed: int = 0
    ) -> Prefixes:
        """Text that the model writes itself after a few opening words, and no context; each ends with a full stop.

        Tokens are drawn from the five most likely ones, with a generator of their own.
        """
        openings = [subject.tokens.encode(word).ids for word in OPENINGS]
        stop = tuple(i for i in subject.tokens.encode(".\n").ids if i not in subject.tokens.special_ids)
        out = []
        for number, length in enumerate(lengths):
            share = n // len(lengths) + (number < n % len(lengths))
            starts = [openings[i % len(openings)] for i in range(share)]
            texts = sampled(subject, starts, length, seed=seed) if starts else []
            # The special tokens of an opening belong to the prompt behind it.
            special = subject.tokens.special_ids
            out += [
                tuple(i for i in s + t if i not in special) + stop for s, t in zip(starts, texts, strict=True)
            ]
        rule = f"{n} of {' and '.join(map(str, lengths))} tokens drawn from the model's top 5 after opening words"
        return cls(((), *out), f"{rule}, and none; seed {seed}")

    def before(self, rewrite: Rewrite) -> list[tuple[Ids, int]]:
        """The prompt of a rewrite in each context, and where the subject's last token is in it."""
        cut = rewrite.lead
        return [(rewrite.ids[:cut] + p + rewrite.ids[cut:], rewrite.last + len(p)) for p in self.ids]


def sampled(subject: CausalLM, prompts: Sequence[Ids], n: int, *, top: int = 5, seed: int = 0) -> list[Ids]:
    """`n` tokens after each prompt, drawn from the `top` most likely ones, under the interventions applied.

    Draws come from a generator of their own, so that a seed gives the same text whatever ran before.
    """
    generator = torch.Generator().manual_seed(stable_seed("sampled", n, top, seed)[0])
    rows = [tuple(p) for p in prompts]
    cache: Any = None
    past = 0
    subject.check_length(max(map(len, rows)) + n)
    cached = {"cache", "rows"} <= subject.engine.capabilities
    for _ in range(n):
        batch = Batch.of_ids(rows, device=subject.device)
        options = {"cache": cache, "past": past, "use_cache": True} if cached else {}
        trace = subject.run(batch, keep=1, **options)
        cache, past = trace.cache, batch.width
        values, ids = trace.logits[:, -1].float().cpu().topk(top)
        drawn = ids.gather(1, torch.multinomial(values.softmax(-1), 1, generator=generator))
        rows = [(*row, int(new)) for row, new in zip(rows, drawn[:, 0].tolist(), strict=True)]
    return [row[-n:] for row in rows]
