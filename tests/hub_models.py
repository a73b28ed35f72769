"""Tiny models of transformers, of random weights, as they would come from the hub.

Each has one layer, sees 32 px, knows two dozen words, and runs in milliseconds. The weights are
lively: outputs differ from image to image, so equal results mean something.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SIDE_PX = 32
PAD, UNKNOWN, START, END, IMAGE = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "<image>"
WORDS = (
    "a red green blue yellow circle square star above below left of right the in picture on and "
    "small large one two describe this image short sentence"
).split()
TOKENS = {token: i for i, token in enumerate((PAD, UNKNOWN, START, END, IMAGE, *WORDS))}
IDS = {
    "vocab_size": len(TOKENS),
    "bos_token_id": TOKENS[START],
    "eos_token_id": TOKENS[END],
    "pad_token_id": TOKENS[PAD],
}
LAYER = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
VISION = {**LAYER, "num_hidden_layers": 1, "image_size": SIDE_PX, "patch_size": 8}
TEXT = {**LAYER, **IDS, "num_hidden_layers": 1}
MAX_TEXT_TOKENS = 16
CHAT = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image> {% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} the{% endif %}"
)


def write_clip(folder: Path, *, scaled_px: int = SIDE_PX) -> None:
    """A CLIP, which sees the middle of a picture; `scaled_px`: of the shortest side before."""
    config = transformers.CLIPConfig(
        text_config={**TEXT, "max_position_embeddings": MAX_TEXT_TOKENS},
        vision_config=VISION, projection_dim=8,
    )  # fmt: skip
    _lively(transformers.CLIPModel(config)).save_pretrained(folder)
    _middle(scaled_px).save_pretrained(folder)
    _tokenizer(f"{START} $A {END}", model_max_length=MAX_TEXT_TOKENS).save_pretrained(folder)


def write_metaclip2(folder: Path) -> None:
    """A MetaCLIP 2."""
    config = transformers.MetaClip2Config(
        text_config={**TEXT, "max_position_embeddings": MAX_TEXT_TOKENS, "projection_dim": 8},
        vision_config={**VISION, "projection_dim": 8}, projection_dim=8,
    )  # fmt: skip
    _lively(transformers.MetaClip2Model(config)).save_pretrained(folder)
    _middle(SIDE_PX).save_pretrained(folder)
    _tokenizer(f"{START} $A {END}", model_max_length=MAX_TEXT_TOKENS).save_pretrained(folder)


def write_siglip(folder: Path) -> None:
    """A SigLIP, which sees the picture squashed."""
    config = transformers.SiglipConfig(
        text_config={**TEXT, "max_position_embeddings": MAX_TEXT_TOKENS, "projection_size": 16},
        vision_config=VISION,
    )  # fmt: skip
    _lively(transformers.SiglipModel(config)).save_pretrained(folder)
    SiglipImageProcessorPil(size=_square()).save_pretrained(folder)
    _siglip_tokenizer().save_pretrained(folder)


def write_siglip2(folder: Path) -> None:
    """A SigLIP 2, which takes any shape of at most 16 patches."""
    vision = {**LAYER, "num_hidden_layers": 1, "num_patches": 16, "patch_size": 8}
    config = transformers.Siglip2Config(
        text_config={**TEXT, "max_position_embeddings": MAX_TEXT_TOKENS, "projection_size": 16},
        vision_config=vision,
    )  # fmt: skip
    _lively(transformers.Siglip2Model(config)).save_pretrained(folder)
    Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16).save_pretrained(folder)
    _siglip_tokenizer().save_pretrained(folder)


def write_git(folder: Path) -> None:
    """A GIT: a decoder that reads the image before the prompt."""
    config = transformers.GitConfig(vision_config=VISION, max_position_embeddings=64, **TEXT)
    _lively(transformers.GitForCausalLM(config)).save_pretrained(folder)
    tokenizer = _tokenizer(f"{START} $A {END}")
    transformers.GitProcessor(_middle(SIDE_PX), tokenizer).save_pretrained(folder)


def write_blip2(folder: Path) -> None:
    """A BLIP-2: a decoder whose prompt has places for what was seen."""
    config = transformers.Blip2Config(
        vision_config=VISION,
        qformer_config={**TEXT, "encoder_hidden_size": 16, "max_position_embeddings": 16},
        text_config={
            **IDS, "model_type": "opt", "hidden_size": 16, "word_embed_proj_dim": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32,
            "max_position_embeddings": 64,
        },
        num_query_tokens=3,
        image_token_index=TOKENS[IMAGE],
    )  # fmt: skip
    _lively(transformers.Blip2ForConditionalGeneration(config)).save_pretrained(folder)
    images = BlipImageProcessorPil(size=_square())
    tokenizer = _tokenizer(f"{START} $A")
    transformers.Blip2Processor(images, tokenizer, num_query_tokens=3).save_pretrained(folder)


def write_image_to_text(folder: Path) -> None:
    """A ViT that is read by a GPT-2, which takes no prompt."""
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**VISION),
        transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64, **IDS),
    )
    config.decoder_start_token_id, config.pad_token_id = TOKENS[START], TOKENS[PAD]
    _lively(transformers.VisionEncoderDecoderModel(config=config)).save_pretrained(folder)
    ViTImageProcessorPil(size=_square()).save_pretrained(folder)
    _tokenizer(f"{START} $A {END}").save_pretrained(folder)


def write_chat(folder: Path) -> None:
    """A LLaVA, which is asked by a user's message."""
    config = transformers.LlavaConfig(
        vision_config={**VISION, "model_type": "clip_vision_model", "num_hidden_layers": 2},
        text_config=transformers.LlamaConfig(
            num_key_value_heads=2, max_position_embeddings=64, **TEXT
        ),
        image_token_index=TOKENS[IMAGE],
    )
    _lively(transformers.LlavaForConditionalGeneration(config)).save_pretrained(folder)
    transformers.LlavaProcessor(
        _middle(SIDE_PX), _tokenizer(f"{START} $A"), patch_size=8, chat_template=CHAT,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip


CAPTIONERS: dict[str, Callable[[Path], None]] = {
    "git": write_git,
    "blip-2": write_blip2,
    "image-to-text": write_image_to_text,
    "chat": write_chat,
}
FILTERS: dict[str, Callable[[Path], None]] = {
    "clip": write_clip,
    "metaclip2": write_metaclip2,
    "siglip": write_siglip,
    "siglip2": write_siglip2,
}


def _square(side_px: int = SIDE_PX) -> dict[str, int]:
    return {"height": side_px, "width": side_px}


def _middle(scaled_px: int) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": scaled_px}, crop_size=_square())


def _siglip_tokenizer() -> transformers.PreTrainedTokenizerFast:
    return _tokenizer(
        f"$A {END}", model_max_length=MAX_TEXT_TOKENS, model_input_names=["input_ids"]
    )


def _tokenizer(template: str, **options: object) -> transformers.PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel(TOKENS, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens([PAD, UNKNOWN, START, END, IMAGE])
    special = [(token, TOKENS[token]) for token in (START, END) if token in template]
    words.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token=UNKNOWN, pad_token=PAD, bos_token=START, eos_token=END,
        cls_token=START, sep_token=END, **options,
    )  # fmt: skip


def _lively(model: nn.Module) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim():
            norm = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            nn.init.normal_(parameter, mean=norm, std=0.3)
    return model.eval()
