"""Reads checkpoints of the released ABM code (XH-B/ABM), which has other names and keeps the gates apart.

The released state dict holds `encoder1.*` and, for each direction, `init_GRU_model`, `emb_model`, `gru_model` and
`gru_prob_model`, with a `2` appended for right to left. All sizes of the model follow from the tensors.
"""

import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..configuration_abm import ABMConfig

_SUFFIX = {"l2r": "", "r2l": "2"}
_EXTRA_TOKENS = 2  # padding and unknown, appended after the released ids
_KERNELS = {"conv_Q": "fc_Uf", "conv_Q2": "fc_Uf2"}


class ConversionError(ValueError):
    """The state dict is not one of the released ABM code; the message lists what is missing, surplus or misshapen."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors`, `.pkl`, `.pt` or `.pth` file, without running any code of it.

    Prefixes `module.` (data parallel) and `state_dict.` are stripped, a wrapper `{"state_dict": …}` is opened.

    Raises:
        ConversionError: if the file does not hold a plain state dict.
        OSError: if it cannot be read.
    """
    path = Path(path)
    content: Any
    if path.suffix == ".safetensors":
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ConversionError(f"{path}: not a safetensors file ({error})") from error
        # The parity fixture keeps the weights beside its inputs and outputs.
        content = {name: value for name, value in tensors.items() if name.startswith("state_dict.")} or tensors
    else:
        content = _load_pickle(path)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConversionError(f"{path}: not a state dict (a mapping of names to tensors)")
    return {re.sub(r"^(state_dict\.|module\.)+", "", name): value for name, value in content.items()}


def _load_pickle(path: Path) -> Any:
    """What `torch.save` wrote, without running code of it."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle protocols; what matters is whether it loads
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # the unpickler meets arbitrary bytes, and raises whatever they lead to
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConversionError(f"{path}: not a state dict written by torch.save ({reason})") from error


def convert_state_dict(released: Mapping[str, Tensor]) -> tuple[ABMConfig, dict[str, Tensor]]:
    """The configuration and the state dict of [`ABMForConditionalGeneration`] for a released state dict.

    Token ids stay as they are (0 … K − 1); the embeddings get rows for padding (K) and unknown (K + 1).

    Raises:
        ConversionError: listing every tensor that is missing, surplus or of the wrong shape.
    """
    config = infer_config(released)
    expected = _released_shapes(config)
    problems = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in released]
    problems += [f"surplus: {name}" for name in released if name not in expected]
    problems += [
        f"misshapen: {name} is {list(released[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in released and tuple(released[name].shape) != shape
    ]
    if problems:
        raise ConversionError("not a released ABM state dict:\n  " + "\n  ".join(problems))
    floats = {name: value.float() if value.is_floating_point() else value for name, value in released.items()}
    converted = _convert_encoder(floats)
    for direction in config.directions:
        converted.update(_convert_branch(floats, direction))
    return config, converted


def infer_config(released: Mapping[str, Tensor]) -> ABMConfig:
    """The sizes of the released model that these tensors belong to.

    Raises:
        ConversionError: if tensors that carry the sizes are missing.
    """
    directions = tuple(d for d, suffix in _SUFFIX.items() if f"emb_model{suffix}.embedding.weight" in released)
    suffix = _SUFFIX[directions[0]] if directions else ""
    try:
        layers = [
            1 + max(int(match[1]) for name in released if (match := re.match(rf"encoder1\.dense{b}\.(\d+)\.", name)))
            for b in (1, 2, 3)
        ]
        growth = tuple(len(released[f"encoder1.dense{b}.0.conv2.weight"]) for b in (1, 2, 3))
        num_tokens, embedding_size = released[f"emb_model{suffix}.embedding.weight"].shape
        attention_size, hidden_size = released[f"gru_model{suffix}.fc_Wa.weight"].shape
        return ABMConfig(
            vocab_size=num_tokens + _EXTRA_TOKENS,
            num_output_tokens=num_tokens,
            pad_token_id=num_tokens,
            num_channels=released["encoder1.conv1.weight"].shape[1],
            stem_channels=released["encoder1.conv1.weight"].shape[0],
            block_layers=tuple(layers),
            growth_rates=growth,
            bottleneck_factor=len(released["encoder1.dense1.0.conv1.weight"]) // growth[0],
            hidden_size=hidden_size,
            embedding_size=embedding_size,
            attention_size=attention_size,
            coverage_kernels=tuple(released[f"gru_model{suffix}.{conv}.weight"].shape[-1] for conv in _KERNELS),
            directions=directions,
            mask_padding=True,
        )
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ConversionError(
            f"not a released ABM state dict: the tensors that tell its sizes are missing or odd ({error})"
        ) from error


def _released_shapes(config: ABMConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that the released model of these sizes has."""
    shapes: dict[str, tuple[int, ...]] = {"encoder1.conv1.weight": (config.stem_channels, config.num_channels, 7, 7)}
    channels = config.stem_channels
    for b, (layers, growth) in enumerate(zip(config.block_layers, config.growth_rates, strict=True), start=1):
        if b > 1:
            compressed = math.floor(channels * config.compression)
            shapes[f"encoder1.trans{b - 1}.conv1.weight"] = (compressed, channels, 1, 1)
            shapes.update(_norm_shapes(f"encoder1.trans{b - 1}.bn1", compressed))
            channels = compressed
        width = config.bottleneck_factor * growth
        for i in range(layers):
            layer = f"encoder1.dense{b}.{i}"
            shapes[f"{layer}.conv1.weight"] = (width, channels, 1, 1)
            shapes[f"{layer}.conv2.weight"] = (growth, width, 3, 3)
            shapes.update(_norm_shapes(f"{layer}.bn1", width) | _norm_shapes(f"{layer}.bn2", growth))
            channels += growth
    for direction in config.directions:
        shapes.update(_branch_shapes(config, _SUFFIX[direction]))
    return shapes


