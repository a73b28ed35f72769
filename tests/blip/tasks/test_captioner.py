from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from capfilt_blip.attention import Memory
from capfilt_blip.blip import BlipCaptioner
from capfilt_blip.checkpoint import save_model
from capfilt_blip.decode import Limits, generate_greedy
from capfilt_blip.tasks.captioner import Caption, Captioner
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import normalise

Pixels = NDArray[np.uint8]
KEYS = [f"sample-{i}" for i in range(9)]


@pytest.fixture
def writer(captioner: BlipCaptioner, tokenizer: Tokenizer) -> Captioner:
    return Captioner(captioner, tokenizer)


@torch.no_grad()
def memory_of(captioner: BlipCaptioner, images: Pixels) -> Memory:
    pixels = normalise(torch.from_numpy(images))
    return captioner.text_decoder.project_memory(captioner.vision(pixels))


def texts(captions: list[list[Caption]]) -> list[list[str]]:
    return [[caption.text for caption in of_image] for of_image in captions]


def test_captions_do_not_depend_on_order(writer: Captioner, images: Pixels) -> None:
    order = np.random.default_rng(3).permutation(9)
    plain = writer.caption(images, keys=KEYS, num_captions=2, batch_size=4)
    shuffled = writer.caption(
        images[order], keys=[KEYS[i] for i in order], num_captions=2, batch_size=4
    )
    assert shuffled == [plain[i] for i in order]


def test_captions_do_not_depend_on_neighbours(writer: Captioner, images: Pixels) -> None:
    plain = writer.caption(images, keys=KEYS, batch_size=4)
    alone = [writer.caption(images[i, None], keys=[KEYS[i]], batch_size=4)[0] for i in range(9)]
    among_others = writer.caption(
        np.concatenate([255 - images[:3], images[4:5]]), keys=["x", "y", "z", KEYS[4]], batch_size=4
    )
    assert alone == plain
    assert among_others[3] == plain[4]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8, 16, 32, 64])
def test_texts_do_not_depend_on_the_batch_size(
    writer: Captioner, images: Pixels, batch_size: int
) -> None:
    expected = writer.caption(images, keys=KEYS, num_captions=2, batch_size=4)
    found = writer.caption(images, keys=KEYS, num_captions=2, batch_size=batch_size)
    assert texts(found) == texts(expected)
    logprobs = [
        [c.logprob for of_image in captions for c in of_image] for captions in (found, expected)
    ]
    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-3)


def test_more_captions_of_an_image_leave_the_first_as_they_were(
    writer: Captioner, images: Pixels
) -> None:
    two, four = (writer.caption(images, num_captions=n) for n in (2, 4))
    assert [of_image[:2] for of_image in texts(four)] == texts(two)
    assert all(len(set(of_image)) == 4 for of_image in texts(four))


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"round_": 1}, {"keys": [f"b{i}" for i in range(9)]}]
)
def test_seed_round_and_key_each_change_the_captions(
    writer: Captioner, images: Pixels, other: dict[str, object]
) -> None:
    plain = writer.caption(images, keys=KEYS)
    changed = writer.caption(images, **{"keys": KEYS, **other})  # type: ignore[arg-type]
    assert all(a != b for a, b in zip(texts(plain), texts(changed), strict=True))


def test_the_image_steers_the_text(writer: Captioner, images: Pixels) -> None:
    plain, inverted = writer.caption(images), writer.caption(255 - images)
    assert all(a != b for a, b in zip(texts(plain), texts(inverted), strict=True))


def test_the_prompt_steers_the_text_and_is_not_in_it(writer: Captioner, images: Pixels) -> None:
    with_prompt, without = writer.caption(images), writer.caption(images, prompt="")
    assert texts(with_prompt) != texts(without)
    assert not any(text.startswith("a picture of") for [text] in texts(with_prompt))


@pytest.mark.parametrize("prompt", ["a picture of ", "", "two small"])
def test_captions_with_and_without_a_prompt_are_what_the_model_says_after_it(
    writer: Captioner, captioner: BlipCaptioner, tokenizer: Tokenizer, images: Pixels, prompt: str
) -> None:
    memory = memory_of(captioner, images[:2])
    options = {"min_new_tokens": 0, "max_new_tokens": 6}
    generated = generate_greedy(
        captioner, memory, prompt_ids=tokenizer.prompt_ids(prompt), limits=Limits(**options)
    )
    expected = [tokenizer.decode(ids).strip() for ids in generated.token_ids]
    greedy = writer.greedy(images[:2], prompt=prompt, batch_size=2, **options)
    assert [caption.text for caption in greedy] == expected
    one_beam = writer.beam(images[:2], prompt=prompt, num_beams=1, batch_size=2, **options)
    assert [caption.text for caption in one_beam] == expected
    near_greedy = writer.caption(images[:2], prompt=prompt, top_p=1e-6, batch_size=2, **options)
    assert texts(near_greedy) == [[text] for text in expected]


