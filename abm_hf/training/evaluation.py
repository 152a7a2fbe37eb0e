"""Validation while training: batched greedy decoding, minutes rather than hours."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..data.collator import ABMCollator
from ..data.items import Items, evaluation_batches
from ..evaluation.expression_rate import expression_rate


@torch.no_grad()
def evaluate_items(
    model: Any,
    items: Items,
    tokenizer: Any,
    accelerator: Accelerator,
    *,
    max_images: int = 32,
    max_pixels: int = 3_000_000,
    max_length: int = 110,
    num_beams: int = 1,
    multiple: tuple[int, int] = (32, 64),
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Decodes every item and compares it with its label; processes share the batches.

    Args:
        model: The bare model (not wrapped for several processes); it is left in evaluation mode.
        items: Encoded items.
        max_length: Tokens after which decoding gives up, the start token included.

    Returns:
        The result of [`expression_rate`] together with `loss`, the model's loss on the labels, and a list with `id`,
        `prediction` and `reference` (token strings) of every item, sorted by id. The same on all processes.
    """
    model.eval()
    collator = ABMCollator(multiple)
    rows: list[dict[str, str]] = []
    losses: list[tuple[float, int]] = []
    batches = list(evaluation_batches(items, max_images, max_pixels))
    for batch in batches[accelerator.process_index :: accelerator.num_processes]:
        tensors = collator([{"image": items.images[i], "labels": items.labels[i]} for i in batch])
        tensors = {name: tensor.to(accelerator.device) for name, tensor in tensors.items()}
        with accelerator.autocast():
            loss = float(model(**tensors).loss)
            labels = tensors.pop("labels")
            ids = model.generate(**tensors, num_beams=num_beams, do_sample=False, max_length=max_length)
        losses.append((loss, len(labels)))
        predictions = [token_string(row, tokenizer) for row in ids.tolist()]
        for index, prediction in zip(batch, predictions, strict=True):
            rows.append({"id": items.ids[index], "prediction": prediction, "reference": items.latex[index]})
    if accelerator.num_processes > 1:
        rows, losses = gather_object(rows), gather_object(losses)
    rows.sort(key=_by_id)
    result = expression_rate(
        predictions=[row["prediction"].split() for row in rows], references=[row["reference"].split() for row in rows]
    )
    loss = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    return {**result, "loss": loss}, rows


def _by_id(row: dict[str, str]) -> str:
    return row["id"]


def token_string(ids: list[int], tokenizer: Any) -> str:
    """Token string of a generated sequence: from the start token to the first end token."""
    ids = ids[1:]
    if tokenizer.eos_token_id in ids:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    special = set(tokenizer.all_special_ids)
    return " ".join(tokenizer.convert_ids_to_tokens([number for number in ids if number not in special]))
