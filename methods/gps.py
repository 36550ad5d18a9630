"""GPS: every neuron trains the few input connections with the largest gradients."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from methods.base import Attachment, Context, Method, check
from methods.layers import body_layers
from methods.settings import Count, Settings, one_of
from methods.sparse import fold_sparse, gradient_sums, train_weights

SELECTION_BATCH = 32
"""Images per batch while gradients are taken; with two views of each for the contrastive loss."""

TEMPERATURE = 0.07
"""Temperature of the supervised contrastive loss, its usual value."""


def contrastive_loss(features: Tensor, labels: Tensor) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2): each image is drawn to the others of its class.

    features: [n, d], labels: [n], each class at least twice. The mean over images of the mean over their positives.
    """
    z = normalize(features.float(), dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    similar = (z @ z.T / TEMPERATURE).masked_fill(itself, float("-inf"))
    positive = (labels[:, None] == labels[None, :]) & ~itself
    log_share = similar.log_softmax(dim=1).masked_fill(~positive, 0.0)
    return -(log_share.sum(dim=1) / positive.sum(dim=1)).mean()


def largest_per_row(gradient: Tensor, count: int) -> Tensor:
    """Flat indices of the `count` largest magnitudes in each row of a weight [out, ...], ascending."""
    rows = gradient.flatten(1).abs()
    places = rows.topk(count, dim=1).indices + rows.shape[1] * torch.arange(len(rows), device=rows.device)[:, None]
    return places.flatten().sort().values


class GPS(Method):
    """Trains k weights of each output neuron of every linear and convolution layer outside the head, chosen by the
    magnitude of their gradients, and the neurons' biases: (k + 1) * 10 * d per ViT block and
    (k + 1) * d for the patch embedding.
    """

    name = "gps"
    title = "GPS"
    paper = "Zhang et al., Gradient-based Parameter Selection, CVPR 2024, arXiv 2312.10136"
    family = "selective"
    recipe = {"lr": 2e-3}
    mergeable = True
    search_space = {"lr": (5e-4, 1e-3, 2e-3, 5e-3), "weight_decay": (1e-4, 1e-2), "connections": (1, 2, 5)}

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        connections: Count = 1
        """Number k of trained input connections per neuron."""

        biases: bool = True
        """Whether the biases of these layers are trained too, as in the released code."""

        loss: Annotated[str, one_of("contrastive", "cross_entropy")] = "contrastive"
        """Loss whose gradients choose: `contrastive` on the features in front of the head, so that the untrained head
        has no say, as in the paper, or `cross_entropy` through the untrained head."""

    def layers(self, backbone: nn.Module) -> list[Any]:
        """The layers with neurons. Raises `MethodError` if one has fewer inputs than k."""
        layers = body_layers(backbone, (nn.Linear, nn.Conv2d))
        inputs = min(layer.weight[0].numel() for layer in layers)
        k = self.config.connections
        check(k <= inputs, "connections", k, f"at most the inputs of the backbone's narrowest layer, {inputs}")
        return layers

    def expected_parameters(self, backbone: nn.Module) -> int:
        c = self.config
        return sum(
            len(layer.weight) * (c.connections + int(c.biases and layer.bias is not None))
            for layer in self.layers(backbone)
        )

    def loss(self, backbone: Any, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of one batch whose gradients choose. The second view of the contrastive loss is the mirror image."""
        if self.config.loss == "cross_entropy":
            return cross_entropy(backbone(images), labels)
        views = torch.cat([images, images.flip(-1)])
        features = backbone.forward_head(backbone.forward_features(views), pre_logits=True)
        return contrastive_loss(features, torch.cat([labels, labels]))

    def choose(self, backbone: nn.Module, layers: list[Any], context: Context) -> list[Tensor]:
        """Flat indices of the weights to train in each layer."""
        batches = context.calibration(SELECTION_BATCH)
        sums = gradient_sums([layer.weight for layer in layers], batches, partial(self.loss, backbone), torch.clone)
        return [largest_per_row(gradient, self.config.connections) for gradient in sums]

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        layers = self.layers(backbone)
        start = time.perf_counter()
        places = context.remember("weights", lambda: self.choose(backbone, layers, context))
        for layer, indices in zip(layers, places, strict=True):
            train_weights(layer, "weight", indices)
            if self.config.biases and layer.bias is not None:
                layer.bias.requires_grad_(True)
        seconds = time.perf_counter() - start
        return Attachment(info={"selection_seconds": seconds}, merge=partial(fold_sparse, layers))
