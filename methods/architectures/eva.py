"""timm's Eva: vision transformers with rotary positions, as DINOv3, EVA-02 and the Perception Encoder, and EVA."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models.eva import Eva as EvaModel
from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor, nn
from torch.nn import functional

from methods.architectures.base import SMALL, Architecture, PostNormBlock, ScaledBlock, State, register
from methods.architectures.eva_layouts import DINOV3 as DINOV3_MARKER
from methods.architectures.eva_layouts import HUGGING_FACE_LAYOUT
from methods.base import MethodError


class SlottedEvaBlock(ScaledBlock, EvaBlock):
    """timm's pre-norm Eva block with slots. x: [batch, tokens, channels]."""

    plain = EvaBlock


class SlottedEvaPostNormBlock(PostNormBlock, EvaBlockPostNorm):
    """timm's post-norm Eva block with slots. x: [batch, tokens, channels]."""

    plain = EvaBlockPostNorm


class _OpenRotary(nn.Module):
    """softmax(R(q) [P_k; R(k)]^T / sqrt(d)) [P_v; v], projected. x: [batch, tokens, channels].

    R rotates by the patches' positions; the prefix, finished keys and values, has none.
    """

    stateless = True

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """`rope`: sines and cosines of the patches."""
        if attn_mask is not None or is_causal:
            raise MethodError("a prefix does not go with masked attention")
        own: Any = self
        q, k, v = (part.unflatten(-1, (-1, own.head_dim)).transpose(1, 2) for part in self._projected(x))
        q, k = own.q_norm(q), own.k_norm(k)
        if rope is not None:
            q, k = (self._rotated(part, rope).type_as(v) for part in (q, k))
        groups = q.shape[1] // k.shape[1]
        k, v = own.prefix.prepend(*(part.repeat_interleave(groups, dim=1) for part in (k, v)))
        drop = own.attn_drop.p if self.training else 0.0
        y = own.norm(functional.scaled_dot_product_attention(q, k, v, dropout_p=drop).transpose(1, 2).flatten(2))
        if own.gate is not None:
            y = y * own.gate(x).sigmoid()
        out: Tensor = own.proj_drop(own.proj(y))
        return out

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of all heads side by side."""
        own: Any = self
        if own.qkv is None:
            return own.q_proj(x), own.k_proj(x), own.v_proj(x)
        fused = own.qkv(x)
        if getattr(own, "q_bias", None) is not None:
            fused = fused + torch.cat((own.q_bias, own.k_bias, own.v_bias))
        parts: tuple[Tensor, ...] = fused.chunk(3, dim=-1)
        return parts

    def _rotated(self, x: Tensor, rope: Tensor) -> Tensor:
        """x: [batch, heads, tokens, channels per head]."""
        own: Any = self
        first, half = own.num_prefix_tokens, getattr(self, "rotate_half", False)
        patches: Tensor = apply_rot_embed_cat(x[:, :, first:], rope, half=half)
        return torch.cat([x[:, :, :first], patches], dim=2)


class OpenEvaAttention(_OpenRotary, EvaAttention):
    """timm's EvaAttention with a prefix."""


class OpenAttentionRope(_OpenRotary, AttentionRope):
    """timm's AttentionRope with a prefix."""


OPEN: dict[type, type[nn.Module]] = {EvaAttention: OpenEvaAttention, AttentionRope: OpenAttentionRope}
"""Class of an attention to the one with a prefix."""

DINOV3: dict[str, Any] = {**SMALL, "init_values": 0.1}
"""Arguments of a small DINOv3, whose LayerScale counts."""


@register
class Eva(Architecture):
    """timm's `Eva`: rotary positions of the patches, q, k and v in one layer or in three, gated MLPs, registers."""

    name = "eva"
    title = "Eva (DINOv3, EVA-02, PE)"
    model = EvaModel
    blocks = (SlottedEvaBlock, SlottedEvaPostNormBlock)
    timm_modules = ("eva",)
    small = {
        "dinov3": ("vit_small_patch16_dinov3", DINOV3),
        "eva02": ("eva02_base_patch14_224", {**SMALL, "mlp_ratio": 2.25}),
    }
    variants = {
        "dinov3_qkvb": ("vit_small_patch16_dinov3_qkvb", DINOV3),
        "dinov3_plus": ("vit_small_plus_patch16_dinov3", DINOV3),
        "pe_core": ("vit_pe_core_tiny_patch16_384", SMALL),
        "rope_mixed": ("vit_small_patch16_rope_mixed_224", {**SMALL, "init_values": 0.1}),
    }
    shallow = {"depth": 1}
    layouts = (HUGGING_FACE_LAYOUT,)

    def run(self, model: Any, steps: Iterable[Any], x: Tensor) -> Tensor:
        if model.rope is None:
            return super().run(model, steps, x)
        dynamic = model.dynamic_img_size or not hasattr(model.rope, "feat_shape")
        rope = model.rope.get_embed(shape=model.patch_embed.grid_size) if dynamic else model.rope.get_embed()
        positions = {id(block): rope[i] if model.rope_mixed else rope for i, block in enumerate(model.blocks)}
        for step in steps:
            x = step(x, rope=positions[id(step)]) if id(step) in positions else step(x)
        return x

    def add_prefix_tokens(self, block: Any, count: int) -> None:
        block.attn.num_prefix_tokens += count

    def open_attention(self, attention: Any) -> type[nn.Module] | None:
        return OPEN.get(type(attention))

    def fit(self, state: State, model: Any) -> State:
        fitted = super().fit(_without_key_biases(state, model) if DINOV3_MARKER in state else state, model)
        # timm renames the Perception Encoder's tensors without resizing the positions: once more, under timm's names
        return super().fit(fitted, model) if any(name.endswith("conv1.weight") for name in state) else fitted


def _without_key_biases(state: State, model: Any) -> State:
    """A DINOv3's tensors without the biases of q, k and v that a model without such has no place for, all zero.

    Meta multiplies them with `bias_mask`, which is zero for the keys. `MethodError` if others are not.
    """
    left, biased = dict(state), hasattr(model.blocks[0].attn, "q_bias") and model.blocks[0].attn.q_bias is not None
    for name in [name for name in state if name.endswith(".attn.qkv.bias")]:
        bias, mask = state[name], state.get(f"{name}_mask")
        queries, keys, values = (bias if mask is None else torch.where(mask == 0, 0, bias)).chunk(3)
        if keys.any():
            raise MethodError(f"{name} has biases of the keys, which timm's DINOv3 lacks")
        if not biased and (queries.any() or values.any()):
            raise MethodError(f"{name} has biases of the queries and values: name the model with _qkvb")
        if not biased:
            del left[name]
    return left
