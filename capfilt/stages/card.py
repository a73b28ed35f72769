"""What is said about a published dataset: the dataset card, and the features other tools read.

Hugging Face `datasets` decodes a Parquet column as images if the file's `huggingface` metadata
says so; without it the column would be a struct of bytes and a name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from capfilt import __version__
from capfilt.config import Recipe
from capfilt.lineage import PlanValue, canonical_json
from capfilt.stages.shards import Funnel
from capfilt.stages.source_notes import Source


def hub_metadata(schema: pa.Schema) -> dict[str, str]:
    """The Parquet metadata by which `datasets` knows the columns of a published file."""
    features = {field.name: _feature(field) for field in schema}
    return {"huggingface": canonical_json({"info": {"features": features}})}


def how_made(
    recipe: Recipe, sources: Mapping[str, Source], *, round_: int
) -> list[tuple[str, str]]:
    """What a reader must know to make the dataset again: the models, and what texts had to reach.

    Args:
        recipe: the run.
        sources: what the round read, by role.
        round_: the round; a later one uses models the one before it trained.
    """
    trained = f", trained in round {round_ - 1}" if round_ else ""
    models = [
        (role, f"{_model_name(sources[role].name)}{trained} (digest {sources[role].digest[:12]})")
        for role in ("captioner", "filter")
    ]
    policy: dict[str, object] = recipe.select.model_dump(mode="json")
    if recipe.score.cascade is not None:
        policy |= recipe.score.cascade.model_dump(mode="json")
    asked = ((name, "not asked" if value is None else str(value)) for name, value in policy.items())
    return [*models, *asked]


def _model_name(name: str) -> str:
    """A hub id or relative path as it stands; else the last part, for the rest is one machine's."""
    return name.rstrip("/").rpartition("/")[2] if "://" in name or name[0] in "/~" else name


def dataset_card(
    funnels: Sequence[Funnel], *, made: Sequence[tuple[str, str]], license_: str | None
) -> str:
    """The README.md of a published dataset, with the funnel of the round that made it.

    Args:
        funnels: of the stages of the round, in the order of the loop.
        made: models and thresholds, from `how_made`.
        license_: identifier of the licence, if the user named one.
    """
    published = funnels[-1]
    made_lines = "\n".join(f"| {what} | {which} |" for what, which in made)
    header = ["---", *([f"license: {license_}"] if license_ else []), "tags:", "- capfilt",
              "task_categories:", "- image-to-text", "configs:", "- config_name: default",
              "  data_files: \"*.parquet\"", "---"]  # fmt: skip
    body = f"""
# Image-text pairs bootstrapped by CapFilt

{published.kept:,} images, round {published.round}, made by capfilt {__version__}
(CapFilt: Li et al., 2022, arXiv:2201.12086).

Each row is one image with its original bytes and all texts that the filter kept: web texts, and
synthetic texts written by the captioner. `texts` holds, per text, its source, the filter's match
probability (`itm_prob`; null if the filter gives none) and cosine (`itc_cos`), the captioner's
log-probability, and the key of the sample it was scored with (a removed duplicate's web text is
with the image that stands for it).

```python
from datasets import load_dataset
dataset = load_dataset("parquet", data_files="*.parquet", split="train")
```

The `.tar` files hold the same samples for WebDataset: image, `.txt` (the first text), `.json`.
`manifest.json` lists every file with its SHA-256; `funnel.json` holds the table below.

## How it was made

| what | which |
|---|---|
{made_lines}

The first two are models; the others are fields of the recipe's `select` section (and of
`score.cascade`, if there is one): how texts were chosen, and what a text had to reach.

## Where the rows went

| stage | unit | in | kept | dropped |
|---|---|---:|---:|---|
"""
    return "\n".join(header) + "\n" + body + "\n".join(map(_funnel_line, funnels)) + "\n"


def _funnel_line(funnel: Funnel) -> str:
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in funnel.dropped.items()) or "-"
    return f"| {funnel.stage} | {funnel.unit} | {funnel.rows_in:,} | {funnel.kept:,} | {dropped} |"


def _feature(field: pa.Field) -> PlanValue:
    if field.name == "image":
        return {"_type": "Image"}
    return _feature_of(field.type)


def _feature_of(kind: pa.DataType) -> PlanValue:
    if pa.types.is_struct(kind):
        return {inner.name: _feature_of(inner.type) for inner in kind}
    if pa.types.is_list(kind):
        return {"feature": _feature_of(kind.value_type), "_type": "List"}
    names = {pa.float32(): "float32", pa.string(): "string", pa.binary(): "binary",
             pa.int32(): "int32", pa.int64(): "int64", pa.bool_(): "bool"}  # fmt: skip
    return {"dtype": names[kind], "_type": "Value"}
