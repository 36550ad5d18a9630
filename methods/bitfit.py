"""BitFit: train the biases."""

from torch import nn

from methods.layers import PretrainedMethod, body_biases


class BitFit(PretrainedMethod):
    """Trains every bias of the backbone: 11 * d per ViT block, and d each for patch embedding and final norm.

    Swin's relative position bias tables are tables, not biases, and stay frozen.
    """

    name = "bitfit"
    title = "BitFit"
    paper = "Ben Zaken et al., BitFit, ACL 2022, arXiv 2106.10199"
    composition_order = 0
    recipe = {"lr": 5e-3}

    def parameters(self, backbone: nn.Module) -> list[nn.Parameter]:
        return body_biases(backbone)
