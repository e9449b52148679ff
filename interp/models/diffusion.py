"""Pipelines of diffusers: which ones can be looked at, how they are read from a folder, and how they noise."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from interp.errors import MissingResource, UnknownArchitecture


def check_pipeline(pipe: Any, name: str) -> None:
    missing = [
        p for p in ("unet", "text_encoder", "tokenizer", "scheduler", "vae") if getattr(pipe, p, None) is None
    ]
    if missing:
        raise UnknownArchitecture(
            f"{name}: a {type(pipe).__name__} has no {', '.join(missing)}; give a text-to-image pipeline with a UNet"
        )
    config = pipe.unet.config
    more = [
        what
        for what, has in (
            ("a second text encoder", getattr(pipe, "text_encoder_2", None) is not None),
            ("added conditions (SDXL)", getattr(config, "addition_embed_type", None) is not None),
            ("class labels", getattr(config, "class_embed_type", None) is not None),
            ("the guidance scale as an input", getattr(config, "time_cond_proj_dim", None) is not None),
            ("an image beside the latents", config.in_channels != config.out_channels),
        )
        if has
    ]
    if more:
        raise UnknownArchitecture(
            f"{name}: its UNet needs {', '.join(more)}, which is not supported; give a pipeline like Stable Diffusion "
            "1.x or 2.x"
        )
    target = pipe.scheduler.config.get("prediction_type")
    if target not in ("epsilon", "v_prediction", "sample") or not hasattr(pipe.scheduler, "alphas_cumprod"):
        raise UnknownArchitecture(
            f"{name}: {type(pipe.scheduler).__name__} with prediction '{target}' is not a diffusion by alphas_cumprod; "
            "give another scheduler"
        )


def is_pipeline(source: Any) -> bool:
    """Whether this is a diffusers pipeline, or the folder of one."""
    if isinstance(source, (str, Path)):
        return (Path(source).expanduser() / "model_index.json").is_file()
    return hasattr(source, "unet") and hasattr(source, "scheduler") and hasattr(source, "components")


def on_hub(name: str, options: dict[str, Any]) -> bool:
    """Whether the hub, or its cache here, has a diffusers pipeline by that id."""
    return not Path(name).exists() and _index(name, options) is not None


_WHERE = ("revision", "token", "cache_dir", "local_files_only")


def _index(source: str, options: dict[str, Any]) -> Path | None:
    """The file that lists the parts of a pipeline."""
    from huggingface_hub import hf_hub_download

    folder = Path(source).expanduser()
    if folder.exists():
        return folder / "model_index.json"
    try:
        asked = {k: v for k, v in options.items() if k in _WHERE}
        return Path(hf_hub_download(source, "model_index.json", **asked))
    except (OSError, ValueError):
        return None


def read_pipeline(source: str | Path, options: dict[str, Any]) -> Any:
    """The diffusers pipeline of a folder or a hub id, without its safety checker: images are measured, not shown.

    Parts of a class of this package, as the identity autoencoder of the digits, are read by that class.

    Raises:
        MissingResource: it is damaged or not there, or diffusers is not installed.
    """
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise MissingResource(
            "diffusion pipelines need diffusers: pip install 'interp-memory[diffusion]'"
        ) from error
    options = {"safety_checker": None, "requires_safety_checker": False, **options}
    index = _index(str(source), options)
    try:
        if index is None:
            raise OSError("no model_index.json")
        for part, spec in json.loads(index.read_text(encoding="utf-8")).items():
            library, name = spec if isinstance(spec, list) else ("", "")
            if isinstance(library, str) and library.startswith("interp.") and part not in options:
                own = getattr(import_module(library), name)
                options[part] = own.from_pretrained(index.parent / part, dtype=options.get("dtype"))
        return DiffusionPipeline.from_pretrained(str(Path(source).expanduser()), **options)
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        text = " ".join(str(error).split())
        name = Path(source).name
        raise MissingResource(
            f"'{name}' could not be loaded as a diffusion pipeline: {text[:200]}"
        ) from error


def noise_scales(
    scheduler: Any, t: int | float | torch.Tensor, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What data and noise are multiplied with at a timestep, sqrt(a) and sqrt(1 - a), to be broadcast to `like`.

    Fractional timesteps lie between whole ones in sqrt(1 - a) / sqrt(a), as in the schedulers that have them.
    """
    share = scheduler.alphas_cumprod.to(like.device, torch.float64)
    sigma = ((1 - share) / share).sqrt()
    at = torch.as_tensor(t, dtype=torch.float64, device=like.device).reshape(-1, 1, 1, 1)
    low = at.floor().long().clamp(0, len(sigma) - 1)
    high = (low + 1).clamp(max=len(sigma) - 1)
    s = sigma[low] + (at - low) * (sigma[high] - sigma[low])
    data = 1 / (1 + s**2).sqrt()
    return data.to(like.dtype), (s * data).to(like.dtype)
