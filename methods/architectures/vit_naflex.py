"""timm's NaFlexVit: vision transformers for any size and shape of image, as SigLIP 2 NaFlex and C-RADIO."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import timm
from timm.layers import Attention
from timm.models.naflexvit import NaFlexVit as NaFlexModel
from torch import Tensor, nn
from torch.nn import functional

from methods.architectures.base import SMALL, Architecture, State, register
from methods.architectures.vit import OpenAttention, SlottedViTBlock

POSITIONS = ("embeds.pos_embed", "embeds.pos_embed_y", "embeds.pos_embed_x")
"""Embeddings of the patches' positions: of a grid, or of its rows and of its columns."""


@register
class NaFlexViT(Architecture):
    """timm's `NaFlexVit` for square images of one size, for which its positions are resized once, when it is built."""

    name = "vit_naflex"
    title = "NaFlexViT"
    model = NaFlexModel
    blocks = (SlottedViTBlock,)
    timm_modules = ("naflexvit",)
    first_layer = "embeds.proj.weight"
    small = {"naflex": ("naflexvit_base_patch16_gap", {**SMALL, "pos_embed_grid_size": (4, 4), "init_values": 0.1})}
    variants = {"naflex_map": ("naflexvit_base_patch16_map", {**SMALL, "pos_embed_grid_size": (4, 4)})}
    shallow = {"depth": 1}

    def arguments(self, name: str, image_size: int) -> Mapping[str, Any]:
        side = image_size // _patch_side(name.partition(".")[0])
        return {"img_size": image_size, "pos_embed_grid_size": (side, side)}

    def token_grid(self, model: Any) -> tuple[int, int]:
        rows, columns = model.embeds.pos_embed_grid_size
        return int(rows), int(columns)

    def patch_side(self, model: Any) -> int:
        return int(model.embeds.patch_size[0])

    def open_attention(self, attention: Any) -> type[nn.Module] | None:
        return OpenAttention if type(attention) is Attention else None

    def fit(self, state: State, model: Any) -> State:
        fitted = super().fit(state, model)
        for name in fitted.keys() & POSITIONS:
            wanted = getattr(model.embeds, name.rpartition(".")[2], None)
            if wanted is not None and fitted[name].ndim == wanted.ndim:
                fitted[name] = _resized(fitted[name], tuple(wanted.shape[1:-1]), model.embeds)
        return fitted


@cache
def _patch_side(name: str) -> int:
    """Side of a patch in pixels of timm's model of that name."""
    model: Any = timm.create_model(name, depth=1, num_classes=0, device="meta")
    return int(model.embeds.patch_size[0])


def _resized(positions: Tensor, size: tuple[int, ...], embeds: Any) -> Tensor:
    """Positions, [1, rows, columns, channels] or [1, rows or columns, channels], of another size, as the model itself
    would resize them in every pass."""
    if tuple(positions.shape[1:-1]) == size:
        return positions
    first = positions.movedim(-1, 1).float()
    if len(size) == 1:
        resized = functional.interpolate(first, size=size, mode="linear", align_corners=False)
    else:
        resized = functional.interpolate(
            first,
            size=size,
            mode=embeds.pos_embed_interp_mode,
            align_corners=embeds.pos_embed_align_corners,
            antialias=embeds.pos_embed_antialias,
        )
    return resized.movedim(1, -1).to(positions.dtype)
