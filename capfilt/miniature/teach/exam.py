"""Pictures and texts the tiny BLIP never saw, with the truth, to measure it by."""

from __future__ import annotations

import io
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from capfilt.miniature.alt_texts import AltKind, alt_text
from capfilt.miniature.distort import Edit, Encoding, Picture, picture_bytes
from capfilt.miniature.measure import Quality, TruthShare, filter_quality
from capfilt.miniature.truth import is_true
from capfilt.miniature.world import Scene, mirrored, sample_scene, siblings

_SIDES_PX = (96, 128, 160, 192, 224, 256)
_EDITS = tuple(edit for edit in Edit if edit is not Edit.MIRRORED)
_ENCODINGS = tuple(encoding for encoding in Encoding if encoding is not Encoding.ANIMATED_GIF)
_FALSE_SHARES = {
    AltKind.OTHER_IMAGE: 0.25,
    AltKind.WRONG_ATTRIBUTE: 0.3,
    AltKind.BOILERPLATE: 0.12,
    AltKind.FILE_NAME: 0.1,
    AltKind.KEYWORD_SPAM: 0.09,
    AltKind.OTHER_SCRIPT: 0.06,
    AltKind.MARKUP: 0.04,
    AltKind.EMPTY: 0.04,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A picture, a text, and whether the text is true of it."""

    scene: Scene
    image: Image.Image
    text: str
    kind: AltKind

    @property
    def is_true(self) -> bool:
        """Whether the text is a true statement about the picture."""
        return is_true(self.text, self.scene) is True


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What the exam found."""

    filter: Quality
    """Of the alt texts with `itm_prob` >= 0.5."""
    right_by_kind: dict[str, float]
    """Share of each kind of alt text that was judged right."""
    captions: TruthShare
    captions_kept: TruthShare
    """Of the captions that the filter keeps."""


def questions(seed: str, num: int) -> list[Question]:
    """Draw questions, of which half are true."""
    return [_question(random.Random(f"exam/{seed}/{number}")) for number in range(num)]


def marks(
    asked: Sequence[Question],
    *,
    kept: Sequence[bool],
    captions: Sequence[str],
    captions_kept: Sequence[bool],
) -> Marks:
    """Compare the answers with the truth.

    Args:
        asked: the questions.
        kept: for each, whether the filter keeps its text.
        captions: for each, what the captioner writes about its picture.
        captions_kept: for each, whether the filter keeps the caption.
    """
    right = [keep == question.is_true for keep, question in zip(kept, asked, strict=True)]
    kinds = sorted({question.kind for question in asked})
    by_kind = {
        kind: [r for r, q in zip(right, asked, strict=True) if q.kind == kind] for kind in kinds
    }
    true = [
        is_true(text, question.scene) is True
        for text, question in zip(captions, asked, strict=True)
    ]
    kept_true = [t for t, keep in zip(true, captions_kept, strict=True) if keep]
    return Marks(
        filter=filter_quality(kept, [question.is_true for question in asked]),
        right_by_kind={kind: sum(flags) / len(flags) for kind, flags in by_kind.items()},
        captions=TruthShare(num_true=sum(true), num_texts=len(true)),
        captions_kept=TruthShare(num_true=sum(kept_true), num_texts=len(kept_true)),
    )


def lookalikes(seed: str, num: int) -> dict[str, list[tuple[Image.Image, Image.Image]]]:
    """Draw pairs of pictures: a picture and its copy, for each edit, or one that is no copy.

    Returns:
        `num` pairs for each edit, and of "sibling" (one thing differs) and "other"; of "mirrored"
        as many as show another scene than the picture.
    """
    rng = random.Random(f"lookalikes/{seed}")
    pairs: dict[str, list[tuple[Image.Image, Image.Image]]] = defaultdict(list)
    for _ in range(num):
        scene = sample_scene(rng)
        picture = _image(Picture(drawn=scene, side_px=160))
        for edit in Edit:
            if edit is not Edit.MIRRORED or mirrored(scene).things != scene.things:
                copy = Picture(drawn=scene, side_px=160, edit=edit, encoding=Encoding.ROUGH_JPEG)
                pairs[edit].append((picture, _image(copy)))
        for name, drawn in (
            ("sibling", rng.choice(siblings(scene, rng))),
            ("other", sample_scene(rng)),
        ):
            pairs[name].append((picture, _image(Picture(drawn=drawn, side_px=160))))
    return pairs


def _image(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(picture_bytes(picture))).convert("RGB")


def _question(rng: random.Random) -> Question:
    scene = sample_scene(rng)
    picture = Picture(
        drawn=scene,
        side_px=rng.choice(_SIDES_PX),
        edit=rng.choice(_EDITS),
        encoding=rng.choice(_ENCODINGS),
    )
    kind = AltKind.TRUE
    if rng.random() < 0.5:
        [kind] = rng.choices(list(_FALSE_SHARES), list(_FALSE_SHARES.values()))
    return Question(
        scene=scene, image=_image(picture), text=alt_text(kind, scene, rng) or "", kind=kind
    )
