"""Layouts that weights of a ViT come in beside timm's own: Google's and Hugging Face's."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from methods.architectures.base import Layout, State

GOOGLE = "Transformer/encoder_norm/scale"
"""An array that every file of the `vit_models` release has."""

HUGGING_FACE = "embeddings.patch_embeddings.projection.weight"
"""A tensor that every Hugging Face ViT has, with `vit.`, `deit.` or `dinov2.` before it if it has a head."""

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


def _from_google(state: State) -> State:
    """timm's names and layout for the arrays of the `vit_models` release."""
    result: State = {}
    fused: dict[str, State] = {}
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
    fused: dict[str, State] = {}
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


def _joined(fused: dict[str, State]) -> State:
    """Query, key and value one below the other, as timm keeps them; a projection that lacks one is left out."""
    return {
        name: torch.cat([parts["query"], parts["key"], parts["value"]])
        for name, parts in fused.items()
        if len(parts) == 3
    }


GOOGLE_LAYOUT = Layout(marker=GOOGLE, to_timm=_from_google)
HUGGING_FACE_LAYOUT = Layout(marker=HUGGING_FACE, to_timm=_from_hugging_face)
