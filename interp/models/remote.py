"""Models that run elsewhere: their structure is here, on the meta device, and their weights on a server.

`remote_model("meta-llama/Llama-3.1-70B")` gives a subject whose runs are sent to NDIF as one nnsight trace each: the
same program that the local engine walks through, with taps and interventions as source. The module tree, the site
table and every check of a site are local; weights, gradients and generation are not.

A rehearsal needs neither key nor network: `remote="local"` sends a trace through nnsight's serialiser, reads it back
with this project's modules hidden, and runs it here.
"""

from __future__ import annotations

import hashlib
from typing import Any

from interp.errors import MissingResource
from interp.models.engines.nnsight import NnsightEngine, api_key, library
from interp.models.families import Family
from interp.models.skeleton import Weightless
from interp.models.tokens import Tokens


class RemoteLM(Weightless):
    """A causal language model whose weights are on a server.

    Args:
        model: an undispatched `nnsight.TransformersModel`.
        remote: `True` for NDIF, a URL for another server, `"local"` for a rehearsal.
    """

    def __init__(
        self, model: Any, *, remote: bool | str = True, name: str, family: Family | str | None = None
    ):
        tokens = None if model.tokenizer is None else Tokens(model.tokenizer)
        super().__init__(model._module, tokens, name=name, family=family)
        self.wrapped = model
        self.engine = NnsightEngine(self, model, remote=remote)

    @property
    def weights_hash(self) -> str:
        """Hash of the model's id, revision and config."""
        told = f"{self.wrapped.repo_id} {self.wrapped.revision} {self.config.to_json_string()}"
        return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def remote_model(
    name: str,
    *,
    remote: bool | str = True,
    revision: str | None = None,
    family: Family | str | None = None,
    trust_remote_code: bool = False,
) -> RemoteLM:
    """A subject that runs on NDIF; only its config and tokenizer are fetched.

    Args:
        name: hub id of a model that the server has.
        remote: `True` for NDIF, a URL for another server, `"local"` for a rehearsal of a folder's model here.
        revision: of the model.
        family: row of the site table, where the model type does not tell.

    Raises:
        MissingResource: `NDIF_API_KEY` is not set, or config or tokenizer cannot be fetched.
        UnknownArchitecture: no row of the site table fits.
    """
    if remote is True:
        api_key()
    from transformers import AutoTokenizer

    options = {"trust_remote_code": True} if trust_remote_code else {}
    try:
        # nnsight 0.8.1 does not find out that a text model needs a tokenizer under transformers 5.23, so it is given.
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, **options)
        model = library().TransformersModel(
            name, task="text-generation", tokenizer=tokenizer, revision=revision, **options
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        told = " ".join(str(error).split())[:200]
        raise MissingResource(
            f"'{name}': its config and tokenizer could not be fetched, which a remote run starts from: {told}"
        ) from error
    return RemoteLM(model, remote=remote, name=name, family=family)
