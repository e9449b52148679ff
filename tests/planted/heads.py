"""What each kind of head is made of: query, key, value and output matrices in canonical coordinates.

Keys are shared in a KV group, so they hold everything a head of the group may look for: one content subspace, the
position, the mark of BOS and the mark of striking tokens. What a head looks for is in its query alone. Values hold the
token's code and a constant; what a head writes, and where, is in its output matrix alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from .geometry import CODE, CONST, Array, Canon, Kernel, orthonormal

KEY_SCALE = 4.0
MATCH = 72.0
"""Score of a matching code before the softmax; another token's is at most `COHERENCE` times that."""
REST = 0.7
"""Score of BOS, relative to a match: where nothing matches, matching heads rest on BOS."""
MARGIN = 14.0
"""Score by which the wanted offset beats every other one."""
MARK = 28.0
"""Score of a marked token (BOS for `sink`, striking tokens for `salient`)."""
SELF = 24.0
"""Penalty on the place itself, without which a duplicate-token head would find only the token it stands on."""

DUPLICATE_SHARE = 0.4
LOUD = {"sink": 2.5, "previous": 2.0, "offset": 2.0, "place": 2.0}
QUIET = 0.7
"""Norms of what decoys write to `spare`."""


@dataclass(frozen=True)
class Rows:
    """Which axes of a head hold what; `cos` and `sin` are the kernel's pairs. Rotary heads have no `slow` axis."""

    content: Array
    cos: Array
    sin: Array
    bos: int
    hot: int
    slow: int | None
    d_head: int

    @staticmethod
    def plain(n_freq: int, d_head: int) -> Rows:
        """Axes one after another: nothing turns them."""
        at = CODE + 2 * n_freq
        cos = np.arange(CODE, CODE + n_freq)
        return Rows(np.arange(CODE), cos, cos + n_freq, at, at + 1, at + 2, d_head)

    @staticmethod
    def rotary(n_freq: int, d_head: int, freq: Array, context: int) -> Rows:
        """Position in the fastest pairs, content in the slowest, which hardly turn over the context."""
        half = d_head // 2
        slow = np.arange(half - CODE // 2, half)
        marks = int(slow[0]) - 1
        # A pair that turns by about 0.6 over the context: enough to prefer the farther of two equal tokens.
        hot = n_freq + int(np.abs(freq[n_freq:marks] * context - 0.6).argmin())
        cos = np.arange(n_freq)
        return Rows(np.concatenate([slow, slow + half]), cos, cos + half, marks, hot, None, d_head)


class HeadWriter:
    """Writes the matrices of heads.

    Args:
        canon: the axes of the residual stream.
        rows: the axes of a head.
        kernel: the positional kernel that attention to an offset uses.
        rotary: the rotary frequencies, fastest first; None for learned positions.
        context: longest sequence.
        rng: source of everything random.
    """

    def __init__(
        self,
        canon: Canon,
        rows: Rows,
        kernel: Kernel,
        rotary: Array | None,
        context: int,
        rng: np.random.Generator,
    ):
        self.canon, self.rows, self.kernel, self.rotary = canon, rows, kernel, rotary
        self.context, self.rng = context, rng

    @property
    def _n_spare(self) -> int:
        return self.canon.spare.stop - self.canon.spare.start

    def key(self, reads: str | None) -> Float[Array, "d_head canon"]:
        """Keys that hold the subspace `reads` next to position and marks; random where `reads` is None."""
        c, r = self.canon, self.rows
        if reads is None:
            return 0.16 * self.rng.standard_normal((r.d_head, c.size))
        out = np.zeros((r.d_head, c.size))
        out[r.content, np.arange(CODE) + getattr(c, reads).start] = 1.0
        if self.rotary is None:
            n = len(r.cos)
            out[r.cos, c.position.start + np.arange(n)] = 1.0
            out[r.sin, c.position.start + n + np.arange(n)] = 1.0
            out[r.slow, c.position.stop - 1] = 1.0
        else:
            out[r.cos, c.const] = np.sqrt(self.kernel.weight) / CONST
        out[r.bos, c.bos] = 1.0
        out[r.hot, c.hot] = 1.0
        return KEY_SCALE * out

    def value(self, reads: str | None) -> Float[Array, "d_head canon"]:
        """The token's code in the first axes, then the constant and BOS's mark; random where `reads` is None.

        Where keys hold what was carried along, the first axes are the code that came with it.
        """
        c, r = self.canon, self.rows
        if reads is None:
            return 0.3 * orthonormal(self.rng, c.size, r.d_head).T
        out = np.zeros((r.d_head, c.size))
        code = c.carried if reads == "carried_key" else c.token
        out[np.arange(CODE), np.arange(CODE) + code.start] = 1.0
        out[CODE, c.const] = 1.0 / CONST
        out[CODE + 1, c.bos] = 1.0
        return out

    def query(self, kind: str, offset: int) -> Float[Array, "d_head canon"]:
        """What the head looks for; `offset` counts places back, for `place` from the start of the context."""
        if kind == "random":
            return 0.5 * self.rng.standard_normal((self.rows.d_head, self.canon.size))
        if kind in ("retrieval", "semantic", "silent", "ahead"):
            out = self._match() + self._bos(REST * MATCH)
        elif kind == "duplicate":
            out = self._match() + self._at(-SELF, 0)
        elif kind == "salient":
            out = self._hot() + self._bos(0.5 * MARK)
        elif kind == "sink":
            out = self._bos(MARK)
        elif kind == "place":
            out = self._there(MARGIN / self.kernel.gap, offset)
        else:
            out = self._at(MARGIN / self.kernel.gap, offset)
        return out * np.sqrt(self.rows.d_head) / KEY_SCALE

    def output(self, kind: str, share: float) -> Float[Array, "canon d_head"]:
        """Where the head writes what it read; `share` is its part where several write the same."""
        c = self.canon
        out = np.zeros((c.size, self.rows.d_head))
        code = np.arange(CODE)
        spare = np.arange(c.spare.start, c.spare.stop)
        target = {
            "retrieval": c.output,
            "semantic": c.output,
            "duplicate": c.output,
            "support": c.previous,
            "two_back": c.two_back,
            "carry": c.carried,
            "carry_key": c.carried_key,
        }
        if kind in target:
            out[target[kind].start + code, code] = DUPLICATE_SHARE if kind == "duplicate" else share
        elif kind == "sink":
            out[spare, CODE] = LOUD["sink"] * orthonormal(self.rng, self._n_spare, 1)[:, 0]
        elif kind == "random":
            out += 0.02 * self.rng.standard_normal(out.shape) / np.sqrt(c.size)
            out[spare] += (
                0.5 * self.rng.standard_normal((self._n_spare, out.shape[1])) / np.sqrt(self._n_spare)
            )
        else:
            # BOS, which has no code, is written as loudly as any token: norms stay alike at all places.
            turn = orthonormal(self.rng, self._n_spare, CODE + 1)
            out[np.ix_(spare, np.append(code, CODE + 1))] = LOUD.get(kind, QUIET) * turn
        return out

    def norm_of(self, kind: str, share: float) -> float:
        """Expected norm of what the head adds to the residual stream."""
        own = {
            "retrieval": share,
            "semantic": share,
            "support": share,
            "carry": share,
            "carry_key": share,
            "two_back": 1.0,
            "duplicate": DUPLICATE_SHARE,
            "random": 0.4,
        }
        return own.get(kind, LOUD.get(kind, QUIET))

    def _match(self) -> Array:
        out = np.zeros((self.rows.d_head, self.canon.size))
        out[self.rows.content, np.arange(CODE) + self.canon.token.start] = MATCH
        return out

    def _bos(self, score: float) -> Array:
        out = np.zeros((self.rows.d_head, self.canon.size))
        out[self.rows.bos, self.canon.const] = score / CONST
        return out

    def _hot(self) -> Array:
        c, r = self.canon, self.rows
        out = np.zeros((r.d_head, c.size))
        if self.rotary is None:
            out[r.hot, c.const] = MARK / CONST
            out[r.slow, c.const] = 0.5 * MARK / CONST
        else:
            phase = -float(self.rotary[r.hot]) * self.context
            out[r.hot, c.const] = MARK * np.cos(phase) / CONST
            out[r.hot + r.d_head // 2, c.const] = MARK * np.sin(phase) / CONST
        return out

    def _at(self, score: float, offset: int) -> Array:
        """`score` times the kernel at the distance from the place `offset` back."""
        c, r = self.canon, self.rows
        out = np.zeros((r.d_head, c.size))
        turn = self.kernel.freq * offset
        n = len(r.cos)
        if self.rotary is None:
            cos, sin = c.position.start + np.arange(n), c.position.start + n + np.arange(n)
            out[r.cos, cos], out[r.cos, sin] = score * np.cos(turn), score * np.sin(turn)
            out[r.sin, sin], out[r.sin, cos] = score * np.cos(turn), -score * np.sin(turn)
        else:
            size = score * np.sqrt(self.kernel.weight) / CONST
            out[r.cos, c.const], out[r.sin, c.const] = size * np.cos(turn), -size * np.sin(turn)
        return out

    def _there(self, score: float, at: int) -> Array:
        """`score` times the kernel at the distance from the place `at` of the context; rotary keys hold no place.

        Raises:
            ValueError: positions are rotary.
        """
        if self.rotary is not None:
            raise ValueError(
                "a head with rotary positions knows distances only: it cannot look at a fixed place"
            )
        c, r = self.canon, self.rows
        out = np.zeros((r.d_head, c.size))
        wave = score * np.sqrt(self.kernel.weight) / CONST
        out[r.cos, c.const] = wave * np.cos(self.kernel.freq * at)
        out[r.sin, c.const] = wave * np.sin(self.kernel.freq * at)
        return out
