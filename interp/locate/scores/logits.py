"""What a head writes: its share of the logit of the token that a row predicts.

phi_t[j] = a_t[j] u^T W_O v_j, with u the direction that the logit of the answer token y_t is read along. By default u
is folded: the row of the unembedding times the gain and scale of the final norm (and of the norm behind attention where
the family has one), so that shares of heads, MLPs, embeddings and biases sum to the logit (before a softcap of the
logits). With `Options(unembed="raw")` u is the bare row of the unembedding, as in the code of LOCOS; then shares of
rows and layers are on no common scale.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from interp.locate.capture import Capture
from interp.locate.scores.attention import check_needle, contrast
from interp.locate.scores.base import HeadScore


def _dla(capture: Capture) -> Float[np.ndarray, "l h"]:
    """Direct logit attribution: mean over answer rows of sum_j phi_t[j], in logits.

    Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits); as a detector in LOCOS' code (`dla`).
    """
    return capture.shares["all"].mean(0)


def _locos(capture: Capture) -> Float[np.ndarray, "l h"]:
    """Mean over answer rows of sum_N phi - (|N|/|off|) sum_off phi, off being all other keys that the row may see.

    LOCOS (arXiv 2607.01002): heads that write the answer from the needle, also where they do not copy it literally.
    """
    return contrast(capture.shares["needle"], capture.shares["all"], capture)


_SHARES = frozenset({"shares"})
DLA = HeadScore("dla", _dla, _SHARES, check=check_needle)
LOCOS = HeadScore("locos", _locos, _SHARES, check=check_needle)
