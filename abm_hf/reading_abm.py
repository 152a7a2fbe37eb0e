"""From pixel values to LaTeX with probabilities: what the pipeline and `recognize` share."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig

from .generation_abm import LatexGrammarLogitsProcessor, exists, formulas_of, score_sequences, two_way_search
from .modeling_abm import ABMEncoderOutput, ABMForConditionalGeneration
from .readings_abm import JUDGED, Reading, check_scales, distinct_readings, make_reading
from .resizing_abm import resized
from .tokenization_abm import ABMTokenizer
from .torch_search_abm import find_hypotheses, searches_plainly, stacked


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
    direction: str = "l2r",
    two_way: bool = False,
    two_way_weight: float | None = None,
    scales: Sequence[float] | None = None,
    max_time: float | None = None,
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
        direction (`str`): the branch that reads, `"l2r"` or `"r2l"`; not with `two_way`.
        two_way (`bool`): whether both branches propose and judge; about three and a half times the work of one.
        two_way_weight (`float`, *optional*): say of the right-to-left branch in that, from 0 to 1; by default
            `generation_config.two_way_weight`, which is tuned for a checkpoint, or a half.
        scales (`Sequence[float]`, *optional*): sizes at which the pictures are read, as factors. At the first one
            formulas are searched; at each further one the best few (five, or `top_k`, of `num_beams`) are judged
            again, and the mean of all log-probabilities decides. By default `generation_config.reading_scales`, or
            their own size alone.
        max_time (`float`, *optional*): seconds that the search may take; answers are cut off there. By default
            `generation_config.max_time`, or no limit.
        generate_kwargs: further options of `generate`; not with `two_way`.

    Returns:
        For each picture its readings, the most probable first. Fewer than `top_k` where the search found no more.

    Raises:
        ValueError: for options that contradict each other, a `max_length` without room for a token, or a branch that
            the model lacks.
    """
    if min(num_beams, top_k) < 1:
        raise ValueError(f"num_beams and top_k must be at least 1, they are {num_beams} and {top_k}")
    _check(model, max_length, direction, two_way, generate_kwargs)
    settings = model.generation_config
    scales = check_scales(getattr(settings, "reading_scales", (1.0,)) if scales is None else scales)
    weight = getattr(settings, "two_way_weight", 0.5) if two_way_weight is None else two_way_weight
    max_time = settings.max_time if max_time is None else max_time
    beams = max(num_beams, top_k)
    kept = max(top_k, min(beams, JUDGED)) if len(scales) > 1 else top_k
    pixel_values = pixel_values.to(model.device, model.dtype)
    pixel_mask = pixel_mask.to(model.device) if pixel_mask is not None else None
    views = [model.encoder(*resized(pixel_values, pixel_mask, scale)) for scale in scales]
    if two_way:
        sequences, known, totals = _search_both(
            model, tokenizer, views[0], beams, kept, max_length, max_time, grammar, weight
        )
        token_log_probs = score_sequences(model, views[0], sequences)
    else:
        sequences, known, token_log_probs = _search(
            model, tokenizer, views[0], direction, beams, kept, max_length, max_time, grammar, **generate_kwargs
        )
        totals = token_log_probs.sum(dim=1)
    ranked = torch.arange(len(sequences), device=sequences.device).unflatten(0, (-1, kept))
    if len(views) > 1:
        branches = {"l2r": 1 - weight, "r2l": weight} if two_way else {direction: 1.0}
        totals = torch.stack([totals, *(_judged(model, view, sequences, branches) for view in views[1:])]).mean(dim=0)
        # By the mean over the tokens, as the searches rank.
        means = (totals / (sequences != model.config.pad_token_id).sum(dim=1)).masked_fill(~known, float("-inf"))
        ranked = ranked.gather(1, means.unflatten(0, (-1, kept)).argsort(dim=1, descending=True))
    temperature = _score_temperature(settings, direction, two_way)
    return [
        distinct_readings(
            [
                make_reading(
                    sequences[row].tolist(), token_log_probs[row].exp().tolist(), float(totals[row]), tokenizer
                )
                for row in rows
                if known[row]
            ],
            temperature,
        )
        for rows in ranked[:, :top_k].tolist()
    ]


