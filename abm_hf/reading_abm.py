"""From pixel values to LaTeX with probabilities: what the pipeline and `recognize` share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .generation_abm import LatexGrammarLogitsProcessor, score_sequences
from .modeling_abm import ABMForConditionalGeneration
from .tokenization_abm import ABMTokenizer


@dataclass(frozen=True)
class Reading:
    """One hypothesis about a picture.

    Args:
        latex: compact LaTeX.
        score: its probability under the model, 0 to 1.
        tokens: the LaTeX tokens.
        token_scores: the probability of each token, given the picture and the tokens before it.
        finished: whether it ended by itself; `False` where it was cut at the greatest length.
    """

    latex: str
    score: float
    tokens: tuple[str, ...] = field(repr=False)
    token_scores: tuple[float, ...] = field(repr=False)
    finished: bool = True


@torch.inference_mode()
def read_formulas(
    model: ABMForConditionalGeneration,
    tokenizer: ABMTokenizer,
    pixel_values: Tensor,
    pixel_mask: Tensor | None = None,
    *,
    num_beams: int = 10,
    top_k: int = 1,
    max_length: int = 200,
    grammar: bool = True,
    **generate_kwargs: Any,
) -> list[list[Reading]]:
    """Reads a batch of pictures.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(batch_size, 1, height, width)`), pixel_mask (`torch.Tensor` of
            shape `(batch_size, height, width)`, *optional*): as the processor makes them.
        num_beams (`int`): hypotheses followed at a time; 1 is greedy decoding.
        top_k (`int`): hypotheses returned for each picture; raises `num_beams` where it is smaller.
        max_length (`int`): most tokens of an answer, start and end included.
        grammar (`bool`): whether only well-formed LaTeX can be written.
        generate_kwargs: further options of `generate`.

    Returns:
        For each picture its readings, the most probable first. Fewer than `top_k` where the search found no more.
    """
    pixel_values = pixel_values.to(model.device, model.dtype)
    pixel_mask = pixel_mask.to(model.device) if pixel_mask is not None else None
    encoder_outputs = model.encoder(pixel_values, pixel_mask)
    processors = generate_kwargs.pop("logits_processor", [])
    if grammar:
        automaton = LatexGrammarLogitsProcessor.from_tokenizer(tokenizer, direction="l2r", max_length=max_length)
        processors = [*processors, automaton]
    sequences = model.generate(
        encoder_outputs=encoder_outputs,
        num_beams=max(num_beams, top_k),
        num_return_sequences=top_k,
        max_length=max_length,
        logits_processor=processors,
        **generate_kwargs,
    )[:, 1:]
    log_probabilities = score_sequences(model, encoder_outputs, sequences)
    readings = [
        _reading(ids, scores, tokenizer)
        for ids, scores in zip(sequences.tolist(), log_probabilities.exp().tolist(), strict=True)
    ]
    images = len(pixel_values)
    by_image = [readings[image * top_k : (image + 1) * top_k] for image in range(images)]
    return [_distinct(candidates) for candidates in by_image]


def _reading(ids: Sequence[int], scores: Sequence[float], tokenizer: ABMTokenizer) -> Reading:
    """A row of `generate` without its start token, and the probability of each of its ids."""
    finished = tokenizer.eos_token_id in ids
    length = ids.index(tokenizer.eos_token_id) if finished else len(ids)
    tokens = tuple(tokenizer.convert_ids_to_tokens(ids[:length]))
    probability = 1.0
    for score in scores[: length + finished]:
        probability *= score
    return Reading(
        latex=tokenizer.decode(ids[:length], skip_special_tokens=True),
        score=probability,
        tokens=tokens,
        token_scores=tuple(scores[:length]),
        finished=finished,
    )


def _distinct(readings: Sequence[Reading]) -> list[Reading]:
    """The most probable first, each text once: `generate` ranks by length-normalised scores and may repeat itself."""
    best: dict[str, Reading] = {}
    for reading in sorted(readings, key=lambda reading: -reading.score):
        best.setdefault(reading.latex, reading)
    return list(best.values())
