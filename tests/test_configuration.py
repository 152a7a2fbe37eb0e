"""The configuration: a round trip, presets, and errors that say what to do."""

import json
from pathlib import Path
from typing import Any

import pytest

from abm_hf import ABMConfig


def test_round_trip(tmp_path: Path) -> None:
    config = ABMConfig.preset("small", directions=("l2r",), distillation="none", dropout=0.1)
    config.save_pretrained(tmp_path)
    loaded = ABMConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert (loaded.block_layers, loaded.directions) == ((3, 8, 12), ("l2r",))


def test_generation_options_stay_out_of_the_file(tmp_path: Path) -> None:
    ABMConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "abm"
    assert not {"num_beams", "max_length", "length_penalty"} & saved.keys()


def test_sizes_follow_the_blocks() -> None:
    assert ABMConfig().feature_channels == 684, "the paper's encoder"
    assert ABMConfig().feature_stride == 16
    assert ABMConfig(block_layers=(2, 2), growth_rates=(4, 4)).feature_stride == 8


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"hidden_size": "256"}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size must be positive"),
        ({"embedding_size": 7}, "embedding_size must be even"),
        ({"block_layers": (16, 16)}, "as many blocks"),
        ({"growth_rates": (24, 0, 24)}, "must be positive"),
        ({"coverage_kernels": (10,)}, r"odd sizes, such as \(11, 5\)"),
        ({"coverage_kernels": ()}, "odd sizes"),
        ({"directions": ("up",)}, r"must be \('l2r',\)"),
        ({"directions": ()}, "directions must be"),
        ({"directions": ("l2r", "l2r")}, "directions must be"),
        ({"distillation": "mutual"}, "aligned"),
        ({"distillation_temperature": 0.0}, "must be positive"),
        ({"distillation_weight": -1.0}, "distillation='none'"),
        ({"encoder_dropout": 1.0}, r"in \[0, 1\)"),
        ({"num_output_tokens": 200}, "exceeds vocab_size"),
    ],
)
def test_mistakes_are_refused(fields: dict[str, Any], remedy: str) -> None:
    with pytest.raises(Exception, match=remedy):
        ABMConfig(**fields)


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match=r"\['base', 'small'\]"):
        ABMConfig.preset("huge")
