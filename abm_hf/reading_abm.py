"""From pixel values to LaTeX with probabilities: what the pipeline and `recognize` share."""

from typing import Any

import torch
from torch import Tensor

from .generation_abm import LatexGrammarLogitsProcessor, score_sequences, two_way_search
from .modeling_abm import ABMEncoderOutput, ABMForConditionalGeneration
from .readings_abm import Reading, distinct_readings, make_reading
from .tokenization_abm import ABMTokenizer


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
    two_way: bool = False,
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
        two_way (`bool`): whether both branches propose and judge; about three and a half times the work of one.
        generate_kwargs: further options of `generate`; not with `two_way`.

    Returns:
        For each picture its readings, the most probable first. Fewer than `top_k` where the search found no more.

    Raises:
        ValueError: for options that contradict each other, or `two_way` with a model of one branch.
    """
    if two_way and generate_kwargs:
        raise ValueError(f"two-way search takes no options of generate, such as {sorted(generate_kwargs)}")
    beams = max(num_beams, top_k)
    pixel_values = pixel_values.to(model.device, model.dtype)
    pixel_mask = pixel_mask.to(model.device) if pixel_mask is not None else None
    encoder_outputs = model.encoder(pixel_values, pixel_mask)
    if two_way:
        found = two_way_search(
            model,
            encoder_outputs=encoder_outputs,
            grammar_tokenizer=tokenizer if grammar else None,
            num_beams=beams,
            num_return_sequences=top_k,
            max_length=max_length,
        )
        sequences, joint = found.sequences[:, 1:], (0.5 * (found.l2r_scores + found.r2l_scores)).exp().tolist()
    else:
        sequences = _search(model, tokenizer, encoder_outputs, beams, top_k, max_length, grammar, **generate_kwargs)
        joint = [None] * len(sequences)
    token_scores = score_sequences(model, encoder_outputs, sequences).exp().tolist()
    readings = [
        make_reading(ids, scores, score, tokenizer)
        for ids, scores, score in zip(sequences.tolist(), token_scores, joint, strict=True)
    ]
    by_image = [readings[start : start + top_k] for start in range(0, len(readings), top_k)]
    return [distinct_readings(candidates) for candidates in by_image]


def _search(
    model: ABMForConditionalGeneration,
    tokenizer: ABMTokenizer,
    encoder_outputs: ABMEncoderOutput,
    num_beams: int,
    top_k: int,
    max_length: int,
    grammar: bool,
    **generate_kwargs: Any,
) -> Tensor:
    """Hypotheses of the left-to-right branch, without their start token."""
    processors = generate_kwargs.pop("logits_processor", [])
    if grammar:
        automaton = LatexGrammarLogitsProcessor.from_tokenizer(tokenizer, max_length=max_length)
        processors = [*processors, automaton]
    sequences = model.generate(
        encoder_outputs=encoder_outputs,
        num_beams=num_beams,
        num_return_sequences=top_k,
        max_length=max_length,
        logits_processor=processors,
        **generate_kwargs,
    )
    return sequences[:, 1:]


__all__ = ["Reading", "read_formulas"]
