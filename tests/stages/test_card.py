from __future__ import annotations

import json

import yaml

from capfilt.config import check_recipe
from capfilt.io.parquet import arrow_schema
from capfilt.records import PublishedSample
from capfilt.stages.card import dataset_card, how_made, hub_metadata
from capfilt.stages.shards import Funnel
from capfilt.stages.source_notes import Source
from tests.small_run import SmallRun

RECIPE = check_recipe("r.yaml", {
    "run": "r", "input": {"shards": "0.tar"}, "caption": {"model": "c"},
    "score": {"model": "f", "cascade": {"itc_cos_drop": 0.1, "itc_cos_keep": 0.6}},
    "select": {"policy": "best", "min_itm_prob": 0.4},
})  # fmt: skip
MODEL = Source(name="m", digest="ef" * 32)
INDEX = Funnel(
    stage="index", round=1, unit="sample", shards=2, rows_in=1234, kept=1230,
    dropped={"image_missing": 3, "image_unreadable": 1},
)  # fmt: skip
PUBLISH = Funnel(
    stage="publish", round=1, unit="image", shards=2, rows_in=1230, kept=1230, dropped={}
)


MADE = [("captioner", "some/captioner"), ("min_itm_prob", "0.5")]


def header(card: str) -> dict[str, object]:
    fields = yaml.safe_load(card.split("---")[1])
    assert isinstance(fields, dict)
    return fields


def test_the_card_s_header_is_what_the_hub_reads() -> None:
    fields = header(dataset_card([INDEX, PUBLISH], made=MADE, license_="cc-by-4.0"))
    assert fields["license"] == "cc-by-4.0"
    assert fields["configs"] == [{"config_name": "default", "data_files": "*.parquet"}]


def test_a_licence_that_nobody_named_is_not_claimed() -> None:
    assert "license" not in header(dataset_card([PUBLISH], made=MADE, license_=None))


def test_the_card_says_how_many_images_and_where_the_rest_went() -> None:
    card = dataset_card([INDEX, PUBLISH], made=MADE, license_=None)
    assert "1,230 images, round 1, made by capfilt" in card
    assert "| index | sample | 1,234 | 1,230 | image_missing 3, image_unreadable 1 |" in card
    assert "| publish | image | 1,230 | 1,230 | - |" in card


def test_the_card_has_a_line_for_each_model_and_threshold() -> None:
    card = dataset_card([PUBLISH], made=MADE, license_=None)
    assert "| captioner | some/captioner |\n| min_itm_prob | 0.5 |\n" in card


def test_models_are_named_without_the_place_they_lie_in() -> None:
    sources = {
        "captioner": Source(name="Salesforce/blip-image-captioning-base", digest="ab" * 32),
        "filter": Source(name="/home/me/models/filter", digest="cd" * 32),
    }
    made = dict(how_made(RECIPE, sources, round_=0))
    assert made["captioner"] == "Salesforce/blip-image-captioning-base (digest abababababab)"
    assert made["filter"] == "filter (digest cdcdcdcdcdcd)"
    later = dict(how_made(RECIPE, sources, round_=2))
    assert later["filter"] == "filter, trained in round 1 (digest cdcdcdcdcdcd)"


def test_every_threshold_is_named_those_of_a_cascade_too() -> None:
    made = dict(how_made(RECIPE, dict.fromkeys(("captioner", "filter"), MODEL), round_=0))
    assert (made["policy"], made["min_itm_prob"]) == ("best", "0.4")
    assert made["min_itc_cos"] == "not asked"
    assert (made["itc_cos_drop"], made["itc_cos_keep"]) == ("0.1", "0.6")


def test_the_card_of_a_run_says_how_it_was_made(small_run: SmallRun) -> None:
    tables = small_run.tables()
    card = tables.of("publish").store.read("README.md").decode()
    assert f"| captioner | captioner (digest {tables.sources['captioner'].digest[:12]}) |" in card
    assert "| max_text_chars | 10000 |" in card


def test_every_published_column_has_a_feature() -> None:
    schema = arrow_schema(PublishedSample)
    features = json.loads(hub_metadata(schema)["huggingface"])["info"]["features"]
    assert list(features) == sorted(schema.names)
    assert features["image"] == {"_type": "Image"}
    assert features["texts"]["feature"]["itm_prob"] == {"dtype": "float32", "_type": "Value"}
