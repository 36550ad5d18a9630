"""Plain vision transformers: one sequence of tokens of one width. DeiT, DINO, MAE and CLIP's towers are among them."""

from __future__ import annotations

from typing import Any

from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional

from methods.architectures.base import SMALL, Architecture, PostNormBlock, State, TwoBranchBlock, register
from methods.architectures.vit_layouts import GOOGLE_LAYOUT, HUGGING_FACE_LAYOUT
from methods.base import MethodError


class SlottedViTBlock(TwoBranchBlock, Block):
    """timm's pre-norm ViT block with slots. x: [batch, tokens, channels]."""

    plain = Block

    def attend(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        h: Tensor = self.ls1(self.attn(x, *arguments, **options))
        return h

    def feed_forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.ls2(self.mlp(x))
        return h


class SlottedResPostBlock(PostNormBlock, ResPostBlock):
    """timm's post-norm ViT block with slots. x: [batch, tokens, channels]."""

    plain = ResPostBlock


class OpenAttention(Attention):
    """timm's attention with a prefix: softmax(q [P_k; k]^T / sqrt(d)) [P_v; v], projected. x: [batch, tokens,
    channels]."""

    stateless = True

    prefix: Any

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """The prefix stands for finished keys: it does not pass the norm of the image's keys."""
        if attn_mask is not None or is_causal:
            raise MethodError("a prefix does not go with masked attention")
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        k, v = self.prefix.prepend(self.k_norm(k), v)
        drop = self.attn_drop.p if self.training else 0.0
        y = functional.scaled_dot_product_attention(self.q_norm(q), k, v, dropout_p=drop)
        y = self.norm(y.transpose(1, 2).flatten(2))
        if self.gate is not None:
            y = y * self.gate(x).sigmoid()
        out: Tensor = self.proj_drop(self.proj(y))
        return out


class OneHead(VisionTransformerDistilled):
    """timm's distilled model with one head for both of its tokens: W (c + d) / 2 + b, c the class token, d that of the
    distillation. timm's two heads, whose outputs it averages, are this one, so that its weights load there."""

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset_classifier(num_classes, global_pool)
        self.head_dist = self.head

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """x: [batch, tokens, channels]."""
        x = self.head_drop(x[:, :2].mean(dim=1))
        return x if pre_logits else self.head(x)


@register
class ViT(Architecture):
    """timm's `VisionTransformer`, the distilled one included."""

    name = "vit"
    title = "ViT"
    model = VisionTransformer
    blocks = (SlottedViTBlock, SlottedResPostBlock)
    timm_modules = ("vision_transformer", "deit")
    small = {
        "vit": ("vit_tiny_patch16_224", SMALL),
        "deit_distilled": ("deit_tiny_distilled_patch16_224", SMALL),
    }
    variants = {"vit_post_norm": ("vit_base_patch16_rpn_224", SMALL)}
    shallow = {"depth": 1}
    layouts = (GOOGLE_LAYOUT, HUGGING_FACE_LAYOUT)

    def prepare(self, model: Any) -> None:
        super().prepare(model)
        if type(model) is VisionTransformerDistilled:
            model.__class__ = OneHead
            model.head_dist = model.head

    def is_prepared(self, model: Any) -> bool:
        return type(model) is not VisionTransformerDistilled

    def open_attention(self, attention: Any) -> type[nn.Module] | None:
        return OpenAttention if type(attention) is Attention else None

    def fit(self, state: State, model: Any) -> State:
        fitted: State = checkpoint_filter_fn(dict(state), model, adapt_layer_scale=True)
        if getattr(model, "attn_pool", None) is None:
            fitted = {name: tensor for name, tensor in fitted.items() if not name.startswith("attn_pool.")}
        return fitted
