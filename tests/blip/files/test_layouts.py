"""Original checkpoints: each tensor gets to its place, by name and by what the model computes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from capfilt_blip import checkpoint
from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.checkpoint import CheckpointError
from capfilt_blip.config import BlipConfig
from capfilt_blip.files.hf_names import stored_tensors
from capfilt_blip.files.layouts import for_task, recognise
from capfilt_blip.files.shapes import config_of
from capfilt_blip.grounding import BlipGrounding
from capfilt_blip.nlvr import BlipNlvr
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.vqa import BlipVqa
from tests.blip import original, original_files
from tests.blip.original_files import Shapes, Size, as_mmpretrain, filled, on_meta

Build = Callable[[Size], Shapes]

LOADERS = {
    original_files.caption: "captioner",
    original_files.retrieval: "matcher",
    original_files.pretrain: "blip",
    original_files.vqa: "vqa",
    original_files.nlvr: "nlvr",
    original_files.grounding: "grounding",
}
MODELS: dict[Build, type[Any]] = {
    original_files.caption: BlipCaptioner,
    original_files.retrieval: BlipMatcher,
    original_files.pretrain: Blip,
    original_files.vqa: BlipVqa,
    original_files.nlvr: BlipNlvr,
    original_files.grounding: BlipGrounding,
}
NAMES = {
    original_files.caption: "captioner",
    original_files.retrieval: "matcher",
    original_files.pretrain: "pre-training model",
    original_files.vqa: "VQA model",
    original_files.nlvr: "NLVR2 model",
    original_files.grounding: "grounding model",
}
PLACE = Path("model.pth")
ORIGINALS = [of for of in LOADERS if of is not original_files.grounding]
MMPRETRAIN = [of for of in LOADERS if of is not original_files.pretrain]


def written(
    folder: Path, weights: dict[str, Tensor], tokenizer: Tokenizer, *, key: str = "model"
) -> Path:
    tokenizer.save(folder)
    torch.save({key: weights, "epoch": 3}, folder / "model.pth")
    return folder / "model.pth"


@cache
def bert_sized_tokenizer() -> Tokenizer:
    """30,522 tokens, with the special ones where bert-base-uncased has them."""
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    return Tokenizer({special.get(index, f"[unused{index}]"): index for index in range(30522)})


def load(path: Path, of: Build) -> Any:
    return getattr(checkpoint, f"load_{LOADERS[of]}")(path)[0]


def inputs(tokenizer: Tokenizer, *, first: int, side_px: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    # Coarse patterns: in large images fine noise looks alike to a random model.
    coarse = torch.randn(2, 3, 6, 6, generator=generator)
    pixels = coarse.repeat_interleave(side_px // 6, 2).repeat_interleave(side_px // 6, 3)
    ids = torch.randint(5, tokenizer.vocab_size - 2, (2, 7), generator=generator)
    ids[:, 0] = first
    return pixels, ids, torch.ones_like(ids, dtype=torch.bool)


def close(found: Tensor, expected: Tensor) -> None:
    assert expected.std(0).max() > 0.02  # the two rows of the batch differ
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def check_captioner(
    model: BlipCaptioner, weights: dict[str, Tensor], words: Tokenizer, *, side_px: int
) -> None:
    pixels, ids, mask = inputs(words, first=words.dec_id, side_px=side_px)
    close(model(pixels, ids, mask), original.caption_logits(weights, pixels, ids))


def check_matcher(
    model: BlipMatcher, weights: dict[str, Tensor], words: Tokenizer, *, side_px: int
) -> None:
    pixels, ids, mask = inputs(words, first=words.enc_id, side_px=side_px)
    embeds = model.vision(pixels)
    memory = model.text_encoder.project_memory(embeds)
    close(model.itm_logits(ids, mask, memory), original.itm_logits(weights, pixels, ids))
    image, text = original.itc_vectors(weights, pixels, ids)
    close(model.image_vectors(embeds), image)
    close(model.text_vectors(ids, mask), text)


def check_blip(model: Blip, weights: dict[str, Tensor], words: Tokenizer, *, side_px: int) -> None:
    check_captioner(model.captioning(), weights, words, side_px=side_px)
    check_matcher(model.matching(), weights, words, side_px=side_px)
    assert model.temp == weights["temp"]
    assert model.text_encoder.embeddings is model.text_decoder.embeddings


def check_vqa(
    model: BlipVqa, weights: dict[str, Tensor], words: Tokenizer, *, side_px: int
) -> None:
    pixels, questions, mask = inputs(words, first=words.enc_id, side_px=side_px)
    answers = questions[:, :4].flip(1)
    memory = model.text_encoder.project_memory(model.vision(pixels))
    found = model.lm_logits(answers, mask[:, :4], model.read_questions(questions, mask, memory))
    close(found, original.vqa_logits(weights, pixels, questions, answers))


def check_nlvr(
    model: BlipNlvr, weights: dict[str, Tensor], words: Tokenizer, *, side_px: int
) -> None:
    left, ids, mask = inputs(words, first=words.enc_id, side_px=side_px)
    right = left.flip(3)
    close(model(left, right, ids, mask), original.nlvr_logits(weights, left, right, ids))


def check_grounding(
    model: BlipGrounding, weights: dict[str, Tensor], words: Tokenizer, *, side_px: int
) -> None:
    pixels, phrases, mask = inputs(words, first=words.cls_id, side_px=side_px)
    box = phrases[:, :4].flip(1)
    memory = model.read_phrases(phrases, mask, model.see(pixels))
    hidden = model.text_decoder.decode(box, mask[:, :4], memory)
    expected = original.grounding_logits(weights, pixels, phrases, box)
    close(model.token_logits(hidden), expected)


CHECKS: dict[Build, Callable[..., None]] = {
    original_files.caption: check_captioner,
    original_files.retrieval: check_matcher,
    original_files.pretrain: check_blip,
    original_files.vqa: check_vqa,
    original_files.nlvr: check_nlvr,
    original_files.grounding: check_grounding,
}


@torch.no_grad()
@pytest.mark.parametrize("vision_width", [128, 192])
@pytest.mark.parametrize("of", ORIGINALS, ids=lambda of: of.__name__)
def test_a_loaded_original_computes_what_the_original_does(
    tmp_path: Path, tokenizer: Tokenizer, of: Build, vision_width: int
) -> None:
    size = original_files.tiny(vocab_size=tokenizer.vocab_size, vision_width=vision_width)
    weights = filled(of(size))
    model = load(written(tmp_path, weights, tokenizer), of)
    CHECKS[of](model, weights, tokenizer, side_px=24)


@torch.no_grad()
@pytest.mark.parametrize("of", MMPRETRAIN, ids=lambda of: of.__name__)
def test_a_loaded_mmpretrain_checkpoint_computes_what_the_original_does(
    tmp_path: Path, tokenizer: Tokenizer, of: Build
) -> None:
    weights = filled(of(original_files.tiny(vocab_size=tokenizer.vocab_size)))
    path = written(tmp_path, as_mmpretrain(weights, of), tokenizer, key="state_dict")
    CHECKS[of](load(path, of), weights, tokenizer, side_px=24)


@torch.no_grad()
def test_halves_of_a_pre_trained_blip_are_captioner_and_matcher(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    of = original_files.pretrain
    weights = filled(of(original_files.tiny(vocab_size=tokenizer.vocab_size)))
    path = written(tmp_path, weights, tokenizer)
    check_captioner(checkpoint.load_captioner(path)[0], weights, tokenizer, side_px=24)
    check_matcher(checkpoint.load_matcher(path)[0], weights, tokenizer, side_px=24)
    saved = tmp_path / "ours"
    checkpoint.save_model(saved, model=load(path, of), tokenizer=tokenizer)
    check_captioner(checkpoint.load_captioner(saved)[0], weights, tokenizer, side_px=24)
    check_matcher(checkpoint.load_matcher(saved)[0], weights, tokenizer, side_px=24)


def converted(name: str) -> str:
    """The substitutions of transformers' own converter, convert_blip_original_pytorch_to_hf.py."""
    for old, new in (
        ("visual_encoder", "vision_model.encoder"),
        ("blocks", "layers"),
        (".attn.", ".self_attn."),
        ("norm1", "layer_norm1"),
        ("norm2", "layer_norm2"),
        ("encoder.norm.", "post_layernorm."),
        ("encoder.patch_embed.proj", "embeddings.patch_embedding"),
        ("encoder.pos_embed", "embeddings.position_embedding"),
        ("encoder.cls_token", "embeddings.class_embedding"),
        ("self_attn.proj.", "self_attn.projection."),
    ):
        name = name.replace(old, new)
    return name


