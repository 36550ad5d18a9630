"""ConvNeXt and ConvNeXt v2: stages of growing width, whose blocks mix a map by a depth-wise convolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.models.convnext import ConvNeXt as ConvNeXtModel
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from methods.architectures.base import Architecture, Layout, SlottedBlock, State, Stream, chain, parallel, register
from methods.base import MethodError


class SlottedConvNeXtBlock(SlottedBlock, ConvNeXtBlock):
    """timm's ConvNeXt block with slots: x = output(x + drop_path(h) + mlp_parallel(x)) with
    h = mlp_output(mlp(mlp_input(norm(conv(x))))). x: [batch, channels, rows, columns]; what is plugged in sees
    [batch, rows, columns, channels]."""

    plain = ConvNeXtBlock
    places = ("input", "mlp_input", "mlp_output", "mlp_parallel", "output")

    @staticmethod
    def mixed(block: Any) -> Stream:
        return SlottedConvNeXtBlock.leaving(block)

    @staticmethod
    def leaving(block: Any) -> Stream:
        return Stream(slot="output", module=block, where="output", channels_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """The block with what is plugged in."""
        x = chain(self, "input", x.permute(0, 2, 3, 1))
        h = self.conv_dw(x.permute(0, 3, 1, 2))
        h = self.mlp(chain(self, "mlp_input", self.norm(h.permute(0, 2, 3, 1))))
        h = chain(self, "mlp_output", h if self.gamma is None else h * self.gamma)
        x = chain(self, "output", parallel(self, "mlp_parallel", x, self.drop_path(h) + x))
        return x.permute(0, 3, 1, 2)


META = "downsample_layers.0.0.weight"
"""A tensor that every file of Meta's ConvNeXts has."""

SMALL_CONVNEXT: dict[str, Any] = {
    "depths": (1, 2, 1, 1),
    "dims": (16, 24, 32, 48),
    "patch_size": 2,
    "kernel_sizes": 3,
    "ls_init_value": 0.1,
}
"""Arguments of a small model."""


@register
class ConvNeXt(Architecture):
    """timm's `ConvNeXt`, v2 included. Its blocks have one branch, and no attention."""

    name = "convnext"
    title = "ConvNeXt"
    model = ConvNeXtModel
    blocks = (SlottedConvNeXtBlock,)
    sequence = False
    attention = False
    timm_modules = ("convnext",)
    first_layer = "stem.0.weight"
    layouts = (Layout(marker=META, to_timm=dict),)
    small = {"convnext": ("convnext_tiny", SMALL_CONVNEXT)}
    variants = {
        "convnext_v2": ("convnextv2_tiny", {**SMALL_CONVNEXT, "ls_init_value": None}),
    }

    def arguments(self, name: str, image_size: int) -> Mapping[str, Any]:
        """One model serves every size; its pointwise layers are linear, which timm makes convolutions in small ones."""
        return {"conv_mlp": False}

    def prepare(self, model: Any) -> None:
        if not self.is_prepared(model):
            raise MethodError("pointwise layers of this ConvNeXt are convolutions: build it with conv_mlp=False")

    def is_prepared(self, model: Any) -> bool:
        return not any(block.use_conv_mlp for stage in model.stages for block in stage.blocks)

    def stages(self, model: Any) -> list[list[Any]]:
        return [list(stage.blocks) for stage in model.stages]

    def steps(self, model: Any) -> list[Any]:
        return [step for stage in model.stages for step in (stage.downsample, *stage.blocks)] + [model.norm_pre]

    def width(self, block: Any) -> int:
        return int(block.conv_dw.out_channels)

    def norms(self, block: Any) -> list[Any]:
        return [block.norm]

    def patch_side(self, model: Any) -> int:
        """Every stage halves the map, so that only a multiple of 32 px is read to its edge."""
        return int(model.feature_info[-1]["reduction"])

    def final_norms(self, model: Any) -> list[nn.Module]:
        return [model.norm_pre, model.head.norm]

    def fit(self, state: State, model: Any) -> State:
        fitted = self._from_meta(state, model) if META in state else super().fit(state, model)
        for name, tensor in fitted.items():
            if ".mlp.fc" in name and tensor.ndim == 4:
                fitted[name] = tensor.flatten(1)
        pretrained = hasattr(model.stages[0].blocks[0].mlp, "grn") and not _beyond_stages(fitted)
        return fitted | _new_norm(model) if pretrained else fitted

    def _from_meta(self, state: State, model: Any) -> State:
        """timm's names for Meta's. timm's filter, which needs every linear layer to have a place in the model, gets
        them one by one; what has none keeps its name."""
        fitted: State = {}
        for name, tensor in state.items():
            try:
                fitted |= super().fit({name: tensor}, model)
            except KeyError:
                fitted[name] = tensor
        return fitted


def _beyond_stages(state: State) -> list[str]:
    """Names of the last norm and the classifier."""
    return [name for name in state if not name.startswith(("stem.", "stages."))]


def _new_norm(model: Any) -> State:
    """The last norm of a tuning, for files of the pretraining of ConvNeXt v2 (FCMAE), which end with the stages."""
    d = model.num_features
    return {"head.norm.weight": torch.ones(d), "head.norm.bias": torch.zeros(d)}
