"""The SCT module as Triton kernels behind one differentiable operator, `torch.ops.sct.map_channels`.

    y = x;    y[..., idx] = keep * x[..., idx] + scale * (x[..., idx] W^T + b)

Forward and backward are the same kernel: the gradient of x is the gradient of y with W in place of W^T and without b.
Each program copies some rows and maps their selected channels on the way, so a pass costs one read and one write of the
residual stream, and no index_put. dW and db come from the gathered channels [rows, K] by products over spans of rows
and a sum in fixed order: no atomics, the same bits each time.

Not in place, on purpose. The channels are scattered (one in eight touches two thirds of all 32-byte sectors), so
writing them alone would save a third of the traffic at most. For that the operator would have to mutate its input: then
torch neither differentiates nor functionalises it for torch.compile, and in the backward pass a gradient may not be
overwritten, as the residual addition hands the same tensor to both of its inputs.

Products take operands in autocast's type (bf16) or the weight's and accumulate in float32; without autocast they are
IEEE float32, never tf32. Imported on CUDA only: `methods.sct.module` has the same in torch.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

ROWS, COLUMNS = 16, 256
"""Tile of the copy. 12,608 rows (64 images of ViT-B/16) are 788 programs; compiled for an H100, with an output tile of
128 channels and 32 input channels per step, four of them fit on a multiprocessor, 64 KB of loads in flight together.
Tiles of 32 rows need 254 registers per thread, and pipelined loads of the weight 80 KB of shared memory."""

OUTPUTS, INPUTS = 128, 32

PROGRAMS = 256
"""Programs wanted for dW; a constant, so that the order of summation depends on shapes alone."""

TRITON_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def _dot_type(type: torch.dtype) -> tl.dtype:
    """Type in which rounded operands enter a product. Triton's interpreter multiplies the bits of bf16 as integers."""
    return tl.float32 if triton.knobs.runtime.interpret else TRITON_TYPES[type]


