"""Layouts that weights come in beside timm's own: Google's, Hugging Face's, a backbone in a training's checkpoint."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from harness.errors import HarnessError

State = dict[str, Tensor]

GOOGLE = "Transformer/encoder_norm/scale"
"""An array that every file of the `vit_models` release has."""

HUGGING_FACE = "embeddings.patch_embeddings.projection.weight"
"""A tensor that every Hugging Face ViT has, behind `vit.`, `deit.` or `dinov2.` if it has a head."""

_FIRST = ("patch_embed.proj.weight", HUGGING_FACE)
"""Names of the first layer; what stands before them is the prefix of the whole backbone."""

_BY_TIMM = ("visual.", "vision_encoder.")
"""Prefixes that timm's own filters take away."""

_HEADS = ("head", "fc", "classifier", "cls_classifier", "distillation_classifier", "dino_head", "ibot_head")
_BESIDE = (*_HEADS, "projector", "predictor", "momentum_encoder", "decoder")
"""What may stand beside a backbone in a training's checkpoint, and is no part of it."""

_GOOGLE = {
    "cls": "cls_token",
    "embedding/kernel": "patch_embed.proj.weight",
    "embedding/bias": "patch_embed.proj.bias",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
}
_GOOGLE_BLOCK = {"MultiHeadDotProductAttention_1/out": "attn.proj"}
_GOOGLE_BLOCK |= {f"LayerNorm_{source}": f"norm{i}" for source, i in ((0, 1), (2, 2))}
_GOOGLE_BLOCK |= {f"MlpBlock_3/Dense_{i}": f"mlp.fc{i + 1}" for i in (0, 1)}
_PART = {"kernel": "weight", "scale": "weight", "bias": "bias"}

_HUGGING_FACE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_HUGGING_FACE_BLOCK = {
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "layer_scale1": "ls1",
    "layer_scale2": "ls2",
    "mlp.weights_in": "mlp.w12",
    "mlp.weights_out": "mlp.w3",
}


def as_timm(state: State, file: str) -> State:
    """The backbone's tensors under names that timm's checkpoint filters know; names that none knows stay.

    `HarnessError` if a prefix leaves open which tensors are the backbone's.
    """
    if GOOGLE in state:
        return _from_google(state)
    state = _without_prefix(state, file)
    return _from_hugging_face(state) if HUGGING_FACE in state else state


def _without_prefix(state: State, file: str) -> State:
    """The tensors of the one backbone in a training's checkpoint, whatever name it has there (`backbone.`, `vit.`)."""
    found = {name.removesuffix(first) for first in _FIRST for name in state if name.endswith(first)}
    prefixes = {p for p in found if not p.startswith(_BY_TIMM) and p.partition(".")[0] not in _BESIDE}
    if not prefixes or "" in prefixes:
        return state
    if len(prefixes) > 1:
        raise HarnessError(
            f"{file} holds several models, under {' and '.join(map(repr, sorted(prefixes)))}: store the weights of "
            "the one to use alone"
        )
    prefix = prefixes.pop()
    parent = prefix[: prefix[:-1].rfind(".") + 1]
    rest = [n for n in state if not n.startswith(prefix) and n.removeprefix(parent).partition(".")[0] not in _BESIDE]
    if rest:
        raise HarnessError(
            f"{file}: the backbone's names begin with {prefix!r}, but there is more beside it that is neither backbone "
            f"nor head ({len(rest)} names: {', '.join(rest[:3])}): store the backbone's weights alone"
        )
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _from_google(state: State) -> State:
    """timm's names and layout for the arrays of the `vit_models` release."""
    result: State = {}
    fused: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"Transformer/encoderblock_(\d+)/(.+)/(\w+)", name)
        block, module, part = match.groups() if match else ("", "", "")
        *_, last = module.split("/")
        if last in ("query", "key", "value"):
            # [d, heads, d / heads] and [heads, d / heads]
            rows = tensor.flatten(1).T if part == "kernel" else tensor.flatten()
            fused.setdefault(f"blocks.{block}.attn.qkv.{_PART[part]}", {})[last] = rows
        elif module in _GOOGLE_BLOCK:
            result[f"blocks.{block}.{_GOOGLE_BLOCK[module]}.{_PART[part]}"] = _google_layout(tensor)
        else:
            result[_GOOGLE.get(name, name)] = _google_layout(tensor) if name.endswith("kernel") else tensor
    return {name: tensor.contiguous() for name, tensor in (result | _joined(fused)).items()}


def _google_layout(tensor: Tensor) -> Tensor:
    """Kernels [in, out], [heads, d / heads, out] and [height, width, in, out] with the outputs first."""
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1)
    return tensor.flatten(0, -2).T if tensor.ndim > 1 else tensor


def _from_hugging_face(state: State) -> State:
    """timm's names for those of Hugging Face's ViTModel, DeiTModel and Dinov2Model."""
    result: State = {}
    fused: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(\w+)", name)
        if not match:
            result[_HUGGING_FACE.get(name, name)] = tensor
            continue
        block, module, part = match.groups()
        *_, last = module.split(".")
        if module.startswith("attention.attention.") and last in ("query", "key", "value"):
            fused.setdefault(f"blocks.{block}.attn.qkv.{part}", {})[last] = tensor
        else:
            part = "gamma" if part == "lambda1" else part
            result[f"blocks.{block}.{_HUGGING_FACE_BLOCK.get(module, module)}.{part}"] = tensor
    return result | _joined(fused)


def _joined(fused: dict[str, dict[str, Tensor]]) -> State:
    """Query, key and value one below the other, as timm keeps them; a projection that lacks one is left out."""
    return {
        name: torch.cat([parts["query"], parts["key"], parts["value"]])
        for name, parts in fused.items()
        if len(parts) == 3
    }
