"""Locator of fact-recall MLPs: layers by causal tracing at the subject's last token, then neurons one by one.

A layer counts by its average indirect effect (AIE) there: what its clean output brings back of the answer. That alone
would also find layers without which nothing works, since with them any state is whole again. So each layer is cut, too,
on the facts and on reference data that should not need it (another task, text, facts of other relations), and its score
is its AIE times the share of the reference's answers that the cut spares: general damage is no fact store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.intervene.ablate import Ablate
from interp.intervene.base import Intervention, Scope
from interp.intervene.tracing.aggregate import aggregate
from interp.intervene.tracing.cells import NOISE, How, asked, window_of
from interp.intervene.tracing.maps import trace_maps
from interp.intervene.tracing.places import LAST_OF, places_of
from interp.locate.base import Locator
from interp.locate.facts.flow import check_metric
from interp.locate.facts.neurons import agreement, neuron_table
from interp.measure.stats import cluster_se
from interp.models.batch import plan
from interp.models.sites import MLP, Component, component
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task
from interp.trace.each import Progress, Spent

TOKENS = 2048
LAYERS, NEURONS = "layers", "neurons"


class FactMLPs(Locator):
    """MLP layers and neurons that recall facts.

    Args:
        corruption: `noise`, or the name of a corrupt twin of the examples (`subject_swap`).
        samples: draws of the noise. sigma: its size, default three standard deviations of the subjects' embeddings.
        window: layers that are restored, and cut, together around each.
        n_layers: so many of the best layers are searched for neurons; 0 for none.
        metric: of the neurons' effects: `logit_diff` (against the foil), `logprob` or `probability`.
        exact: neurons a prompt that are zeroed one by one, the first ones of the attribution screen.
        check: as many more drawn from the others, which tell what the screen misses.
        n: use at most so many examples. seed: of noise, draws and intervals.
        scope: tokens at which layers are cut for `fact_loss` and `off_loss`, see `Ablate`.

    After `fit(subject, facts, reference=...)`:
        maps_: the causal maps at the subject's last token, draw by draw, as of `trace_maps`; examples are numbered as
            the data are, and those whose subject ends the prompt are left out.
        layers_: one row a layer: component, layer, aie, aie_lo, aie_hi, share, fact_loss and off_loss (mean loss of the
            answer's probability where the window's MLPs are zeroed at the scope: on facts, on the reference), spared
            (share of the reference's probability that is left; 1 where there is no reference) and score (aie x spared).
        neurons_: one row a prompt and measured neuron, see `interp.locate.facts.neurons.neuron_table`.
        agreement_: of the screen with what was measured.
        scores_: method `layers` (one row an MLP) and `neurons` (mean loss over the prompts; a neuron that was not
            measured in a prompt counts as zero there).

    Example:
        found = FactMLPs().fit(model, known_to(model, facts), reference=recall)
        found.top(1), found.top(20, "neurons"), found.holding(clusters=["France"], k=5)
    """

    mechanism = "fact_mlps"

    def __init__(
        self,
        corruption: str = NOISE,
        samples: int = 10,
        sigma: float | None = None,
        window: int = 1,
        n_layers: int = 1,
        metric: str = "logit_diff",
        exact: int = 32,
        check: int = 16,
        n: int | None = None,
        seed: int = 0,
        scope: Scope = "all",
    ):
        self.corruption = corruption
        self.samples = samples
        self.sigma = sigma
        self.window = window
        self.n_layers = n_layers
        self.metric = metric
        self.exact = exact
        self.check = check
        self.scope = scope
        self.n = n
        self.seed = seed

    def fit(
        self,
        subject: CausalLM,
        data: Task | Sequence[Example] | None = None,
        *,
        reference: Task | Sequence[Example] | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Learn from facts that the model knows.

        Args:
            data: facts with a span of role `subject`, see `known_to`.
            reference: what should not need the facts; without it layers that are vital for all look like fact stores.

        Raises:
            UsageError: no data, no such metric, or examples without subject, twin or foil.
            NoAcceptedExample: there is no example.
        """
        if data is None:
            raise UsageError(
                "FactMLPs learns from facts: fit(model, known_to(model, facts), reference=other_task)"
            )
        check_metric(self.metric)
        if self.exact < 1 or self.check < 0 or not 0 <= self.n_layers <= subject.n_layers:
            raise UsageError(
                f"exact={self.exact}, check={self.check}, n_layers={self.n_layers}: measure at least one neuron a "
                f"prompt, in at most {subject.n_layers} layers"
            )
        every = list(data.examples(subject) if isinstance(data, Task) else data)[: self.n]
        numbers = [i for i, e in enumerate(every) if LAST_OF in places_of(e)]
        examples = [every[i] for i in numbers]
        if every and not examples:
            raise UsageError(
                "FactMLPs: every subject ends its prompt; take wordings that go on after the subject"
            )
        how = How(
            kinds=("mlp_out",),
            window=self.window,
            corruption=(self.corruption,),
            samples=self.samples,
            sigma=self.sigma,
            places=(LAST_OF,),
            seed=self.seed,
        )
        self.spent_ = Spent()
        maps = trace_maps(subject, examples, how, progress=progress, spent=self.spent_)
        self.maps_ = maps.assign(example=[numbers[i] for i in maps["example"]])
        prompts = [asked(e) for e in examples]
        off = None
        if reference is not None:
            off = list(reference.examples(subject) if isinstance(reference, Task) else reference)
        self.layers_ = self._layers(subject, prompts, off)
        order = self.layers_.sort_values("score", ascending=False, kind="stable")
        self.neurons_, self.agreement_ = pd.DataFrame(), {}
        if best := [int(layer) for layer in order["layer"][: self.n_layers]]:
            measured = neuron_table(
                subject,
                prompts,
                best,
                metric=self.metric,
                place=LAST_OF,
                exact=self.exact,
                check=self.check,
                seed=self.seed,
                progress=progress,
                spent=self.spent_,
            )
            self.neurons_ = measured.assign(example=[numbers[i] for i in measured["example"]])
            self.agreement_ = agreement(self.neurons_)
        self.scores_ = self._scores()
        return self

    def _layers(
        self, subject: CausalLM, facts: Sequence[Example], reference: Sequence[Example] | None
    ) -> pd.DataFrame:
        """AIE of each layer, and what cutting it costs the facts and the reference."""
        found = aggregate(self.maps_, seed=self.seed).sort_values("layer", ignore_index=True)
        out = found[["layer", "aie", "aie_lo", "aie_hi", "share", "n"]].copy()
        out.insert(0, "component", [repr(MLP(int(layer))) for layer in out["layer"]])
        cuts = [Ablate(self.around(subject, int(layer)), scope=self.scope) for layer in out["layer"]]
        for name, examples in (("fact", facts), ("off", reference)):
            if examples is None:
                out[f"{name}_loss"] = out[f"{name}_se"] = np.nan
                out["spared"] = 1.0
                continue
            values = cut_values(subject, examples, cuts, spent=self.spent_)
            loss = values[:, [0]] - values[:, 1:]
            out[f"{name}_loss"] = loss.mean(0)
            out[f"{name}_se"] = cluster_se(loss, [e.cluster or e.key() for e in examples])
            out["spared"] = np.clip(values[:, 1:].mean(0) / values[:, 0].mean(), 0.0, 1.0)
        out["score"] = out["aie"] * out["spared"]
        return out

    def around(self, subject: CausalLM, layer: int) -> tuple[Component, ...]:
        """The MLPs of the window around a layer: what `layers_` tells of in that layer's row."""
        return tuple(MLP(i) for i in window_of(layer, self.window, subject.n_layers))

    def _scores(self) -> pd.DataFrame:
        layers = self.layers_
        se = (layers["aie_hi"] - layers["aie_lo"]) / (2 * 1.96) * layers["spared"]
        parts = [layers[["component", "layer", "score", "n"]].assign(method=LAYERS, se=se)]
        if len(self.neurons_):
            parts.append(self._neuron_scores(self.neurons_))
        names = ["component", "method", "layer", "score", "se", "n"]
        return pd.concat(parts, ignore_index=True)[names]

    def _neuron_scores(self, table: pd.DataFrame) -> pd.DataFrame:
        """Mean loss of each measured neuron over all prompts, with its error over clusters."""
        wide = table.pivot_table(
            index=["example", "cluster"], columns="component", values="exact", fill_value=0.0
        )
        clusters = wide.index.get_level_values("cluster").to_numpy()
        out = pd.DataFrame({"component": wide.columns, "score": wide.mean(axis=0).to_numpy()})
        out["layer"] = [component(c).layer for c in out["component"]]
        return out.assign(method=NEURONS, se=cluster_se(wide.to_numpy(), clusters), n=len(wide))

    def holding(
        self, examples: Sequence[int] | None = None, *, clusters: Sequence[str] | None = None, k: int = 10
    ) -> tuple[Component, ...]:
        """The k neurons whose loss costs some of the facts the most.

        Args:
            examples: numbers of prompts, in the order of the data; or `clusters`: subjects; default all.

        Raises:
            UsageError: it is not fitted, or no neuron was measured for them, or fewer than k.
        """
        if not hasattr(self, "neurons_") or self.neurons_.empty:
            raise UsageError(
                "FactMLPs has measured no neurons; call fit(model, facts) with n_layers=1 or more"
            )
        rows = self.neurons_
        if examples is not None:
            rows = rows[rows["example"].isin(list(examples))]
        if clusters is not None:
            rows = rows[rows["cluster"].isin(list(clusters))]
        total = (
            rows.groupby("component", sort=False)["exact"].sum().sort_values(ascending=False, kind="stable")
        )
        if not 1 <= k <= len(total):
            raise UsageError(f"the {k} neurons of these facts were asked for, and {len(total)} were measured")
        return tuple(component(c) for c in total.index[:k])


def cut_values(
    subject: CausalLM,
    examples: Sequence[Example],
    cuts: Sequence[Intervention],
    *,
    spent: Spent | None = None,
) -> Float[np.ndarray, "n c"]:
    """Mean probability of each example's forced answer tokens: intact (first column), and under each cut."""
    out = np.zeros((len(examples), 1 + len(cuts)))
    for group in plan([len(e.full_ids) for e in examples], TOKENS):
        batch = subject.batch([examples[i] for i in group])
        for number, logits in subject.each([None, *cuts], batch, spent=spent):
            first = batch.width - logits.shape[1]
            for row, i in enumerate(group):
                columns = batch.answer_columns(row)
                mine = logits[row, columns.start - first : columns.stop - first].float()
                answer = torch.tensor(examples[i].answer_ids, device=mine.device)[:, None]
                out[i, number] = float(mine.log_softmax(-1).gather(-1, answer).exp().mean())
    return out
