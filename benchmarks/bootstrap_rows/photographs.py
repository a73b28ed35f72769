"""The same arms on real photographs: Flickr8k, half of its web texts made wrong on purpose.

A thousand training photographs with all their captions are the human pairs; five thousand are the
web, with one text each, half of them another photograph's caption or boilerplate. So the truth of
each web text is known; that of the synthetic texts is not. The BLIP is small and starts from
nothing, which takes a GPU.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.bootstrap_rows.arms import NEEDS, Arm, Lab, is_done, saved_blip, take
from benchmarks.bootstrap_rows.findings import Findings, findings
from benchmarks.bootstrap_rows.learner import Start, Training
from benchmarks.bootstrap_rows.plans import digest_of
from benchmarks.bootstrap_rows.runner import home
from benchmarks.bootstrap_rows.worlds import Album, Exam, Pairs, World
from capfilt_blip import Captioner, Matcher
from capfilt_blip.blip import Blip
from capfilt_blip.config import BlipConfig
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import to_uint8

SIDE_PX = 128
_PATCH_PX = 16
_BOILERPLATE_SHARE = 0.2  # of the wrong texts; the others are another photograph's
_BOILERPLATE = (
    "click to enlarge",
    "photo",
    "share on social media",
    "image may be subject to copyright",
)
_SHOWN = 20  # dev photographs of which captions are printed


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoPlan:
    """Sizes of the experiment on photographs."""

    num_human: int = 1_000
    num_web: int = 4_998
    """All that Flickr8k's training shards have besides, two of 6,000 being lost."""
    num_dev: int = 1_000
    width: int = 256
    vocab_size: int = 4_000
    training: Training
    num_candidates: int = 128
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def folder_name(self) -> str:
        """Where its results are kept: other settings never meet them."""
        return f"photographs-{digest_of(replace(self, seeds=()))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Photograph:
    """A photograph with what people said of it."""

    jpeg: bytes
    captions: tuple[str, ...]


def full_plan(device: str) -> PhotoPlan:
    """For a GPU."""
    training = Training(
        num_steps=6_000, batch_size=128, peak_learning_rate=4e-4, num_captioner_steps=500,
        num_filter_steps=500, finetuning_rate=5e-5, queue_size=4_096, label_smoothing=0.1,
        device=device,
    )  # fmt: skip
    return PhotoPlan(training=training)


def smoke_plan(device: str) -> PhotoPlan:
    """For a CPU, to see that it runs; its figures mean nothing."""
    training = Training(
        num_steps=6, batch_size=16, num_captioner_steps=2, num_filter_steps=2, queue_size=64,
        device=device,
    )  # fmt: skip
    return PhotoPlan(
        num_human=24, num_web=48, num_dev=24, width=64, vocab_size=600, training=training,
        num_candidates=8, seeds=(0,),
    )  # fmt: skip


def run_photographs(source: Path, *, work: Path, plan: PhotoPlan) -> Findings:
    """Take all steps of all seeds, one after the other, and print what came out.

    Args:
        source: folder of `train-*.tar` and `dev-*.tar`: KEY.jpg, and KEY.json with its captions.
        work: where results are kept.
        plan: sizes and settings.
    """
    train = list(photographs(source, "train", num=plan.num_human + plan.num_web))
    dev = list(photographs(source, "dev", num=plan.num_dev))
    truth = {}
    for seed in plan.seeds:
        world = photo_world(train, dev, plan, seed=seed)
        truth[seed] = world.web.is_true
        lab = _lab(world, plan, folder=home(work, seed), seed=seed)
        for step in NEEDS:
            if not is_done(lab.folder, step):
                take(step, lab)
                print(f"seed {seed}: {step}", flush=True)
        _show(lab)
    return findings(work, plan.seeds, web_is_true=truth)


def photographs(source: Path, split: str, *, num: int) -> Iterator[Photograph]:
    """Read the first photographs of a split, shard after shard.

    Raises:
        ValueError: the folder has fewer.
    """
    found = 0
    for shard in sorted(source.glob(f"{split}-*.tar")):
        for one in _of_shard(shard):
            if found == num:
                return
            found += 1
            yield one
    if found < num:
        raise ValueError(f"{source} has {found} photographs in {split}-*.tar; {num} are needed")


