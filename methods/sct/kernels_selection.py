"""Sums of squares per class and channel as Triton kernels: each activation is read once, in its own type.

Two launches per tap. The first squares and sums each image's tokens in float32; the second adds the images of each
class. Both add in an order that follows from the shapes and labels alone, without atomics, so the same batches give the
same bits on every card, and neither waits for the host.

The bound is memory: images * tokens * channels * element size are read; what is written, and read again, is
4 * splits / (tokens * element size) of that, under 3 per cent for ViT-B. Imported on CUDA only: the same contract in
torch is `methods.sct.sums.add_squares`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS_PER_STEP = 32
CHANNELS_PER_PROGRAM = 128
"""A tile of 32 tokens by 128 bf16 channels is four loads of 16 bytes per thread, 8 KB in flight per program."""

PROGRAMS = 1024
"""Programs wanted in flight: eight on each of an H100's 132 multiprocessors. A constant, and not read off the device,
so that the order of summation is the same everywhere."""

ROWS_PER_STEP, CLASS_CHANNELS = 64, 32
"""Tile of the second launch: it works on classes times channels alone, so its programs must be many and short."""


@triton.jit
def _image_squares(
    x: tl.tensor,
    partial: tl.tensor,
    tokens: tl.tensor,
    channels: tl.tensor,
    span: tl.tensor,
    image_stride: tl.tensor,
    token_stride: tl.tensor,
    channel_stride: tl.tensor,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """partial[image, split, c] = sum of x[image, t, c]^2 over the split's `span` tokens."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    split = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    start = split * span
    end = tl.minimum(start + span, tokens)
    column = x + image * image_stride + c[None, :] * channel_stride
    total = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for step in range(start, end, BLOCK_T):
        t = step + tl.arange(0, BLOCK_T)[:, None]
        # Before squaring: the square of a large fp16 number is none.
        tile = tl.load(column + t * token_stride, mask=(t < end) & (c[None, :] < channels), other=0.0).to(tl.float32)
        total += tile * tile
    row = image * tl.num_programs(1) + split
    tl.store(partial + row * channels + c, tl.sum(total, 0), mask=c < channels)


@triton.jit(do_not_specialize=["images"])  # or the last, smaller batch is compiled for once more
def _add_to_classes(
    partial: tl.tensor,
    labels: tl.tensor,
    sums: tl.tensor,
    images: tl.tensor,
    splits: tl.tensor,
    channels: tl.tensor,
    classes: tl.tensor,
    BLOCK_B: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """sums[label] += the rows of all images with that label. The first image of a class works for the whole class."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.program_id(1)
    label = tl.load(labels + first)
    others = tl.arange(0, BLOCK_B)
    earlier = tl.load(labels + others, mask=others < first, other=-1) == label
    if (tl.sum(earlier.to(tl.int32), 0) == 0) & (label >= 0) & (label < classes):
        total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        rows = images * splits
        for step in range(first * splits, rows, BLOCK_R):
            row = step + tl.arange(0, BLOCK_R)
            same = tl.load(labels + row // splits, mask=row < rows, other=-1) == label
            there = same[:, None] & (c[None, :] < channels)
            total += tl.load(partial + row[:, None] * channels + c[None, :], mask=there, other=0.0)
        place = sums + label * channels + c
        tl.store(place, tl.load(place, mask=c < channels, other=0.0) + tl.sum(total, 0), mask=c < channels)


def add_squares(sums: Tensor, features: Tensor, labels: Tensor) -> None:
    """sums[k] += sum of features^2 over all tokens of the images with label k.

    sums: float32 [classes, d], contiguous; features: [images, tokens, d] in bf16, fp16 or float32, of any strides;
    labels: int64 [images], contiguous. A label that is no class is left out.
    """
    images, tokens, channels = features.shape
    block = min(CHANNELS_PER_PROGRAM, triton.next_power_of_2(channels))
    columns = triton.cdiv(channels, block)
    wanted = triton.cdiv(PROGRAMS, columns * images)
    steps = triton.cdiv(tokens, TOKENS_PER_STEP)
    span = triton.cdiv(steps, min(wanted, steps)) * TOKENS_PER_STEP
    splits = triton.cdiv(tokens, span)
    partial = torch.empty(images, splits, channels, dtype=torch.float32, device=features.device)
    grid = (columns, splits, images)
    _image_squares[grid](
        features, partial, tokens, channels, span, *features.stride(), BLOCK_T=TOKENS_PER_STEP, BLOCK_C=block
    )
    block = min(CLASS_CHANNELS, block)
    _add_to_classes[triton.cdiv(channels, block), images](
        partial,
        labels,
        sums,
        images,
        splits,
        channels,
        len(sums),
        BLOCK_B=triton.next_power_of_2(images),
        BLOCK_R=ROWS_PER_STEP,
        BLOCK_C=block,
    )
