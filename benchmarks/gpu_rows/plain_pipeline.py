"""CapFilt as a plain script over transformers: what the end-to-end row is measured against.

It is written as well as such a script is: tars are read and pictures prepared in as many processes
as ours has, in bfloat16 if ours is, captions are drawn with a cache, and texts judged in batches.
"""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers import NUM_TOKENS, TOP_P

LOADER_BATCH = 64
"""Images a loading process hands over at once: 113 MB of shared memory at 384 px."""
MAX_TEXT_TOKENS = 35

Sample: TypeAlias = tuple[str, str, Tensor]
"""Name, text, and (3, S, S) float32."""
Batch: TypeAlias = tuple[list[str], list[str], Tensor]


class TarImages(Dataset[Sample]):
    """The pictures of tars, prepared as transformers' own processor does.

    Args:
        tars: each holds NAME.jpg and NAME.txt after one another.
        processor: resizes and normalises.
    """

    def __init__(self, tars: Sequence[Path], processor: Any) -> None:
        self._processor = processor
        self._places = [place for tar in tars for place in _places(tar)]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        tar, name, text, offset, num_bytes = self._places[index]
        with tar.open("rb") as file:
            file.seek(offset)
            picture = Image.open(io.BytesIO(file.read(num_bytes))).convert("RGB")
        pixels: Tensor = self._processor(images=picture, return_tensors="pt")["pixel_values"][0]
        return name, text, pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainPipeline:
    """Captions and scores tars.

    Args:
        captioner: folder of a model.
        matcher: folder of a model.
        device: where they compute.
        dtype: what they compute in.
        batch_images: images in one pass.
        num_processes: that load pictures.
    """

    captioner: Path
    matcher: Path
    device: str
    dtype: torch.dtype
    batch_images: int
    num_processes: int

    @torch.inference_mode()
    def run(self, tars: Sequence[Path], out: Path, *, rows_per_file: int) -> Iterator[float]:
        """Write a Parquet file for so many images; yield the time at which each is written."""
        writer = transformers.BlipForConditionalGeneration.from_pretrained(
            self.captioner, dtype=self.dtype
        ).to(self.device)
        judge = transformers.BlipForImageTextRetrieval.from_pretrained(
            self.matcher, dtype=self.dtype
        ).to(self.device)
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.captioner)
        rows: list[dict[str, object]] = []
        for names, texts, pixels in self._batches(tars):
            on_device = pixels.to(self.device, self.dtype, non_blocking=True)
            captions = _captions(writer, tokenizer, on_device)
            itm = _itm(judge, tokenizer, on_device, texts, captions)
            columns = zip(names, texts, captions, itm, strict=True)
            rows += [
                {"name": name, "text": text, "caption": caption, "itm_web": a, "itm_caption": b}
                for name, text, caption, (a, b) in columns
            ]
            while len(rows) >= rows_per_file:
                pq.write_table(
                    pa.Table.from_pylist(rows[:rows_per_file]), out / f"{rows[0]['name']}.parquet"
                )
                del rows[:rows_per_file]
                yield time.perf_counter()

    def _batches(self, tars: Sequence[Path]) -> Iterator[Batch]:
        """Hand on `batch_images` at a time: several batches of the loader."""
        processor = _processor(self.captioner)
        loader = DataLoader(
            TarImages(tars, processor),
            batch_size=min(LOADER_BATCH, self.batch_images),
            num_workers=self.num_processes,
            pin_memory=self.device.startswith("cuda"),
            multiprocessing_context="fork",
        )
        waiting: list[Batch] = []
        for names, texts, pixels in loader:
            waiting.append((list(names), list(texts), pixels))
            if sum(len(batch[0]) for batch in waiting) >= self.batch_images:
                yield _joined(waiting)
                waiting = []
        if waiting:
            yield _joined(waiting)


def _places(tar: Path) -> Iterator[tuple[Path, str, str, int, int]]:
    """Each picture's tar, name and text, and where its bytes are."""
    with tarfile.open(tar) as file:
        members = list(file)
        for picture, text in zip(members[::2], members[1::2], strict=True):
            stream = file.extractfile(text)
            assert stream is not None
            name = picture.name.removesuffix(".jpg")
            yield tar, name, stream.read().decode(), picture.offset_data, picture.size


def _processor(folder: Path) -> Any:
    # The one that works on Pillow images has a name of its own in later versions.
    kind = getattr(transformers, "BlipImageProcessorPil", None) or transformers.BlipImageProcessor
    return kind.from_pretrained(folder)


def _joined(batches: Sequence[Batch]) -> Batch:
    names, texts, pixels = zip(*batches, strict=True)
    return list(chain(*names)), list(chain(*texts)), torch.cat(pixels)


def _captions(writer: Any, tokenizer: Any, pixels: Tensor) -> list[str]:
    ids = writer.generate(
        pixel_values=pixels,
        do_sample=True,
        top_p=TOP_P,
        top_k=0,
        min_new_tokens=NUM_TOKENS,
        max_new_tokens=NUM_TOKENS,
    )
    texts: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


def _itm(
    judge: Any, tokenizer: Any, pixels: Tensor, texts: Sequence[str], captions: Sequence[str]
) -> list[list[float]]:
    """The probability of "match" of each image's text and caption."""
    pairs = [text for both in zip(texts, captions, strict=True) for text in both]
    read = tokenizer(
        pairs, padding=True, truncation=True, max_length=MAX_TEXT_TOKENS, return_tensors="pt"
    ).to(pixels.device)
    read.input_ids[:, 0] = tokenizer.convert_tokens_to_ids("[ENC]")  # what the head was trained on
    scores = judge(
        input_ids=read.input_ids,
        attention_mask=read.attention_mask,
        pixel_values=pixels.repeat_interleave(2, dim=0),
    ).itm_score
    found: list[list[float]] = scores.float().softmax(-1)[:, 1].view(-1, 2).tolist()
    return found
