"""ABMConfig: every size of an ABM model, documented and checked.

The defaults are the sizes of the paper (arXiv 2112.03603) and of its released checkpoint; `ABMConfig.preset("small")`
is a light model for CPUs. What `generate` does (beams, lengths, ...) belongs in the generation config, not here.
"""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

DIRECTIONS = ("l2r", "r2l")

# What differs from the paper's sizes. `small` keeps the stride and the depth at the coarse end, where an image is a
# few hundred positions, and saves at the fine end, where the time goes.
PRESETS: dict[str, dict[str, Any]] = {
    "base": {},
    "small": {
        "stem_channels": 32,
        "block_layers": (3, 8, 12),
        "growth_rates": (16, 24, 32),
        "attention_size": 128,
        "encoder_dropout": 0.0,
    },
}


@strict
class ABMConfig(PreTrainedConfig):
    r"""
    Configuration of an [`ABMForConditionalGeneration`].

    Args:
        vocab_size (`int`, *optional*, defaults to 115):
            Number of token ids, special ones included.
        num_output_tokens (`int`, *optional*, defaults to 113):
            Ids below this number can be written by the model; those from it on (padding, unknown) can only be read.
        num_channels (`int`, *optional*, defaults to 1):
            Channels of `pixel_values`.
        stem_channels (`int`, *optional*, defaults to 48):
            Channels after the 7×7 convolution that opens the encoder.
        block_layers (`tuple[int, ...]`, *optional*, defaults to `(16, 16, 16)`):
            Bottleneck layers of each dense block. Every block after the first halves the resolution; the stem divides
            it by four.
        growth_rates (`tuple[int, ...]`, *optional*, defaults to `(24, 24, 24)`):
            Channels that each layer of a block adds.
        bottleneck_factor (`int`, *optional*, defaults to 4):
            Width of a layer's 1×1 convolution, in growth rates.
        compression (`float`, *optional*, defaults to 0.5):
            Share of the channels that a transition between two blocks keeps.
        encoder_dropout (`float`, *optional*, defaults to 0.2):
            Dropout after each convolution of the encoder, the stem excepted.
        mask_padding (`bool`, *optional*, defaults to `True`):
            Hold padded positions at zero through the whole encoder, so that an image gives the same features alone and
            in a padded batch. `False` lets values leak across the border of an image, as the released code does.
        hidden_size (`int`, *optional*, defaults to 256):
            Size of the recurrent state of a decoder branch.
        embedding_size (`int`, *optional*, defaults to 256):
            Size of a token's embedding, and of the layer before the output. Even: that layer is a maxout over pairs.
        attention_size (`int`, *optional*, defaults to 512):
            Size of the space in which positions are compared with the state.
        coverage_kernels (`tuple[int, ...]`, *optional*, defaults to `(11, 5)`):
            Odd kernel sizes, in feature positions, of the convolutions over past attention (attention aggregation: a
            coarse and a fine one). One size gives ordinary coverage attention.
        dropout (`float`, *optional*, defaults to 0.2):
            Dropout before a branch's output layer.
        directions (`tuple[str, ...]`, *optional*, defaults to `("l2r", "r2l")`):
            The branches that the model has. `("l2r",)` is the paper's model at inference.
        distillation (`str`, *optional*, defaults to `"aligned"`):
            Mutual distillation between the branches in training: `"aligned"` compares what both say of the same token,
            in both ways; `"released"` is the term of the released code, which compares different tokens; `"none"`.
        distillation_weight (`float`, *optional*, defaults to 0.5):
            Weight λ of the distillation in the loss.
        distillation_temperature (`float`, *optional*, defaults to 4.0):
            Temperature of the compared distributions; the term is multiplied by its square.
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Label smoothing of the cross-entropies.

    ```python
    >>> from abm_hf import ABMConfig, ABMForConditionalGeneration

    >>> model = ABMForConditionalGeneration(ABMConfig.preset("small"))
    >>> model.config.feature_channels
    500
    ```
    """

    model_type = "abm"
    # What `Trainer` would gather over a whole set besides the logits.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "past_key_values",
        "loss_components",
        "r2l_logits",
        "cross_attentions",
        "r2l_cross_attentions",
        "encoder_last_hidden_state",
    ]

    vocab_size: int = 115
    num_output_tokens: int = 113
    num_channels: int = 1
    stem_channels: int = 48
    block_layers: tuple[int, ...] | list[int] = (16, 16, 16)
    growth_rates: tuple[int, ...] | list[int] = (24, 24, 24)
    bottleneck_factor: int = 4
    compression: float = 0.5
    encoder_dropout: float | int = 0.2
    mask_padding: bool = True
    hidden_size: int = 256
    embedding_size: int = 256
    attention_size: int = 512
    coverage_kernels: tuple[int, ...] | list[int] = (11, 5)
    dropout: float | int = 0.2
    directions: tuple[str, ...] | list[str] = DIRECTIONS
    distillation: Literal["aligned", "released", "none"] = "aligned"
    distillation_weight: float | int = 0.5
    distillation_temperature: float | int = 4.0
    label_smoothing: float | int = 0.0

    is_encoder_decoder: bool = True
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    pad_token_id: int | None = 113
    decoder_start_token_id: int | None = 0

    def __post_init__(self, **kwargs: Any) -> None:
        # JSON knows no tuples: without this a configuration would differ from its own saved copy.
        for name in ("block_layers", "growth_rates", "coverage_kernels", "directions"):
            setattr(self, name, tuple(getattr(self, name)))
        super().__post_init__(**kwargs)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "ABMConfig":
        """The configuration `name` (`"base"`: the paper's sizes, or `"small"`), with fields replaced by `overrides`.

        Raises:
            ValueError: if there is no preset of that name.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset is called {name!r}: choose from {sorted(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})

    @property
    def feature_channels(self) -> int:
        """Channels of the encoder's output."""
        channels = self.stem_channels
        for index, (layers, growth) in enumerate(zip(self.block_layers, self.growth_rates, strict=True)):
            if index:
                channels = int(channels * self.compression)
            channels += layers * growth
        return channels

    @property
    def feature_stride(self) -> int:
        """Pixels for each feature position, in both axes."""
        return 2 ** (1 + len(self.block_layers))

    def validate_sizes(self) -> None:
        """Sizes must be positive, and those that depend on each other must agree."""
        for name in ("vocab_size", "num_output_tokens", "num_channels", "stem_channels", "bottleneck_factor"):
            _require(getattr(self, name) > 0, f"{name} must be positive, it is {getattr(self, name)}")
        for name in ("hidden_size", "embedding_size", "attention_size"):
            _require(getattr(self, name) > 0, f"{name} must be positive, it is {getattr(self, name)}")
        _require(
            self.num_output_tokens <= self.vocab_size,
            f"num_output_tokens ({self.num_output_tokens}) exceeds vocab_size ({self.vocab_size}): "
            "it counts the ids that can be generated, all of which are in the vocabulary",
        )
        _require(
            self.embedding_size % 2 == 0,
            f"embedding_size must be even (the output layer takes the maximum of pairs), it is {self.embedding_size}",
        )
        _require(
            len(self.block_layers) == len(self.growth_rates) > 0,
            f"block_layers {self.block_layers} and growth_rates {self.growth_rates} must name as many blocks",
        )
        _require(min(*self.block_layers, *self.growth_rates, 1) > 0, "block_layers and growth_rates must be positive")
        _require(
            len(self.coverage_kernels) > 0 and all(size > 0 and size % 2 for size in self.coverage_kernels),
            f"coverage_kernels must be odd sizes, such as (11, 5); they are {self.coverage_kernels}",
        )

    def validate_directions(self) -> None:
        """At least one branch, each at most once; the forward one is needed to generate by default."""
        known = set(self.directions) <= set(DIRECTIONS) and len(set(self.directions)) == len(self.directions)
        _require(
            known and len(self.directions) > 0,
            f"directions must be ('l2r',), ('r2l',) or ('l2r', 'r2l'); they are {self.directions}",
        )

    def validate_training(self) -> None:
        """Probabilities are in [0, 1), weights and temperatures make sense."""
        for name in ("encoder_dropout", "dropout", "label_smoothing"):
            _require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), it is {getattr(self, name)}")
        _require(0 < self.compression <= 1, f"compression must be in (0, 1], it is {self.compression}")
        _require(
            self.distillation_weight >= 0,
            f"distillation_weight must not be negative, it is {self.distillation_weight}; use distillation='none'",
        )
        _require(
            self.distillation_temperature > 0,
            f"distillation_temperature must be positive, it is {self.distillation_temperature}",
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
