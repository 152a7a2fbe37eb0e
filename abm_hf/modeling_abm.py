"""ABM (arXiv 2112.03603): a picture of a handwritten formula in, LaTeX tokens out.

A DenseNet turns the picture into a grid of features. Two decoder branches of equal build and separate weights write
the formula from left to right and from right to left; at each step a branch attends to the grid, guided by where it
has attended before (attention aggregation: two scales of coverage). In training, each also learns from the other one;
at inference one is enough.

Shapes are given with B images of H × W pixels, h × w feature positions (L = h · w) of C channels, N sequences (N = B,
or B · beams in beam search) of T tokens, and K output tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .activation_abm import rectify
from .adapters_abm import adapted_weight
from .capabilities_abm import computes_in_bfloat16, multiplies_bytes
from .configuration_abm import ABMConfig
from .dense_block_abm import can_train, dense_block
from .fusion_abm import Folded, RectifiedConv, fold_batch_norms, restore
from .inference_abm import Reader, StepWeights, step_weights
from .integer_encoder_abm import IntegerEncoder
from .loss_abm import aligned_distillation, cross_entropy, reading_order, released_distillation
from .recurrence_abm import Memory, Weights, run_recurrence


@dataclass
class ABMEncoderOutput(ModelOutput):
    """
    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, h * w, channels)`): the features, row by row.
        encoder_mask (`torch.BoolTensor` of shape `(batch_size, h, w)`): `True` where a feature belongs to the picture.
    """

    last_hidden_state: Tensor
    encoder_mask: Tensor = None  # type: ignore[assignment]  # a ModelOutput has one field without default


@dataclass
class ABMOutput(ModelOutput):
    """
    Args:
        loss (scalar `torch.FloatTensor`, with `labels`): the cross-entropies plus the weighted distillation.
        loss_components (`dict[str, torch.FloatTensor]`, with `labels`): the detached terms `ce_l2r`, `ce_r2l` and
            `distillation` (before its weight), as far as the model has the branches.
        logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`): of the branch that was asked
            for; in training of the left-to-right one, or of the only one. Minus infinity for ids never written.
        r2l_logits (`torch.FloatTensor` of the same shape, with `labels`): of the right-to-left branch, aligned to the
            labels: position j speaks of token j.
        past_key_values ([`ABMCache`], with `use_cache`): the state after the last step.
        cross_attentions (`torch.FloatTensor` of shape `(batch_size, sequence_length, h, w)`, with
            `output_attentions`): what each step attended to.
        encoder_last_hidden_state (`torch.FloatTensor` of shape `(batch_size, h * w, channels)`): the features.
        decoder_attentions, decoder_hidden_states: always `None`: no attention among tokens, no layers. `generate` asks
            for them where attention maps are wanted.
    """

    loss: Tensor | None = None
    loss_components: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    r2l_logits: Tensor | None = None
    past_key_values: "ABMCache | None" = None
    cross_attentions: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    decoder_attentions: None = None
    decoder_hidden_states: None = None


# Heights and widths of pictures are rounded up to these where they are encoded apart.
_SIZE_STEPS = (32, 64)


class ABMDenseLayer(nn.Module):
    """A bottleneck layer: 1×1 convolution, 3×3 convolution; gives the channels to append to the input's."""

    def __init__(self, channels: int, growth_rate: int, bottleneck_factor: int, dropout: float):
        super().__init__()
        width = bottleneck_factor * growth_rate
        self.conv1 = nn.Conv2d(channels, width, kernel_size=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, growth_rate, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(growth_rate)
        self.dropout = nn.Dropout(dropout)

    def forward(self, mask: Tensor | None, *features: Tensor) -> Tensor:
        # Several tensors where the encoder has them put together again for the gradient, instead of keeping that.
        together = torch.cat(features, dim=1) if len(features) > 1 else features[0]
        # Only the 3×3 convolution looks across positions, so only its input needs zeros where there is no picture.
        new = _convolve(self.conv1, self.norm1, together, mask, self.dropout)
        return _convolve(self.conv2, self.norm2, new, None, self.dropout)


class ABMTransition(nn.Module):
    """Between two dense blocks: fewer channels, half the resolution (rounded up)."""

    def __init__(self, channels: int, out_channels: int, dropout: float):
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, mask: Tensor | None, features: Tensor) -> Tensor:
        features = _convolve(self.conv, self.norm, features, mask, self.dropout)
        pooled = F.avg_pool2d(features, 2, ceil_mode=True)
        if mask is None:
            return pooled
        # A window on the border averages over the positions that exist, as it does at the edge of a single picture.
        # In the features' precision, which has room for quarters: else all that follows would be in the mask's.
        return pooled / F.avg_pool2d(mask, 2, ceil_mode=True).clamp(min=0.25).to(pooled.dtype)


