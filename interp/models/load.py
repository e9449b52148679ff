"""`load`: from a name, a folder, a GGUF file, or a module, bridge or nnsight model in memory, to a `CausalLM`;
from a diffusers pipeline or its folder to a `Pipeline`.

A model that loads has passed the self-check, which a wrong row of the site table fails: on a few tokens, in every
layer, resid_pre + attn_out + mlp_out equals resid_post, the first token's z is the value of its KV group (it sees only
itself), and the neurons are what the down projection turns into mlp_out.
"""

from __future__ import annotations

import difflib
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp.errors import MissingResource, UnknownArchitecture, UsageError
from interp.models.batch import Batch
from interp.models.diffusion import is_pipeline, on_hub, read_pipeline
from interp.models.engines import ENGINES
from interp.models.engines.base import Record
from interp.models.engines.bridge import is_bridge, unbridged
from interp.models.engines.nnsight import NnsightEngine, is_wrapped
from interp.models.families import Family
from interp.models.pipeline import Pipeline
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens


def load(
    source: Any,
    *,
    tokenizer: Any = None,
    name: str | None = None,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    family: Family | str | None = None,
    engine: str | None = None,
    remote: bool | str = False,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> Any:
    """Load a causal language model, or a diffusion pipeline, ready to be traced.

    Args:
        source: a default model's name (`smollm2`), a hub id, a folder, a `.gguf` file, a loaded Hugging Face module, a
            TransformerBridge (its weights are shared, and it goes on working) or an nnsight model (used as it is);
            or a diffusers pipeline, or a folder that holds one.
        tokenizer: tokenizer of a loaded module (or in place of the model's own). A TransformerBridge has changed its
            own one, which begins every text with a BOS token, so it is not taken over.
        name: what tables call the model; default from `source`.
        device: `auto` (CUDA where there is one), `cpu`, `cuda:1`, `mps`.
        dtype: `auto` (fp32 on CPU, the checkpoint's elsewhere), `float32`, `bfloat16`, ...
        family: row of the site table for an architecture that is not in it.
        engine: what runs the model: `hooks` (default), `lens` (default for a TransformerBridge) or `nnsight` (default
            for a model of nnsight); see `CausalLM.with_engine`.
        remote: run a hub id on NDIF (`True`, with `NDIF_API_KEY` in the environment) or on the server at a URL, through
            the engine `nnsight`; only config and tokenizer are loaded.
        kwargs: handed to `from_pretrained` (`device_map`, `revision`, `quantization_config`, ...).

    Returns:
        a `CausalLM`, or a `Pipeline` for a diffusion pipeline.

    Raises:
        MissingResource: no such model, or no network to fetch it.
        UnknownArchitecture: no row of the site table fits, or the pipeline is not like Stable Diffusion.
        EngineError: the engine cannot run this model, or a bridge is no longer the model it was made of.
    """
    if engine is not None and engine not in ENGINES:
        raise UsageError(f"no engine '{engine}'; write one of {', '.join(ENGINES)}")
    if is_pipeline(source):
        if (tokenizer, family, engine) != (None, None, None) or remote:
            raise UsageError("a diffusion pipeline takes no tokenizer, family, engine or remote")
        return _pipeline(source, name, device, dtype, kwargs)
    if remote:
        return _remote(source, remote, engine, family, trust_remote_code, kwargs)
    if isinstance(source, nn.Module) or is_wrapped(source):
        if device != "auto" or dtype != "auto":
            raise UsageError(
                "a loaded module stays where it is and as it is: move it with module.to(...) first"
            )
        if kwargs:
            raise UsageError(f"a loaded module takes no {', '.join(kwargs)}")
        return _loaded(source, tokenizer, name, family, engine)
    if not isinstance(source, (str, Path)):
        raise UsageError(
            f"cannot load a {type(source).__name__}; give a name, a folder, a .gguf file, a module or a bridge"
        )
    path, label = _locate(str(source))
    where = _device(device)
    kwargs.setdefault("dtype", _dtype(dtype, where))
    if trust_remote_code:
        kwargs["trust_remote_code"] = True
    try:
        module, found = _from_pretrained(path, label, tokenizer, kwargs)
    except MissingResource:
        if (tokenizer, family, engine) != (None, None, None) or not on_hub(path, _fetching(path, kwargs)):
            raise
        return _pipeline(path, name or label, device, dtype, kwargs)
    if "device_map" not in kwargs:
        module = module.to(where)
    return _subject(module, found, name or label, family, engine or "hooks")


def _pipeline(
    source: Any, name: str | None, device: str, dtype: str | torch.dtype, kwargs: dict[str, Any]
) -> Pipeline:
    """A pipeline that is in memory, or one of a folder or the hub."""
    if not isinstance(source, (str, Path)):
        if device != "auto" or dtype != "auto" or kwargs:
            raise UsageError(
                "a loaded pipeline stays where it is and as it is: move it with pipe.to(...) first"
            )
        return Pipeline(source, name=name or type(source).__name__)
    where = _device(device)
    found = kwargs.pop("dtype", None) or _dtype(dtype, where)
    options = {**_fetching(source, kwargs), "dtype": None if found == "auto" else found}
    return Pipeline(read_pipeline(source, options).to(where), name=name or Path(source).resolve().name)


def _fetching(source: str | Path, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The options, with the hub left alone where it cannot be asked or need not be."""
    here = kwargs.get("local_files_only", False) or Path(source).expanduser().exists()
    return {**kwargs, "local_files_only": here or _unreachable()}


def _remote(
    source: Any,
    remote: bool | str,
    engine: str | None,
    family: Family | str | None,
    trust_remote_code: bool,
    kwargs: dict[str, Any],
) -> CausalLM:
    from interp.models.remote import remote_model

    if not isinstance(source, str) or engine not in (None, "nnsight"):
        raise UsageError("remote runs are of a hub id under engine='nnsight'")
    if unknown := set(kwargs) - {"revision"}:
        raise UsageError(f"a model on a server takes no {', '.join(sorted(unknown))}: it is loaded there")
    return remote_model(
        source,
        remote=remote,
        family=family,
        trust_remote_code=trust_remote_code,
        revision=kwargs.get("revision"),
    )


def _loaded(
    source: Any, tokenizer: Any, name: str | None, family: Family | str | None, engine: str | None
) -> CausalLM:
    """A subject of a module that is in memory, bare or in the hands of another library."""
    if is_wrapped(source):
        if not getattr(source, "dispatched", True):
            source.dispatch()  # it was made without weights, which load at its first run
        module = source._module
        tokenizer = tokenizer if tokenizer is not None else getattr(source, "tokenizer", None)
        own = engine in (None, "nnsight")
        subject = _subject(
            module, tokenizer, name or _module_name(module), family, "hooks" if own else str(engine)
        )
        if own:
            subject.engine = NnsightEngine(subject, source)
        return subject
    if is_bridge(source):
        module = unbridged(source)
        return _subject(module, tokenizer, name or _module_name(module), family, engine or "lens")
    return _subject(source, tokenizer, name or _module_name(source), family, engine or "hooks")


def _module_name(module: nn.Module) -> str:
    given = getattr(getattr(module, "config", None), "_name_or_path", "") or type(module).__name__
    return Path(str(given)).name


def _subject(
    module: nn.Module, tokenizer: Any, name: str, family: Family | str | None, engine: str
) -> CausalLM:
    tokens = None if tokenizer is None else tokenizer if isinstance(tokenizer, Tokens) else Tokens(tokenizer)
    subject = CausalLM(module, tokens, name=name, family=family)
    self_check(subject)
    return subject if engine == "hooks" else subject.with_engine(engine)


def _locate(source: str) -> tuple[str, str]:
    """Where `from_pretrained` finds it, and what to call it."""
    from interp.models import registry

    if source in registry.REGISTRY:
        return str(registry.resolve(source) or registry.fetch(source)), source
    path = Path(source).expanduser()
    if path.exists():
        return str(path), path.stem if path.suffix == ".gguf" else path.resolve().name
    if path.suffix == ".gguf" or source.startswith((".", "/", "~")):
        raise MissingResource(f"there is no file or folder '{source}'")
    return source, source


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError:
        raise UsageError(f"no device '{device}'; write auto, cpu, cuda, cuda:1 or mps") from None


def _dtype(dtype: str | torch.dtype, device: torch.device) -> Any:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise UsageError(f"no dtype '{dtype}'; write auto, float32, bfloat16, float16 or float64")
    return found


def _from_pretrained(path: str, label: str, tokenizer: Any, kwargs: dict[str, Any]) -> tuple[nn.Module, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import interp.models.zoo.model  # noqa: F401  transformers learns of these models

    file = Path(path)
    if not file.exists() and _unreachable():
        kwargs = {**kwargs, "local_files_only": True}
    where = {"pretrained_model_name_or_path": path}
    if file.suffix == ".gguf":
        where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        with _quiet():
            module = AutoModelForCausalLM.from_pretrained(**where, **kwargs)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _explain(error, label, file.exists()) from error
    if tokenizer is None:
        known = ("revision", "token", "trust_remote_code", "local_files_only")
        passed = {k: kwargs[k] for k in known if k in kwargs}
        try:
            with _quiet():
                tokenizer = AutoTokenizer.from_pretrained(**where, **passed)
        except (OSError, ValueError, KeyError, ImportError):
            tokenizer = None  # tasks over text then say that there is none, and how to give one
    return module, tokenizer


def _unreachable() -> bool:
    """Whether the hub's name cannot be looked up; asking it would then take half a minute of retries."""
    if urllib.request.getproxies():
        return False
    from huggingface_hub import constants

    try:
        socket.getaddrinfo(urllib.parse.urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return True
    return False


def _explain(error: Exception, label: str, local: bool) -> Exception:
    from interp.models import registry

    text = " ".join(str(error).split())
    if "does not recognize this architecture" in text or "Unrecognized configuration class" in text:
        return UnknownArchitecture(
            f"'{label}': transformers has no causal language model for it ({text[:160]})"
        )
    if local:
        return MissingResource(f"'{label}' could not be loaded as a causal language model: {text[:200]}")
    near = difflib.get_close_matches(label, registry.REGISTRY, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return MissingResource(
        f"no model '{label}': it is no default model ({', '.join(registry.REGISTRY)}), no folder, and the hub did not "
        f"give it (no such id, or no network). {hint}Write a folder, or run: interp models fetch smollm2"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of other libraries while loading."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def self_check(subject: CausalLM) -> None:
    """Run the identities that the sites of a layer must keep, on a few tokens.

    Raises:
        UnknownArchitecture: a layer does not keep one, so its row of the site table is wrong.
    """
    ids = [(7 * i + 3) % int(subject.config.vocab_size) for i in range(8)]
    batch = Batch.of_ids([ids], device=subject.device)
    kinds = ["resid_pre", "attn_out", "mlp_out", "resid_post", "z", "v", "neurons"]
    sites = [Site(kind, i) for kind in kinds for i in range(subject.n_layers)]
    trace = subject.run(batch, {s: Record() for s in sites}, keep=1)
    group = [subject.kv_head(h) for h in range(subject.n_heads)]
    for i in range(subject.n_layers):
        pre, attn, mlp, post, z, v, neurons = (trace[Site(k, i)] for k in kinds)
        _same(subject, i, "resid_pre + attn_out + mlp_out misses resid_post", pre + attn + mlp, post)
        _same(subject, i, "z of the first token misses v of its KV group", z[:, 0], v[:, 0][:, group])
        if not subject.family.post_norm:
            down = subject.module(i, subject.family.sites["neurons"].module)
            with torch.no_grad():
                _same(subject, i, "the down projection of neurons misses mlp_out", down(neurons), mlp)


def _same(subject: CausalLM, layer: int, what: str, a: torch.Tensor, b: torch.Tensor) -> None:
    a, b = a.float().cpu(), b.float().cpu()
    loose = subject.dtype not in (torch.float32, torch.float64)
    gap = float((a - b).abs().max()) if a.shape == b.shape else float("inf")
    scale = max(float(a.abs().max()), float(b.abs().max()), 1.0)
    if not gap <= (0.05 if loose else 1e-4) * scale:
        raise UnknownArchitecture(
            f"{subject.name}: in layer {layer} {what} by {gap:.3g}, so the row '{subject.family.name}' of the site "
            "table does not fit this model"
        )