def _search_both(
    model: ABMForConditionalGeneration,
    tokenizer: ABMTokenizer,
    encoder_outputs: ABMEncoderOutput,
    num_beams: int,
    top_k: int,
    max_length: int,
    max_time: float | None,
    grammar: bool,
    weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hypotheses of both branches (N, T), which of them the search found (N,), and their log-probabilities (N,)."""
    found = two_way_search(
        model,
        encoder_outputs=encoder_outputs,
        grammar_tokenizer=tokenizer if grammar else None,
        num_beams=num_beams,
        num_return_sequences=top_k,
        weight=weight,
        max_length=max_length,
        max_time=max_time,
    )
    joint = torch.lerp(found.l2r_scores, found.r2l_scores, weight)
    return found.sequences[:, 1:], found.scores > float("-inf"), joint


def _judged(
    model: ABMForConditionalGeneration, view: ABMEncoderOutput, sequences: Tensor, branches: Mapping[str, float]
) -> Tensor:
    """Log-probabilities (N,) of formulas, the weighted mean of some branches'."""
    return torch.stack(
        [
            weight * score_sequences(model, view, sequences, direction=direction).sum(dim=1)
            for direction, weight in branches.items()
        ]
    ).sum(dim=0)


def _score_temperature(config: GenerationConfig, direction: str, two_way: bool) -> float:
    """What was fitted for this kind of search; for right to left, where that was not, what left to right has."""
    left_to_right = getattr(config, "score_temperature", 1.0)
    if two_way:
        return getattr(config, "two_way_score_temperature", 1.0)
    return left_to_right if direction == "l2r" else getattr(config, "r2l_score_temperature", left_to_right)


def _check(
    model: ABMForConditionalGeneration,
    max_length: int,
    direction: str,
    two_way: bool,
    generate_kwargs: Mapping[str, Any],
) -> None:
    if max_length < 3:
        raise ValueError(f"max_length counts the start and the end token, so it must be at least 3, not {max_length}")
    if two_way and generate_kwargs:
        raise ValueError(f"two-way search takes no options of generate, such as {sorted(generate_kwargs)}")
    if two_way and direction != "l2r":
        raise ValueError("two-way search reads in both directions: leave `direction` out")
    if direction not in model.config.directions:
        raise ValueError(f"this model reads {' and '.join(model.config.directions)}, not {direction!r}")


def _search(
    model: ABMForConditionalGeneration,
    tokenizer: ABMTokenizer,
    encoder_outputs: ABMEncoderOutput,
    direction: str,
    num_beams: int,
    top_k: int,
    max_length: int,
    max_time: float | None,
    grammar: bool,
    **generate_kwargs: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hypotheses of one branch in the order of the formula, by `generate` where it is asked for more than the best.

    Returns:
        Their ids (N, T), which of them the search found (N,), and the log-probability of each id (N, T).
    """
    if not generate_kwargs and searches_plainly(model.generation_config):
        found = find_hypotheses(
            model,
            encoder_outputs,
            direction,
            num_beams=num_beams,
            max_length=max_length,
            tokenizer=tokenizer if grammar else None,
            max_time=max_time,
        )
        written, log_probs, known = stacked(found, top_k, model.config.pad_token_id)
    else:
        written, log_probs, known = _generate(
            model,
            tokenizer,
            encoder_outputs,
            direction,
            num_beams,
            top_k,
            max_length,
            grammar,
            max_time=max_time,
            **generate_kwargs,
        )
    # Further sizes judge them where the model is.
    written, log_probs, known = (part.to(model.device) for part in (written, log_probs, known))
    formulas, steps = formulas_of(written, direction, model.config)
    return formulas, known, _in_order_of_formula(log_probs, written, steps, direction, model.config)


def _generate(
    model: ABMForConditionalGeneration,
    tokenizer: ABMTokenizer,
    encoder_outputs: ABMEncoderOutput,
    direction: str,
    num_beams: int,
    top_k: int,
    max_length: int,
    grammar: bool,
    **generate_kwargs: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """What [`stacked`] gives, from `generate`."""
    processors = generate_kwargs.pop("logits_processor", [])
    if grammar:
        automaton = LatexGrammarLogitsProcessor.from_tokenizer(tokenizer, direction=direction, max_length=max_length)
        processors = [*processors, automaton]
    output = model.generate(
        encoder_outputs=encoder_outputs,
        decoder_direction=direction,
        num_beams=num_beams,
        num_return_sequences=top_k,
        max_length=max_length,
        logits_processor=processors,
        **generate_kwargs | {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    )
    written = output.sequences[:, 1:].cpu()
    scores = output.get("sequences_scores")  # greedy search and sampling keep none
    known = exists(scores.cpu()) if scores is not None else torch.ones(len(written), dtype=torch.bool)
    return written, _step_log_probs(output, output.sequences[:, 1:]).cpu(), known


def _step_log_probs(output: Any, written: Tensor) -> Tensor:
    """What the model gave to each id of `written` (N, T) when the search wrote it, before any processor."""
    log_probs = torch.stack(output.logits, dim=1).float().log_softmax(-1)  # (all hypotheses, T, V)
    rows = output.get("beam_indices")  # of the hypothesis that each step went on from; greedy search keeps to its own
    rows = torch.arange(len(written), device=written.device)[:, None] if rows is None else rows.clamp(min=0)
    return log_probs[rows, torch.arange(written.shape[1], device=written.device), written]


def _in_order_of_formula(scored: Tensor, written: Tensor, steps: Tensor, direction: str, config: Any) -> Tensor:
    """`scored` (N, T) as `formulas_of` orders `written`: (N, T + 1), 0 after the end."""
    positions = torch.arange(scored.shape[1], device=scored.device).expand_as(scored)
    scored = scored.masked_fill(positions >= steps[:, None], 0.0)
    if direction == "r2l":
        tokens = (steps - (written == config.bos_token_id).any(dim=1).long())[:, None]
        scored = scored.gather(1, torch.where(positions < tokens, tokens - 1 - positions, positions))
    return F.pad(scored, (0, 1))


__all__ = ["Reading", "read_formulas"]
