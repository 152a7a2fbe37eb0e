"""ABM (arXiv 2112.03603): an image of a handwritten formula in, LaTeX tokens out.

A DenseNet turns the image into a grid of features. Two decoder branches of equal build and separate weights write
the formula from left to right and from right to left; at each step a branch attends to the grid, guided by where it
has attended before (attention aggregation: two scales of coverage). In training, each also learns from the other one;
at inference one is enough.

Shapes are given with B images of H × W pixels, h × w feature positions (L = h · w) of C channels, N sequences (N = B,
or B · beams in beam search) of T tokens, and K output tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_abm import ABMConfig
from .loss_abm import aligned_distillation, cross_entropy, released_distillation, right_to_left_order
from .recurrence_abm import Memory, Weights, run_recurrence


@dataclass
class ABMEncoderOutput(ModelOutput):
    """
    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, h * w, channels)`): the features, row by row.
        encoder_mask (`torch.BoolTensor` of shape `(batch_size, h, w)`): `True` where a feature belongs to the image.
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
        r2l_cross_attentions (`torch.FloatTensor` of the same shape, with `labels` and `output_attentions`): of the
            right-to-left branch, aligned to the labels.
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
    r2l_cross_attentions: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    decoder_attentions: None = None
    decoder_hidden_states: None = None


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
        # Several tensors with gradient checkpointing, which then keeps the parts instead of every concatenation.
        together = torch.cat(features, dim=1) if len(features) > 1 else features[0]
        # Only the 3×3 convolution looks across positions, so only its input needs zeros where there is no image.
        bottleneck = _masked(self.norm1(self.conv1(together)).relu_(), mask)  # (B, W, h, w)
        return self.dropout(self.norm2(self.conv2(self.dropout(bottleneck))).relu_())  # (B, G, h, w)


class ABMTransition(nn.Module):
    """Between two dense blocks: fewer channels, half the resolution (rounded up)."""

    def __init__(self, channels: int, out_channels: int, dropout: float):
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, mask: Tensor | None, features: Tensor) -> Tensor:
        features = self.dropout(_masked(self.norm(self.conv(features)).relu_(), mask))
        pooled = F.avg_pool2d(features, 2, ceil_mode=True)
        if mask is None:
            return pooled
        # A window on the border averages over the positions that exist, as it does at the edge of a single image.
        # In the features' precision, which has room for quarters: else all that follows would be in the mask's.
        return pooled / F.avg_pool2d(mask, 2, ceil_mode=True).clamp(min=0.25).to(pooled.dtype)


class ABMEncoder(nn.Module):
    """DenseNet-B: `(B, 1, H, W)` pixels to features at a sixteenth of the resolution (with three blocks)."""

    main_input_name = "pixel_values"
    # Set by `activation_checkpointing_enable`, together with `_gradient_checkpointing_func`.
    gradient_checkpointing = False
    _gradient_checkpointing_func: Any

    def __init__(self, config: ABMConfig):
        super().__init__()
        self.mask_padding = config.mask_padding
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
            pixel_mask (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*): non-zero where the image
                is, a rectangle that starts at the top left. Without it, everywhere.
            kwargs: ignored; `generate` passes what other models' encoders take.
        """
        pixel_values = pixel_values.to(self.stem.weight.dtype)
        # What lies beyond an image is set to zero wherever a convolution looks across positions: so the features of an
        # image do not depend on the others of its batch. The released code pads without this (`mask_padding=False`).
        mask = None
        if pixel_mask is not None and self.mask_padding:
            mask = (pixel_mask != 0)[:, None].to(pixel_values.dtype)  # (B, 1, H, W)
        features = self.stem(_masked(pixel_values, mask))  # (B, C, H / 2, W / 2)
        mask = _half(mask)
        # Maxima can be taken before the rectifier, which then has a quarter of the work.
        features = F.max_pool2d(_masked(features, mask), 2, ceil_mode=True).relu_()  # (B, C, H / 4, W / 4)
        mask = _half(mask)
        for index, block in enumerate(self.blocks):
            if index:
                features = self._layer(self.transitions[index - 1], mask, features)
                mask = _half(mask)
            features = self._dense_block(block, features, mask)
        stride = 2 ** (1 + len(self.blocks))
        encoder_mask = (
            (pixel_mask != 0)[:, ::stride, ::stride]
            if pixel_mask is not None
            else torch.ones(len(features), *features.shape[-2:], dtype=torch.bool, device=features.device)
        )
        return ABMEncoderOutput(
            last_hidden_state=features.flatten(2).transpose(1, 2),  # (B, L, C)
            encoder_mask=encoder_mask,  # (B, h, w)
        )

    def _dense_block(self, block: Any, features: Tensor, mask: Tensor | None) -> Tensor:
        """Features (B, C, h, w) with the channels of all layers of `block` appended."""
        if self.training and self.gradient_checkpointing:
            # Each layer gets the parts: what is kept for the gradient then grows with the depth, not with its square.
            parts = [features]
            for layer in block:
                parts.append(self._layer(layer, mask, *parts))
            return torch.cat(parts, dim=1)
        for layer in block:
            features = torch.cat([features, layer(mask, features)], dim=1)
        return features

    def _layer(self, layer: nn.Module, *inputs: Tensor | None) -> Tensor:
        """A layer's output; with checkpointing it is computed again in the backward pass instead of being kept."""
        if not (self.training and self.gradient_checkpointing):
            return layer(*inputs)
        return self._gradient_checkpointing_func(layer, *inputs, context_fn=partial(_recomputation_contexts, layer))


class ABMAttention(nn.Module):
    """Attention aggregation module: where to look, given the state and where the branch has looked already.

    `e = vᵀ tanh(W_f f + W_a h̃ + Σ_s U_s (Q_s ∗ A))`, with A the sum of all earlier attention maps and a pair Q_s, U_s
    for each scale s.
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

    def forward(self, hidden: Tensor, coverage: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Attention maps (N, h, w), which sum to 1.

        Args:
            hidden (N, H): the state after the token.
            coverage (N, h, w): the sum of the earlier maps.
            keys (N, L, D): the projected features, `key(features)`.
            mask (N, h, w): `True` at positions of the image.
        """
        terms = keys + self.query(hidden)[:, None]  # (N, L, D)
        for conv, linear in zip(self.coverage_convs, self.coverage_maps, strict=True):
            around = conv(coverage[:, None].to(keys.dtype))  # (N, D, h, w)
            terms = terms + linear(around.flatten(2).transpose(1, 2))
        energies = self.energy(terms.tanh()).squeeze(-1).float()  # (N, L)
        return energies.masked_fill(~mask.flatten(1), float("-inf")).softmax(-1).view_as(coverage)

    def fused_kernel(self) -> Tensor:
        """The coverage path as the kernel of one convolution, (k², D) with k the largest scale.

        Between Q_s and U_s there is no non-linearity, so all scales together are one convolution of A.
        """
        kernels = []
        for size, conv, linear in zip(self.coverage_kernels, self.coverage_convs, self.coverage_maps, strict=True):
            weight = cast(Tensor, linear.weight) @ cast(Tensor, conv.weight).flatten(1)
            kernel = weight.view(-1, size, size)  # (D, s, s)
            margin = (max(self.coverage_kernels) - size) // 2
            kernels.append(F.pad(kernel, [margin] * 4).flatten(1).T)
        return torch.stack(kernels).sum(0)

    def fused_keys(self, features: Tensor) -> Tensor:
        """Keys (B, L, D) with the biases of the coverage path, which [`fused_kernel`] leaves out."""
        # All biases as one: apart, they would take another pass over the keys, and `--compile` on a CPU in bfloat16
        # would fail (torch 2.13: inductor gives the sum that is the gradient of them all one name twice). They are
        # added one by one: stacked, their gradients would share memory, and what accumulates in one would in all.
        bias: Tensor = self.key.bias
        for linear in self.coverage_maps:
            bias = bias + cast(Tensor, linear.bias)
        return F.linear(features, self.key.weight, bias)


class ABMGRUCell(nn.Module):
    """A gated recurrent unit, its gates stacked as reset, update, candidate, with its biases on one side.

    `r, z = σ(input + recurrent)`, `n = tanh(input + r ⊙ recurrent)`, `h' = (1 − z) ⊙ n + z ⊙ h`: the reset gate is
    applied after the recurrent product.
    """

    def __init__(self, input_size: int, hidden_size: int, bias_on: str):
        super().__init__()
        self.input = nn.Linear(input_size, 3 * hidden_size, bias=bias_on == "input")
        self.recurrent = nn.Linear(hidden_size, 3 * hidden_size, bias=bias_on == "recurrent")

    def forward(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        """The state (N, H) after `inputs` (N, I)."""
        return update_gru(self.input(inputs), self.recurrent(hidden), hidden)


def update_gru(projected: Tensor, recurrent: Tensor, hidden: Tensor) -> Tensor:
    """The new state (..., H) of a GRU from the products of both sides (..., 3H) and the old state."""
    size = hidden.shape[-1]
    reset, update = (projected[..., : 2 * size] + recurrent[..., : 2 * size]).sigmoid().chunk(2, dim=-1)
    candidate = (projected[..., 2 * size :] + reset * recurrent[..., 2 * size :]).tanh()
    return candidate + update * (hidden - candidate)


class ABMCache:
    """The state of a branch between two steps: N hidden vectors and coverage maps, and the memory of B images.

    The memory holds one row for each image, not for each beam: sequence n belongs to image n // (N / B).

    Args:
        memory: what the attention reads of the images.
        hidden (N, H), coverage (N, h, w): the state.
        weights: of the branch, gathered for [`run_recurrence`]; `None` where its layers are to be called.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self, memory: Memory, hidden: Tensor, coverage: Tensor, weights: Weights | None):
        self.memory = memory
        self.hidden = hidden
        self.coverage = coverage
        self.weights = weights
        self.length = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read so far."""
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the sequences `beam_idx` (N,), in this order; each must stay within its image."""
        self.hidden = self.hidden.index_select(0, beam_idx)
        self.coverage = self.coverage.index_select(0, beam_idx)

    def select_images(self, images: Tensor) -> None:
        """Go on with the images `images` (indices) and their sequences alone."""
        copies = len(self.hidden) // len(self.memory.keys)
        rows = (images[:, None] * copies + torch.arange(copies, device=images.device)).flatten()
        self.memory = Memory(*(part[images] for part in self.memory))
        self.reorder_cache(rows)


