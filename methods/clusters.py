"""Classes by what the pretrained model makes of their images: mean features, and k-means of them."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from methods.base import Context

BATCH = 32
"""Images per pass."""

IMAGES = 10
"""Images of a class that are looked at, the first ones, at most."""

ROUNDS, STILL = 20, 1e-4
"""Of k-means: the most rounds, and the change of the centres at which it stops."""


@torch.no_grad()
def class_means(backbone: Any, context: Context) -> Tensor:
    """Mean over a class's first images of what the untouched model's classifier reads: [classes, d] in float64 on the
    CPU, zero for a class without images."""
    counts, found, labels_found = [0] * context.num_classes, [], []
    for images, labels in context.calibration(BATCH):
        taken = []
        for place, label in enumerate(labels.tolist()):
            counts[label] += 1
            if counts[label] <= IMAGES:
                taken.append(place)
        if taken:
            features = backbone.forward_head(backbone.forward_features(images[taken]), pre_logits=True)
            found.append(features.double().cpu())
            labels_found.append(labels[taken].cpu())
    members = functional.one_hot(torch.cat(labels_found), context.num_classes).double()
    sums = members.T @ torch.cat(found)
    return sums / members.sum(dim=0).clamp_min(1)[:, None]


def cluster(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Spherical k-means: the number of the cluster of each point [points, d], in `count` clusters, or one each where
    there are no more points.

    It starts from `count` of the points, drawn; a centre is the direction of its points' sum, and stays where it is
    when it has lost them all.
    """
    if len(points) <= count:
        return torch.arange(len(points))
    points = functional.normalize(points, dim=1)
    centres = points[torch.randperm(len(points), generator=generator)[:count]]
    for _ in range(ROUNDS):
        members = functional.one_hot((points @ centres.T).argmax(dim=1), count).to(points.dtype)
        moved = functional.normalize(members.T @ points, dim=1)
        moved = torch.where(members.any(dim=0)[:, None], moved, centres)
        change, centres = float((moved - centres).norm()), moved
        if change < STILL:
            break
    return (points @ centres.T).argmax(dim=1)
