"""The cascade: ITC decides the texts whose cosine is clear, ITM those between.

A random part of what ITC decides is put to ITM all the same. It changes no decision: it measures
how often the two disagree.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from capfilt.records import DecidedBy, TextSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade:
    """Whom a text is decided by. Cosines are compared as float32, as they are recorded."""

    itc_cos_drop: float
    """Highest cosine in [-1, 1] that is clearly low."""
    itc_cos_keep: float
    """Lowest cosine that is clearly high."""
    audit_share: float
    """Share in [0, 1] of the texts decided by ITC that ITM looks at, too."""
    seed: int
    """Of the audit."""

    def decided_by(self, itc_cos: float) -> DecidedBy:
        """Say who decides a text. A cosine that is no number is clear of nothing."""
        found = np.float32(itc_cos)
        if found <= np.float32(self.itc_cos_drop):
            return "itc_low"
        return "itc_high" if found >= np.float32(self.itc_cos_keep) else "itm"

    def audits(self, key: str, *, text_source: TextSource, text_index: int) -> bool:
        """Say whether a text belongs to the audit: by its identity alone, whatever its score."""
        name = f"{self.seed}/{key}/{text_source}/{text_index}".encode()
        digest = hashlib.blake2b(name, digest_size=8, person=b"capfilt-audit-1")
        return int.from_bytes(digest.digest(), "little") < self.audit_share * 2.0**64
