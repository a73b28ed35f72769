from __future__ import annotations

import json

import yaml

from capfilt.io.parquet import arrow_schema
from capfilt.records import PublishedSample
from capfilt.stages.card import dataset_card, hub_metadata
from capfilt.stages.shards import Funnel

INDEX = Funnel(
    stage="index", round=1, unit="sample", shards=2, rows_in=1234, kept=1230,
    dropped={"image_missing": 3, "image_unreadable": 1},
)  # fmt: skip
PUBLISH = Funnel(
    stage="publish", round=1, unit="image", shards=2, rows_in=1230, kept=1230, dropped={}
)


def header(card: str) -> dict[str, object]:
    fields = yaml.safe_load(card.split("---")[1])
    assert isinstance(fields, dict)
    return fields


def test_the_card_s_header_is_what_the_hub_reads() -> None:
    fields = header(dataset_card([INDEX, PUBLISH], license_="cc-by-4.0"))
    assert fields["license"] == "cc-by-4.0"
    assert fields["configs"] == [{"config_name": "default", "data_files": "*.parquet"}]


def test_a_licence_that_nobody_named_is_not_claimed() -> None:
    assert "license" not in header(dataset_card([PUBLISH], license_=None))


def test_the_card_says_how_many_images_and_where_the_rest_went() -> None:
    card = dataset_card([INDEX, PUBLISH], license_=None)
    assert "1,230 images, round 1, made by capfilt" in card
    assert "| index | sample | 1,234 | 1,230 | image_missing 3, image_unreadable 1 |" in card
    assert "| publish | image | 1,230 | 1,230 | - |" in card


def test_every_published_column_has_a_feature() -> None:
    schema = arrow_schema(PublishedSample)
    features = json.loads(hub_metadata(schema)["huggingface"])["info"]["features"]
    assert list(features) == sorted(schema.names)
    assert features["image"] == {"_type": "Image"}
    assert features["texts"]["feature"]["itm_prob"] == {"dtype": "float32", "_type": "Value"}