def _norm_shapes(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    vectors = {f"{name}.{field}": (channels,) for field in ("weight", "bias", "running_mean", "running_var")}
    return {**vectors, f"{name}.num_batches_tracked": ()}


def _branch_shapes(config: ABMConfig, suffix: str) -> dict[str, tuple[int, ...]]:
    n, m, d = config.hidden_size, config.embedding_size, config.attention_size
    c, k = config.feature_channels, config.num_output_tokens
    gru = f"gru_model{suffix}"
    shapes: dict[str, tuple[int, ...]] = {
        f"init_GRU_model{suffix}.fc.weight": (n, c),
        f"init_GRU_model{suffix}.fc.bias": (n,),
        f"emb_model{suffix}.embedding.weight": (k, m),
        f"{gru}.conv_Ua.weight": (d, c, 1, 1),
        f"{gru}.conv_Ua.bias": (d,),
        f"{gru}.fc_Wa.weight": (d, n),
        f"{gru}.fc_va.weight": (1, d),
        f"{gru}.fc_va.bias": (1,),
    }
    for (conv, linear), size in zip(_KERNELS.items(), config.coverage_kernels, strict=True):
        shapes[f"{gru}.{conv}.weight"] = (d, 1, size, size)
        shapes[f"{gru}.{linear}.weight"] = (d, d)
        shapes[f"{gru}.{linear}.bias"] = (d,)
    for gate in "zrh":
        shapes[f"{gru}.fc_Wy{gate}.weight"] = (n, m)
        shapes[f"{gru}.fc_Wy{gate}.bias"] = (n,)
        shapes[f"{gru}.fc_Uh{gate}.weight"] = (n, n)
        shapes[f"{gru}.fc_Wc{gate}.weight"] = (n, c)
        shapes[f"{gru}.fc_Uh{gate}2.weight"] = (n, n)
        shapes[f"{gru}.fc_Uh{gate}2.bias"] = (n,)
    for name, size_in, size_out in (("fc_Wct", c, m), ("fc_Wht", n, m), ("fc_Wyt", m, m), ("fc_W0", m // 2, k)):
        shapes[f"gru_prob_model{suffix}.{name}.weight"] = (size_out, size_in)
        shapes[f"gru_prob_model{suffix}.{name}.bias"] = (size_out,)
    return shapes


def _convert_encoder(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    converted = {}
    for name, value in released.items():
        if not name.startswith("encoder1."):
            continue
        name = name.replace("encoder1.", "encoder.", 1)
        name = re.sub(r"\.dense(\d+)\.", lambda match: f".blocks.{int(match[1]) - 1}.", name)
        name = re.sub(r"\.trans(\d+)\.conv1\.", lambda match: f".transitions.{int(match[1]) - 1}.conv.", name)
        name = re.sub(r"\.trans(\d+)\.bn1\.", lambda match: f".transitions.{int(match[1]) - 1}.norm.", name)
        name = re.sub(r"\.bn(\d)\.", r".norm\1.", name)
        converted[name.replace("encoder.conv1.", "encoder.stem.")] = value
    return converted


def _convert_branch(released: Mapping[str, Tensor], direction: str) -> dict[str, Tensor]:
    suffix, branch = _SUFFIX[direction], f"branches.{direction}"
    gru = {name.split(".", 1)[1]: value for name, value in released.items() if name.startswith(f"gru_model{suffix}.")}
    out = {name.split(".", 1)[1]: v for name, v in released.items() if name.startswith(f"gru_prob_model{suffix}.")}
    embedding = released[f"emb_model{suffix}.embedding.weight"]

    # Gates in the order reset, update, candidate; the released z, like our update gate, keeps the old state.
    stacked = {
        "token_gru.input.weight": [f"fc_Wy{gate}.weight" for gate in "rzh"],
        "token_gru.input.bias": [f"fc_Wy{gate}.bias" for gate in "rzh"],
        "token_gru.recurrent.weight": [f"fc_Uh{gate}.weight" for gate in "rzh"],
        "context_gru.input.weight": [f"fc_Wc{gate}.weight" for gate in "rzh"],
        "context_gru.recurrent.weight": [f"fc_Uh{gate}2.weight" for gate in "rzh"],
        "context_gru.recurrent.bias": [f"fc_Uh{gate}2.bias" for gate in "rzh"],
    }
    converted = {name: torch.cat([gru[part] for part in parts]) for name, parts in stacked.items()}
    converted["embedding.weight"] = torch.cat([embedding, embedding.new_zeros(_EXTRA_TOKENS, embedding.shape[1])])
    for kind in ("weight", "bias"):
        converted[f"initial_state.{kind}"] = released[f"init_GRU_model{suffix}.fc.{kind}"]
        converted[f"attention.key.{kind}"] = (
            gru[f"conv_Ua.{kind}"].flatten(1) if kind == "weight" else gru["conv_Ua.bias"]
        )
        for name, ours in (("fc_Wct", "output_context"), ("fc_Wht", "output_hidden"), ("fc_Wyt", "output_embedding")):
            converted[f"{ours}.{kind}"] = out[f"{name}.{kind}"]
        converted[f"classifier.{kind}"] = out[f"fc_W0.{kind}"]
        for scale, linear in enumerate(_KERNELS.values()):
            converted[f"attention.coverage_maps.{scale}.{kind}"] = gru[f"{linear}.{kind}"]
    for scale, conv in enumerate(_KERNELS):
        converted[f"attention.coverage_convs.{scale}.weight"] = gru[f"{conv}.weight"]
    converted["attention.query.weight"] = gru["fc_Wa.weight"]
    # fc_va.bias shifts all energies alike, which the softmax undoes: it has no counterpart.
    converted["attention.energy.weight"] = gru["fc_va.weight"]
    return {f"{branch}.{name}": value for name, value in converted.items()}