@triton.jit(do_not_specialize=["rows"])  # or the last, smaller batch of an epoch is compiled for once more
def _map_channels(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    indices: tl.tensor,
    y: tl.tensor,
    selected: tl.tensor,
    rows: tl.tensor,
    channels: tl.tensor,
    count: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    out_stride: tl.tensor,
    in_stride: tl.tensor,
    scale: tl.tensor,
    keep: tl.tensor,
    BIAS: tl.constexpr,
    TYPE: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """y as above, and selected = x[:, indices]; W[j, k] lies at j * out_stride + k * in_stride."""
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
    source, target = x + n * row_stride, y + n * channels
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)[None, :]
        there = (n < rows) & (c < channels)
        tl.store(target + c, tl.load(source + c * column_stride, mask=there), mask=there)
    tl.debug_barrier()  # the selected channels are written once more, by other threads
    for out in range(0, count, BLOCK_J):
        j = out + tl.arange(0, BLOCK_J)
        product = tl.zeros([BLOCK_N, BLOCK_J], tl.float32)
        for start in range(0, count, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            place = tl.load(indices + k, mask=k < count, other=0)[None, :]
            values = tl.load(source + place * column_stride, mask=(n < rows) & (k < count)[None, :], other=0.0)
            at = weight + j[None, :] * out_stride + k[:, None] * in_stride
            w = tl.load(at, mask=(j < count)[None, :] & (k < count)[:, None], other=0.0)
            product = tl.dot(values.to(TYPE).to(DOT), w.to(TYPE).to(DOT), product, input_precision="ieee")
        if BIAS:
            product += tl.load(bias + j, mask=j < count, other=0.0).to(tl.float32)[None, :]
        place = tl.load(indices + j, mask=j < count, other=0)[None, :]
        there = (n < rows) & (j < count)[None, :]
        own = tl.load(source + place * column_stride, mask=there, other=0.0).to(tl.float32)
        tl.store(selected + n * count + j[None, :], own.to(TYPE), mask=there)
        tl.store(target + place, (keep * own + scale * product).to(y.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["rows", "span"])
def _map_gradients(
    gradient: tl.tensor,
    selected: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    rows: tl.tensor,
    count: tl.tensor,
    span: tl.tensor,
    DOT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """weight[split] = gradient^T selected and bias[split] = sum of gradient, over the split's `span` rows."""
    j = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    split = tl.program_id(2)
    product = tl.zeros([BLOCK_K, BLOCK_K], tl.float32)
    total = tl.zeros([BLOCK_K], tl.float32)
    end = tl.minimum((split + 1) * span, rows)
    for start in range(split * span, end, BLOCK_N):
        n = (start + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
        g = tl.load(gradient + n * count + j[None, :], mask=(n < end) & (j < count)[None, :], other=0.0)
        x = tl.load(selected + n * count + k[None, :], mask=(n < end) & (k < count)[None, :], other=0.0)
        product = tl.dot(tl.trans(g).to(DOT), x.to(DOT), product, input_precision="ieee")
        total += tl.sum(g.to(tl.float32), 0)
    at = weight + (split * count + j[:, None]) * count + k[None, :]
    tl.store(at, product, mask=(j < count)[:, None] & (k < count)[None, :])
    if tl.program_id(1) == 0:
        tl.store(bias + split * count + j, total, mask=j < count)


def _block(count: int, most: int) -> int:
    """Side of a product's tile for `count` channels: a power of two from 16, the least that tensor cores take."""
    return min(max(16, int(triton.next_power_of_2(count))), most)


@torch.library.custom_op(
    "sct::map_channels",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, Tensor indices, float scale, float keep, ScalarType type)"
    " -> (Tensor, Tensor)",
)
def map_channels(
    x: Tensor, weight: Tensor, bias: Tensor | None, indices: Tensor, scale: float, keep: float, type: torch.dtype
) -> tuple[Tensor, Tensor]:
    """y [rows, d] in x's type, and the selected channels [rows, K] in `type`, the products' operand type.

    x: [rows, d] of any strides; weight: [K, K] of any strides; bias: [K]; indices: int64 [K].
    """
    (rows, channels), count = x.shape, len(indices)
    y, selected = _outputs(x, indices, type)
    _map_channels[triton.cdiv(rows, ROWS),](
        x,
        weight,
        indices if bias is None else bias,  # a pointer that is not followed
        indices,
        y,
        selected,
        rows,
        channels,
        count,
        *x.stride(),
        *weight.stride(),
        scale,
        keep,
        BIAS=bias is not None,
        TYPE=TRITON_TYPES[type],
        DOT=_dot_type(type),
        BLOCK_N=ROWS,
        BLOCK_C=COLUMNS,
        BLOCK_J=_block(count, OUTPUTS),
        BLOCK_K=_block(count, INPUTS),
        num_stages=1,
    )
    return y, selected


def _outputs(x: Tensor, indices: Tensor, type: torch.dtype) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(len(x), len(indices), dtype=type)


@torch.library.custom_op(
    "sct::map_gradients", mutates_args=(), schema="(Tensor gradient, Tensor selected) -> (Tensor, Tensor)"
)
def map_gradients(gradient: Tensor, selected: Tensor) -> tuple[Tensor, Tensor]:
    """gradient^T selected [K, K] and the sum of gradient over rows [K], both float32. Both inputs: [rows, K]."""
    rows, count = selected.shape
    block = _block(count, 64)
    tiles = triton.cdiv(count, block)
    splits = triton.cdiv(PROGRAMS, tiles * tiles)
    span = triton.cdiv(triton.cdiv(rows, splits), block) * block
    splits = triton.cdiv(rows, span)
    weight = selected.new_empty(splits, count, count, dtype=torch.float32)
    bias = selected.new_empty(splits, count, dtype=torch.float32)
    _map_gradients[tiles, tiles, splits](
        gradient, selected, weight, bias, rows, count, span, DOT=_dot_type(selected.dtype), BLOCK_N=block, BLOCK_K=block
    )
    return weight.sum(dim=0), bias.sum(dim=0)


map_channels.register_fake(lambda x, weight, bias, indices, scale, keep, type: _outputs(x, indices, type))
map_gradients.register_fake(
    lambda gradient, selected: (
        selected.new_empty(selected.shape[1], selected.shape[1], dtype=torch.float32),
        selected.new_empty(selected.shape[1], dtype=torch.float32),
    )
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, weight, bias, indices, *ctx.settings = inputs
    ctx.has_bias = bias is not None
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(weight, indices, output[1])


def _backward(ctx: Any, gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of x, W and b; of x only where something before it is trained."""
    weight, indices, selected = ctx.saved_tensors
    scale, _keep, type = ctx.settings
    dx = dw = db = None
    if gradient is not None:
        if ctx.needs_input_grad[0]:
            dx, picked = map_channels(gradient, weight.T, None, indices, *ctx.settings)
        else:
            picked = gradient.index_select(1, indices).to(type)
        if ctx.needs_input_grad[1]:
            dw, db = map_gradients(picked, selected)
            if scale != 1:  # two launches less where it is
                dw, db = scale * dw, scale * db
    return dx, dw, db if ctx.has_bias else None, None, None, None, None


map_channels.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.sct.map_channels)
def _map_flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    """A multiply-add counts as two, as in torch's own formulas; x and weight are shapes."""
    return int(2 * x[0] * weight[0] * weight[1])


@register_flop_formula(torch.ops.sct.map_gradients)
def _gradient_flops(gradient: Any, selected: Any, **_: Any) -> int:
    return int(2 * gradient[0] * gradient[1] * selected[1])


def apply(x: Tensor, weight: Tensor, bias: Tensor, indices: Tensor, scale: float, keep: float) -> Tensor:
    """The module's formula on x [..., d], in autocast's type where it is on."""
    device = x.device.type
    operands = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    y: Tensor = map_channels(x.reshape(-1, x.shape[-1]), weight, bias, indices, scale, keep, operands)[0]
    return y.view(x.shape)
