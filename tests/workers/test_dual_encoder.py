"""CLIP and SigLIP as the filter: their own numbers, whoever else is in the batch."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from capfilt.errors import CheckpointError
from capfilt.io.images import ImageDecoder, ImageLimits
from capfilt.workers.batches import SourceImage
from capfilt.workers.dual_encoder import DualEncoder
from capfilt.workers.protocols import ImageArray
from capfilt.workers.score import ImageToScore, ScoreWorker, load_scorer
from tests.hub_models import FILTERS, MAX_TEXT_TOKENS, SIDE_PX, write_clip

TEXTS = [["a red circle", "blue"], [], ["star " * 40], ["one", "left of", "a star above"], [""]]


@pytest.fixture(scope="module", params=FILTERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp(request.param)
    FILTERS[request.param](made)
    return made


def loaded(folder: Path) -> DualEncoder:
    return DualEncoder.from_directory(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def scorer(folder: Path) -> DualEncoder:
    return loaded(folder)


@pytest.fixture(scope="module")
def images() -> ImageArray:
    shape = (len(TEXTS), SIDE_PX, SIDE_PX, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_scores_are_those_of_the_model_itself(
    folder: Path, scorer: DualEncoder, images: ImageArray
) -> None:
    model = AutoModel.from_pretrained(folder)
    texts = AutoTokenizer.from_pretrained(folder)(
        TEXTS[3], padding="max_length", max_length=MAX_TEXT_TOKENS, return_tensors="pt"
    )
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")
    with torch.inference_mode():
        reference = model(**texts, **pixels(Image.fromarray(images[3]), return_tensors="pt"))
    found = scorer.score(images, TEXTS, batch_size=2)[3]
    cosines = torch.cosine_similarity(reference.image_embeds, reference.text_embeds)
    np.testing.assert_allclose(found.itc_cos, cosines, atol=1e-6)
    unit = torch.nn.functional.normalize(reference.image_embeds[0], dim=-1)
    np.testing.assert_allclose(found.image_vector, unit, atol=1e-6)
    if hasattr(model, "logit_bias"):
        sigmoid = reference.logits_per_image[0].sigmoid()
        np.testing.assert_allclose(np.array(found.itm_prob, float), sigmoid, atol=1e-5)
    else:
        assert list(found.itm_prob) == [None] * 3


def test_batch_mates_and_their_order_change_no_bit(scorer: DualEncoder, images: ImageArray) -> None:
    together = scorer.score(images, TEXTS, batch_size=2)
    assert scorer.score(images[::-1], TEXTS[::-1], batch_size=2)[::-1] == together
    alone = [scorer.score(images[i : i + 1], TEXTS[i : i + 1], batch_size=2)[0] for i in range(5)]
    assert alone == together


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_another_batch_size_changes_the_last_bits_at_most(
    scorer: DualEncoder, images: ImageArray, batch_size: int
) -> None:
    one = scorer.score(images, TEXTS, batch_size=2)
    other = scorer.score(images, TEXTS, batch_size=batch_size)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.itc_cos, b.itc_cos, atol=1e-6)


def test_an_image_without_texts_has_its_vector(scorer: DualEncoder, images: ImageArray) -> None:
    nothing = scorer.score(images, [[]] * len(images), batch_size=2)
    some = scorer.score(images, TEXTS, batch_size=2)
    assert [found.image_vector for found in nothing] == [found.image_vector for found in some]
    assert {len(found.itc_cos) for found in nothing} == {0}


def test_images_and_texts_both_count(scorer: DualEncoder, images: ImageArray) -> None:
    found = scorer.score(images, [["a red circle", "blue"]] * len(images), batch_size=2)
    assert len({cosine for row in found for cosine in row.itc_cos}) == 2 * len(images)


def test_a_long_text_is_read_as_far_as_the_model_can_and_counted_whole(
    tmp_path: Path, images: ImageArray
) -> None:
    write_clip(tmp_path)
    texts = [["star " * 40, "star " * 30]]
    [found] = loaded(tmp_path).score(images[:1], texts, batch_size=2)
    assert list(found.num_tokens) == [40, 30]
    assert found.itc_cos[0] == found.itc_cos[1]


def test_clip_sees_the_middle_that_transformers_would_show_it(tmp_path: Path) -> None:
    write_clip(tmp_path, scaled_px=40)  # and the middle 32 of it
    wide = np.random.default_rng(1).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(wide).save(png, "PNG")
    digest = hashlib.sha256(png.getvalue()).hexdigest()
    source = SourceImage(key="k", payload=png.getvalue(), sha256=digest)
    worker = ScoreWorker(loaded(tmp_path), ImageDecoder(ImageLimits()), batch_images=2)
    [scored] = worker([ImageToScore(key="k", read_image=lambda: source, texts=())])
    worker.close()
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    with torch.inference_mode():
        pixels = processor(Image.fromarray(wide), return_tensors="pt")
        features = AutoModel.from_pretrained(tmp_path).get_image_features(**pixels).pooler_output
    assert scored.vector is not None
    unit = torch.nn.functional.normalize(features[0], dim=-1)
    np.testing.assert_allclose(scored.vector.vector, unit, atol=1e-6)


def test_the_config_decides_which_code_scores(folder: Path, models: Path) -> None:
    def kind(directory: Path) -> str:
        scorer = load_scorer(directory, device="cpu", dtype="float32", num_threads=1)
        return type(scorer).__name__

    assert kind(folder) == "DualEncoder"
    assert kind(models / "filter") == "BlipScorer"


def test_pictures_of_any_shape_are_refused(tmp_path: Path) -> None:
    write_clip(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(file.read_text().replace('"do_center_crop": true', '"do_center_crop": false'))
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json names none: size is \{'"):
        loaded(tmp_path)
