"""A small web with every fault we know of, models of random weights, and recipes over them.

Two shards hold two dozen samples, each planted with the reason `index` must give it. The models
are random but lively: their outputs differ from image to image, so equal results mean something.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from capfilt.config import Recipe, check_recipe
from capfilt.errors import Stopped
from capfilt.io.parquet import from_bytes, records_from
from capfilt.io.tar import write_tar
from capfilt.local_pool import LocalPool
from capfilt.miniature.distort import Edit, Encoding, Picture, picture_bytes
from capfilt.miniature.hostile import Hostile, hostile_bytes
from capfilt.miniature.pairs import write_human_shard
from capfilt.miniature.world import Scene, sample_scene
from capfilt.pool import AnyJob, ShardReport
from capfilt.records import Sample
from capfilt.stages.loop import bootstrap
from capfilt.stages.shards import Funnel
from capfilt.stages.tables import Tables, open_tables
from capfilt_blip.blip import Blip
from capfilt_blip.checkpoint import save_model
from capfilt_blip.config import BlipConfig
from capfilt_blip.tokenizer import Tokenizer

M = TypeVar("M", bound=nn.Module)
RowT = TypeVar("RowT")

NUM_SHARDS = 2
SIDE_PX = 48
LONG_TEXT = "a red circle above a blue square and " * 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """A sample of the small web: the members of its tar, and what the index must say of it."""

    name: str  # of its members, up to the extension
    image: tuple[str, bytes] | None = None  # extension, bytes
    text: str | None = None
    fields: str | None = None  # the json, as text
    web_text: str | None = None  # what the index must find, where it is not `text`
    reason: str | None = None

    def members(self) -> Iterator[tuple[str, bytes]]:
        if self.image is not None:
            yield f"{self.name}.{self.image[0]}", self.image[1]
        if self.text is not None:
            yield f"{self.name}.txt", self.text.encode()
        if self.fields is not None:
            yield f"{self.name}.json", self.fields.encode()


@functools.cache
def planted_shards() -> tuple[list[Planted], list[Planted]]:
    """The samples of both shards, in the order of the tars."""
    return _plain_shard(), _odd_shard()


def _plain_shard() -> list[Planted]:
    return [
        *(Planted(name=f"good-{i}", image=_image(i), text=f"a red circle {i}") for i in range(4)),
        Planted(name="original", image=_image(10), text="a blue square"),
        Planted(name="shown-large", image=_image(11, side_px=80), text="a green star"),
        Planted(name="same-name", image=_image(12), text="the first of its name"),
        Planted(name="same-name", image=_image(13), text="the second of its name"),
        Planted(
            name="cut", image=_hostile(Hostile.TRUNCATED_JPEG), text="a cut picture",
            reason="image_unreadable",
        ),
        Planted(
            name="pixel", image=_hostile(Hostile.ONE_PIXEL), text="a tracker",
            reason="image_too_small",
        ),
        Planted(name="no-image", text="a text alone", reason="image_missing"),
        Planted(
            name="bomb", image=_hostile(Hostile.BOMB), text="white", reason="image_too_large"
        ),
    ]  # fmt: skip


def _odd_shard() -> list[Planted]:
    small_copy = _image(11, side_px=80, edit=Edit.SHRUNK, encoding=Encoding.PNG)
    return [
        Planted(name="no-text", image=_image(20)),
        Planted(name="blank-text", image=_image(21), text=" \n\t "),
        Planted(name="copy", image=_image(10), text="a square in blue"),
        Planted(name="shown-small", image=small_copy, text="a star, seen from afar"),
        Planted(name="v1.2/Ünï ключ 猫", image=_image(22), text="дом и море 猫 🙂"),
        Planted(name="photo.final", image=_image(23), text="x", reason="image_missing"),
        Planted(name="cmyk", image=_image(24, encoding=Encoding.CMYK_JPEG), text="four inks"),
        Planted(name="deep", image=_image(25, encoding=Encoding.PNG_16_BIT), text="16 bits"),
        Planted(name="moving", image=_image(26, encoding=Encoding.ANIMATED_GIF), text="two frames"),
        Planted(name="LOUD", image=("JPG", _image(27)[1]), text=LONG_TEXT),
        Planted(
            name="json", image=_image(28), web_text="a caption in json",
            fields=json.dumps({"caption": "a caption in json", "url": "http://web.example/28"}),
        ),
        Planted(
            name="surrogate", image=_image(29), web_text="half \N{REPLACEMENT CHARACTER} pair",
            fields='{"caption": "half \\ud800 pair", "url": "http://web.example/\\udfff"}',
        ),
    ]  # fmt: skip


def _image(
    number: int, *, side_px: int = SIDE_PX, edit: Edit = Edit.NONE,
    encoding: Encoding = Encoding.JPEG,
) -> tuple[str, bytes]:  # fmt: skip
    picture = Picture(drawn=_scene(number), side_px=side_px, edit=edit, encoding=encoding)
    return encoding.suffix, picture_bytes(picture)


def _hostile(kind: Hostile) -> tuple[str, bytes]:
    return "jpg", hostile_bytes(kind, Picture(drawn=_scene(99), side_px=SIDE_PX))


def _scene(number: int) -> Scene:
    return sample_scene(random.Random(f"small-run/{number}"))


def write_web(folder: Path) -> None:
    """Write the web's shards, `00000.tar` and `00001.tar`, and a shard of human pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, samples in enumerate(planted_shards()):
        members = [member for sample in samples for member in sample.members()]
        (folder / f"{number:05d}.tar").write_bytes(write_tar(members))
    pairs = write_human_shard("small-run", 6, side_px=SIDE_PX)
    human = [m for key, jpeg, text in pairs
             for m in ((f"{key}.jpg", jpeg), (f"{key}.txt", text.encode()))]  # fmt: skip
    (folder / "human.tar").write_bytes(write_tar(human))


