"""From a spec to a folder of tables: what moves the answer, through which channel, and how far editing it helps.

`run` makes, in order: `clean` (accuracy by length and place), `heads` (each cut alone at the last token), `components`
(of the heads that inhibit), `readings` and `channels` (from weights, and cut with controls), `search` (edits on train),
`tuned` (sizes on validation), `grid-1` to `grid-3` (channels walked over), `answers`, `gains` and `over_controls` (the
test, run once), `in_weights` (on a part of it) and `neutral` (what the edits cost in prose). Running it again goes on
where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.errors import NoAcceptedExample, UsageError
from interp.studies.base import Study
from interp.studies.laundry.spec import LaundrySpec

if TYPE_CHECKING:
    from interp.intervene.base import Intervention
    from interp.locate.channels.channels import Channel
    from interp.locate.channels.weights import Weights
    from interp.models.sites import Head
    from interp.studies.laundry.edits import Directions, Edit, InWeights, Pushed
    from interp.tasks.base import Example

    Condition = Edit | Pushed

SPLITS = ("train", "validation", "test")
LEARNED = ("learned", "learned inhibitors")
"""Kinds of edit whose factors are learned: of all heads, and of those that inhibit."""


class LaundryStudy(Study[LaundrySpec]):
    """The parts of a study of the laundry list."""

    @cached_property
    def weights(self) -> Weights:
        from interp.locate.channels.weights import Weights

        return Weights(self.subject)

    @cached_property
    def directions(self) -> Directions:
        from interp.studies.laundry.edits import Directions

        return Directions(self.weights)

    def facts(self) -> dict[str, Any]:
        """What made the run, with the templates that were held out."""
        return {**super().facts(), "held": list(self.held)}

    def tables(self) -> None:
        """Every part, in order.

        Raises:
            NoAcceptedExample: no prompt of a template that the study asks for can be made.
        """
        self.clean()
        self.screen()
        self.find_channels()
        self.search()
        self.tune()
        self.walk()
        self.test()

    # -- prompts -----------------------------------------------------------------------------------------------------

    @cached_property
    def held(self) -> tuple[str, ...]:
        """Templates that only the test has: the last ones of each family."""
        from interp.tasks.pairs import data

        every = data("laundry")
        out: list[str] = []
        for family in self.spec.families:
            names = [f"{family}/{t}" for t in every[family]]
            if len(names) <= self.spec.held:
                raise UsageError(f"held is {self.spec.held}, and family {family} has {len(names)} templates")
            out += names[len(names) - self.spec.held :]
        return tuple(out)

    @cached_property
    def _prompts(self) -> dict[tuple[str, int], list[Example]]:
        return {}

    def prompts(self, split: str, items: int | None = None) -> list[Example]:
        """Prompts of a split, of one length of list or of all; those of train and validation without held templates."""
        if items is None:
            return [e for n in self.spec.items for e in self.prompts(split, n)]
        if (split, items) not in self._prompts:
            from interp.studies.laundry.tables import asked
            from interp.tasks.laundry import Laundry

            n = int(getattr(self.spec, split))
            seed = len(SPLITS) * self.spec.seed + SPLITS.index(split)
            # Templates take turns: enough of them are drawn to leave n when some are put aside.
            task = Laundry(
                items=items, families=self.spec.families, n=n if split == "test" else 4 * n + 64, seed=seed
            )
            kept: list[Example] = []
            for example in task.stream(self.subject):
                if split == "test" or example.meta["template"] not in self.held:
                    kept.append(asked(example))
                if len(kept) == n:
                    break
            if len(kept) < n:
                raise NoAcceptedExample(f"laundry: {len(kept)} of {n} {split} prompts of {items} things")
            self._prompts[split, items] = kept
        return self._prompts[split, items]

    @property
    def screened(self) -> list[Example]:
        """The first train prompts of each length."""
        return [e for n in self.spec.items for e in self.prompts("train", n)[: self.spec.screened]]

    # -- what there is -----------------------------------------------------------------------------------------------

    def clean(self) -> None:
        """The intact model on train and validation prompts, by length and place."""

        def make() -> pd.DataFrame:
            rows = [self.answered("validation", {}, "clean"), self.answered("train", {}, "clean")]
            whole = pd.concat(rows, ignore_index=True)
            from interp.studies.laundry.tables import accuracy

            parts = {"items": ["items"], "place": ["items", "position"], "template": ["template"], "all": []}
            seed = self.spec.seed
            return pd.concat(
                [accuracy(whole, by, seed=seed).assign(by=name) for name, by in parts.items()],
                ignore_index=True,
            )

        self.job.table("clean", make)

    def screen(self) -> None:
        """Heads, and the components of those that inhibit."""
        from interp.studies.laundry import screen

        with self.stage("cut heads") as report:
            self.heads = self.job.table(
                "heads",
                lambda: screen.screen_heads(
                    self.subject, self.screened, seed=self.spec.seed, progress=report
                ),
            )
        self.inhibitors = screen.inhibitors(self.heads, self.spec.heads)
        if not self.inhibitors:
            self.job.remark(
                "no head inhibits what is listed again: the heads whose cut costs the answer stand in"
            )
            self.inhibitors = [_head(c) for c in self.heads["component"][: self.spec.heads]]
        first = min(h.layer for h in self.inhibitors)
        later = screen.movers(self.heads, first, self.spec.movers)
        self.readers = sorted({*later, *(h for h in self.inhibitors if h.layer > first)})
        with self.stage("cut components") as report:
            self.components = self.job.table(
                "components",
                lambda: screen.screen_components(
                    self.subject,
                    self.screened,
                    self.inhibitors,
                    self.directions,
                    seed=self.spec.seed,
                    progress=report,
                ),
            )

    def find_channels(self) -> None:
        """Channels in the weights, and what is lost when each is cut, beside controls."""
        from interp.studies.laundry import carriers

        self.readings = self.job.table(
            "readings", lambda: carriers.readings(self.weights, self.inhibitors, self.readers)
        )
        heads = {repr(h): h for h in self.inhibitors}
        spec = self.spec
        every = carriers.carriers(self.weights, self.readings, heads, level=spec.level, rank=spec.rank)[
            : spec.cut
        ]
        self.cuts = self.job.table("channels", lambda: self._cuts(every))
        self.job.json("agreement", lambda: carriers.agreement(self.readings, self.components))
        loss = self.cuts[self.cuts["control"] == ""].set_index("condition")["nll"] if len(every) else {}
        self.channels: list[Channel] = sorted(every, key=lambda c: -loss[repr(c)])

    def _cuts(self, every: Sequence[Channel]) -> pd.DataFrame:
        """Every channel cut at the last token of train prompts, against controls of equal size."""
        from interp.studies.laundry import carriers, search
        from interp.studies.laundry.screen import changed

        conditions: dict[str, Condition] = {}
        about: dict[str, dict[str, Any]] = {}
        for channel in every:
            cut, name = carriers.cut_of(channel), repr(channel)
            conditions[name] = cut
            best = channel.scores.iloc[0]
            about[name] = {"channel": name, "control": "", "rank": channel.rank, "reader": channel.reader}
            about[name] |= {
                "value": best["value"],
                "p": best["p"],
                "q": best["q"],
                "readers": self._read(channel),
            }
            about[name] |= carriers.seen_by_reader(self.weights, channel, self.screened[:16])
            for label, control in search.controls(
                self.subject, cut, self.spec, self.avoid, self.screened, self.directions
            ).items():
                conditions[f"{name} | {label}"] = control
                about[f"{name} | {label}"] = {"channel": name, "control": control.kind, "rank": channel.rank}
        if not conditions:
            self.job.remark(
                "no component of an inhibiting head is an outlier of a later reader: no channel to cut"
            )
            return pd.DataFrame(columns=["condition", "channel", "control", "nll"])
        rows = self.answered("train", conditions, "cut channels")
        rows["example"] = rows["items"].astype(str) + "/" + rows["example"].astype(str)
        found = changed(rows, "clean", seed=self.spec.seed)
        return pd.concat([found, pd.DataFrame([about[c] for c in found["condition"]])], axis=1)

    def _read(self, channel: Channel) -> str:
        """All readers of a channel's first component, the strongest first."""
        head, number = channel.components[0]
        own = self.readings[(self.readings["writer"] == repr(head)) & (self.readings["component"] == number)]
        return " ".join(own[own["q"] <= self.spec.level]["reader"])

    @cached_property
    def avoid(self) -> dict[Head, list[int]]:
        """What controls draw nothing of: heads that inhibit, and their components whose cut costs most."""
        worst = self.components.sort_values("nll", ascending=False).groupby("head").head(4)
        own = worst.groupby("head")["number"].apply(list).to_dict()
        return {h: [int(i) for i in own.get(repr(h), [])] for h in self.inhibitors}

    # -- edits -------------------------------------------------------------------------------------------------------

    def search(self) -> None:
        """Every edit on train prompts."""
        from interp.studies.laundry.search import best_of_kinds, candidates, ranked

        train = self.prompts("train")
        learned: dict[str, np.ndarray] = {}
        if self.spec.learn:
            table = self.job.table("learned", lambda: self._learned(train))
            for kind in LEARNED:
                learned[kind] = table[kind].to_numpy().reshape(self.subject.n_layers, self.subject.n_heads)
        found = candidates(
            self.subject, self.spec, self.inhibitors, self.components, self.channels, learned, self.screened
        )
        edits: dict[str, Edit] = {f"{i:03} {e.kind}": e for i, e in enumerate(found)}
        self.ranking = self.job.table(
            "search", lambda: ranked(self.answered("train", edits, "edits on train"), edits)
        )
        self.best = best_of_kinds(self.ranking, edits)

    def _learned(self, train: Sequence[Example]) -> pd.DataFrame:
        from interp.studies.laundry.learned import learn_factors

        out = pd.DataFrame({"component": [repr(h) for h in self.subject.heads()]})
        for kind, heads in zip(LEARNED, (None, self.inhibitors), strict=True):
            with self.stage(kind) as report:
                change = learn_factors(self.subject, train, self.spec.learn, heads=heads, progress=report)
            out[kind] = np.float64(change).reshape(-1)
        return out

    def tune(self) -> None:
        """Sizes of the best edit of each kind, on validation prompts; and one for each length of list."""
        from interp.studies.laundry.search import around, best_of_kinds, by_length, ranked

        edits = around(self.best, self.spec.finer)
        rows = self.job.table(
            "parts/tuned", lambda: self.answered("validation", edits, "sizes on validation")
        )
        self.tuned = ranked(rows, edits)
        self.write("tuned", self.tuned)
        self.finals: dict[str, Edit] = best_of_kinds(self.tuned, edits)
        self.first = str(self.tuned[self.tuned["kind"] != "clean"]["kind"].iloc[0])
        sizes = by_length(rows, edits, self.first)
        self.finals["best size for each length"] = self.finals[self.first].resized(sizes)
        self.job.json("sizes", lambda: {"kind": self.first, "sizes": sizes})

    def walk(self) -> None:
        """Coordinates walked over a grid on validation prompts: of each rank the channel that carries most."""
        first: dict[int, Channel] = {}
        for channel in self.channels:
            first.setdefault(channel.rank, channel)
        for rank, channel in sorted(first.items()):
            self.job.table(f"grid-{rank}", partial(self._walked, channel))

    def _walked(self, channel: Channel) -> pd.DataFrame:
        from interp.studies.laundry.grid import walked

        examples = [
            e for n in self.spec.items for e in self.prompts("validation", n)[: self.spec.grid_prompts]
        ]
        with self.stage(f"walk {channel!r}") as report:
            found = walked(self.subject, channel.space, examples, self.spec.grid, report)
        return found.assign(channel=repr(channel))

    # -- the test ----------------------------------------------------------------------------------------------------

    def test(self) -> None:
        """Every final edit and its controls on test prompts, once, and on prose."""
        from interp.studies.laundry.carriers import cut_of
        from interp.studies.laundry.edits import Scaled
        from interp.studies.laundry.final import described, in_weights
        from interp.studies.laundry.search import controls
        from interp.studies.laundry.tables import gains, over_controls

        conditions: dict[str, Condition] = dict(self.finals)
        if self.channels:
            conditions["cut"] = cut_of(self.channels[0])
        for name, edit in list(conditions.items()):
            if isinstance(edit, Scaled) and name == edit.kind:
                conditions |= controls(
                    self.subject, edit, self.spec, self.avoid, self.screened, self.directions
                )
        self.job.table("conditions", lambda: described(conditions))
        parts = [
            self.job.table(f"parts/test-{n:02}", partial(self._test, n, conditions)) for n in self.spec.items
        ]
        rows = pd.concat(parts, ignore_index=True)
        rows["held"] = rows["template"].isin(self.held)
        self.write("answers", rows)
        self.job.table("gains", lambda: gains(rows, seed=self.spec.seed))
        kinds = {name: c.kind for name, c in conditions.items()}
        self.job.table("over_controls", lambda: over_controls(rows, kinds, seed=self.spec.seed))
        weights = in_weights([e for name, e in conditions.items() if name in {*self.finals, "cut"}])
        self.job.table("in_weights", lambda: self._weights(weights))
        self.job.table("neutral", lambda: self._neutral(conditions, weights))

    def _test(self, items: int, conditions: Mapping[str, Condition]) -> pd.DataFrame:
        return self.answered("test", conditions, "test", only=items)

    def _weights(self, conditions: Mapping[str, InWeights]) -> pd.DataFrame:
        """Gains of the edits as edits of weights, on the first test prompts of each length."""
        from interp.studies.laundry.tables import gains

        rows = self.answered("test", conditions, "edits of weights", first=self.spec.in_weights)
        rows["held"] = rows["template"].isin(self.held)
        return gains(rows, seed=self.spec.seed)

    def _neutral(self, conditions: Mapping[str, Condition], weights: Mapping[str, InWeights]) -> pd.DataFrame:
        """What prose loses, as edits of the longest list would have it."""
        from interp.studies.laundry.final import neutral

        longest = max(self.spec.items)
        every: dict[str, Intervention | None] = {"clean": None}
        every |= {name: c.at(longest, self.directions) for name, c in {**conditions, **weights}.items()}
        with self.stage("prose") as report:
            return neutral(self.subject, every, self.spec.neutral, seed=self.spec.seed, progress=report)

    def answered(
        self,
        split: str,
        conditions: Mapping[str, Condition | InWeights],
        what: str,
        *,
        only: int | None = None,
        first: int | None = None,
    ) -> pd.DataFrame:
        """Answers of a split under conditions and none; sizes may differ from one length of list to the other."""
        from interp.studies.laundry.tables import answers

        parts = []
        for items in self.spec.items if only is None else (only,):
            every: dict[str, Intervention | None] = {"clean": None}
            every |= {name: c.at(items, self.directions) for name, c in conditions.items()}
            with self.stage(f"{what}: {items} things") as report:
                parts.append(answers(self.subject, self.prompts(split, items)[:first], every, report))
        return pd.concat(parts, ignore_index=True)


run = LaundryStudy.run


def _head(name: str) -> Head:
    from interp.models.sites import Head

    layer, head = name[1:].split("H")
    return Head(int(layer), int(head))
