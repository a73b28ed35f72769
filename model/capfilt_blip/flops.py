"""How many floating-point operations a caption or a score needs: counted from the sizes alone.

Only matrix products are counted, a multiplication and an addition as two; norms and activations are
under one per cent. What fills a batch up is not needed and not counted: it is waste, and a share of
the peak that is computed from these numbers shows it as such.

Letters: P image tokens, L text tokens, C tokens that are looked at, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable

from capfilt_blip.config import BlipConfig, TextConfig, VisionConfig


def image_flops(vision: VisionConfig) -> int:
    """Operations of the image encoder for one image."""
    P, D = vision.num_tokens, vision.width
    patches = linear_flops(P - 1, 3 * vision.patch_size_px**2, D)
    attention = linear_flops(P, D, 3 * D) + attention_flops(P, P, D) + linear_flops(P, D, D)
    return patches + vision.depth * (attention + 2 * linear_flops(P, D, vision.mlp_width))


def memory_flops(config: BlipConfig) -> int:
    """Operations of the keys and values that the text side reads of one image."""
    text = config.text
    layer = 2 * linear_flops(config.vision.num_tokens, text.image_width, text.width)
    return text.depth * layer


def reading_flops(config: BlipConfig, *, num_queries: int) -> int:
    """Operations that let so many text tokens read an image: the lesser of two ways.

    Either keys and values are made, or each query reads the image tokens themselves, which costs
    more than reading keys and values does (see `attention.MultiHead`). What reading keys and values
    costs is counted with the text.
    """
    text, P = config.text, config.vision.num_tokens
    folding = 2 * linear_flops(1, text.width, text.image_width)
    wider = attention_flops(1, P, text.num_heads * text.image_width - text.width)
    return min(memory_flops(config), text.depth * num_queries * (folding + wider))


def caption_flops(config: BlipConfig, *, prompt_tokens: int, new_tokens: Iterable[int]) -> int:
    """Operations of the decoder for the captions of one image, which share its prompt.

    Args:
        config: of the captioner.
        prompt_tokens: tokens that each caption begins with, [DEC] included.
        new_tokens: of each caption, the tokens generated, [SEP] included.
    """
    text, P = config.text, config.vision.num_tokens
    logits = linear_flops(1, text.width, text.width) + linear_flops(1, text.width, text.vocab_size)
    total = text.depth * _layer_flops(text, prompt_tokens, prompt_tokens, num_image_tokens=P)
    for count in new_tokens:
        # The last token is drawn and never read.
        read = range(prompt_tokens + 1, prompt_tokens + count)
        steps = sum(_layer_flops(text, 1, seen, num_image_tokens=P) for seen in read)
        total += text.depth * steps + count * logits
    return total


def itm_flops(config: BlipConfig, *, num_tokens: int) -> int:
    """Operations of one text read together with its image, up to the ITM logits.

    Args:
        config: of the matcher.
        num_tokens: of the text, [ENC] and [SEP] included.
    """
    read = _first_token_flops(config.text, num_tokens, num_image_tokens=config.vision.num_tokens)
    return read + linear_flops(1, config.text.width, 2)


def itc_flops(config: BlipConfig, *, num_tokens: int) -> int:
    """Operations of one text's vector; `num_tokens` counts [CLS] and [SEP]."""
    read = _first_token_flops(config.text, num_tokens, num_image_tokens=0)
    return read + linear_flops(1, config.text.width, config.shared_width)


def image_vector_flops(config: BlipConfig) -> int:
    """Operations of one image's vector, after the image encoder."""
    return linear_flops(1, config.vision.width, config.shared_width)


def linear_flops(num_rows: int, num_inputs: int, num_outputs: int) -> int:
    """Operations of a linear map; the bias is not counted."""
    return 2 * num_rows * num_inputs * num_outputs


def attention_flops(num_queries: int, num_keys: int, width: int) -> int:
    """Operations of attention without its linear maps: the products with keys and with values."""
    return 4 * num_queries * num_keys * width


def _layer_flops(text: TextConfig, L: int, C: int, *, num_image_tokens: int) -> int:
    """One layer for L tokens that see C; without image tokens, without cross-attention."""
    own_keys = 2 * linear_flops(L, text.width, text.width)
    return own_keys + _query_flops(text, L, C, num_image_tokens=num_image_tokens)


def _first_token_flops(text: TextConfig, L: int, *, num_image_tokens: int) -> int:
    """All layers; the last one has keys for L tokens and computes the first token only."""
    before = (text.depth - 1) * _layer_flops(text, L, L, num_image_tokens=num_image_tokens)
    last_keys = 2 * linear_flops(L, text.width, text.width)
    return before + last_keys + _query_flops(text, 1, L, num_image_tokens=num_image_tokens)


def _query_flops(text: TextConfig, L: int, C: int, *, num_image_tokens: int) -> int:
    """One layer without its own keys and values: what each token asks, mixes and passes on."""
    D = text.width
    ask_and_pass_on = 2 * linear_flops(L, D, D)
    own = ask_and_pass_on + attention_flops(L, C, D)
    image = ask_and_pass_on + attention_flops(L, num_image_tokens, D) if num_image_tokens else 0
    return own + image + 2 * linear_flops(L, D, text.mlp_width)