@pytest.mark.parametrize("of", ORIGINALS, ids=lambda of: of.__name__)
def test_saved_again_each_tensor_has_the_name_that_transformers_converter_gives(
    tmp_path: Path, tokenizer: Tokenizer, of: Build
) -> None:
    weights = filled(of(original_files.tiny(vocab_size=tokenizer.vocab_size)))
    model = load(written(tmp_path, weights, tokenizer), of)
    checkpoint.save_model(tmp_path / "ours", model=model, tokenizer=tokenizer)
    stored = load_file(tmp_path / "ours/model.safetensors")
    expected = {converted(name): tensor for name, tensor in weights.items()}
    for name, tensor in stored.items():
        assert torch.equal(tensor, expected.pop(name)), name
    left_out = ("_m.", "queue", "position_ids", "predictions.decoder.")
    left_out += ("temp",) if of is original_files.retrieval else ()
    for name in expected:
        tied = of is original_files.pretrain and name.startswith("text_encoder.")
        assert tied or any(part in name for part in left_out), name


@pytest.mark.parametrize("of", LOADERS, ids=lambda of: of.__name__)
@pytest.mark.parametrize("other", LOADERS, ids=lambda of: of.__name__)
def test_a_task_is_refused_with_the_name_of_the_function_that_reads_it(
    tmp_path: Path, tokenizer: Tokenizer, of: Build, other: Build
) -> None:
    halves = (original_files.caption, original_files.retrieval)
    if of is other or (of is original_files.pretrain and other in halves):
        return
    weights = filled(of(original_files.tiny(vocab_size=tokenizer.vocab_size)))
    if of is original_files.grounding:
        weights = as_mmpretrain(weights, of)
    path = written(tmp_path, weights, tokenizer)
    with pytest.raises(
        CheckpointError, match=f", a {NAMES[of]}, which load_{LOADERS[of]} .*reads;"
    ) as caught:
        load(path, other)
    assert str(caught.value).endswith(f"a {NAMES[other]} is due")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [original_files.BASE, original_files.LARGE], ids=["base", "large"])
