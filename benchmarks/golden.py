"""Golden numbers: published weights must give the ids and scores that other codes got from them.

python benchmarks/golden.py [--json FILE] [--demo-image demo.jpg] [--merlion merlion.png]
                            [--lavis-caption blip_coco_caption_base.pth]

Needs the Hugging Face hub (some 5 GB, kept in its cache) for the weights, and for the pictures
unless they are given. A check whose weights or picture cannot be reached is reported as not
measured. Exits with 0 if all numbers are equal, 1 if one differs, 2 if one was not measured.
It also answers an open question: which first token does the ITM head of the hub's matchers read,
[ENC] as in training or [CLS] as in the code that is published with them?
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path

import huggingface_hub
import torch
from PIL import Image
from torch import Tensor

from capfilt_blip.checkpoint import CheckpointError, load_captioner, load_matcher, load_vqa
from capfilt_blip.decode import Limits, generate_greedy
from capfilt_blip.tasks.captioner import Captioner
from capfilt_blip.tasks.match_rows import MAX_TEXT_TOKENS
from capfilt_blip.tokenizer import FirstToken
from capfilt_blip.transforms import normalise, to_uint8

CAPTION_BASE = "Salesforce/blip-image-captioning-base"
VQA_BASE = "Salesforce/blip-vqa-base"
ITM_BASE = "Salesforce/blip-itm-base-coco"
ITM_LARGE = "Salesforce/blip-itm-large-coco"
MERLION_URL = "https://raw.githubusercontent.com/salesforce/LAVIS/main/docs/_static/merlion.png"

TOLERANCE = 1e-3  # that of transformers' own tests


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One check: a number or some token ids."""

    what: str
    origin: str
    expected: list[float] | None = None  # None: an open question, there is no right answer
    found: list[float] | None = None  # None: not measured
    note: str = ""

    @property
    def verdict(self) -> str:
        """What the last column of the table says."""
        if self.found is None:
            return "not measured"
        if self.expected is None:
            return "open"
        near = len(self.found) == len(self.expected) and all(
            abs(found - expected) <= TOLERANCE
            for found, expected in zip(self.found, self.expected, strict=True)
        )
        return "equal" if near else "DIFFERENT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Where the two pictures are, or None to fetch them."""

    demo_path: Path | None
    merlion_path: Path | None

    def demo(self) -> Image.Image:
        """A woman and a dog on a beach: the picture of BLIP's demo."""
        path = self.demo_path or Path(
            huggingface_hub.hf_hub_download("hf-internal-testing/blip-test-image", "demo.jpg")
        )
        return Image.open(path).convert("RGB")

    def merlion(self) -> Image.Image:
        """The fountain of LAVIS's examples."""
        if self.merlion_path is not None:
            return Image.open(self.merlion_path).convert("RGB")
        with urllib.request.urlopen(MERLION_URL, timeout=30) as answer:
            return Image.open(BytesIO(answer.read())).convert("RGB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A row that is still to be found."""

    what: str
    origin: str
    expected: list[float] | None
    find: Callable[[], list[float]]

    def run(self) -> Row:
        """Find it, or say why it cannot be had."""
        try:
            return Row(
                what=self.what, origin=self.origin, expected=self.expected, found=self.find()
            )
        except (CheckpointError, OSError, ValueError) as error:
            note = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            return Row(what=self.what, origin=self.origin, expected=self.expected, note=note)


def checks(pictures: Pictures, *, lavis_caption: Path | None) -> Iterator[Check]:
    """All checks; the numbers are what others' tests and demos expect."""
    hf = "tests of transformers"
    beach = [1037, 2450, 3564, 2006, 1996, 3509, 2007, 2014, 3899, 102]
    for prompt in ("", "a picture of "):
        yield Check(
            what=f"caption-base, prompt {prompt!r}: greedy ids",
            origin=hf,
            expected=[float(i) for i in beach],
            find=partial(caption_ids, pictures.demo, prompt=prompt),
        )
    for first in ("cls", "enc"):
        yield Check(
            what=f"vqa-base, how many dogs, [{first.upper()}]: greedy ids",
            origin=hf if first == "cls" else "trained so",
            expected=[1015.0, 102.0] if first == "cls" else None,
            find=partial(answer_ids, pictures.demo, first=first),
        )
    yield from _demo_matches(pictures)
    yield from _merlion_matches(pictures)
    if lavis_caption is not None:
        yield Check(
            what="LAVIS base_coco caption, beam 3: as expected (1) or not (0)",
            origin="tests of LAVIS",
            expected=[1.0],
            find=partial(lavis_caption_is_right, pictures.merlion, lavis_caption),
        )


def _demo_matches(pictures: Pictures) -> Iterator[Check]:
    hf_text = "A woman and her dog sitting in a beach"
    demo_text = "a woman sitting on the beach with a dog"
    golden = {
        hf_text: ("tests of transformers", [0.0202, 0.5053]),
        demo_text: ("BLIP's demo", [0.9960, 0.5262]),
    }
    for text, (origin, expected) in golden.items():
        for first in ("cls", "enc"):
            yield Check(
                what=f"itm-base-coco, {text!r}, [{first.upper()}]: match, cosine",
                origin=origin if first == "cls" else "trained so",
                expected=expected if first == "cls" else None,
                find=partial(match, pictures.demo, ITM_BASE, text=text, first=first),
            )


def _merlion_matches(pictures: Pictures) -> Iterator[Check]:
    golden = {
        (ITM_BASE, "merlion in singapore"): [0.98613, 0.4633],
        (ITM_BASE, "a random irrelevant caption"): [0.05704, 0.23282],
        (ITM_LARGE, "merlion in singapore"): [0.99466, 0.4474],
        (ITM_LARGE, "a random irrelevant caption"): [0.04744, 0.12821],
    }
    for (weights, text), expected in golden.items():
        yield Check(
            what=f"{weights.removeprefix('Salesforce/blip-')}, {text!r}, [ENC]: match, cosine",
            origin="tests of LAVIS",
            expected=expected,
            find=partial(match, pictures.merlion, weights, text=text, first="enc"),
        )


captioner_of = cache(load_captioner)
matcher_of = cache(load_matcher)
vqa_of = cache(load_vqa)


def pixels_of(picture: Image.Image, *, side_px: int) -> Tensor:
    """The picture as the vision transformer reads it, (1, 3, S, S)."""
    return normalise(to_uint8([picture], side_px=side_px))


@torch.inference_mode()
def caption_ids(picture: Callable[[], Image.Image], *, prompt: str) -> list[float]:
    """Ids behind the prompt, [SEP] included."""
    image = picture()
    model, tokenizer = captioner_of(CAPTION_BASE)
    embeds = model.vision(pixels_of(image, side_px=model.config.vision.image_size_px))
    found = generate_greedy(
        model,
        model.text_decoder.project_memory(embeds),
        prompt_ids=tokenizer.prompt_ids(prompt),
        limits=Limits(min_new_tokens=0, max_new_tokens=20),
    )
    return found.token_ids[0].tolist()


@torch.inference_mode()
def answer_ids(picture: Callable[[], Image.Image], *, first: FirstToken) -> list[float]:
    """Ids of the answer, [SEP] included."""
    image = picture()
    model, tokenizer = vqa_of(VQA_BASE)
    embeds = model.vision(pixels_of(image, side_px=model.config.vision.image_size_px))
    question = tokenizer.encode(["how many dogs are in the picture?"], first=first, max_tokens=35)
    memory = model.read_questions(
        question.ids, question.mask, model.text_encoder.project_memory(embeds)
    )
    limits = Limits(min_new_tokens=0, max_new_tokens=10)
    found = generate_greedy(model, memory, prompt_ids=[tokenizer.dec_id], limits=limits)
    return found.token_ids[0].tolist()


@torch.inference_mode()
def match(
    picture: Callable[[], Image.Image], weights: str, *, text: str, first: FirstToken
) -> list[float]:
    """ITM probability, read at the first token asked for, and ITC cosine."""
    image = picture()
    model, tokenizer = matcher_of(weights)
    embeds = model.vision(pixels_of(image, side_px=model.config.vision.image_size_px))
    read = tokenizer.encode([text], first=first, max_tokens=MAX_TEXT_TOKENS)
    alone = tokenizer.encode([text], first="cls", max_tokens=MAX_TEXT_TOKENS)
    logits = model.itm_logits(read.ids, read.mask, model.text_encoder.project_memory(embeds))
    cosine = model.image_vectors(embeds)[0] @ model.text_vectors(alone.ids, alone.mask)[0]
    return [float(logits.softmax(-1)[0, 1]), float(cosine)]


def lavis_caption_is_right(picture: Callable[[], Image.Image], weights: Path) -> list[float]:
    """1.0 if LAVIS's own caption comes out of LAVIS's own file."""
    image = picture()
    captioner = Captioner(*captioner_of(weights))
    # LAVIS asks for 10 to 30 tokens, of which 4 are the prompt's.
    [caption] = captioner.beam([image], num_beams=3, min_new_tokens=6, max_new_tokens=26)
    return [float(caption.text == "a large fountain spewing water into the air")]


def first_token_answer(rows: Sequence[Row]) -> Iterator[str]:
    """Say what was found on the open question, for each true caption that was scored both ways."""
    found = {row.what: row.found for row in rows if row.found and "match, cosine" in row.what}
    for what, with_enc in found.items():
        with_cls = found.get(what.replace("[ENC]", "[CLS]"))
        if "[ENC]" in what and with_cls is not None:
            higher = "[ENC]" if with_enc[0] > with_cls[0] else "[CLS]"
            pair = what.split(", [")[0]
            yield (
                f"a true caption matches better with {higher}: {pair}: "
                f"[ENC] {with_enc[0]:.4f}, [CLS] {with_cls[0]:.4f}"
            )


def picture_file(name: str) -> Path:
    """A file that holds a picture, checked before anything is downloaded."""
    try:
        with Image.open(name) as picture:
            picture.verify()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{name}: no picture ({error})") from error
    return Path(name)


def shown(numbers: Sequence[float] | None) -> str:
    """Numbers for a table."""
    if numbers is None:
        return "-"
    return " ".join(f"{number:.4f}" if number % 1 else f"{number:.0f}" for number in numbers)


def main() -> None:
    """Run all checks and print a table; exit 1 if any number differs."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--demo-image", type=picture_file)
    options.add_argument("--merlion", type=picture_file)
    options.add_argument("--lavis-caption", type=Path)
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    pictures = Pictures(demo_path=chosen.demo_image, merlion_path=chosen.merlion)
    rows: list[Row] = []
    for check in checks(pictures, lavis_caption=chosen.lavis_caption):
        rows.append(check.run())
        row = rows[-1]
        print(f"{row.verdict:<13} {row.what}  ({row.origin})")
        print(f"{'':<13} expected {shown(row.expected)}, found {shown(row.found)} {row.note}")
    for line in first_token_answer(rows):
        print(line)
    measured = sum(row.found is not None for row in rows)
    print(f"{measured} of {len(rows)} measured; torch {torch.__version__}, {platform.machine()}")
    if measured < len(rows):
        print("Not measured: the weights or the picture could not be reached; see the notes above.")
    if chosen.json:
        table = [{**asdict(row), "verdict": row.verdict} for row in rows]
        chosen.json.write_text(json.dumps(table, indent=1) + "\n")
    if any(row.verdict == "DIFFERENT" for row in rows):
        sys.exit(1)
    sys.exit(2 if measured < len(rows) else 0)


if __name__ == "__main__":
    main()
