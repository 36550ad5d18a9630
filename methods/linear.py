"""Linear probe: the backbone stays as it is and only the head, which the harness owns, is trained."""

from torch import nn

from methods.base import Attachment, Context, Method


class Linear(Method):
    """Linear probe, the lower end of the parameter axis: zero parameters of its own."""

    name = "linear"
    title = "Linear"
    paper = "baseline"
    family = "head"
    # Without stochastic depth: a probe reads the features that there are, and these are then computed only once.
    recipe = {"lr": 1e-2, "drop_path": 0.0}

    def expected_parameters(self, backbone: nn.Module) -> int:
        return 0

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        return Attachment()