class ABMEncoder(nn.Module):
    """DenseNet-B: `(B, 1, H, W)` pixels to features at a sixteenth of the resolution (with three blocks)."""

    main_input_name = "pixel_values"
    # Set by `activation_checkpointing_enable`, together with `_gradient_checkpointing_func`.
    gradient_checkpointing = False
    _gradient_checkpointing_func: Any
    # Whether pictures without gradients are encoded with those of like size; `False` takes batches whole, to compare.
    by_size = True

    def __init__(self, config: ABMConfig):
        super().__init__()
        self.mask_padding = config.mask_padding
        self.precision: torch.dtype | None = None  # of what follows the stem, where it is not the weights' own
        self.integers: IntegerEncoder | None = None  # what stands for the layers on a CPU, without gradients
        self.stem = nn.Conv2d(config.num_channels, config.stem_channels, 7, stride=2, padding=3, bias=False)
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        channels = config.stem_channels
        for layers, growth in zip(config.block_layers, config.growth_rates, strict=True):
            if self.blocks:
                compressed = int(channels * config.compression)
                self.transitions.append(ABMTransition(channels, compressed, config.encoder_dropout))
                channels = compressed
            block = nn.ModuleList()
            for _ in range(layers):
                block.append(ABMDenseLayer(channels, growth, config.bottleneck_factor, config.encoder_dropout))
                channels += growth
            self.blocks.append(block)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None, **kwargs: Any) -> ABMEncoderOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): ink on 0.
            pixel_mask (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*): non-zero where the picture
                is, a rectangle that starts at the top left. Without it, everywhere.
            kwargs: ignored; `generate` passes what other models' encoders take.

        On a CPU and without gradients, pictures of a batch are encoded with those of like size, without the padding
        that the others make them take.
        """
        if (
            self.by_size
            and self.mask_padding
            and pixel_mask is not None
            and len(pixel_values) > 1
            and self._only_reads(pixel_values)
        ):
            return self._encode_by_size(pixel_values, pixel_mask)
        return self._encode(pixel_values, pixel_mask)

    def _only_reads(self, pixel_values: Tensor) -> bool:
        """Whether this is inference on a CPU, and not the making of a graph."""
        if self.training or torch.is_grad_enabled() or pixel_values.device.type != "cpu":
            return False
        return not (torch.compiler.is_compiling() or torch.jit.is_tracing())

    def _encode_by_size(self, pixel_values: Tensor, pixel_mask: Tensor) -> ABMEncoderOutput:
        features = mask = None
        for images, height, width in _groups_of_like_size(pixel_mask):
            part = self._encode(pixel_values[images, :, :height, :width], pixel_mask[images, :height, :width])
            rows, columns = part.encoder_mask.shape[1:]
            if features is None or mask is None:
                grid = [-(-side // 2 ** (1 + len(self.blocks))) for side in pixel_mask.shape[1:]]
                features = part.last_hidden_state.new_zeros(len(pixel_mask), *grid, part.last_hidden_state.shape[-1])
                mask = part.encoder_mask.new_zeros(len(pixel_mask), *grid)
            features[images, :rows, :columns] = part.last_hidden_state.unflatten(1, (rows, columns))
            mask[images, :rows, :columns] = part.encoder_mask
        assert features is not None and mask is not None
        return ABMEncoderOutput(last_hidden_state=features.flatten(1, 2), encoder_mask=mask)

    def _encode(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> ABMEncoderOutput:
        mask = _first_masked_level(pixel_mask)
        blanked = mask[:, None] if mask is not None and self.mask_padding else None
        if self.integers is not None and self._only_reads(pixel_values):
            features = self.integers(pixel_values, blanked)
        else:
            features = self._features(pixel_values, blanked)
        stride = 2 ** (1 + len(self.blocks))
        height, width = features.shape[-2:]
        encoder_mask = (
            mask[:, ::stride, ::stride].bool()
            if mask is not None
            else torch.ones(len(features), height, width, dtype=torch.bool, device=features.device)
        )
        return ABMEncoderOutput(
            last_hidden_state=features.flatten(2).transpose(1, 2),  # (B, L, C)
            encoder_mask=encoder_mask,
        )

    def _features(self, pixel_values: Tensor, blanked: Tensor | None) -> Tensor:
        """Features (B, C, h, w) of pictures, zero where `blanked` (B, 1, H, W) is."""
        pixel_values = pixel_values.to(self.stem.weight.dtype)
        if blanked is not None:
            blanked = blanked.to(pixel_values.dtype)
            pixel_values = pixel_values * blanked
            blanked = blanked[..., ::2, ::2]
        # The rectifier and rounding keep the order of numbers, so that both can wait for a quarter of them.
        features = F.max_pool2d(_masked(self.stem(pixel_values), blanked), 2, ceil_mode=True).relu_()
        if self.precision is not None:
            features = features.to(self.precision)
            blanked = blanked.to(self.precision) if blanked is not None else None
        for index, block in enumerate(self.blocks):
            if index:
                features = self._layer(self.transitions[index - 1], blanked, features)
            blanked = blanked[..., ::2, ::2] if blanked is not None else None
            features = self._dense_block(block, features, blanked)
        return features.to(self.stem.weight.dtype) if self.precision is not None else features

    def _dense_block(self, block: nn.Module, features: Tensor, mask: Tensor | None) -> Tensor:
        """Features (B, C, h, w) with the channels of all layers of `block` appended."""
        assert isinstance(block, nn.ModuleList)
        if not (self.training and self.gradient_checkpointing):
            if self.training and can_train(block, features):
                return dense_block(features, mask, block)
            for layer in block:
                features = torch.cat([features, layer(mask, features)], dim=1)
            return features
        # Each layer gets the parts: what is kept for the gradient then grows with the depth, not with its square.
        parts = [features]
        for layer in block:
            parts.append(self._layer(layer, mask, *parts))
        return torch.cat(parts, dim=1)

    def _layer(self, layer: nn.Module, *inputs: Tensor | None) -> Tensor:
        """A layer's output; with checkpointing it is computed again in the backward pass instead of being kept."""
        if not (self.training and self.gradient_checkpointing):
            return layer(*inputs)
        return self._gradient_checkpointing_func(layer, *inputs, context_fn=partial(_recomputation_contexts, layer))


