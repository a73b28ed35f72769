"""Natural language for visual reasoning (NLVR2): is a sentence true of a pair of images?

Each layer of the text encoder attends to both images, with two attentions, and joins what they
say: lower layers by the mean, upper layers by a linear map (arXiv:2201.12086, sec. 5.4, fig. 5b).

Letters: B pairs, P image tokens, L text tokens, D width.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capfilt_blip.attention import FeedForward, Memory, MultiHead, SelfAttention, Source
from capfilt_blip.blip import Blip
from capfilt_blip.config import BlipConfig, TextConfig
from capfilt_blip.recompute import layer_calls
from capfilt_blip.starts import copied_vision, task_config
from capfilt_blip.text import TextEmbeddings, TextLayer, TextStack, initialise_text
from capfilt_blip.vision import VisionTransformer


class BlipNlvr(nn.Module):
    """The text encoder that reads two images, with its image encoder and classifier."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTransformer(config.vision)
        self.text_encoder = TwinTextStack(config.text)
        self.classifier = PairClassifier(config.text)

    @classmethod
    def from_blip(cls, blip: Blip, *, image_size_px: int = 384, drop_path: float = 0.1) -> BlipNlvr:
        """Return a model to be finetuned, made of copies of a pre-trained BLIP's parts.

        Both attentions of a layer start as the one of the pre-trained encoder. The merging maps of
        the upper layers and the classifier have no model in pre-training and start at random.

        Args:
            blip: the pre-trained model; not changed.
            image_size_px: side of the images to be read; 384 is BLIP's.
            drop_path: chance that the last vision layer skips its branches in training, in [0, 1);
                0.1 is BLIP's.
        """
        with torch.device("meta"):
            model = cls(task_config(blip.config, image_size_px=image_size_px, drop_path=drop_path))
        model.vision = copied_vision(blip.vision, config=model.config)
        _copy_encoder(blip.text_encoder, to=model.text_encoder)
        model.classifier = PairClassifier(blip.config.text)
        return model.to(blip.temp.device, blip.temp.dtype).train(blip.training)

    def forward(self, left: Tensor, right: Tensor, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Judge sentences about pairs of images.

        Args:
            left: (B, 3, S, S) float, normalised.
            right: (B, 3, S, S) float, normalised.
            token_ids: (B, L) int64, [ENC] first.
            mask: (B, L) bool, True where a token is real.

        Returns:
            (B, 2) logits; index 1 says that the sentence is true.
        """
        left_embeds, right_embeds = self.vision(torch.cat([left, right])).chunk(2)
        memories = self.text_encoder.project_memories(left_embeds, right_embeds)
        hidden = self.text_encoder.fuse(token_ids, mask, *memories)
        logits: Tensor = self.classifier(hidden[:, 0])
        return logits


class PairClassifier(nn.Module):
    """Two linear maps with a ReLU between them, from [ENC] to false and true."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.hidden = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, 2)
        self.apply(initialise_text)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, D) to (B, 2) logits."""
        logits: Tensor = self.out(F.relu(self.hidden(hidden)))
        return logits


class TwinTextStack(nn.Module):
    """A `TextStack` that is image-grounded by two images at once."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = TextEmbeddings(config)
        # 12 layers: 0 to 5 take the mean, 6 to 11 merge. The paper's text does not say which.
        self.layers = nn.ModuleList(
            TwinTextLayer(config, merges=index >= config.depth // 2)
            for index in range(config.depth)
        )
        self.num_recomputed = 0  # see `recompute_activations`
        self.apply(initialise_text)

    def project_memories(self, left: Tensor, right: Tensor) -> tuple[Memory, Memory]:
        """Compute what cross-attention needs of both images.

        Args:
            left: (B, P, width of the image tokens), from the vision transformer.
            right: (B, P, width of the image tokens).
        """
        twins = [cast(TwinTextLayer, layer).cross_attention for layer in self.layers]
        return (
            Memory(layers=[twin.left.project(left) for twin in twins]),
            Memory(layers=[twin.right.project(right) for twin in twins]),
        )

    def fuse(self, token_ids: Tensor, mask: Tensor, left: Memory, right: Memory) -> Tensor:
        """Read texts together with their two images.

        Args:
            token_ids: (B, L) int64, [ENC] first.
            mask: (B, L) bool, True where a token is real.
            left: of B images, from `project_memories`.
            right: of B images, from `project_memories`.

        Returns:
            (B, L, D).
        """
        hidden: Tensor = self.embeddings(token_ids)
        visible = mask[:, None, None, :]
        calls = layer_calls(self.layers, num_recomputed=self.num_recomputed, training=self.training)
        for call, one, other in zip(calls, left.layers, right.layers, strict=True):
            hidden = call(hidden, visible=visible, left=one, right=other)
        return hidden


class TwinTextLayer(nn.Module):
    """Self-attention, attention to both images, feed-forward; each adds and then normalises."""

    def __init__(self, config: TextConfig, *, merges: bool) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config)
        self.cross_attention = TwinCrossAttention(config, merges=merges)
        self.feed_forward = FeedForward(config)

    def forward(self, hidden: Tensor, *, visible: Tensor, left: Source, right: Source) -> Tensor:
        """Map (B, L, D) to (B, L, D); see `TextLayer` and `TwinCrossAttention`."""
        hidden = self.self_attention(hidden, visible=visible)
        out: Tensor = self.feed_forward(self.cross_attention(hidden, left=left, right=right))
        return out


class TwinCrossAttention(nn.Module):
    """One attention for each image; what both say is joined, added and normalised."""

    def __init__(self, config: TextConfig, *, merges: bool) -> None:
        super().__init__()
        self.left = MultiHead(config, memory_width=config.image_width)
        self.right = MultiHead(config, memory_width=config.image_width)
        # Without an activation: the original has one commented out.
        self.merge = nn.Linear(2 * config.width, config.width) if merges else None
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = config.dropout

    def forward(self, hidden: Tensor, *, left: Source, right: Source) -> Tensor:
        """Map (B, L, D) to (B, L, D).

        Args:
            hidden: (B, L, D).
            left: what this layer reads of the left images.
            right: what it reads of the right images.
        """
        seen = self.left(hidden, source=left), self.right(hidden, source=right)
        joined = (seen[0] + seen[1]) / 2 if self.merge is None else self.merge(torch.cat(seen, -1))
        normed: Tensor = self.norm(hidden + F.dropout(joined, self.dropout, self.training))
        return normed


def _copy_encoder(encoder: TextStack, *, to: TwinTextStack) -> None:
    """Give twin layers, made on the meta device, copies of an encoder's weights or new ones."""
    to.embeddings = copy.deepcopy(encoder.embeddings)
    to.num_recomputed = encoder.num_recomputed
    for module, source in zip(to.layers, encoder.layers, strict=True):
        twin, layer = cast(TwinTextLayer, module), cast(TextLayer, source)
        twin.self_attention = copy.deepcopy(layer.self_attention)
        twin.feed_forward = copy.deepcopy(layer.feed_forward)
        cross = twin.cross_attention
        cross.left = copy.deepcopy(layer.cross_attention.heads)
        cross.right = copy.deepcopy(layer.cross_attention.heads)
        cross.norm = copy.deepcopy(layer.cross_attention.norm)
        if cross.merge is not None:
            cross.merge = nn.Linear(cross.merge.in_features, cross.merge.out_features)
            initialise_text(cross.merge)