@pytest.mark.parametrize("of", ORIGINALS, ids=lambda of: of.__name__)
def test_names_and_shapes_of_full_size_are_those_of_our_models(of: Build, size: Size) -> None:
    contents = recognise(on_meta(of(size)), place=PLACE)
    config = config_of(contents.weights, tokenizer=bert_sized_tokenizer(), place=PLACE)
    weights = for_task(contents.weights, trained_for=contents.task, task=contents.task, place=PLACE)
    assert config == (BlipConfig.base() if size is original_files.BASE else BlipConfig.large())
    with torch.device("meta"):
        model = MODELS[of](config)
    parameters = {name: weight.shape for name, weight in stored_tensors(model).items()}
    assert {name: tensor.shape for name, tensor in weights.items()} == parameters


@pytest.mark.parametrize(
    ("of", "size", "architecture", "num_tensors"),
    [
        # Of a state dict of transformers 5.23, which shows both tied tensors of the LM head twice.
        (original_files.caption, original_files.BASE, "BlipForConditionalGeneration", 473),
        (original_files.caption, original_files.LARGE, "BlipForConditionalGeneration", 617),
        (original_files.vqa, original_files.BASE, "BlipForQuestionAnswering", 789),
        (original_files.retrieval, original_files.BASE, "BlipForImageTextRetrieval", 472),
        (original_files.retrieval, original_files.LARGE, "BlipForImageTextRetrieval", 616),
    ],
)
def test_names_and_shapes_of_full_size_are_those_of_transformers(
    of: Build, size: Size, architecture: str, num_tensors: int
) -> None:
    transformers = pytest.importorskip("transformers")
    contents = recognise(on_meta(of(size)), place=PLACE)
    config = config_of(contents.weights, tokenizer=bert_sized_tokenizer(), place=PLACE)
    fields = config.to_hf(architecture=architecture)
    with torch.device("meta"):
        model = getattr(transformers, architecture)(transformers.BlipConfig(**fields))
    theirs = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert len(theirs) == num_tensors
    tied = "text_decoder.cls.predictions.decoder"
    for name in (f"{tied}.weight", f"{tied}.bias"):
        theirs.pop(name, None)
    ours = {name: tensor.shape for name, tensor in contents.weights.items() if name != "temp"}
    assert ours == theirs


