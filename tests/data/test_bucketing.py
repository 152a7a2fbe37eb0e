"""The stream of batches: complete, within its limits, resumable, shared without overlap, and with little padding."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abm_hf.data.bucketing import (
    BatchLimits,
    BucketBatchSampler,
    Sizes,
    Stage,
    cut_by_area,
    padded_size,
    snap_scale,
)
from abm_hf.data.offline import read_offline


def crohme_like(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heights, widths and label lengths distributed much as in CROHME's training set."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(2.4, 0.85, count)), 1, 96).astype(int)
    widths = np.clip(lengths * rng.normal(21, 5, count) + 40, 30, 2100).astype(int)
    heights = np.clip(np.exp(rng.normal(4.55, 0.38, count)), 30, 480).astype(int)
    return heights, widths, lengths


@pytest.mark.parametrize("size, padded", [((32, 64), (32, 64)), ((33, 64), (64, 64)), ((1, 1), (32, 64))])
def test_sizes_are_padded_up_to_the_grid(size: tuple[int, int], padded: tuple[int, int]) -> None:
    assert padded_size(*size, (32, 64)) == padded


@given(
    seed=st.integers(0, 10_000),
    images=st.integers(1, 9),
    pixels=st.integers(40_000, 900_000),
    tokens=st.integers(20, 300),
    low=st.sampled_from([1.0, 0.7]),
    order=st.sampled_from(["bucket", "area"]),
)
@settings(max_examples=30, deadline=None)
def test_an_epoch_holds_every_item_once_within_the_limits(
    seed: int, images: int, pixels: int, tokens: int, low: float, order: str
) -> None:
    heights, widths, lengths = crohme_like(97, seed)
    limits = BatchLimits(images, pixels, tokens, (16, 32))
    scale_range = (low, 1 / low)
    sampler = BucketBatchSampler(
        heights, widths, lengths, limits, seed=seed, scale_range=scale_range, snap=0.08, order=order
    )
    plan = sampler.plan_epoch(epoch=3, stage=0)
    assert sorted(item for batch in plan for item in batch.indices) == list(range(97))
    for batch in plan:
        items = list(batch.indices)
        if len(items) == 1:
            continue
        rows, columns = padded_size(
            round(heights[items].max() * batch.scale[0]), round(widths[items].max() * batch.scale[1]), (16, 32)
        )
        assert len(items) <= images
        assert len(items) * rows * columns <= pixels
        assert len(items) * (lengths[items].max() + 1) <= tokens


def test_epochs_differ_but_repeat_with_their_seed() -> None:
    sizes = crohme_like(200)
    first, same = (BucketBatchSampler(*sizes, seed=5).plan_epoch(0, 0) for _ in range(2))
    assert first == same
    assert first != BucketBatchSampler(*sizes, seed=6).plan_epoch(0, 0)
    groups = [{batch.indices for batch in BucketBatchSampler(*sizes, seed=5).plan_epoch(e, 0)} for e in (0, 1)]
    assert len(groups[0] & groups[1]) < len(groups[0]) / 2


def test_a_stream_goes_on_from_any_batch() -> None:
    sizes = crohme_like(60)
    stages = [Stage(0, 6, 4), Stage(11, 12), Stage(20)]
    whole = list(itertools.islice(BucketBatchSampler(*sizes, stages=stages, scale_range=(0.7, 1.4)), 40))
    for place in (0, 1, 10, 11, 17, 30):
        resumed = BucketBatchSampler(*sizes, stages=stages, scale_range=(0.7, 1.4))
        resumed.load_state_dict(whole[place].after)
        assert list(itertools.islice(resumed, 5)) == whole[place + 1 : place + 6]


def test_a_state_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks"):
        BucketBatchSampler(*crohme_like(5)).load_state_dict({"epoch": 1})


@pytest.mark.parametrize("world_size, accumulation", [(1, 1), (2, 1), (3, 2)])
def test_processes_share_the_stream_and_weights_restore_the_mean(world_size: int, accumulation: int) -> None:
    sizes = crohme_like(83)
    limits = BatchLimits(max_images=5)
    steps = 30
    group = world_size * accumulation
    alone = list(itertools.islice(BucketBatchSampler(*sizes, limits, seed=1, accumulation=group), steps * group))
    shares = [
        list(
            itertools.islice(
                BucketBatchSampler(
                    *sizes, limits, seed=1, rank=rank, world_size=world_size, accumulation=accumulation
                ),
                steps * accumulation,
            )
        )
        for rank in range(world_size)
    ]
    together = [
        shares[rank][step * accumulation + part].indices
        for step in range(steps)
        for part in range(accumulation)
        for rank in range(world_size)
    ]
    assert together == [batch.indices for batch in alone]
    for step in range(steps):
        mine = [batch for share in shares for batch in share[step * accumulation : (step + 1) * accumulation]]
        images = sum(len(batch.indices) for batch in mine)
        for batch in mine:
            assert batch.weight / group == pytest.approx(len(batch.indices) / images)
            assert batch.step_images == images


def test_the_curriculum_admits_longer_labels_from_its_batch_on() -> None:
    heights, widths, lengths = crohme_like(300)
    sampler = BucketBatchSampler(heights, widths, lengths, stages=[Stage(0, 5, 3), Stage(12, 9), Stage(30)])
    batches = list(itertools.islice(sampler, 200))
    longest = [max(lengths[list(batch.indices)]) for batch in batches]
    assert max(longest[:12]) <= 5 and max(len(batch.indices) for batch in batches[:12]) <= 3
    assert 5 < max(longest[12:30]) <= 9
    assert max(longest[30:]) == lengths.max()


def test_snapping_lands_on_the_grid_within_its_tolerance() -> None:
    assert snap_scale(100, 300, 1.0, (32, 64), 0.08) == (96 / 100, 320 / 300)
    assert snap_scale(100, 280, 1.0, (32, 64), 0.01) == (1.0, 1.0)
    assert snap_scale(110, 300, 0.8, (32, 64), 0.3) == (96 / 110, 256 / 300)


def test_area_batches_are_those_of_the_original() -> None:
    heights, widths = np.array([10, 40, 20, 30]), np.array([10, 40, 20, 30])
    limits = BatchLimits(2, 4000, 10_000, (1, 1))
    batches = cut_by_area(np.arange(4), Sizes(heights, widths, np.ones(4, int)), limits)
    assert [batch.tolist() for batch in batches] == [[0, 2], [3, 1]]
    tight = cut_by_area(np.arange(4), Sizes(heights, widths, np.ones(4, int)), BatchLimits(2, 1000, 10_000, (1, 1)))
    assert [batch.tolist() for batch in tight] == [[0, 2], [3], [1]]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"stages": [Stage(0, 0)]}, "no label has at most 0 tokens"),
        ({"stages": [Stage(3)]}, "ascend from 0"),
        ({"scale_range": (1.4, 0.7)}, "ascending"),
        ({"order": "random"}, "bucket"),
        ({"rank": 2, "world_size": 2}, "does not exist"),
    ],
)
def test_impossible_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BucketBatchSampler(*crohme_like(8), **change)


def test_no_items_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        BucketBatchSampler([], [], [])


def waste_of(sizes: tuple[np.ndarray, np.ndarray, np.ndarray], scale_range: tuple[float, float], order: str) -> float:
    """Share of the padded pixels that no image covers."""
    limits = BatchLimits(max_images=16, multiple=(16, 32))
    sampler = BucketBatchSampler(*sizes, limits, scale_range=scale_range, order=order)
    covered = padded = 0.0
    for batch in sampler.plan_epoch(1, 0):
        heights, widths = (
            np.rint(side[list(batch.indices)] * scale) for side, scale in zip(sizes, batch.scale, strict=False)
        )
        rows, columns = padded_size(float(heights.max()), float(widths.max()), (16, 32))
        covered += float((heights * widths).sum())
        padded += len(batch.indices) * rows * columns
    return 1 - covered / padded


def test_padding_wastes_little() -> None:
    sizes = crohme_like(6000)
    assert waste_of(sizes, (0.7, 1.4), "bucket") < 0.19
    assert waste_of(sizes, (1.0, 1.0), "bucket") < 0.6 * waste_of(sizes, (1.0, 1.0), "area")


def test_padding_wastes_under_15_percent_of_crohme(crohme_offline: Path) -> None:
    items = read_offline(crohme_offline)
    shapes = np.array([item.image.shape for item in items])
    lengths = np.array([len(item.latex.split()) for item in items])
    assert waste_of((shapes[:, 0], shapes[:, 1], lengths), (0.7, 1.4), "bucket") < 0.15


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (3, 2)])
def test_batches_of_one_step_cost_about_the_same(world_size: int, accumulation: int) -> None:
    sizes = crohme_like(2000)
    streams = [
        iter(BucketBatchSampler(*sizes, rank=rank, world_size=world_size, accumulation=accumulation))
        for rank in range(world_size)
    ]
    sampler = BucketBatchSampler(*sizes)
    waits = []
    for _ in range(4 * sampler.batches_per_epoch() // (world_size * accumulation)):  # over the ends of epochs
        steps = [[next(stream) for _ in range(accumulation)] for stream in streams]
        costs = [sum(sampler._cost(np.array(b.indices), b.scale) for b in step) for step in steps]
        waits.append(1 - np.mean(costs) / max(costs))
    assert np.mean(waits) < 0.05