def write_models(folder: Path, *, vocab_size: int = 120) -> None:
    """Write a captioner and a filter that run in milliseconds: `captioner/` and `filter/`."""
    texts = [pair[2] for pair in write_human_shard("small-run", 40, side_px=8)]
    tokenizer = Tokenizer.train(texts, vocab_size=vocab_size)
    tiny = BlipConfig.tiny(
        vocab_size=tokenizer.vocab_size, image_size_px=32, width=32, text_depth=1
    )
    config = dataclasses.replace(tiny, vision=dataclasses.replace(tiny.vision, depth=1))
    torch.manual_seed(0)
    blip = _made_lively(Blip(config))
    save_model(folder / "captioner", model=blip.captioner(), tokenizer=tokenizer)
    save_model(folder / "filter", model=blip.matcher(), tokenizer=tokenizer)


def _made_lively(model: M) -> M:
    # At the initial scale all outputs are nearly equal, and tests of equality would prove little.
    for name, parameter in model.named_parameters():
        norm = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        nn.init.normal_(parameter, mean=norm, std=0.3)
    return model.eval()


def small_recipe(run: Path | str, *, web: Path, models: Path, **sections: object) -> Recipe:
    """A recipe over the small web that keeps every text the filter can score.

    Args:
        run: folder of the run: a path or a URL.
        web: where `write_web` wrote.
        models: where `write_models` wrote.
        **sections: fields laid over it, by section; other values replace top-level fields.
    """
    values: dict[str, object] = {
        "run": str(run),
        "input": {"shards": f"{web}/{{00000..00001}}.tar"},
        "caption": {"model": str(models / "captioner"), "max_new_tokens": 6, "batch_images": 5},
        "score": {"model": str(models / "filter"), "batch_images": 4},
        "select": {"min_itm_prob": 0.0, "min_itm_prob_synthetic": 0.0, "max_text_chars": 10_000},
        # Vectors of random weights point all one way, so they say nothing about likeness.
        "dedup": {"min_cosine": 1.01, "min_cosine_perceptual": -1.0},
        "pool": {"kind": "local"},
    }
    for name, fields in sections.items():
        if isinstance(fields, Mapping):
            before = values.get(name, {})
            assert isinstance(before, dict)
            values[name] = {**before, **fields}
        else:
            values[name] = fields
    return check_recipe("small run", values)


def training(web: Path) -> dict[str, object]:
    """The `train` section: a few steps on the human pairs of the small web."""
    return {
        "human": str(web / "human.tar"), "size": "tiny", "image_size_px": 32, "batch_size": 4,
        "queue_size": 8, "pretrain_steps": 3, "finetune_steps": 2, "warmup_steps": 1,
        "learning_rate": 1e-3, "finetune_learning_rate": 1e-3, "log_every": 1,
    }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallRun:
    """A run over the small web: finished, or a folder where one may be made."""

    folder: Path
    web: Path
    models: Path

    def recipe(self, **sections: object) -> Recipe:
        return small_recipe(self.folder, web=self.web, models=self.models, **sections)

    def tables(self, round_number: int = 0, **sections: object) -> Tables:
        return open_tables(self.recipe(**sections), round_number)

    def copied_to(self, folder: Path, *, without: Sequence[str] = ()) -> SmallRun:
        """A copy of the run's folder, less some tables."""
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns(*without))
        return dataclasses.replace(self, folder=folder)

    def with_own_web(self, folder: Path) -> SmallRun:
        """The same run over a copy of the web that a test may damage."""
        return dataclasses.replace(self, web=Path(shutil.copytree(self.web, folder)))


def finished(run: SmallRun, pool: LocalPool | None = None, **sections: object) -> list[Funnel]:
    """Run all rounds of the recipe to their end."""
    recipe = run.recipe(**sections)
    return list(bootstrap(recipe, pool or LocalPool(), rounds=recipe.rounds))


def rows_of(tables: Tables, stage: str, record_type: type[RowT], role: str = "rows") -> list[RowT]:
    """All rows a stage has committed, shard by shard."""
    table = tables.of(stage)
    return [
        row
        for shard in tables.committed(stage)
        for row in records_from(from_bytes(table.read(shard, role), record_type), record_type)
    ]


def flip_last_byte(run: SmallRun, sample: Sample) -> None:
    """Change a sample's image where it lies: its size stays, its digest does not."""
    assert sample.image_offset is not None
    assert sample.num_bytes is not None
    with (run.web / f"{sample.shard:05d}.tar").open("r+b") as file:
        file.seek(sample.image_offset + sample.num_bytes - 1)
        [last] = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([last ^ 0xFF]))


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder: relative path to content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class StoppingPool(LocalPool):
    """A pool that is asked to stop after some reports."""

    def __init__(self, *, after: int) -> None:
        self._left = after

    def run(self, chain: Sequence[AnyJob], shards: Sequence[int]) -> Iterator[ShardReport]:
        for report in super().run(chain, shards):
            if self._left == 0:
                raise Stopped("stopped by the test")
            self._left -= 1
            yield report


class BackwardsPool(LocalPool):
    """A pool that takes the last shard first."""

    def run(self, chain: Sequence[AnyJob], shards: Sequence[int]) -> Iterator[ShardReport]:
        return super().run(chain, shards[::-1])


class IdlePool(LocalPool):
    """A pool for work that must all be done already."""

    def run(self, chain: Sequence[AnyJob], shards: Sequence[int]) -> Iterator[ShardReport]:
        for report in super().run(chain, shards):
            assert report.already, f"{report.stage}, shard {report.shard} was done again"
            yield report
