"""Captioners of transformers: they write what transformers itself makes them write, keyed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from capfilt.errors import CheckpointError
from capfilt.io.images import ImageDecoder, ImageLimits
from capfilt.workers.batches import SourceImage
from capfilt.workers.caption import CaptionWorker, check_captioner, load_captioner
from capfilt.workers.hub_captioner import CHAT_PROMPT, HubCaptioner
from capfilt.workers.protocols import ImageArray, ImageCaptioner, Sampling
from capfilt_blip.tasks.captioner import Caption
from tests.hub_models import CAPTIONERS, SIDE_PX, write_chat, write_git, write_image_to_text

SAMPLING = Sampling(
    num_captions=1, prompt=None, top_p=0.9, top_k=0, temperature=1.0, repetition_penalty=1.0,
    min_new_tokens=1, max_new_tokens=8, batch_images=4, seed=0, round=0,
)  # fmt: skip
GREEDY = replace(SAMPLING, top_k=1)
KEYS = [f"{i:032x}" for i in range(9)]


@pytest.fixture(scope="module", params=CAPTIONERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp(request.param)
    CAPTIONERS[request.param](made)
    return made


def loaded(
    folder: Path, sampling: Sampling = SAMPLING, *, image_size_px: int | None = None
) -> ImageCaptioner:
    return load_captioner(
        folder, device="cpu", dtype="float32", num_threads=1, image_size_px=image_size_px,
        sampling=sampling,
    )  # fmt: skip


def made_by(write: Callable[[Path], None], folder: Path, **changes: object) -> Path:
    """A model whose config.json says something else."""
    write(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.fixture(scope="module")
def captioner(folder: Path) -> ImageCaptioner:
    return loaded(folder)


@pytest.fixture(scope="module")
def images() -> ImageArray:
    """Of one colour each: noise would look the same to a model everywhere."""
    colours = np.random.default_rng(0).integers(0, 256, (len(KEYS), 1, 1, 3), dtype=np.uint8)
    return np.tile(colours, (1, SIDE_PX, SIDE_PX, 1))


def written(captioner: ImageCaptioner, images: ImageArray, sampling: Sampling) -> list[Caption]:
    """The first caption of each image."""
    return [row[0] for row in captioner.caption(images, keys=KEYS, sampling=sampling)]


def texts(captioner: ImageCaptioner, images: ImageArray, sampling: Sampling) -> list[list[str]]:
    rows = captioner.caption(images, keys=KEYS, sampling=sampling)
    return [[caption.text for caption in row] for row in rows]


def greedy_by_transformers(
    folder: Path, image: np.ndarray, **options: float
) -> tuple[str, float, int]:
    """Text, log-probability and tokens of the greedy caption, by transformers alone."""
    model = AutoModelForImageTextToText.from_pretrained(folder)
    picture = Image.fromarray(image)
    image_only = model.config.model_type == "vision-encoder-decoder"
    processor = (AutoImageProcessor if image_only else AutoProcessor).from_pretrained(folder)
    if hasattr(processor, "apply_chat_template") and processor.chat_template:
        talk = [{"role": "user", "content": [{"type": "image", "image": picture},
                                             {"type": "text", "text": CHAT_PROMPT}]}]  # fmt: skip
        inputs = processor.apply_chat_template(
            talk, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    elif model.config.model_type == "blip-2":
        inputs = processor(images=picture, text="", return_tensors="pt")
    else:
        inputs = {"pixel_values": processor(images=picture, return_tensors="pt").pixel_values}
    ran = model.generate(
        **inputs, do_sample=False, max_new_tokens=8, return_dict_in_generate=True,
        output_logits=True, **options,
    )  # fmt: skip
    logprobs = torch.cat([step.log_softmax(-1) for step in ran.logits])
    written = ran.sequences[0, -len(ran.logits) :]
    logprob = logprobs.gather(1, written[:, None]).sum()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer.decode(written, skip_special_tokens=True), float(logprob), len(written)


@pytest.mark.parametrize(
    "options", [{"min_new_tokens": 1}, {"min_new_tokens": 3, "repetition_penalty": 1.5}]
)
def test_the_likeliest_tokens_are_those_of_transformers(
    folder: Path, captioner: ImageCaptioner, images: ImageArray, options: dict[str, float]
) -> None:
    rows = captioner.caption(images, keys=KEYS, sampling=replace(GREEDY, **options))
    for row, image in zip(rows[:3], images, strict=False):
        text, logprob, num_tokens = greedy_by_transformers(folder, image, **options)
        assert (row[0].text, row[0].num_tokens) == (text, num_tokens)
        assert row[0].logprob == pytest.approx(logprob, abs=1e-4)


def test_batch_mates_and_their_order_change_no_bit(
    captioner: ImageCaptioner, images: ImageArray
) -> None:
    together = captioner.caption(images, keys=KEYS, sampling=SAMPLING)
    backwards = captioner.caption(images[::-1], keys=KEYS[::-1], sampling=SAMPLING)
    assert list(backwards)[::-1] == list(together)
    alone = captioner.caption(images[4:5], keys=KEYS[4:5], sampling=SAMPLING)
    assert alone[0] == together[4]
    assert len({row[0].text for row in together}) == len(KEYS)


def test_any_batch_size_writes_the_same_texts(
    captioner: ImageCaptioner, images: ImageArray
) -> None:
    by_size = [
        texts(captioner, images, replace(SAMPLING, batch_images=size)) for size in range(2, 9)
    ]
    assert all(found == by_size[0] for found in by_size)


def test_the_image_the_key_and_the_seed_each_change_what_is_written(
    captioner: ImageCaptioner, images: ImageArray
) -> None:
    before = written(captioner, images, SAMPLING)
    assert written(captioner, images[::-1], SAMPLING) != before
    assert texts(captioner, images, replace(SAMPLING, seed=1)) != [[c.text] for c in before]
    assert texts(captioner, images, replace(SAMPLING, round=1)) != [[c.text] for c in before]


def test_the_first_captions_do_not_depend_on_how_many_follow(
    captioner: ImageCaptioner, images: ImageArray
) -> None:
    one = captioner.caption(images, keys=KEYS, sampling=SAMPLING)
    three = captioner.caption(images, keys=KEYS, sampling=replace(SAMPLING, num_captions=3))
    assert [list(row[:1]) for row in three] == [list(row) for row in one]
    assert all(len({caption.text for caption in row}) > 1 for row in three)


def test_no_text_is_shorter_than_asked_for(captioner: ImageCaptioner, images: ImageArray) -> None:
    long = replace(SAMPLING, min_new_tokens=7)
    rows = captioner.caption(images, keys=KEYS, sampling=long)
    assert {caption.num_tokens for row in rows for caption in row} == {8}


def test_the_global_generator_plays_no_part(captioner: ImageCaptioner, images: ImageArray) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    texts(captioner, images, SAMPLING)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_checkpoint_s_own_settings_of_generation_are_left_aside(
    folder: Path, captioner: ImageCaptioner, images: ImageArray, tmp_path: Path
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = tmp_path / "generation_config.json"
    ours = {"do_sample": True, "temperature": 9.0, "top_k": 3, "max_length": 2,
            "repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "num_beams": 3}  # fmt: skip
    settings.write_text(json.dumps(json.loads(settings.read_text()) | ours))
    assert texts(loaded(tmp_path), images, SAMPLING) == texts(captioner, images, SAMPLING)


@pytest.mark.parametrize("name", ["git", "blip-2", "chat"])
def test_a_prompt_changes_what_is_written(name: str, images: ImageArray, tmp_path: Path) -> None:
    CAPTIONERS[name](tmp_path)
    captioner = loaded(tmp_path)
    asked = replace(GREEDY, prompt="two yellow")
    assert written(captioner, images, asked) != written(captioner, images, GREEDY)


def test_a_text_goes_on_from_its_prompt(images: ImageArray, tmp_path: Path) -> None:
    write_git(tmp_path)
    captioner = loaded(tmp_path)
    whole = texts(captioner, images, GREEDY)[0][0].split()
    assert len(whole) > 3
    prompt = " ".join(whole[:2])
    rest = texts(captioner, images, replace(GREEDY, prompt=prompt))[0][0].split()
    assert rest[: len(whole) - 2] == whole[2:]


def test_git_sees_the_middle_of_a_picture(tmp_path: Path) -> None:
    write_git(tmp_path)
    captioner = loaded(tmp_path)
    wide = np.zeros((SIDE_PX, 3 * SIDE_PX, 3), np.uint8)
    middle = wide[:, SIDE_PX:-SIDE_PX]
    middle[..., 0] = 255
    png = io.BytesIO()
    Image.fromarray(wide).save(png, "PNG")
    digest = hashlib.sha256(png.getvalue()).hexdigest()
    worker = CaptionWorker(captioner, ImageDecoder(ImageLimits()), SAMPLING)
    [[row]] = worker([SourceImage(key="k", payload=png.getvalue(), sha256=digest)])
    worker.close()
    [[expected]] = captioner.caption(middle[None], keys=["k"], sampling=SAMPLING)
    assert (row.text, row.logprob) == (expected.text, expected.logprob)


def test_a_model_without_words_for_the_prompt_refuses_one() -> None:
    with pytest.raises(CheckpointError) as refused:
        check_captioner("some/vit-gpt2", "vision-encoder-decoder", prompt="a picture of ")
    assert str(refused.value) == (
        "some/vit-gpt2: a model of type 'vision-encoder-decoder' reads the image alone; "
        "caption.prompt is 'a picture of ': set caption.prompt: null"
    )


def test_a_model_that_cannot_caption_is_refused_with_some_that_can() -> None:
    with pytest.raises(CheckpointError, match=r"some/clip: a model of type 'clip' cannot be the"):
        check_captioner("some/clip", "clip", prompt=None)
    for model_type in ("blip", "git", "blip-2", "qwen2_vl", "paligemma", None):
        check_captioner("some/model", model_type, prompt="a")


def test_a_model_for_pictures_of_any_shape_needs_a_size(images: ImageArray, tmp_path: Path) -> None:
    write_git(tmp_path)
    file = tmp_path / "processor_config.json"
    file.write_text(file.read_text().replace('"do_center_crop": true', '"do_center_crop": false'))
    with pytest.raises(CheckpointError, match=r"set caption\.image_size_px to a side in pixels"):
        loaded(tmp_path)
    captioner = loaded(tmp_path, image_size_px=SIDE_PX)
    assert (captioner.image_size_px, captioner.fit.crop_from_px) == (SIDE_PX, None)
    assert all(texts(captioner, images, SAMPLING))


def test_a_caption_that_has_no_room_is_refused_before_the_first(tmp_path: Path) -> None:
    write_image_to_text(tmp_path)
    with pytest.raises(CheckpointError, match=r"room for 63 tokens; caption\.max_new_tokens is 64"):
        loaded(tmp_path, replace(SAMPLING, max_new_tokens=64))


def test_a_model_that_cannot_be_run_is_refused_before_the_first_caption(tmp_path: Path) -> None:
    write_chat(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no images, please') }}")
    with pytest.raises(CheckpointError, match=r"cannot be used with transformers: .*no images"):
        loaded(tmp_path)


def test_weights_must_be_safetensors(tmp_path: Path) -> None:
    write_git(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be loaded with transformers: OSError"):
        loaded(tmp_path)


def test_a_file_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    folder = made_by(write_git, tmp_path, num_hidden_layers=2)
    with pytest.raises(CheckpointError, match=r"weights of GitForCausalLM are not in the file, th"):
        loaded(folder)


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "code.py").write_text(f"open({str(ran)!r}, 'w').close()")
    folder = made_by(
        write_git, tmp_path, auto_map={"AutoModelForImageTextToText": "code.GitForCausalLM"}
    )
    assert isinstance(loaded(folder), HubCaptioner)
    assert not ran.exists()