@pytest.mark.parametrize("of", MMPRETRAIN, ids=lambda of: of.__name__)
def test_names_of_mmpretrain_in_full_size_are_those_of_the_original(of: Build) -> None:
    original_weights = on_meta(of(original_files.BASE))
    contents = recognise(as_mmpretrain(original_weights, of), place=PLACE)
    assert contents.layout == "mmpretrain"
    if of is not original_files.grounding:
        expected = recognise(original_weights, place=PLACE)
        assert contents.weights == expected.weights and contents.task == expected.task
    config = config_of(contents.weights, tokenizer=bert_sized_tokenizer(), place=PLACE)
    with torch.device("meta"):
        model = MODELS[of](config)
    assert contents.weights.keys() - {"temp"} == stored_tensors(model).keys()


def test_tied_tensors_that_differ_are_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    weights = filled(original_files.pretrain(original_files.tiny(vocab_size=tokenizer.vocab_size)))
    name = "text_encoder.encoder.layer.1.crossattention.self.key.bias"
    changed = {**weights, name: weights[name] + 1}
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_blip(written(tmp_path, changed, tokenizer))
    decoder_name = name.replace("text_encoder", "text_decoder.bert")
    assert f"{name} and {decoder_name} differ; in pre-training they are one" in str(caught.value)
    name = "text_decoder.cls.predictions.decoder.weight"
    changed = {**weights, name: weights[name] + 1}
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_captioner(written(tmp_path, changed, tokenizer))
    assert f"{name} is not what stands under its other name" in str(caught.value)
    assert "text_decoder.bert.embeddings.word_embeddings.weight" in str(caught.value)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["text_model.embeddings.token_embedding.weight", "logit_scale"],
            "model.pth: not the weights of a BLIP: none of the 2 names begins with "
            "'visual_encoder.', 'vision_backbone.' or 'vision_model.'; "
            "found: logit_scale, text_model.embeddings.token_embedding.weight",
        ),
        (
            ["visual_encoder.blocks.0.norm1.weight", "Qformer.bert.x", "query_tokens"],
            "the weights of no task of BLIP's; its parts are: Qformer, query_tokens, vision_model",
        ),
        (
            ["visual_encoder.blocks.0.norm1.weight", "text_encoder.x"],
            "the weights of no task of BLIP's; its parts are: text_encoder, vision_model",
        ),
    ],
)
def test_weights_of_another_model_are_refused_by_what_they_hold(
    names: list[str], words: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        recognise(dict.fromkeys(names, torch.ones(1)), place=PLACE)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda w: w.pop("visual_encoder.blocks.1.attn.qkv.bias"),
            "1 tensors that a captioner needs are missing: "
            "vision_model.encoder.layers.1.self_attn.qkv.bias",
        ),
        (
            lambda w: w.update({"text_decoder.extra": torch.ones(1)}),
            "1 tensors that a captioner does not have: text_decoder.extra",
        ),
        (
            lambda w: w.update({"visual_encoder.norm.bias": torch.ones(9)}),
            "vision_model.post_layernorm.bias (9,) instead of (128,)",
        ),
        (
            lambda w: w.pop("visual_encoder.pos_embed"),
            "vision_model.embeddings.position_embedding is missing",
        ),
        (
            lambda w: w.update({"visual_encoder.pos_embed": torch.ones(1, 9, 128)}),
            "vision_model.embeddings.position_embedding is (1, 9, 128); the class token and a "
            "square of patches are due",
        ),
        (
            lambda w: w.update(
                {"visual_encoder.patch_embed.proj.weight": torch.ones(100, 3, 8, 8)}
            ),
            "tokens are 100 wide; BLIP's heads are 64 wide each",
        ),
    ],
)
def test_a_wrong_tensor_of_an_original_is_named(
    tmp_path: Path, tokenizer: Tokenizer, change: Callable[[dict[str, Tensor]], Any], words: str
) -> None:
    weights = filled(original_files.caption(original_files.tiny(vocab_size=tokenizer.vocab_size)))
    change(weights)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_captioner(written(tmp_path, weights, tokenizer))
    assert words in str(caught.value)


def test_grounding_of_two_widths_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    of = original_files.grounding
    size = original_files.tiny(vocab_size=tokenizer.vocab_size, vision_width=192)
    path = written(tmp_path, as_mmpretrain(filled(of(size)), of), tokenizer)
    with pytest.raises(CheckpointError, match=r"model\.pth: image tokens are 192 wide"):
        checkpoint.load_grounding(path)
