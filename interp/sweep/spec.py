"""What a sweep is asked for: models x tasks x locators x cuts x seeds, as frozen data, in YAML or in Python.

    name: head doses
    models: [smollm2]
    tasks:
      - {task: niah, set: {haystack: test, n: 24}, product: {length: [256, 512]}}
      - induction
    locators:
      - {locator: retrieval_heads, set: {method: copy}, fit_on: {task: niah, set: {haystack: train}}}
    cuts:
      - {cut: heads, set: {doses: [1, 2, 5, 10], mode: zero, controls: 20}}
    seeds: [0, 1]

An item is a name, or a name with parameters: `set` has them one by one, `product` has a list for each and stands for
every combination. A unit is one model, task, locator, cut and seed; doses and control draws are inside it. A locator
and a cut make units where the cut takes what the locator finds (`interp.sweep.mechanisms`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from interp.errors import MissingResource, UsageError

SPECS = Path(__file__).parent / "specs"
"""Where the ready specs are."""

AnyItem = TypeVar("AnyItem", bound="Item")


class Item(BaseModel):
    """A name with parameters; `each` gives the items that its products stand for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    NAME: ClassVar[str]

    set: Mapping[str, Any] = Field(default_factory=dict)
    product: Mapping[str, tuple[Any, ...]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {cls.NAME: given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _once(self) -> Self:
        for name, values in self.product.items():
            if name in self.set:
                raise ValueError(f"'{name}' stands in set and in product")
            if not values:
                raise ValueError(f"product of '{name}' has no values")
        return self

    @property
    def name(self) -> str:
        """What the item is called."""
        return str(getattr(self, self.NAME))

    def each(self: AnyItem) -> Iterator[AnyItem]:
        """One item for every combination of the products, with parameters in `set` only."""
        for values in product(*self.product.values()):
            own = {**self.set, **dict(zip(self.product, values, strict=True))}
            yield self.model_copy(update={"set": own, "product": {}})

    @property
    def label(self) -> str:
        """Name and parameters, for people.

        >>> TaskItem(task="niah", set={"length": 256}).label
        'niah length=256'
        """
        return " ".join([self.name, *(f"{k}={_short(v)}" for k, v in self.set.items())])


def _short(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class ModelItem(Item):
    """A model: a default model's name, a hub id, a folder; `set` goes to `interp.load` (dtype, revision, ...)."""

    NAME: ClassVar[str] = "model"
    model: str


class TaskItem(Item):
    """A task, with its parameters; its seed is the unit's, unless `set` has one.

    Attributes:
        known: keep the examples that the model answers right.
        role: in the rows; default `off_target` for prose, else `target`.
    """

    NAME: ClassVar[str] = "task"
    task: str
    known: bool = False
    role: Literal["target", "control_task", "off_target"] | None = None


class LocatorItem(Item):
    """A locator, with its parameters, and the task it is fitted on.

    Attributes:
        fit_on: default the task that is measured. Either is drawn with another seed than what is measured.
    """

    NAME: ClassVar[str] = "locator"
    locator: str
    fit_on: TaskItem | None = None


class CutItem(Item):
    """What is cut of what a locator finds: doses, modes, controls."""

    NAME: ClassVar[str] = "cut"
    cut: str


class Unit(BaseModel):
    """The least that is run, recorded and repeated: one model, task, locator, cut and seed. It is data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelItem
    task: TaskItem
    locator: LocatorItem
    cut: CutItem
    seed: int = 0

    @property
    def label(self) -> str:
        """What people call it."""
        parts = [item.label for item in (self.model, self.task, self.locator, self.cut)]
        return f"{' | '.join(parts)} | seed {self.seed}"

    def canonical(self) -> str:
        """The same text for the same unit."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)


class SweepSpec(BaseModel):
    """Everything that a sweep will run; `units` are in the order of models, so that each is loaded once.

    Attributes:
        threads: that torch uses in a worker; results are compared at a fixed number.
        device, dtype: of all models that do not set their own. The device is not part of a unit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "sweep"
    models: tuple[ModelItem, ...] = Field(min_length=1)
    tasks: tuple[TaskItem, ...] = Field(min_length=1)
    locators: tuple[LocatorItem, ...] = Field(min_length=1)
    cuts: tuple[CutItem, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    threads: int = Field(1, ge=1)
    device: str = "auto"
    dtype: str = "auto"

    @model_validator(mode="after")
    def _known(self) -> Self:
        from interp.sweep.mechanisms import CUTS, LOCATORS
        from interp.tasks.registry import NAMES

        for where, items, known in (
            ("locators", self.locators, LOCATORS),
            ("cuts", self.cuts, CUTS),
            ("tasks", self.tasks, NAMES),
        ):
            for item in items:
                if item.name not in known and not item.name.endswith(".jsonl"):
                    near = get_close_matches(item.name, list(known), 1)
                    hint = f" (did you mean '{near[0]}'?)" if near else ""
                    raise ValueError(
                        f"{where}: there is no '{item.name}'{hint}; there are {', '.join(known)}"
                    )
        tasks = [*self.tasks, *(item.fit_on for item in self.locators if item.fit_on is not None)]
        for where, parts, params in (
            ("locators", self.locators, {name: kind.params for name, kind in LOCATORS.items()}),
            ("cuts", self.cuts, {name: kind.params for name, kind in CUTS.items()}),
            ("tasks", tasks, {name: info.params for name, info in NAMES.items()}),
        ):
            for item in parts:
                for name in (*item.set, *item.product):
                    own = params.get(item.name)
                    if own is not None and name not in own:
                        told = ", ".join(own) or "none"
                        raise ValueError(f"{where}: '{item.name}' has no parameter '{name}'; it has {told}")
        kinds = {LOCATORS[item.name].finds for item in self.locators}
        for item in self.cuts:
            if CUTS[item.name].takes not in kinds:
                raise ValueError(
                    f"cuts: '{item.name}' cuts {CUTS[item.name].takes}, which none of the locators finds "
                    f"(they find {', '.join(sorted(kinds))})"
                )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: each once")
        return self

    def units(self) -> tuple[Unit, ...]:
        """All units, each once, those of one model together."""
        from interp.sweep.mechanisms import CUTS, LOCATORS

        out: dict[str, Unit] = {}
        for model in self._each(self.models):
            if "dtype" not in model.set:
                model = model.model_copy(update={"set": {**model.set, "dtype": self.dtype}})
            for seed, locator, cut in product(self.seeds, self._each(self.locators), self._each(self.cuts)):
                if LOCATORS[locator.name].finds != CUTS[cut.name].takes:
                    continue
                for task in self._each(self.tasks):
                    unit = Unit(model=model, task=task, locator=locator, cut=cut, seed=seed)
                    out.setdefault(unit.canonical(), unit)
        return tuple(out.values())

    @staticmethod
    def _each(items: tuple[AnyItem, ...]) -> list[AnyItem]:
        return [one for item in items for one in item.each()]


def read_sweep(path: str | Path, changes: Mapping[str, Any] | None = None) -> SweepSpec:
    """The spec of a YAML file.

    Args:
        path: the file, or the name of a ready spec.
        changes: values by dotted names (`cuts.0.set.controls`) that take the place of the file's.

    Raises:
        MissingResource: there is no such file.
        UsageError: it is no YAML, or no spec; the message names the line.
    """
    path = _found(path)
    text = path.read_text("utf-8")
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path}: a spec is a mapping of names to values")
    for name, value in (changes or {}).items():
        _put(data, name, value)
    try:
        return SweepSpec(**data)
    except ValidationError as error:
        raise UsageError(told(error, str(path), tree)) from error


def ready() -> dict[str, Path]:
    """The specs that come with the package, by name.

    >>> "head-doses" in ready()
    True
    """
    return {path.stem: path for path in sorted(SPECS.glob("*.yaml"))}


def _found(path: str | Path) -> Path:
    """The file of a spec; a file of the user's goes before a ready spec of its name.

    Raises:
        MissingResource: there is neither.
    """
    known = ready()
    if Path(path).is_file():
        return Path(path)
    if str(path) in known:
        return known[str(path)]
    raise MissingResource(f"there is no spec '{path}'; give a YAML file or a ready spec: {', '.join(known)}")


def told(error: ValidationError, source: str, tree: yaml.Node | None = None) -> str:
    """The first fault of a spec as one line: where it is, what is wrong with it."""
    first = error.errors()[0]
    loc = first["loc"]
    # A check of the whole spec says in its message which list it is about.
    message = first["msg"].removeprefix("Value error, ")
    if not loc and ": " in message:
        loc = (message.split(": ")[0],)
    line = None if tree is None else _line(tree, loc)
    where = f"{source}, line {line}" if line else source
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key '{name}'"
    if first["type"] == "missing":
        return f"{where}: '{name}' is missing"
    return f"{where}: {name + ': ' if name else ''}{message}"


def _line(node: yaml.Node, loc: tuple[int | str, ...]) -> int | None:
    """Line of the part of a document that a location names, or of the nearest part around it."""
    for step in loc:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(step)), None)
            if found is not None and (step == loc[-1] or not isinstance(found[1], yaml.CollectionNode)):
                return int(found[0].start_mark.line) + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            found = (None, node.value[step])
        if found is None:
            break
        node = found[1]
    return int(node.start_mark.line) + 1


def _put(data: Any, name: str, value: Any) -> None:
    """Set a value by its dotted name.

    Raises:
        UsageError: what stands before its last part is not in the spec.
    """
    *way, last = name.split(".")
    at = data
    try:
        for step in way:
            at = at[int(step)] if isinstance(at, list) else at.setdefault(step, {})
        if isinstance(at, list):
            at[int(last)] = value
        else:
            at[last] = value
    except (ValueError, IndexError, TypeError, AttributeError):
        raise UsageError(f"--set {name}: there is no such place in the spec") from None
