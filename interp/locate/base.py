"""What a locator is: scikit-learn shaped, it finds where a mechanism lives and hands out components."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any, Self

import pandas as pd

from interp.errors import UsageError
from interp.models.sites import Component, component
from interp.models.subject import CausalLM


class Scored:
    """What has `scores_`, and so hands out components: a fitted locator, or a list of heads that was read.

    `scores_` is a tidy frame with one row a component and method: component, method, score, se, n (and what else the
    source knows). The first method in it is the primary one.
    """

    scores_: pd.DataFrame

    def ranking(self, method: str | None = None) -> pd.DataFrame:
        """Scores of one method, best first (ties in order of execution)."""
        if not hasattr(self, "scores_"):
            raise UsageError(f"{type(self).__name__} is not fitted yet; call fit(model, task) first")
        methods = list(dict.fromkeys(self.scores_["method"]))
        chosen = method or methods[0]
        if chosen not in methods:
            raise UsageError(f"no method '{chosen}'; this locator has {', '.join(methods)}")
        own = self.scores_[self.scores_["method"] == chosen]
        return own.sort_values("score", ascending=False, kind="stable").reset_index(drop=True)

    def top(self, k: int, method: str | None = None) -> tuple[Component, ...]:
        """The k components with the highest score.

        Raises:
            UsageError: there are fewer.
        """
        ranked = self.ranking(method)
        if not 1 <= k <= len(ranked):
            raise UsageError(f"top {k} was asked for, but {len(ranked)} components are scored")
        return tuple(component(c) for c in ranked["component"][:k])

    def select(self, threshold: float, method: str | None = None) -> tuple[Component, ...]:
        """The components that score at least `threshold`, best first."""
        ranked = self.ranking(method)
        return tuple(component(c) for c in ranked["component"][ranked["score"] >= threshold])


class Locator(Scored, ABC):
    """Base of locators: `__init__` only stores, `fit` returns self, what was learned ends in `_`."""

    mechanism: str

    @abstractmethod
    def fit(self, subject: CausalLM, data: Any = None, *, reference: Any = None) -> Self:
        """Learn the scores; each locator says what data it needs."""

    def get_params(self) -> dict[str, Any]:
        """Parameters as given."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_params().items())})"