def photo_world(
    train: Sequence[Photograph], dev: Sequence[Photograph], plan: PhotoPlan, *, seed: int
) -> World:
    """Divide the training photographs into human pairs and web, and spoil half of the web's texts.

    Args:
        train: as many as human pairs and web have together.
        dev: the exam.
        plan: their numbers.
        seed: of the division and of what is spoilt.
    """
    rng = random.Random(f"photographs/{seed}")
    mixed = rng.sample(list(train), len(train))
    human, web = mixed[: plan.num_human], mixed[plan.num_human :]
    is_true = [place % 2 == 0 for place in range(len(web))]
    rng.shuffle(is_true)
    texts = [
        rng.choice(one.captions) if known else _wrong_text(one, web, rng)
        for one, known in zip(web, is_true, strict=True)
    ]
    return World(
        human=_all_captions(human),
        web=Album(pixels=_pixels(web), texts=texts, is_true=is_true),
        exam=_exam(dev),
    )


def _of_shard(shard: Path) -> Iterator[Photograph]:
    with tarfile.open(shard) as tar:
        opened = {member.name: tar.extractfile(member) for member in tar}
        bodies = {name: file.read() for name, file in opened.items() if file}
    for name, body in bodies.items():
        if name.endswith(".jpg"):
            said = json.loads(bodies[f"{name.removesuffix('.jpg')}.json"])
            yield Photograph(jpeg=body, captions=tuple(said["captions"]))


def _wrong_text(one: Photograph, web: Sequence[Photograph], rng: random.Random) -> str:
    if rng.random() < _BOILERPLATE_SHARE:
        return rng.choice(_BOILERPLATE)
    other = rng.choice(web)
    return _wrong_text(one, web, rng) if other is one else rng.choice(other.captions)


def _all_captions(human: Sequence[Photograph]) -> Pairs:
    texts = [caption for one in human for caption in one.captions]
    places = [place for place, one in enumerate(human) for _ in one.captions]
    return Pairs(pixels=_pixels(human), image_of=places, texts=texts, is_true=[True] * len(texts))


def _exam(dev: Sequence[Photograph]) -> Exam:
    return Exam(
        pixels=_pixels(dev),
        texts=[caption for one in dev for caption in one.captions],
        image_of_text=[place for place, one in enumerate(dev) for _ in one.captions],
        references=[one.captions for one in dev],
    )


def _pixels(ones: Sequence[Photograph]) -> Tensor:
    opened = (Image.open(io.BytesIO(one.jpeg)) for one in ones)
    return torch.cat([to_uint8([image], side_px=SIDE_PX) for image in opened])


def _lab(world: World, plan: PhotoPlan, *, folder: Path, seed: int) -> Lab:
    corpus = [*world.human.texts, *world.web.texts]
    tokenizer = Tokenizer.train(corpus, vocab_size=plan.vocab_size)
    return Lab(
        folder=folder,
        seed=seed,
        world=world,
        start=Start(blip=_new_blip(tokenizer, width=plan.width, seed=seed), tokenizer=tokenizer),
        training=plan.training,
        num_candidates=plan.num_candidates,
    )


def _new_blip(tokenizer: Tokenizer, *, width: int, seed: int) -> Blip:
    """An untrained BLIP of 64 patches and 4 + 3 layers."""
    torch.manual_seed(seed)
    config = BlipConfig.tiny(
        vocab_size=tokenizer.vocab_size, image_size_px=SIDE_PX, width=width, text_depth=3
    )
    vision = replace(config.vision, patch_size_px=_PATCH_PX)
    return Blip(replace(config, vision=vision))


def _show(lab: Lab) -> None:
    """Print captions of dev photographs by the BLIP of "both", with its own ITM probabilities."""
    blip = saved_blip(lab, Arm.BOTH)
    pixels = lab.world.exam.pixels[:_SHOWN]
    tokenizer, device = lab.start.tokenizer, lab.training.device
    written = Captioner(blip.captioner(), tokenizer, device=device).greedy(pixels, prompt="")
    matcher = Matcher(blip.matcher(), tokenizer, device=device)
    probs = matcher.match(pixels, [[caption.text] for caption in written])
    for place, (caption, [prob]) in enumerate(zip(written, probs, strict=True)):
        print(f"  dev photograph {place}: {prob:.2f} {caption.text}")


def as_lines(found: Findings) -> list[str]:
    """What was measured, for the terminal."""
    rows = [asdict(row) for rows in found.rows.values() for row in rows]
    facts = [asdict(one) for facts in found.facts.values() for one in facts]
    return [json.dumps(one) for one in (*rows, *facts)]
