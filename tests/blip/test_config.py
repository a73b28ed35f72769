from __future__ import annotations

import pytest

from capfilt_blip.config import BlipConfig


@pytest.mark.parametrize(
    "config", [BlipConfig.base(), BlipConfig.large(), BlipConfig.tiny(vocab_size=300)]
)
def test_a_config_survives_the_way_through_config_json(config: BlipConfig) -> None:
    assert BlipConfig.from_hf(config.to_hf(architecture="Any")) == config


def test_absent_fields_have_the_defaults_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BlipConfig()
    ours = BlipConfig.from_hf({"model_type": "blip"})
    assert ours == BlipConfig.from_hf(theirs.to_dict())


def test_the_vision_layer_norm_eps_is_read_from_the_file() -> None:
    fields = {"model_type": "blip", "vision_config": {"layer_norm_eps": 1e-5}}
    assert BlipConfig.from_hf(fields).vision.layer_norm_eps == 1e-5


def test_cross_attention_has_the_width_of_the_vision_side() -> None:
    fields = {
        "model_type": "blip",
        "vision_config": {"hidden_size": 1024},
        "text_config": {"encoder_hidden_size": 768},
    }
    assert BlipConfig.from_hf(fields).text.image_width == 1024


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "blip-2"}, "model_type is 'blip-2'; only 'blip' can be read"),
        (
            {"model_type": "blip", "text_config": {"hidden_act": "relu"}},
            "text_config.hidden_act is 'relu'",
        ),
        (
            {"model_type": "blip", "vision_config": {"image_size": [384, 224]}},
            "image_size is [384, 224]",
        ),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        BlipConfig.from_hf(fields)
    assert words in str(caught.value)
