"""What a round read from outside the run, noted in the run: names and digests of models and files.

By these notes a run can be looked at, and decided again, where a model or an input is out of reach.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from capfilt.io.storage import Store
from capfilt.lineage import canonical_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Something read from outside: its name now, and the digest of its content."""

    name: str
    digest: str
    model_type: str | None = None
    """Of a model, the kind its config.json names: it decides which code runs it."""
    stamp: str | None = None
    """Of what is long to read, what changes with it: while it is the same, so is the digest."""


def noted_sources(store: Store, round_number: int) -> dict[str, Source]:
    """What a round is known to have read, by role; empty before its first stage has begun."""
    if not store.exists(_file(round_number)):
        return {}
    plain = json.loads(store.read(_file(round_number)))
    return {role: Source(**fields) for role, fields in plain.items()}


def note_sources(store: Store, round_number: int, sources: Mapping[str, Source]) -> None:
    """Write down what a round reads, in place of what was noted before."""
    plain = {role: asdict(source) for role, source in sources.items()}
    store.put(_file(round_number), (canonical_json(plain) + "\n").encode())


def _file(round_number: int) -> str:
    return f"inputs/round-{round_number:03d}.json"
