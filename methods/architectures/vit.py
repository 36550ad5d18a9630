"""Plain vision transformers: one sequence of tokens of one width. DeiT, DINO, MAE and CLIP's towers are among them."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from methods.architectures.base import Architecture, SlottedBlock, State, register
from methods.architectures.vit_layouts import GOOGLE_LAYOUT, HUGGING_FACE_LAYOUT


class SlottedViTBlock(SlottedBlock, Block):
    """timm's pre-norm ViT block with slots. x: [batch, tokens, channels]."""

    plain = Block

    def attend(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        h: Tensor = self.ls1(self.attn(x, *arguments, **options))
        return h

    def feed_forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.ls2(self.mlp(x))
        return h


@register
class ViT(Architecture):
    """timm's `VisionTransformer`."""

    name = "vit"
    title = "ViT"
    model = VisionTransformer
    blocks = (SlottedViTBlock,)
    timm_modules = ("vision_transformer", "deit")
    small = (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4},
    )
    shallow = {"depth": 1}
    layouts = (GOOGLE_LAYOUT, HUGGING_FACE_LAYOUT)

    def reads_class_token(self, model: Any) -> bool:
        return bool(model.global_pool == "token" and isinstance(model.blocks[-1], Block))

    def fit(self, state: State, model: Any) -> State:
        fitted: State = checkpoint_filter_fn(dict(state), model, adapt_layer_scale=True)
        if getattr(model, "attn_pool", None) is None:
            fitted = {name: tensor for name, tensor in fitted.items() if not name.startswith("attn_pool.")}
        return fitted
