"""Layouts that weights of an Eva come in beside those that timm's filter knows: Hugging Face's DINOv3ViTModel."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from methods.architectures.base import Layout, State

DINOV3 = "storage_tokens"
"""A tensor that every file of Meta's DINOv3 ViTs has: its registers."""

HUGGING_FACE = "embeddings.patch_embeddings.weight"
"""A tensor that every Hugging Face DINOv3 ViT has."""

_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.register_tokens": DINOV3,
    "embeddings.patch_embeddings.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.bias": "patch_embed.proj.bias",
}
_BLOCK = {
    "attention.o_proj": "attn.proj",
    "layer_scale1": "ls1",
    "layer_scale2": "ls2",
    "mlp.gate_proj": "mlp.w1",
}
_PROJECTIONS = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
_PLAIN_MLP = {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}
_GATED_MLP = {"mlp.up_proj": "mlp.w2", "mlp.down_proj": "mlp.w3"}


def _from_hugging_face(state: State) -> State:
    """Meta's names, which timm's filter knows, for those of Hugging Face's DINOv3ViTModel."""
    gated = any(".mlp.gate_proj." in name for name in state)
    modules = _BLOCK | (_GATED_MLP if gated else _PLAIN_MLP)
    result: State = {}
    fused: dict[str, State] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(?:model\.)?layer\.(\d+)\.(.+)\.(\w+)", name)
        if not match:
            result[_NAMES.get(name, name)] = tensor
            continue
        block, module, part = match.groups()
        if module in _PROJECTIONS:
            fused.setdefault(f"blocks.{block}.attn.qkv.{part}", {})[module] = tensor
        else:
            result[f"blocks.{block}.{modules.get(module, module)}.{'gamma' if part == 'lambda1' else part}"] = tensor
    return result | {name: torch.cat(parts) for name, found in fused.items() if (parts := _parts(found, name))}


def _parts(found: State, name: str) -> list[Tensor]:
    """Queries, keys and values; empty if one is missing. The keys' bias is not stored: it is zero."""
    if name.endswith(".bias") and _PROJECTIONS[0] in found:
        found = {_PROJECTIONS[1]: torch.zeros_like(found[_PROJECTIONS[0]])} | found
    return [found[part] for part in _PROJECTIONS] if len(found) == len(_PROJECTIONS) else []


HUGGING_FACE_LAYOUT = Layout(marker=HUGGING_FACE, to_timm=_from_hugging_face)