class ABMAttention(nn.Module):
    """Attention aggregation module: where to look, given the state and where the branch has looked already.

    `e = vᵀ tanh(W_f f + W_a h̃ + Σ_s U_s (Q_s ∗ A))`, with A the sum of all earlier attention maps and a pair Q_s, U_s
    for each scale s. Between Q_s and U_s there is no non-linearity, so all scales together are one convolution of A,
    which is composed once for a batch (`fused_kernel`).
    """

    def __init__(self, config: ABMConfig):
        super().__init__()
        size = config.attention_size
        self.key = nn.Linear(config.feature_channels, size)
        self.query = nn.Linear(config.hidden_size, size, bias=False)
        self.coverage_kernels = config.coverage_kernels
        self.coverage_convs = nn.ModuleList(
            nn.Conv2d(1, size, kernel, padding=kernel // 2, bias=False) for kernel in config.coverage_kernels
        )
        self.coverage_maps = nn.ModuleList(nn.Linear(size, size) for _ in config.coverage_kernels)
        # The released v has a bias, which a softmax does not see.
        self.energy = nn.Linear(size, 1, bias=False)

    def fused_kernel(self) -> Tensor:
        """The coverage path as the kernel of one convolution, (k², D) with k the largest scale."""
        kernels = []
        for size, conv, linear in zip(self.coverage_kernels, self.coverage_convs, self.coverage_maps, strict=True):
            kernel = (adapted_weight(linear) @ adapted_weight(conv).flatten(1)).view(-1, size, size)
            margin = (max(self.coverage_kernels) - size) // 2
            kernels.append(F.pad(kernel, [margin] * 4).flatten(1).T)
        return torch.stack(kernels).sum(0)

    def prepare(self, features: Tensor, mask: Tensor) -> Memory:
        """What the recurrence reads of pictures with `features` (B, L, C) and `mask` (B, h, w)."""
        # All biases as one: apart, they would take another pass over the keys, and `--compile` on a CPU in bfloat16
        # would fail (torch 2.13: inductor gives the sum that is the gradient of them all one name twice). They are
        # added one by one: stacked, their gradients would share memory, and what accumulates in one would in all.
        bias = cast(Tensor, self.key.bias)
        for linear in self.coverage_maps:
            bias = bias + cast(Tensor, linear.bias)
        return Memory(features, F.linear(features, adapted_weight(self.key), bias), mask)


class ABMGRUCell(nn.Module):
    """Weights of a gated recurrent unit, gates stacked as reset, update, candidate, with its biases on one side.

    `r, z = σ(input + recurrent)`, `n = tanh(input + r ⊙ recurrent)`, `h' = (1 − z) ⊙ n + z ⊙ h`: the reset gate is
    applied after the recurrent product. The steps themselves are taken by `run_recurrence`.
    """

    def __init__(self, input_size: int, hidden_size: int, bias_on: str):
        super().__init__()
        self.input = nn.Linear(input_size, 3 * hidden_size, bias=bias_on == "input")
        self.recurrent = nn.Linear(hidden_size, 3 * hidden_size, bias=bias_on == "recurrent")


class ABMCache:
    """The state of a branch between two steps: N hidden vectors and coverage maps, and the pictures' memory.

    The memory holds one row for each image, not for each beam: sequence n reads image n // (N / B). In a search,
    images whose result is certain are left out (`keep`); all others go on as if nothing had happened.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self, memory: Memory, hidden: Tensor, coverage: Tensor):
        self.memory = memory
        self.hidden = hidden
        self.coverage = coverage
        self.length = 0
        self.copies = len(hidden) // len(memory.keys)
        self.reader: Reader | None = None  # made by the first step without gradients
        self.rows: Tensor | None = None  # sequences that are still read, of all that there were; `None`: all
        # For each sequence a number that it shares with those of equal coverage, where some are known to be equal.
        self.alike: Tensor | None = (
            torch.arange(len(hidden), device=hidden.device) // self.copies if self.copies > 1 else None
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read so far."""
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the sequences `beam_idx` (N,), in this order; each must stay within its image."""
        if self.rows is not None:
            there = torch.arange(len(self.rows), device=beam_idx.device)
            beam_idx = there - there % self.copies + beam_idx[self.rows] % self.copies
        self.hidden = self.hidden.index_select(0, beam_idx)
        self.coverage = self.coverage.index_select(0, beam_idx)
        self.alike = beam_idx

    def keep(self, images: Tensor) -> None:
        """Leave out the images for which `images` (B,) is `False`; B counts those left out before, too."""
        rows = images.repeat_interleave(self.copies)
        kept = rows if self.rows is None else rows[self.rows]
        if self.reader is None or kept.all() or not kept.any():
            return
        self.reader.keep(kept[:: self.copies])
        self.hidden, self.coverage = self.hidden[kept], self.coverage[kept]
        self.alike = self.alike[kept] if self.alike is not None else None
        self.rows = kept.nonzero()[:, 0] if self.rows is None else self.rows[kept]

    def keep_only(self, images: Tensor) -> None:
        """As `keep`, and for good: from now on the state has these images alone."""
        self.keep(images)
        if self.reader is None:
            rows = images.repeat_interleave(self.copies)
            self.memory = Memory(*(part[images] for part in self.memory))
            self.hidden, self.coverage = self.hidden[rows], self.coverage[rows]
            self.alike = self.alike[rows] if self.alike is not None else None
        self.rows = None


class ABMDecoderBranch(nn.Module):
    """One direction: reads the tokens written so far and scores the next one."""

    # Whether steps without gradients are arranged for speed; `False` takes training's, to compare.
    arranged = True
    # The weights of such steps, kept by `fuse`; otherwise each search arranges them anew, as they may have changed.
    step_weights: StepWeights | None = None

    def __init__(self, config: ABMConfig):
        super().__init__()
        hidden, embedding, channels = config.hidden_size, config.embedding_size, config.feature_channels
        self.embedding = nn.Embedding(config.vocab_size, embedding)
        self.initial_state = nn.Linear(channels, hidden)
        self.token_gru = ABMGRUCell(embedding, hidden, bias_on="input")
        self.attention = ABMAttention(config)
        self.context_gru = ABMGRUCell(channels, hidden, bias_on="recurrent")
        self.output_context = nn.Linear(channels, embedding)
        self.output_hidden = nn.Linear(hidden, embedding)
        self.output_embedding = nn.Linear(embedding, embedding)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(embedding // 2, config.num_output_tokens)

    def start(self, encoder_outputs: ABMEncoderOutput, num_sequences: int) -> ABMCache:
        """The state before the first token, for `num_sequences` sequences over the encoded pictures.

        Raises:
            ValueError: if the sequences cannot share the pictures evenly.
        """
        features, mask = encoder_outputs.last_hidden_state, encoder_outputs.encoder_mask
        if not num_sequences or not len(features) or num_sequences % len(features):
            raise ValueError(
                f"{num_sequences} sequences cannot share {len(features)} pictures evenly: pass as many for each, in a "
                "row"
            )
        weights = mask.flatten(1).to(features.dtype)  # (B, L)
        mean = (weights[:, None] @ features).squeeze(1) / weights.sum(1, keepdim=True)  # (B, C)
        hidden = self.initial_state(mean).float().tanh()
        copies = num_sequences // len(features)
        return ABMCache(
            memory=self.attention.prepare(features, mask),
            hidden=hidden.repeat_interleave(copies, dim=0) if copies > 1 else hidden,
            coverage=torch.zeros(num_sequences, *mask.shape[1:], device=features.device),
        )

    def forward(self, tokens: Tensor, state: ABMCache) -> tuple[Tensor, Tensor]:
        """Reads `tokens` (N, T), advancing `state`.

        Returns:
            logits (N, T, K) and attention maps (N, T, h, w); both 0 where the state leaves sequences out.
        """
        if (self.arranged and not torch.is_grad_enabled()) or torch.compiler.is_exporting():
            return self._read(tokens, state)
        if state.rows is not None:
            raise ValueError("this state comes from a search that has left pictures out: start a new one for training")
        embedded = self.embedding(tokens)  # (N, T, E)
        # The recurrence itself stays in float32: its products are small, so that half precision would cost more in
        # conversions than it gains, and rounding would add up over the steps. The large part, the attention's
        # activation, follows the precision of the keys.
        with torch.autocast(embedded.device.type, enabled=False):
            weights = Weights(*(weight.to(state.hidden.dtype) for weight in self._step_weights()))
            projected = self.token_gru.input(embedded).to(state.hidden.dtype)
            hiddens, contexts, attentions, coverage = run_recurrence(
                projected, state.hidden, state.coverage, state.memory, weights
            )
        state.hidden, state.coverage, state.alike = hiddens[-1], coverage, None
        state.length += tokens.shape[1]
        hiddens, contexts = hiddens.to(embedded.dtype), contexts.to(embedded.dtype)
        mixed = self.output_context(contexts) + self.output_hidden(hiddens)  # (T, N, E)
        mixed = mixed.transpose(0, 1) + self.output_embedding(embedded)
        maxout = mixed.unflatten(-1, (-1, 2)).amax(-1)  # (N, T, E / 2)
        return self.classifier(self.dropout(maxout)), attentions.transpose(0, 1)

    def _read(self, tokens: Tensor, state: ABMCache) -> tuple[Tensor, Tensor]:
        """`forward` where no gradient is wanted."""
        count = len(tokens)
        tokens = tokens if state.rows is None else tokens[state.rows]
        attentions, outputs = [], []
        with torch.autocast(tokens.device.type, enabled=False):
            if state.reader is None:
                state.reader = self._reader(state)
            for step in tokens.unbind(1):
                state.hidden, attention, output = state.reader.step(step, state.hidden, state.coverage, state.alike)
                state.coverage, state.alike = state.coverage + attention, None
                attentions.append(attention)
                outputs.append(output)
            state.length += tokens.shape[1]
            maxout = torch.stack(outputs, dim=1).unflatten(-1, (-1, 2)).amax(-1)  # (N, T, E / 2)
            logits = self.classifier(self.dropout(maxout).to(self.classifier.weight.dtype))
        attention = torch.stack(attentions, dim=1)
        if state.rows is None:
            return logits, attention
        return _among_all(logits, state.rows, count), _among_all(attention, state.rows, count)

    def _reader(self, state: ABMCache) -> Reader:
        weights = self.step_weights
        if weights is None or (weights.energy.dtype, weights.energy.device) != (
            state.hidden.dtype,
            state.hidden.device,
        ):
            weights = self.arrange(state.hidden.dtype)
        return Reader(weights, state.memory, state.copies)

    def arrange(self, dtype: torch.dtype, product_dtype: torch.dtype | None = None) -> StepWeights:
        """The weights as steps without gradients take them; the precisions are [`step_weights`]'."""
        embedding = self.embedding.weight
        output = self.output_embedding(embedding) + self.output_context.bias + self.output_hidden.bias
        return step_weights(
            self._step_weights(),
            tokens=(self.token_gru.input(embedding), output),
            outputs=(adapted_weight(self.output_context), adapted_weight(self.output_hidden)),
            dtype=dtype,
            product_dtype=product_dtype,
        )

    def _step_weights(self) -> Weights:
        return Weights(
            token=adapted_weight(self.token_gru.recurrent),
            query=adapted_weight(self.attention.query),
            kernel=self.attention.fused_kernel(),
            energy=adapted_weight(self.attention.energy).squeeze(0),
            context_input=adapted_weight(self.context_gru.input),
            context_recurrent=adapted_weight(self.context_gru.recurrent),
            context_bias=self.context_gru.recurrent.bias,
        )


class _Search:
    """How far a call of `generate` has come."""

    improvable: Tensor | None = None  # (B,) in beam search: whether an image's hypotheses may still get better

    def open_images(self, tokens: Tensor, copies: int, pad: int) -> Tensor:
        """Which images (B,) have a sequence to go on with, given the last `tokens` (N, T)."""
        if self.improvable is not None:
            return self.improvable
        return (tokens != pad).any(1).view(-1, copies).any(1)  # greedy search and sampling pad what is finished


_SEARCH: ContextVar[_Search | None] = ContextVar("_SEARCH", default=None)


class ABMPreTrainedModel(PreTrainedModel):
    """Initialisation, loading and saving."""

    config_class = ABMConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # The library's default, N(0, 0.02) for every weight, would starve a DenseNet of this depth.
        if isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=module.embedding_dim**-0.5)
        elif isinstance(module, nn.BatchNorm2d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            for name, buffer in module.named_buffers():
                (init.ones_ if name == "running_var" else init.zeros_)(buffer)


class ABMForConditionalGeneration(ABMPreTrainedModel, GenerationMixin):
    """ABM with its encoder and one or two decoder branches, for training and for `generate`."""

    # The recurrent state cannot be rolled back, so assisted decoding refuses it with a clear message.
    _is_stateful = True
    # The loss is a mean over samples: Trainer must not rescale it by a count of tokens.
    accepts_loss_kwargs = False

    def __init__(self, config: ABMConfig):
        super().__init__(config)
        self.encoder = ABMEncoder(config)
        self.branches = nn.ModuleDict({direction: ABMDecoderBranch(config) for direction in config.directions})
        self._folded: list[Folded] = []
        self.post_init()
        # The library's default is 20 tokens; the longest label of CROHME has 96.
        self.generation_config.max_length = 200

    def get_encoder(self, *args: Any, **kwargs: Any) -> ABMEncoder:
        return self.encoder

    def fuse(self, dtype: torch.dtype | None = None) -> "ABMForConditionalGeneration":
        """Prepares for fast inference: batch norms folded into convolutions, weights laid out and arranged once.

        The features stay the same within 1e-5 where `dtype` is left out. A fused model can neither be trained nor
        saved until [`unfuse`], and its weights must not be changed.

        Args:
            dtype (`torch.dtype`, *optional*): precision in which the encoder computes, on processors that have it:
                `torch.bfloat16` halves its time, `torch.int8` halves it again (see [`IntegerEncoder`]); the weights'
                own by default. The decoder keeps its own but for one product, the coverage's convolution, which is in
                bfloat16 then.

        Returns:
            the model itself.

        Raises:
            RuntimeError: in training mode.
            ValueError: for 8 bits where the processor does not multiply them.
        """
        if self.training:
            raise RuntimeError("a model in training cannot be fused: call eval() first")
        if dtype == torch.int8 and not multiplies_bytes(self.device):
            raise ValueError(f"8-bit integers need a CPU with VNNI instructions; this is {self.device.type!r} without")
        self.unfuse()
        product_dtype = dtype
        if dtype == torch.int8:
            self.encoder.integers = IntegerEncoder(self.encoder)
            dtype, product_dtype = None, torch.bfloat16 if computes_in_bfloat16(self.device) else None
        self._folded = fold_batch_norms(self.encoder, dtype)
        stem = self.encoder.stem.weight
        stem.data = stem.data.contiguous(memory_format=torch.channels_last)
        self.encoder.precision = dtype
        with torch.no_grad():
            for direction in self.branches:
                branch = self._branch(direction)
                branch.step_weights = branch.arrange(torch.float32, product_dtype)
        return self

    def unfuse(self) -> "ABMForConditionalGeneration":
        """Undoes [`fuse`]: weights and statistics are what they were before it, bit for bit."""
        restore(self._folded, self.encoder.stem.weight)
        self._folded, self.encoder.precision, self.encoder.integers = [], None, None
        for direction in self.branches:
            self._branch(direction).step_weights = None
        self.encoder.stem.weight.data = self.encoder.stem.weight.data.contiguous()
        return self

    def train(self, mode: bool = True) -> "ABMForConditionalGeneration":
        if mode and self._folded:
            raise RuntimeError("a fused model cannot be trained: call unfuse() first")
        return super().train(mode)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """As in the library; a fused model is refused, as its weights would not load again."""
        if self._folded:
            raise RuntimeError("a fused model cannot be saved: call unfuse() first")
        return super().save_pretrained(*args, **kwargs)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes an ABMCache: there are no layers of keys and values

    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        labels: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_direction: str = "l2r",
        encoder_outputs: ABMEncoderOutput | None = None,
        past_key_values: ABMCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ABMOutput | tuple[Any, ...]:
        r"""
        With `labels`, a training step over all branches; otherwise one branch reads `decoder_input_ids`.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Ink bright on dark, in [0, 1]; not needed with `encoder_outputs`.
            pixel_mask (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
                Non-zero where the picture is; everywhere by default.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                `y1 … yn eos`, padded with -100. They are not shifted: position j holds the j-th token.
            decoder_input_ids (`torch.LongTensor` of shape `(num_sequences, target_length)`, *optional*):
                What the branch reads: `sos y1 …` from left to right, `eos yn …` from right to left. A multiple of
                `batch_size` sequences is allowed; consecutive ones then share an image.
            decoder_direction (`str`, *optional*, defaults to `"l2r"`):
                The branch that reads, `"l2r"` or `"r2l"`.
            encoder_outputs ([`ABMEncoderOutput`], *optional*):
                Of an earlier call of the encoder.
            past_key_values ([`ABMCache`], *optional*):
                The state in which to go on; it is advanced in place.
            use_cache (`bool`, *optional*): whether to return the state.
            output_attentions (`bool`, *optional*): whether to return the attention maps.
            output_hidden_states (`bool`, *optional*): ignored: there are no layers whose states could be returned.
            return_dict (`bool`, *optional*): `False` returns a tuple.

        Returns:
            [`ABMOutput`] or the tuple of its fields that are not `None`.

        Raises:
            ValueError: if there is nothing to decode, the branch does not exist in this model, labels have no token or
                no end, or sequences cannot share the pictures evenly.
        """
        if labels is not None:
            self._check_labels(labels)
        if encoder_outputs is None:
            if pixel_values is None:
                raise ValueError("pass pixel_values, or the encoder_outputs of an earlier call")
            encoder_outputs = self.encoder(pixel_values, pixel_mask)
        if labels is not None:
            output = self._training_output(encoder_outputs, labels)
        elif decoder_input_ids is not None:
            state = past_key_values
            if state is None:
                state = self._branch(decoder_direction).start(encoder_outputs, len(decoder_input_ids))
            elif (search := _SEARCH.get()) is not None and state.hidden.device.type == "cpu":
                state.keep(search.open_images(decoder_input_ids, state.copies, self.config.pad_token_id))
            logits, attentions = self._branch(decoder_direction)(decoder_input_ids, state)
            output = ABMOutput(
                logits=self._over_vocabulary(logits),
                past_key_values=state if use_cache else None,
                cross_attentions=attentions if output_attentions else None,
            )
        else:
            raise ValueError("pass labels to train, or decoder_input_ids to score them; `generate` makes the latter")
        output["encoder_last_hidden_state"] = encoder_outputs.last_hidden_state
        return output.to_tuple() if return_dict is False else output

    def generate(self, *args: Any, decoder_direction: str = "l2r", **kwargs: Any) -> Any:
        """`GenerationMixin.generate`, with `decoder_direction="r2l"` to write from the end to the start.

        The right-to-left branch begins with the end token and finishes with the start token; its sequences are
        returned in the order in which it writes them.
        """
        self._branch(decoder_direction)
        if decoder_direction == "r2l":
            kwargs.setdefault("decoder_start_token_id", self.config.eos_token_id)
            kwargs.setdefault("eos_token_id", self.config.bos_token_id)
        outer = _SEARCH.set(_Search())
        try:
            return super().generate(*args, decoder_direction=decoder_direction, **kwargs)
        finally:
            _SEARCH.reset(outer)

    def _check_early_stop_heuristic(self, *args: Any, **kwargs: Any) -> Tensor:
        # Called by beam search after each step. Where it is `False`, nothing that follows enters the result: the image
        # need not be read any further. Should the library come to work otherwise, no image is left out.
        improvable = super()._check_early_stop_heuristic(*args, **kwargs)  # (B, 1)
        if (search := _SEARCH.get()) is not None:
            search.improvable = improvable[:, 0]
        return improvable

    def _branch(self, direction: str) -> ABMDecoderBranch:
        if direction not in self.branches:
            raise ValueError(
                f"this model has no branch {direction!r}: it has {sorted(self.branches)} "
                "(load with ABMConfig(directions=...) to choose branches)"
            )
        branch = self.branches[direction]
        assert isinstance(branch, ABMDecoderBranch)
        return branch

    def _check_labels(self, labels: Tensor) -> None:
        """Raises a `ValueError` for rows without tokens or end. First of all: later it would wait for a GPU."""
        if torch.compiler.is_compiling():
            return
        lengths = (labels != -100).sum(dim=1, keepdim=True)
        last = labels.gather(1, (lengths - 1).clamp(min=0))
        if not bool(((lengths > 0) & (last == self.config.eos_token_id)).all()):
            raise ValueError(
                f"each row of labels must hold tokens and end with the end token, {self.config.eos_token_id}; what "
                "follows it is -100"
            )

    def _training_output(self, encoder_outputs: ABMEncoderOutput, labels: Tensor) -> ABMOutput:
        config = self.config
        aligned = {
            direction: self._teacher_forced(direction, encoder_outputs, labels) for direction in config.directions
        }
        entropies = {
            f"ce_{direction}": cross_entropy(
                logits, labels if direction == "l2r" else self._r2l_targets(labels), config.label_smoothing
            )
            for direction, logits in aligned.items()
        }
        loss = torch.stack(list(entropies.values())).sum()
        components = dict(entropies)
        if len(aligned) == 2 and config.distillation != "none":
            term = aligned_distillation if config.distillation == "aligned" else released_distillation
            distillation = term(aligned["l2r"], aligned["r2l"], labels, config.distillation_temperature)
            loss = loss + config.distillation_weight * distillation
            components["distillation"] = distillation
        scored = {direction: self._over_vocabulary(logits) for direction, logits in aligned.items()}
        return ABMOutput(
            loss=loss,
            loss_components={name: value.detach() for name, value in components.items()},
            logits=scored.get("l2r", scored.get("r2l")),
            r2l_logits=scored.get("r2l"),
        )

    def _teacher_forced(self, direction: str, encoder_outputs: ABMEncoderOutput, labels: Tensor) -> Tensor:
        """Logits (B, T, K) of a branch that reads the labels, aligned to the labels."""
        order = reading_order(labels) if direction == "r2l" else None
        known = labels.masked_fill(labels < 0, self.config.pad_token_id)
        first = self.config.decoder_start_token_id if direction == "l2r" else self.config.eos_token_id
        as_read = known if order is None else known.gather(1, order)
        tokens = F.pad(as_read[:, :-1], (1, 0), value=first)
        branch = self._branch(direction)
        logits, _ = branch(tokens, branch.start(encoder_outputs, len(labels)))
        return logits if order is None else logits.gather(1, order[..., None].expand_as(logits))

    def _r2l_targets(self, labels: Tensor) -> Tensor:
        """The labels with `sos` in the place of `eos`: where one branch ends, the other has reached the start."""
        last = (labels != -100).sum(dim=1, keepdim=True) - 1
        return labels.scatter(1, last, self.config.bos_token_id)

    def _over_vocabulary(self, logits: Tensor) -> Tensor:
        """Logits over all ids, (..., vocab_size): those without an output row can never be chosen."""
        missing = self.config.vocab_size - self.config.num_output_tokens
        return F.pad(logits, (0, missing), value=float("-inf")) if missing else logits

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        # The beams of an image share its features: see ABMCache. The pixel mask has served its purpose by now.
        encoder_outputs = kwargs.pop("encoder_outputs")
        kwargs.pop("pixel_mask", None)
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, False, input_ids, **kwargs)
        return input_ids, {**kwargs, "encoder_outputs": encoder_outputs}


