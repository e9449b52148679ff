"""Models without weights: a sweep's plan is checked against one before the weights are loaded or paid for.

A `Skeleton` is built from a config on the meta device. Its runs go through nnsight's `scan`: one forward pass under
fake tensors tells the shape of every site asked for, and taps then run on zeros of those shapes. So whatever lowers
to taps can be tried: a layer or a head that does not exist, a tap that returns another shape, a reference that lacks
what a cut needs. What a skeleton cannot tell is anything about values.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from interp.errors import EngineError, InterpError, MissingResource, UsageError
from interp.models.batch import Batch, Prompt
from interp.models.engines.attention import AttentionCall
from interp.models.engines.base import Frame, Reduce, Rows, Taps, Trace
from interp.models.engines.nnsight import forward_arguments, library, walk
from interp.models.engines.program import Program
from interp.models.engines.visits import as_list
from interp.models.families import Family
from interp.models.sites import Site
from interp.models.subject import CausalLM, Lowers
from interp.models.tokens import Tokens

if TYPE_CHECKING:
    from interp.models.engines.resume import Checkpoint

Shape = tuple[tuple[int, ...], torch.dtype]
_ATTENTION = ("q", "k", "v", "mask")


class Weightless(CausalLM):
    """A language model whose weights are not in this process: structure, config and tokenizer only."""

    @property
    def device(self) -> torch.device:
        """Where inputs are made."""
        return torch.device("cpu")

    @property
    def weights_hash(self) -> str:
        """Hash of the kind of subject, its name and its config, since there are no weights to hash."""
        told = f"{type(self).__name__} {self.name} {self.config.to_json_string()}"
        return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()

    def with_engine(self, engine: str) -> CausalLM:
        self._refuse("run under another engine")

    def out_weight(self, layer: int) -> torch.Tensor:
        self._refuse("give its output projections")

    def generate(self, *args: Any, **options: Any) -> list[list[int]]:
        self._refuse("generate")

    def _refuse(self, what: str) -> NoReturn:
        raise EngineError(
            f"the weights of {self.name} are not here, so it cannot {what}; load it: interp.load(...)"
        )


class ScanEngine:
    """Runs taps on zeros of the shapes that nnsight's `scan` finds.

    Args:
        subject: a skeleton.
        model: the same module, as an nnsight model on the meta device.
    """

    name = "scan"

    def __init__(self, subject: CausalLM, model: Any):
        self.subject = subject
        self.model = model
        self.capabilities = frozenset({"rows", "attention", "weights"})
        self._found: dict[tuple[int, int, int, Site], Any] = {}

    def shapes(self, batch: Batch, sites: Sequence[Site], keep: int) -> dict[Site, Any]:
        """Shape and dtype of each site's tensor; of `attention` those of (q, k, v, mask) and the kernel's numbers.

        Raises:
            UsageError: a site does not exist.
            EngineError: the pass never comes to a site.
        """
        where = len(batch), batch.width, keep
        unknown = [site for site in sites if (*where, site) not in self._found]
        if unknown:
            taps = {site: Reduce(_call_shape if site.kind == "attention" else _shape) for site in unknown}  # type: ignore[arg-type]
            program = Program(self.subject, taps, None, Frame(batch, width=batch.width, forwards=1))
            with torch.no_grad():
                walk(self.model.scan(**forward_arguments(batch, keep)), self.model, program)
            program.check_fired()
            for site, found in program.records.items():
                self._found[(*where, site)] = found
        return {site: self._found[(*where, site)] for site in sites}

    def run(
        self,
        batch: Batch,
        taps: Taps,
        *,
        rows: Rows | None = None,
        keep: int | None = None,
        cache: Any = None,
        use_cache: bool = False,
        mask: Any = None,
        past: int = 0,
        start: Checkpoint | None = None,
        stop: int | None = None,
    ) -> Trace:
        """A run on zeros: every tap is called once, with a tensor of the shape it will see."""
        if (
            cache is not None
            or use_cache
            or past
            or mask is not None
            or start is not None
            or stop is not None
        ):
            raise EngineError("engine 'scan' takes no cache, mask or checkpoint: there is nothing to reuse")
        program = Program(self.subject, taps, rows, Frame(batch, width=batch.width, forwards=1))
        calls = [Site("attention", layer) for layer in program.row_layers]
        logits = Site("logits")
        found = self.shapes(batch, [*program.taps, *calls, logits], batch.keep if keep is None else keep)
        for site in program.taps:
            if site.kind == "attention":
                program.visit_attention(site, _zero_call(site, found[site]))
            else:
                program.visit(site, _zeros(found[site]))
        for site in calls:
            program.reduce_rows(_zero_call(site, found[site]))
        program.check_fired()
        return Trace(_zeros(found[logits]), program.records, program.rows)


def _shape(value: torch.Tensor, frame: Frame) -> Shape:
    return tuple(value.shape), value.dtype


def _call_shape(call: AttentionCall, frame: Frame) -> tuple[dict[str, Shape | None], dict[str, Any]]:
    tensors = {name: getattr(call, name) for name in _ATTENTION}
    numbers = {"scaling": call.scaling, "softcap": call.softcap, "window": call.window}
    return {name: None if t is None else _shape(t, frame) for name, t in tensors.items()}, numbers


def _zeros(found: Shape) -> torch.Tensor:
    # A boolean mask of zeros would hide every key.
    return (
        torch.ones(found[0], dtype=torch.bool)
        if found[1] == torch.bool
        else torch.zeros(found[0], dtype=found[1])
    )


def _zero_call(site: Site, found: tuple[dict[str, Shape | None], dict[str, Any]]) -> AttentionCall:
    tensors = {name: None if shape is None else _zeros(shape) for name, shape in found[0].items()}
    assert site.layer is not None
    return AttentionCall(site.layer, **tensors, **found[1])  # type: ignore[arg-type]


class Skeleton(Weightless):
    """A causal language model on the meta device, run by `ScanEngine`."""

    def __init__(self, model: Any, tokens: Tokens | None, *, name: str, family: Family | str | None = None):
        super().__init__(model._module, tokens, name=name, family=family)
        self.engine: ScanEngine = ScanEngine(self, model)


def skeleton(
    source: Any, *, tokenizer: Any = None, name: str | None = None, family: Family | str | None = None
) -> Skeleton:
    """The skeleton of a model.

    Args:
        source: a name that `interp.load` knows, a hub id, a folder, a config of transformers, or a subject.
        tokenizer: for tasks, where `source` is a config.
        name: what errors call it.
        family: row of the site table for an architecture that is not in it.

    Raises:
        MissingResource: there is no config of that name.
        UnknownArchitecture: no row of the site table fits.
    """
    if isinstance(source, CausalLM):
        config, tokens = source.config, source._tokens
        name, family = name or source.name, family or source.family
    elif isinstance(source, (str, Path)):
        config, found = _fetched(str(source))
        tokenizer = tokenizer if tokenizer is not None else found
        tokens, name = None if tokenizer is None else Tokens(tokenizer), name or str(source)
    else:
        config, tokens = source, None if tokenizer is None else Tokens(tokenizer)
        name = name or getattr(source, "name_or_path", "") or type(source).__name__
    return Skeleton(_on_meta(config), tokens, name=name, family=family)


def _on_meta(config: Any) -> Any:
    """A language model on the meta device, as an nnsight model that is never dispatched."""
    from transformers import AutoModelForCausalLM

    library()
    from nnsight.modeling.mixins.meta import Meta

    class MetaCausalLM(Meta):
        def _load_meta(self, config: Any) -> Any:
            return AutoModelForCausalLM.from_config(config)

    # `from_config` writes to the config it is given.
    return MetaCausalLM(copy.deepcopy(config))


def _fetched(name: str) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer

    from interp.models import registry

    path = str(registry.resolve(name) or registry.fetch(name)) if name in registry.REGISTRY else name
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise MissingResource(
            f"'{name}': no config of it could be read: {' '.join(str(error).split())[:200]}"
        ) from error
    try:
        return config, AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, ImportError):
        return config, None  # only tasks over text need one, and they say so


def validate(
    source: Any,
    interventions: Iterable[Lowers | Mapping[Site | str, Any]],
    example_batch: Batch | Sequence[Prompt],
    *,
    tokenizer: Any = None,
    family: Family | str | None = None,
) -> dict[Site, tuple[int, ...]]:
    """Check a plan of runs before its model is loaded: every site exists, and every tap keeps its shape.

    Args:
        source: the model, as `skeleton` takes it (or a skeleton).
        interventions: interventions, or taps by site.
        example_batch: what is run, or examples of it.
        tokenizer, family: see `skeleton`.

    Returns:
        shape of the tensor at each site that the plan touches; of `attention` that of the queries.

    Raises:
        UsageError: the first of them that cannot run, by its number, with what is wrong.

    >>> import transformers
    >>> config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16)
    >>> validate(config, [{"z[1].0": lambda z: 0 * z}], Batch.of_ids([[1, 2, 3]]))
    {z[1].0: (1, 3, 4)}
    """
    subject = source if isinstance(source, Skeleton) else skeleton(source, tokenizer=tokenizer, family=family)
    items = list(interventions)
    batch = example_batch if isinstance(example_batch, Batch) else subject.batch(example_batch)
    plans: list[dict[Site, Any]] = []
    wrong: UsageError | None = None
    for number, item in enumerate(items):
        try:
            plans.append(_lowered(subject, item, batch))
        except Exception as error:
            wrong = _blame(error, number, items)
            break  # an earlier one may still have a wrong shape, and is told first
    engine = subject.engine
    touched = sorted({site for plan in plans for site in plan})
    with suppress(
        EngineError
    ):  # one pass for all; if it comes to grief, the runs below tell at which of them
        engine.shapes(batch, touched, batch.keep)
    for number, plan in enumerate(plans):
        try:
            engine.run(batch, plan)
        except Exception as error:
            raise _blame(error, number, items) from error
    if wrong is not None:
        raise wrong
    found = engine.shapes(batch, touched, batch.keep)
    return {s: (found[s][0]["q"] if s.kind == "attention" else found[s])[0] for s in touched}


def _lowered(subject: Skeleton, item: Any, batch: Batch) -> dict[Site, Any]:
    taps = (
        item.lower(subject, batch)
        if hasattr(item, "lower")
        else {subject.site(k): v for k, v in item.items()}
    )
    for site in taps:
        subject.check(site)
    return {site: as_list(tap) for site, tap in taps.items()}


def _blame(error: Exception, number: int, items: Sequence[Any]) -> UsageError:
    item = items[number]
    what = repr(item) if hasattr(item, "lower") else "taps at " + ", ".join(map(str, item))
    told = str(error) if isinstance(error, InterpError) else f"{type(error).__name__}: {error}"
    blamed = UsageError(f"intervention {number + 1} of {len(items)}, {what}: {' '.join(told.split())}")
    blamed.__cause__ = error
    return blamed
