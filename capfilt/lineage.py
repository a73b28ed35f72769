"""Who a sample is, and under which settings a table was made: pure functions of plain data.

A *plan* is everything that can change a byte of a stage's table: the stage's options, the model's
digest, the seed, and the plan of each table it reads. Worker counts, paths and log levels are not
in it. Its digest names the table's folder, so results of two plans never meet in one table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

PlanValue = str | int | float | bool | None | list["PlanValue"] | dict[str, "PlanValue"]

FORMAT_VERSION = 2
"""Part of every plan: raised when code changes what the same settings produce."""


def canonical_json(value: object) -> str:
    """JSON with one spelling: keys sorted, no spaces, no NaN, ASCII only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The settings a table was made with.

    Args:
        stage: the stage's name.
        round: bootstrap round, from 0.
        options: resolved options that can change a byte.
        inputs: table or input name to the digest of the plan (or content) it stands for.
    """

    stage: str
    round: int
    options: Mapping[str, PlanValue]
    inputs: Mapping[str, str]

    def describe(self) -> dict[str, PlanValue]:
        """The plan as plain data, as it is stored beside the table."""
        return {
            "format": FORMAT_VERSION,
            "stage": self.stage,
            "round": self.round,
            "options": dict(self.options),
            "inputs": dict(self.inputs),
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the plan's canonical JSON, 64 hex digits."""
        return hashlib.sha256(canonical_json(self.describe()).encode()).hexdigest()

    @property
    def folder(self) -> str:
        """First 12 digits of the digest: the name of the table's folder."""
        return self.digest[:12]


def plan_differences(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """What changed between two stored plans, one readable line per field.

    Args:
        old: `Plan.describe()` of the table on disk.
        new: the same of the plan now asked for.

    Returns:
        Lines such as `options.top_p: 0.9 -> 0.95`, sorted by field.
    """
    before, after = _flatten(old), _flatten(new)
    return [
        f"{field}: {before.get(field, '(absent)')} -> {after.get(field, '(absent)')}"
        for field in sorted(before.keys() | after.keys())
        if before.get(field) != after.get(field)
    ]


def _flatten(value: object, prefix: str = "") -> dict[str, str]:
    if not isinstance(value, Mapping):
        return {prefix: json.dumps(value)}
    flat: dict[str, str] = {}
    for name, inner in value.items():
        flat.update(_flatten(inner, f"{prefix}.{name}" if prefix else str(name)))
    return flat


def sample_key(dataset: str, shard: int, source_key: str, occurrence: int) -> str:
    """The identity of a sample: 128-bit BLAKE2b of where it came from, as 32 hex digits.

    Neither the image nor its URL goes in: a web page may show one image twice, and those are two
    samples. Fields are length-prefixed, so ("1", "23") and ("12", "3") differ.

    Args:
        dataset: the recipe's `input.name`.
        shard: position of the shard in the input's list.
        source_key: the sample's name inside its shard.
        occurrence: 0 for the first sample of that name in the shard, then 1, 2 ...
    """
    digest = hashlib.blake2b(digest_size=16, person=b"capfilt-key-v1")
    for field in (dataset, str(shard), source_key, str(occurrence)):
        payload = field.encode("utf-8", "surrogateescape")
        digest.update(len(payload).to_bytes(8, "little") + payload)
    return digest.hexdigest()


def text_digest(lines: list[str]) -> str:
    """SHA-256 over a list of strings; order and boundaries count."""
    return hashlib.sha256(canonical_json(lines).encode()).hexdigest()
