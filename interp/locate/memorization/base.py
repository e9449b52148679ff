"""What locators of memorized items share: one `fit`, that looks at what it is given and leaves the rule to each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sized
from typing import TYPE_CHECKING, ClassVar, Generic, Self, TypeVar

from interp.errors import UsageError
from interp.locate.base import Locator
from interp.models.cache import Progress, quiet
from interp.models.parts import Part, parts
from interp.models.subject import CausalLM

if TYPE_CHECKING:
    from interp.models.pipeline import Pipeline

Data = TypeVar("Data", bound=Sized)
"""What it learns from: a sequence of items, or a corpus too."""


class ItemLocator(Locator, Generic[Data]):
    """Base of locators that learn from items, of either kind of subject.

    A locator says in `_check` what its parameters cannot be, and learns in `_learn`.

    After `fit`:
        parts_: what was scored. subject_, fingerprint_: the subject, and what it was then.
    """

    mechanism = "memorization"
    keeps: ClassVar[bool] = False
    """Whether the reference items are to be kept as they are, so that there have to be some."""

    kind: str
    parts_: tuple[Part, ...]
    subject_: CausalLM | Pipeline
    fingerprint_: str

    def fit(
        self,
        subject: CausalLM | Pipeline,
        data: Data | None = None,
        *,
        reference: Data | None = None,
        progress: Progress = quiet,
    ) -> Self:
        """Learn from the target items, and from what they are compared with.

        Args:
            data: the target items: prompts, `ImageItem`s or `TextItem`s; where the locator takes one, a corpus, which
                is run as it says.
            reference: other items.
            progress: told about stages.

        Raises:
            UsageError: no items, or what the locator names.
        """
        self._check(subject)
        sides = self._sides(data, reference)
        self.parts_ = self._parts(subject)
        self.subject_, self.fingerprint_ = subject, subject.fingerprint
        self._learn(sides, progress)
        return self

    def _check(self, subject: CausalLM | Pipeline) -> None:
        """Raise `UsageError` where the parameters make no sense, or not with this subject."""

    def _sides(self, data: Data | None, reference: Data | None) -> tuple[Data, ...]:
        """The target items, and the reference items where there are some."""
        name = type(self).__name__
        if data is None or not len(data):
            raise UsageError(f"{name} learns from items: fit(subject, memorized_items)")
        if self.keeps and (reference is None or not len(reference)):
            raise UsageError(f"{name} needs items to keep: fit(subject, items, reference=others)")
        return (data,) if reference is None else (data, reference)

    def _parts(self, subject: CausalLM | Pipeline) -> tuple[Part, ...]:
        """What is scored."""
        return parts(subject, self.kind)

    @abstractmethod
    def _learn(self, sides: tuple[Data, ...], progress: Progress) -> None:
        """Set what is learned, `scores_` first of all, from the sides of `_sides`."""

    def _unchanged(self) -> None:
        """Raise `UsageError` if the subject is not as it was at the fit."""
        if self.subject_.fingerprint != self.fingerprint_:
            raise UsageError(
                f"{self.subject_.name} was changed since the fit; leave the edit first, or fit again"
            )