def _among_all(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """`values` as the rows `rows` of `count`, the others 0."""
    return values.new_zeros(count, *values.shape[1:]).index_copy_(0, rows, values)


def _recomputation_contexts(layer: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a layer's forward pass and of its repetition, for `torch.utils.checkpoint`."""
    return nullcontext(), _without_statistics(layer)


@contextmanager
def _without_statistics(layer: nn.Module) -> Iterator[None]:
    """Batch norm normalises as ever, but does not count the batch again in its running statistics."""
    norms = [module for module in layer.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def _convolve(conv: nn.Module, norm: nn.Module, features: Tensor, mask: Tensor | None, dropout: nn.Dropout) -> Tensor:
    """Convolution, batch norm, rectifier, zeros beyond the picture, dropout."""
    if not isinstance(conv, RectifiedConv):
        return rectify(norm(conv(features)), mask, dropout)
    rectified = conv(features)  # the batch norm is in it
    if mask is None:
        return rectified
    return rectified * mask if torch.is_grad_enabled() else rectified.mul_(mask)


def _masked(features: Tensor, mask: Tensor | None) -> Tensor:
    return features if mask is None else features * mask.to(features.dtype)


def _groups_of_like_size(pixel_mask: Tensor) -> Iterator[tuple[Tensor, int, int]]:
    """Indices of pictures of about the same size, with the height and width that hold them all.

    Sizes are rounded up, and groups have 1, 2, 4, … pictures: so the same shapes come back, and what was compiled for
    them is used again.
    """
    shape = tuple(pixel_mask.shape[1:])
    sizes: dict[tuple[int, ...], list[int]] = {}
    extents = [
        ((pixel_mask != 0).any(2 - axis).long() * torch.arange(1, shape[axis] + 1)).amax(1).tolist() for axis in (0, 1)
    ]
    for index, extent in enumerate(zip(*extents, strict=True)):
        rounded = zip(extent, _SIZE_STEPS, shape, strict=True)
        sizes.setdefault(tuple(min(max(-(-n // step), 1) * step, most) for n, step, most in rounded), []).append(index)
    for (height, width), images in sizes.items():
        while images:
            count = 1 << (len(images).bit_length() - 1)
            yield torch.tensor(images[:count]), height, width
            images = images[count:]


def _first_masked_level(pixel_mask: Tensor | None) -> Tensor | None:
    """The mask as `bool`, or `None` where it hides nothing, which saves its work; a graph has it in any case."""
    if pixel_mask is not None and pixel_mask.dtype != torch.bool:
        pixel_mask = pixel_mask != 0
    if pixel_mask is None or torch.compiler.is_exporting():
        return pixel_mask
    return None if bool(pixel_mask.all()) else pixel_mask


__all__: Sequence[str] = ["ABMEncoderOutput", "ABMForConditionalGeneration", "ABMOutput", "ABMPreTrainedModel"]
