"""MLP head: hidden layers between the frozen features and the linear head."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, Any

from torch import nn

from methods.architectures import architecture_of
from methods.base import Attachment, Context, Method
from methods.blocks import new_linear
from methods.settings import Settings, at_least


class MLPHead(Method):
    """A head of k layers, ReLU between them. The last is the harness's head; the method's are k - 1 maps of the
    pooled feature [d] to itself: (k - 1) * (d^2 + d) parameters.
    """

    name = "mlp_head"
    title = "MLP head"
    paper = "baseline MLP-k of Jia et al., Visual Prompt Tuning, ECCV 2022, arXiv 2203.12119"
    family = "head"
    composition_order = 53
    recipe = {"lr": 2e-3, "drop_path": 0.0}  # as for the linear probe
    search_space = {"lr": (5e-4, 1e-3, 2e-3, 5e-3), "weight_decay": (1e-4, 1e-2), "layers": (2, 3, 5)}
    identity_at_start = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        layers: Annotated[int, at_least(2, " (1 is the linear probe)")] = 3
        """Number k of layers, the linear head included; 3 in VPT's tables."""

    config: Config

    def expected_parameters(self, backbone: Any) -> int:
        d = int(backbone.get_classifier().in_features)
        return (self.config.layers - 1) * (d * d + d)

    def attach(self, backbone: Any, context: Context) -> Attachment:
        classifier = backbone.get_classifier()
        d = classifier.in_features
        hidden = nn.Sequential()
        for _ in range(self.config.layers - 1):
            # He's standard deviation keeps the features' size through the ReLUs.
            hidden.append(new_linear(d, d, context.generator, std=(2 / d) ** 0.5))
            hidden.append(nn.ReLU())
        hidden.to(device=classifier.weight.device, dtype=classifier.weight.dtype)
        owner, name = architecture_of(backbone).head_dropout(backbone)
        setattr(owner, name, nn.Sequential(OrderedDict(hidden=hidden, drop=getattr(owner, name))))
        return Attachment()
