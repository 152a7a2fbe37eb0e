"""What ink can teach besides the label: which symbol is where, how many there are, where to look for the next one.

All of it serves training alone. The heads are no part of the model that is kept, and recognition does not change.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..modeling_abm import ABMForConditionalGeneration, ABMOutput
from .arguments import OptimizationArguments

# Most positions show no symbol; as heavy as the others, they would be all that is learned at first.
_NONE_WEIGHT = 0.2
# With a sigmoid of this at each of some hundred positions, all counts start near none.
_COUNT_BIAS = -7.0


class SupervisedModel(nn.Module):
    """A model with heads for training, and the loss that these and the attention maps add.

    Args:
        model: The model; its parameters are shared, not copied.
        options: With the weights of the terms.
        uncounted: Token ids that no hand writes: braces, scripts, special ones.
    """

    def __init__(
        self, model: ABMForConditionalGeneration, options: OptimizationArguments, uncounted: list[int]
    ) -> None:
        super().__init__()
        self.model, self.options = model, options
        channels, tokens = model.config.feature_channels, model.config.num_output_tokens
        self.heads = nn.ModuleDict()
        if options.symbol_weight:
            self.heads["symbols"] = nn.Linear(channels, tokens + 1)  # the last one: none
        if options.count_weight:
            counts = self.heads["counts"] = nn.Linear(channels, tokens)
            nn.init.constant_(counts.bias, _COUNT_BIAS)
        counted = torch.ones(tokens, dtype=torch.bool)
        counted[[number for number in uncounted if number < tokens]] = False
        self.counted: Tensor
        self.register_buffer("counted", counted, persistent=False)

    def forward(self, token_cells: Tensor, step: int, **tensors: Tensor) -> ABMOutput:
        """The model's training output with the terms added to `loss` and `loss_components`.

        Args:
            token_cells (B, T, h, w): from [`token_cells`] of `placement`.
            step: Optimizer step, for what fades.
            tensors: The model's own.
        """
        guidance = self.options.attention_weight * max(0.0, 1 - step / self.options.attention_fading_steps)
        output = self.model(**tensors, output_attentions=guidance > 0)
        features, labels = output.encoder_last_hidden_state, tensors["labels"]
        stride = self.model.config.feature_stride
        inside = tensors["pixel_mask"][:, ::stride, ::stride].flatten(1)
        terms = {}
        if "symbols" in self.heads:
            terms["symbols"] = (
                self.options.symbol_weight,
                symbol_loss(self.heads["symbols"](features).float(), token_cells, labels, inside),
            )
        if "counts" in self.heads:
            terms["counts"] = (
                self.options.count_weight,
                count_loss(self.heads["counts"](features).float(), labels, inside, self.counted),
            )
        if guidance > 0:
            maps = [maps for maps in (output.cross_attentions, output.r2l_cross_attentions) if maps is not None]
            terms["attention"] = guidance, torch.stack([attention_loss(part, token_cells) for part in maps]).mean()
        for name, (weight, term) in terms.items():
            output.loss = output.loss + weight * term
            output.loss_components[name] = term.detach()
        return output


def symbol_loss(logits: Tensor, token_cells: Tensor, labels: Tensor, inside: Tensor) -> Tensor:
    """Cross-entropy of the symbol at each position, over images whose segmentation is known.

    Args:
        logits (B, L, K + 1): the last one stands for none.
        token_cells (B, T, h, w), labels (B, T): where each token is.
        inside (B, L): positions that belong to the image.
    """
    none = logits.shape[-1] - 1
    most, token = token_cells.flatten(2).max(1)  # (B, L)
    targets = torch.where(most > 0, labels.gather(1, token), none)
    known = token_cells.flatten(1).any(1, keepdim=True)
    weights = torch.where(targets == none, _NONE_WEIGHT, 1.0) * (inside.bool() & known)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum().clamp(min=1)


def count_loss(logits: Tensor, labels: Tensor, inside: Tensor, counted: Tensor) -> Tensor:
    """Smooth L1 of how often each symbol occurs, after CAN (arXiv 2207.11463), per symbol of the label.

    Args:
        logits (B, L, K): a position's share of each count, before the sigmoid.
        labels (B, T): padded with a negative number.
        inside (B, L): positions that belong to the image.
        counted (K): tokens that are written.
    """
    found = (logits.sigmoid() * inside[..., None]).sum(1)  # (B, K)
    there = F.one_hot(labels.clamp(min=0), logits.shape[-1]) * (labels >= 0)[..., None]
    wanted = there.sum(1) * counted
    losses = F.smooth_l1_loss(found, wanted.to(found.dtype), reduction="none") * counted
    return (losses.sum(1) / wanted.sum(1).clamp(min=1)).mean()


def attention_loss(attention: Tensor, token_cells: Tensor) -> Tensor:
    """Minus the logarithm of the attention that a step pays to the ink of its token, over the tokens with known ink.

    How the attention is spread within that ink is left to the model.

    Args:
        attention, token_cells (B, T, h, w): aligned to the labels.
    """
    ink = token_cells.flatten(2) > 0
    known = ink.any(-1)  # (B, T)
    paid = (attention.float().flatten(2) * ink).sum(-1)
    losses = -(paid + 1e-4).log() * known
    return losses.sum() / known.sum().clamp(min=1)
