"""What a saved model says about itself: the model card, and how its pixels are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capfilt_blip.config import BlipConfig
from capfilt_blip.files.layouts import Task
from capfilt_blip.transforms import CHANNEL_MEAN, CHANNEL_STD


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    """What the card of a task says."""

    title: str
    what: str
    """What the model does, after "It"."""
    tags: tuple[str, ...]
    pipeline_tag: str = ""
    """The hub's own name of the task, where it has one."""
    usage: str
    """Python for capfilt_blip."""
    with_transformers: str = ""
    """Class of transformers that reads the directory, if one does."""
    note: str = ""


def card(
    config: BlipConfig, *, task: Task, num_parameters: int, dtype: str, architecture: str
) -> str:
    """Write the model card, with the header that the hub reads.

    No license is stated: it depends on the data and weights that the model was trained from.

    Args:
        config: of the model.
        task: what it is for.
        num_parameters: shared ones counted once.
        dtype: of the stored weights, such as "float16".
        architecture: of config.json; transformers is said to read the directory if it can.

    Returns:
        Markdown; the same model gives the same text.
    """
    words = _WORDS[task]
    in_transformers = words.with_transformers == architecture
    vision, text = config.vision, config.text
    header = [f"library_name: {'transformers' if in_transformers else 'capfilt'}"]
    header += [f"pipeline_tag: {words.pipeline_tag}"] if words.pipeline_tag else []
    header += ["tags:", "- blip", *(f"- {tag}" for tag in words.tags)]
    paragraphs = [
        "---\n" + "\n".join(header) + "\n---",
        f"# {words.title}",
        f"It {words.what}. The architecture is that of BLIP "
        "([arXiv:2201.12086](https://arxiv.org/abs/2201.12086)).",
        "| | |\n|---|---|\n"
        f"| images | {vision.image_size_px} px, in patches of {vision.patch_size_px} px |\n"
        f"| vision transformer | {vision.depth} layers, {vision.width} wide |\n"
        f"| text transformer | {text.depth} layers, {text.width} wide, "
        f"{text.vocab_size:,} tokens |\n"
        f"| parameters | {num_parameters:,}, stored as {dtype} |",
        f"```python\n{words.usage}\n```",
        _how_transformers_reads(words.with_transformers) if in_transformers else "",
        words.note if in_transformers else "",
        "No license is stated: it depends on what the model was trained from. Add `license:` to "
        "the header of this file before you publish it.",
    ]
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def preprocessor(config: BlipConfig) -> Mapping[str, object]:
    """Return the `preprocessor_config.json` from which transformers makes the same pixels."""
    side = config.vision.image_size_px
    return {
        "image_processor_type": "BlipImageProcessor",
        "processor_class": "BlipProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CHANNEL_MEAN),
        "image_std": list(CHANNEL_STD),
    }


def _how_transformers_reads(class_name: str) -> str:
    return (
        "In transformers:\n\n```python\n"
        f"from transformers import BlipProcessor, {class_name}\n\n"
        'processor = BlipProcessor.from_pretrained("PATH")\n'
        f'model = {class_name}.from_pretrained("PATH")\n```'
    )


_WORDS: dict[Task, _Words] = {
    "captioning": _Words(
        title="A BLIP captioner",
        what="writes a text for an image",
        tags=("capfilt", "image-captioning"),
        pipeline_tag="image-to-text",
        usage="from capfilt_blip import Captioner\n\n"
        'Captioner.from_pretrained("PATH").beam(images)',
        with_transformers="BlipForConditionalGeneration",
    ),
    "retrieval": _Words(
        title="A BLIP matcher",
        what="says how well a text describes an image: by ITM as a probability, by ITC as a cosine",
        tags=("capfilt", "image-text-matching", "image-text-retrieval"),
        usage="from capfilt_blip import Matcher\n\n"
        'Matcher.from_pretrained("PATH").score(images, texts)',
        with_transformers="BlipForImageTextRetrieval",
        note="The ITM head has learnt to read [ENC] at position 0, and transformers leaves [CLS] "
        "there: set `input_ids[:, 0]` to `enc_token_id` of config.json before you call it.",
    ),
    "VQA": _Words(
        title="A BLIP that answers questions",
        what="answers a question about an image",
        tags=("capfilt",),
        pipeline_tag="visual-question-answering",
        usage="from capfilt_blip.tasks.answerer import Answerer\n\n"
        'Answerer.from_pretrained("PATH").answer(images, questions)',
        with_transformers="BlipForQuestionAnswering",
        note="The encoder has learnt to read [ENC] at position 0, and transformers leaves [CLS] "
        "there: set `input_ids[:, 0]` to `enc_token_id` of config.json before you call it.",
    ),
    "pre-training": _Words(
        title="A pre-trained BLIP",
        what="is the start of captioners, matchers and the models of the other tasks",
        tags=("capfilt",),
        usage="from capfilt_blip.checkpoint import load_blip\n\n"
        'blip, tokenizer = load_blip("PATH")\n'
        "captioner, matcher = blip.captioner(), blip.matcher()",
    ),
    "NLVR2": _Words(
        title="A BLIP that reasons on two images",
        what="says whether a sentence is true of a pair of images",
        tags=("capfilt", "visual-reasoning"),
        usage="from capfilt_blip.tasks.reasoner import Reasoner\n\n"
        'Reasoner.from_pretrained("PATH").judge(left, right, texts)',
    ),
    "grounding": _Words(
        title="A BLIP that finds things",
        what="writes the box of what a phrase means in an image",
        tags=("capfilt", "visual-grounding"),
        usage="from capfilt_blip.tasks.grounder import Grounder\n\n"
        'Grounder.from_pretrained("PATH").locate(images, phrases)',
    ),
}