def test_beams_need_no_key_and_do_not_depend_on_neighbours(
    writer: Captioner, images: Pixels
) -> None:
    together = writer.beam(images, batch_size=4)
    assert [writer.beam(images[i, None], batch_size=4)[0] for i in range(9)] == together
    assert writer.beam(images[::-1], batch_size=4)[::-1] == together
    assert len({caption.text for caption in together}) > 1


def test_beams_find_likelier_captions_than_greedy(writer: Captioner, images: Pixels) -> None:
    beams, greedy = writer.beam(images, max_new_tokens=8), writer.greedy(images, max_new_tokens=8)
    assert sum(c.logprob for c in beams) > sum(c.logprob for c in greedy)


@pytest.mark.parametrize("how", ["caption", "greedy", "beam"])
def test_lengths_count_new_tokens_and_not_the_prompt(
    writer: Captioner, captioner: BlipCaptioner, tokenizer: Tokenizer, images: Pixels, how: str
) -> None:
    for bias, expected in ((1e4, 4), (-1e4, 7)):
        captioner.lm_head.bias.data[tokenizer.sep_id] = bias
        found = getattr(writer, how)(images[:1], min_new_tokens=3, max_new_tokens=7)[0]
        assert (found[0] if how == "caption" else found).num_tokens == expected


def test_greedy_needs_no_key_and_does_not_depend_on_neighbours(
    writer: Captioner, images: Pixels
) -> None:
    together = writer.greedy(images, batch_size=4)
    assert [writer.greedy(images[i, None], batch_size=4)[0] for i in range(9)] == together
    assert len({caption.text for caption in together}) > 1


def test_arrays_tensors_and_pil_images_are_the_same(writer: Captioner, images: Pixels) -> None:
    expected = writer.caption(images)
    assert writer.caption(torch.from_numpy(images)) == expected
    assert writer.caption([Image.fromarray(image) for image in images]) == expected


def test_no_images_have_no_captions(writer: Captioner, images: Pixels) -> None:
    assert writer.caption(images[:0]) == []
    assert writer.greedy(images[:0]) == []
    assert writer.beam(images[:0]) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_lower_precision_is_deterministic(
    captioner: BlipCaptioner, tokenizer: Tokenizer, images: Pixels, dtype: str
) -> None:
    writer = Captioner(captioner, tokenizer, dtype=dtype)  # type: ignore[arg-type]
    assert writer.caption(images[::-1], keys=KEYS[::-1])[::-1] == writer.caption(images, keys=KEYS)
    assert writer.beam(images[::-1])[::-1] == writer.beam(images)


# The weights are random and large, and so are the errors; these are about twice what was measured.
@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 0.25), ("float16", 0.03)])
def test_a_lower_precision_gives_nearly_the_same_logits(
    captioner: BlipCaptioner, tokenizer: Tokenizer, images: Pixels, dtype: str, error: float
) -> None:
    ids = torch.randint(5, 60, (9, 8))
    mask = torch.ones_like(ids, dtype=torch.bool)
    pixels = normalise(torch.from_numpy(images))
    with torch.no_grad():
        full = captioner(pixels, ids, mask).log_softmax(-1)
        Captioner(captioner, tokenizer, dtype=dtype)  # type: ignore[arg-type]
        lower = captioner(pixels, ids, mask).float().log_softmax(-1)
    likely = full > full.max(-1, keepdim=True).values - 5
    assert 0 < (lower - full)[likely].abs().mean() < error


def test_it_is_loaded_with_a_tokenizer_from_elsewhere(
    captioner: BlipCaptioner, tokenizer: Tokenizer, images: Pixels, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", model=captioner, tokenizer=tokenizer)
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / "model" / name).rename(tmp_path / name)
    loaded = Captioner.from_pretrained(tmp_path / "model", tokenizer=tmp_path)
    assert loaded.image_size_px == 32
    assert loaded.beam(images) == Captioner(captioner, tokenizer).beam(images)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_gpu_writes_and_its_texts_do_not_depend_on_neighbours(
    captioner: BlipCaptioner, tokenizer: Tokenizer, images: Pixels, dtype: str
) -> None:
    writer = Captioner(captioner, tokenizer, device="cuda", dtype=dtype)  # type: ignore[arg-type]
    for write in (writer.greedy, writer.beam, writer.caption):
        together = write(images, batch_size=4)
        assert write(images[:1], batch_size=4) == together[:1]


def test_keys_and_images_must_be_as_many(writer: Captioner, images: Pixels) -> None:
    with pytest.raises(ValueError, match="2 keys were given for 9 images"):
        writer.caption(images, keys=["a", "b"])


def test_an_unknown_dtype_is_refused(captioner: BlipCaptioner, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="dtype is 'half'; it must be one of float32, bfloat16"):
        Captioner(captioner, tokenizer, dtype="half")  # type: ignore[arg-type]