class ABMDecoderBranch(nn.Module):
    """One direction: reads the tokens written so far and scores the next one."""

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
        """The state before the first token, for `num_sequences` sequences over the encoded images.

        Raises:
            ValueError: if the sequences cannot share the images evenly.
        """
        features, mask = encoder_outputs.last_hidden_state, encoder_outputs.encoder_mask
        if not num_sequences or not len(features) or num_sequences % len(features):
            raise ValueError(
                f"{num_sequences} sequences cannot share {len(features)} images evenly: pass as many for each, in a "
                "row"
            )
        weights = mask.flatten(1).to(features.dtype)  # (B, L)
        mean = (weights[:, None] @ features).squeeze(1) / weights.sum(1, keepdim=True)  # (B, C)
        hidden = self.initial_state(mean).tanh()
        fused = self._fused_weights()
        keys = self.attention.key(features) if fused is None else self.attention.fused_keys(features)
        copies = num_sequences // len(features)
        return ABMCache(
            memory=Memory(features, keys, mask),
            hidden=hidden.repeat_interleave(copies, dim=0) if copies > 1 else hidden,
            coverage=torch.zeros(num_sequences, *mask.shape[1:], device=features.device),
            weights=fused,
        )

    def forward(self, tokens: Tensor, state: ABMCache) -> tuple[Tensor, Tensor]:
        """Reads `tokens` (N, T), advancing `state`.

        Returns:
            logits (N, T, K) and attention maps (N, T, h, w).
        """
        embedded = self.embedding(tokens)  # (N, T, E)
        recur = self._recur if state.weights is None else self._recur_fused
        hiddens, contexts, attentions = recur(embedded, state)  # (T, N, H), (T, N, C), (T, N, h, w)
        state.length += tokens.shape[1]
        mixed = self.output_context(contexts) + self.output_hidden(hiddens)  # (T, N, E)
        mixed = mixed.transpose(0, 1) + self.output_embedding(embedded)
        maxout = mixed.unflatten(-1, (-1, 2)).amax(-1)  # (N, T, E / 2)
        return self.classifier(self.dropout(maxout)), attentions.transpose(0, 1)

    def _recur(self, embedded: Tensor, state: ABMCache) -> tuple[Tensor, Tensor, Tensor]:
        """The recurrence by its definition, layer by layer."""
        copies = len(state.hidden) // len(state.memory.keys)
        values, keys, mask = (part.repeat_interleave(copies, dim=0) for part in state.memory)
        steps = []
        for step in embedded.unbind(1):  # (N, E)
            between = self.token_gru(step, state.hidden)
            attention = self.attention(between, state.coverage, keys, mask)  # (N, h, w)
            context = (attention.flatten(1)[:, None].to(values.dtype) @ values).squeeze(1)  # (N, C)
            state.hidden = self.context_gru(context, between)
            state.coverage = state.coverage + attention
            steps.append((state.hidden, context, attention))
        hiddens, contexts, attentions = (torch.stack(parts) for parts in zip(*steps, strict=True))
        return hiddens, contexts, attentions

    def _recur_fused(self, embedded: Tensor, state: ABMCache) -> tuple[Tensor, Tensor, Tensor]:
        """The same with the gradient of `recurrence_abm`: it saves about a third of a training step."""
        # The recurrence itself stays in float32: its products are small, so that half precision would cost more in
        # conversions than it gains, and rounding would add up over the steps. The large part, the attention's
        # activation, follows the precision of the keys.
        assert state.weights is not None
        with torch.autocast(embedded.device.type, enabled=False):
            dtype = torch.promote_types(state.hidden.dtype, torch.float32)
            weights = Weights(*(weight.to(dtype) for weight in state.weights))
            projected = self.token_gru.input(embedded).to(dtype)
            # Without gradients a step at a time, as nothing of the earlier ones needs to be kept.
            parts = [projected] if torch.is_grad_enabled() else projected.split(1, dim=1)
            outputs = []
            for part in parts:
                *output, state.coverage = run_recurrence(
                    part, state.hidden.to(dtype), state.coverage, state.memory, weights
                )
                state.hidden = output[0][-1]
                outputs.append(output)
        hiddens, contexts, attentions = (torch.cat(steps) for steps in zip(*outputs, strict=True))
        return hiddens.to(embedded.dtype), contexts.to(embedded.dtype), attentions

    def _fused_weights(self) -> Weights | None:
        """The weights of the recurrence; `None` where its layers must be called.

        That is so for a graph, and for layers that do more than their weights say: those with adapters, quantized
        ones, and those with hooks.
        """
        attention = self.attention
        layers = [
            *(self.token_gru.recurrent, self.context_gru.input, self.context_gru.recurrent),
            *(attention.key, attention.query, attention.energy, *attention.coverage_convs, *attention.coverage_maps),
        ]
        if torch.compiler.is_exporting() or any(type(layer) not in (nn.Linear, nn.Conv2d) for layer in layers):
            return None
        hooked = [*layers, self.token_gru, self.context_gru, attention]
        if any(module._forward_hooks or module._forward_pre_hooks for module in hooked):
            return None
        return Weights(
            token=self.token_gru.recurrent.weight,
            query=attention.query.weight,
            kernel=attention.fused_kernel(),
            energy=attention.energy.weight.squeeze(0),
            context_input=self.context_gru.input.weight,
            context_recurrent=self.context_gru.recurrent.weight,
            context_bias=self.context_gru.recurrent.bias,
        )


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
        self.post_init()
        # The library's default is 20 tokens; the longest label of CROHME has 96.
        self.generation_config.max_length = 200

    def get_encoder(self, *args: Any, **kwargs: Any) -> ABMEncoder:
        return self.encoder

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
        **of_text: None,
    ) -> ABMOutput | tuple[Any, ...]:
        r"""
        With `labels`, a training step over all branches; otherwise one branch reads `decoder_input_ids`.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Ink bright on dark, in [0, 1]; not needed with `encoder_outputs`.
            pixel_mask (`torch.Tensor` of shape `(batch_size, height, width)`, *optional*):
                Non-zero where the image is; everywhere by default.
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
            of_text: what wrappers pass to every model, such as peft's of the task `SEQ_2_SEQ_LM`: `input_ids=None`.

        Returns:
            [`ABMOutput`] or the tuple of its fields that are not `None`.

        Raises:
            TypeError: for an argument that this model does not take, unless it is `None`.
            ValueError: if there is nothing to decode, the branch does not exist in this model, labels have no token,
                no end or ids that are never generated, or sequences cannot share the images evenly.
        """
        if given := [name for name, value in of_text.items() if value is not None]:
            raise TypeError(f"forward takes no {', '.join(given)}: pixel_values and pixel_mask are its inputs")
        if labels is not None:
            self._check_labels(labels)
        if encoder_outputs is None:
            if pixel_values is None:
                raise ValueError("pass pixel_values, or the encoder_outputs of an earlier call")
            encoder_outputs = self.encoder(pixel_values, pixel_mask)
        if labels is not None:
            output = self._training_output(encoder_outputs, labels, bool(output_attentions))
        elif decoder_input_ids is not None:
            state = past_key_values
            if state is None:
                state = self.branch(decoder_direction).start(encoder_outputs, len(decoder_input_ids))
            logits, attentions = self.branch(decoder_direction)(decoder_input_ids, state)
            output = ABMOutput(
                logits=self._over_vocabulary(logits),
                past_key_values=state if use_cache else None,
                cross_attentions=attentions if output_attentions else None,
            )
        else:
            raise ValueError(
                "pass labels to train, or decoder_input_ids to score them; `generate` makes the latter. Trainer takes "
                "the labels away for its label_smoothing_factor: leave that at 0, and set config.label_smoothing"
            )
        output["encoder_last_hidden_state"] = encoder_outputs.last_hidden_state
        return output.to_tuple() if return_dict is False else output

    def generate(self, *args: Any, decoder_direction: str = "l2r", **kwargs: Any) -> Any:
        """`GenerationMixin.generate`, with `decoder_direction="r2l"` to write from the end to the start.

        The right-to-left branch begins with the end token and finishes with the start token; its sequences are
        returned in the order in which it writes them.
        """
        self.branch(decoder_direction)
        if decoder_direction == "r2l":
            kwargs.setdefault("decoder_start_token_id", self.config.eos_token_id)
            kwargs.setdefault("eos_token_id", self.config.bos_token_id)
        return super().generate(*args, decoder_direction=decoder_direction, **kwargs)

    def branch(self, direction: str) -> ABMDecoderBranch:
        """The branch that writes in this direction, `"l2r"` or `"r2l"`.

        Raises:
            ValueError: if this model has none.
        """
        if direction not in self.branches:
            raise ValueError(
                f"this model has no branch {direction!r}: it has {sorted(self.branches)} "
                "(load with ABMConfig(directions=...) to choose branches)"
            )
        branch = self.branches[direction]
        assert isinstance(branch, ABMDecoderBranch)
        return branch

    def _check_labels(self, labels: Tensor) -> None:
        """Raises a `ValueError` for rows without tokens or end, and for ids that are never generated.

        First of all: later it would wait for a GPU.
        """
        if torch.compiler.is_compiling():
            return
        lengths = (labels != -100).sum(dim=1, keepdim=True)
        last = labels.gather(1, (lengths - 1).clamp(min=0))
        known = labels < self.config.num_output_tokens
        if not bool(((lengths > 0) & (last == self.config.eos_token_id) & known.all(dim=1, keepdim=True)).all()):
            if not known.all():
                raise ValueError(
                    f"labels hold the ids {labels[~known].unique().tolist()}, but only those below "
                    f"{self.config.num_output_tokens} can be generated: symbols outside the vocabulary, or padding "
                    "that is not -100"
                )
            raise ValueError(
                f"each row of labels must hold tokens and end with the end token, {self.config.eos_token_id}; what "
                "follows it is -100"
            )

    def _training_output(
        self, encoder_outputs: ABMEncoderOutput, labels: Tensor, output_attentions: bool
    ) -> ABMOutput:
        config = self.config
        forced = {
            direction: self.teacher_forced(direction, encoder_outputs, labels) for direction in config.directions
        }
        aligned = {direction: logits for direction, (logits, _) in forced.items()}
        looked = {direction: maps for direction, (_, maps) in forced.items()} if output_attentions else {}
        entropies = {
            f"ce_{direction}": cross_entropy(logits, self.targets(direction, labels), config.label_smoothing)
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
            cross_attentions=looked.get("l2r", looked.get("r2l")),
            r2l_cross_attentions=looked.get("r2l"),
        )

    def teacher_forced(
        self, direction: str, encoder_outputs: ABMEncoderOutput, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, T, K) and attention maps (N, T, h, w) of a branch that reads `labels` (N, T), aligned to them.

        Position j of both speaks of token j.
        """
        order = right_to_left_order(labels) if direction == "r2l" else None
        known = labels.masked_fill(labels < 0, self.config.pad_token_id)
        first = self.config.decoder_start_token_id if direction == "l2r" else self.config.eos_token_id
        as_read = known if order is None else known.gather(1, order)
        tokens = F.pad(as_read[:, :-1], (1, 0), value=first)
        branch = self.branch(direction)
        logits, maps = branch(tokens, branch.start(encoder_outputs, len(labels)))
        if order is None:
            return logits, maps
        return (
            logits.gather(1, order[..., None].expand_as(logits)),
            maps.gather(1, order[..., None, None].expand_as(maps)),
        )

    def targets(self, direction: str, labels: Tensor) -> Tensor:
        """What a branch should write at each position of `labels` (N, T): `sos` where right to left has reached it."""
        if direction == "l2r":
            return labels
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


def _masked(features: Tensor, mask: Tensor | None) -> Tensor:
    """`features` (B, C, h, w), zero where `mask` (B, 1, h, w) is."""
    return features if mask is None else features * mask.to(features.dtype)


def _half(mask: Tensor | None) -> Tensor | None:
    """The mask at half its resolution, rounded up."""
    return None if mask is None else mask[..., ::2, ::2]


__all__: Sequence[str] = ["ABMEncoderOutput", "ABMForConditionalGeneration", "ABMOutput", "ABMPreTrainedModel"]
