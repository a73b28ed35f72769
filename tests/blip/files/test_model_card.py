from __future__ import annotations

import ast

import pytest
import yaml

from capfilt_blip.config import BlipConfig
from capfilt_blip.files.layouts import Task
from capfilt_blip.files.model_card import card
from capfilt_blip.files.reading import KINDS, architecture_of


def text(task: Task, config: BlipConfig) -> str:
    architecture = architecture_of(task, config=config)
    return card(
        config, task=task, num_parameters=1234567, dtype="float16", architecture=architecture
    )


def code(card: str) -> list[str]:
    return [block.split("```")[0] for block in card.split("```python\n")[1:]]


@pytest.mark.parametrize("task", KINDS)
def test_the_header_is_what_the_hub_reads_and_states_no_license(task: Task) -> None:
    header = yaml.safe_load(text(task, BlipConfig.base()).split("---\n")[1])
    in_transformers = KINDS[task].architecture.startswith("BlipFor")
    assert header["library_name"] == ("transformers" if in_transformers else "capfilt")
    assert "blip" in header["tags"] and "license" not in header


@pytest.mark.parametrize("task", KINDS)
def test_what_the_card_imports_exists(task: Task) -> None:
    ours = code(text(task, BlipConfig.base()))[0]
    for node in ast.walk(ast.parse(ours)):
        if isinstance(node, ast.ImportFrom):
            exec(ast.unparse(node))


def test_sizes_are_those_of_the_model() -> None:
    found = text("captioning", BlipConfig.large())
    assert "| images | 384 px, in patches of 16 px |" in found
    assert "| vision transformer | 24 layers, 1024 wide |" in found
    assert "| text transformer | 12 layers, 768 wide, 30,524 tokens |" in found
    assert "| parameters | 1,234,567, stored as float16 |" in found


def test_transformers_is_named_only_where_it_reads_the_directory() -> None:
    assert "BlipForQuestionAnswering.from_pretrained" in text("VQA", BlipConfig.base())
    assert "transformers" not in text("VQA", BlipConfig.large())
    assert "transformers" not in text("NLVR2", BlipConfig.base())
