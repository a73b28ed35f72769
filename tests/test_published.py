"""What other programs make of what we write: the promises about files, kept by their readers."""

from __future__ import annotations

import gc
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch
import webdataset
from datasets import load_dataset
from transformers import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipProcessor,
)

from capfilt.records import PublishedSample
from tests.small_run import SmallRun, rows_of, training


@pytest.fixture(scope="module")
def dataset(small_run: SmallRun) -> Path:
    """The folder of the published files."""
    return Path(small_run.tables().of("publish").store.url)


@pytest.fixture(scope="module")
def rows(small_run: SmallRun) -> dict[str, PublishedSample]:
    return {row.key: row for row in rows_of(small_run.tables(), "publish", PublishedSample)}


def test_datasets_decodes_images_and_texts(
    dataset: Path, rows: dict[str, PublishedSample], tmp_path: Path
) -> None:
    loaded = load_dataset(
        "parquet", data_files=f"{dataset}/*.parquet", split="train", cache_dir=str(tmp_path)
    )
    assert loaded.num_rows == len(rows)
    for found in loaded:
        row = rows[found["key"]]
        assert found["image"].size == (row.width_px, row.height_px)
        assert [text["text"] for text in found["texts"]] == [text.text for text in row.texts]
        assert found["texts"][0]["itm_prob"] == pytest.approx(row.texts[0].itm_prob)


def test_datasets_finds_the_files_by_the_card(dataset: Path, tmp_path: Path) -> None:
    loaded = load_dataset(str(dataset), split="train", cache_dir=str(tmp_path))
    assert loaded.num_rows == 17


def test_duckdb_reads_texts_and_lineage(dataset: Path, rows: dict[str, PublishedSample]) -> None:
    query = f"""
        select key, text.text, text.from_key, octet_length(image.bytes)
        from (select key, image, unnest(texts) as text from '{dataset}/*.parquet')
    """
    found = set(duckdb.sql(query).fetchall())
    assert found == {
        (row.key, text.text, text.from_key, len(row.image.bytes))
        for row in rows.values()
        for text in row.texts
    }


# It leaves its files to the garbage collector, so that is made to run here.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_decodes_the_tars(dataset: Path, rows: dict[str, PublishedSample]) -> None:
    tars = sorted(str(path) for path in dataset.glob("*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    gc.collect()
    assert {sample["__key__"] for sample in samples} == set(rows)
    for sample in samples:
        row = rows[sample["__key__"]]
        [image] = [sample[e] for e in ("jpg", "png", "gif") if e in sample]
        if not isinstance(image, bytes):  # gif is none of the formats it decodes
            assert image.shape == (row.height_px, row.width_px, 3)
        assert sample["txt"] == row.texts[0].text
        assert sample["json"]["image_sha256"] == row.image_sha256


# In a process of its own: this one may hold the cluster of other tests.
READ_WITH_RAY = """
import hashlib, json, sys
import ray.data
ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80_000_000)
rows = ray.data.read_parquet(sys.argv[1], file_extensions=["parquet"]).take_all()
found = {row["key"]: hashlib.sha256(row["image"]["bytes"]).hexdigest() for row in rows}
ray.shutdown()
print(json.dumps(found))
"""


@pytest.mark.slow
def test_ray_data_reads_the_parquet_files(dataset: Path, rows: dict[str, PublishedSample]) -> None:
    command = [sys.executable, "-c", READ_WITH_RAY, str(dataset)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout.splitlines()[-1]) == {
        row.key: row.image_sha256 for row in rows.values()
    }


def test_transformers_loads_the_trained_captioner(two_rounds: SmallRun) -> None:
    folder = trained(two_rounds) / "captioner"
    model = BlipForConditionalGeneration.from_pretrained(folder).eval()
    processor = BlipProcessor.from_pretrained(folder)
    image = np.zeros((32, 32, 3), np.uint8)
    inputs = processor(images=image, text="a picture of", return_tensors="pt")
    generated = model.generate(**inputs, max_new_tokens=4)
    assert processor.decode(generated[0], skip_special_tokens=True).startswith("a picture of")


def test_transformers_loads_the_trained_filter(two_rounds: SmallRun) -> None:
    folder = trained(two_rounds) / "filter"
    model = BlipForImageTextRetrieval.from_pretrained(folder).eval()
    processor = BlipProcessor.from_pretrained(folder)
    image = np.zeros((32, 32, 3), np.uint8)
    inputs = processor(images=image, text="a red circle", return_tensors="pt")
    with torch.no_grad():
        assert model(**inputs).itm_score.shape == (1, 2)


def trained(run: SmallRun) -> Path:
    return Path(run.tables(train=training(run.web)).of("train").store.url)


def test_the_manifest_is_enough_to_check_the_files(dataset: Path) -> None:
    for entry in json.loads((dataset / "manifest.json").read_text())["files"]:
        payload = (dataset / entry["path"]).read_bytes()
        assert (len(payload), hashlib.sha256(payload).hexdigest()) == (
            entry["bytes"], entry["sha256"]
        )  # fmt: skip
