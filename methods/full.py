"""Full fine-tuning: every parameter of the backbone is trained."""

from torch import nn

from methods.layers import PretrainedMethod, body_parameters


class Full(PretrainedMethod):
    """Full fine-tuning, the upper end of the parameter axis."""

    name = "full"
    title = "Full"
    paper = "baseline"
    family = "full"
    recipe = {"lr": 5e-5}
    search_space = {"lr": (2e-5, 5e-5, 1e-4, 3e-4), "weight_decay": (1e-4, 1e-2)}

    def parameters(self, backbone: nn.Module) -> list[nn.Parameter]:
        return body_parameters(backbone)
