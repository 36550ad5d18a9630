"""A straightforward implementation of the released way, written from a description of what SCT's release does.

float32 throughout, images decoded at each access by four loader workers, every activation of a tapped block kept on
the host before it is scored, a module by indexed assignment on the residual, and the test split evaluated every ten
epochs. It taps each block once, where the release taps it twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from harness.bench.base import BATCH
from harness.data import decoding
from harness.data.lists import Entry
from harness.schema.preprocessing import Preprocessing
from methods.blocks import blocks, plug, width
from methods.sct.selection import Batches

WORKERS = 4
TEST_EVERY = 10


class Images(Dataset[tuple[Tensor, int]]):
    """An image file decoded, resized and normalised at each access."""

    def __init__(self, folder: Path, entries: Sequence[Entry], preprocessing: Preprocessing) -> None:
        size = (preprocessing.image_size, preprocessing.image_size)
        self.folder, self.entries = folder, entries
        self.transform = transforms.Compose(
            [
                transforms.Resize(size, transforms.InterpolationMode.BICUBIC),
                transforms.ToTensor(),
                transforms.Normalize(preprocessing.mean, preprocessing.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        entry = self.entries[index]
        return self.transform(decoding.read(self.folder / entry.name)), entry.label


def loader(images: Images, train: bool) -> DataLoader[tuple[Tensor, int]]:
    """Shuffled batches without the small last one to train on; all in order to test on."""
    return DataLoader(
        images, BATCH, shuffle=train, num_workers=WORKERS, drop_last=train, multiprocessing_context="fork"
    )


class ReleasedModule(nn.Module):
    """x[..., idx] += W x[..., idx] + b, written into x."""

    indices: Tensor

    def __init__(self, indices: Tensor) -> None:
        super().__init__()
        self.register_buffer("indices", indices)
        self.linear = nn.Linear(len(indices), len(indices))
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., d], changed in place."""
        x[..., self.indices] += self.linear(x[..., self.indices])
        return x


@torch.no_grad()
def select(model: Any, batches: Batches, count: int) -> list[Tensor]:
    """The channels of each block, from activations that are all kept on the host."""
    kept: list[list[Tensor]] = [[] for _ in blocks(model)]
    hooks = [
        block.norm2.register_forward_pre_hook(lambda _, inputs, store=store: store.append(inputs[0].cpu()))
        for block, store in zip(blocks(model), kept, strict=True)
    ]
    labels = []
    for images, batch_labels in batches:
        model(images)
        labels.append(batch_labels.cpu())
    for hook in hooks:
        hook.remove()
    return [_best(torch.cat(store)[:, 1:], torch.cat(labels), count) for store in kept]


def _best(features: Tensor, labels: Tensor, count: int) -> Tensor:
    norms = [features[labels == label].flatten(0, 1).norm(dim=0) for label in labels.unique()]
    return torch.stack(norms).mean(dim=0).topk(count).indices.sort().values


def attach(model: Any, channels: Sequence[Tensor]) -> None:
    """A module with these channels after the attention of each block."""
    for block, indices in zip(blocks(model), channels, strict=True):
        plug(block, "after_attention", ReleasedModule(indices))


def channels(model: Any) -> int:
    """One in eight."""
    return width(blocks(model)[0]) // 8


def train_epoch(model: Any, optimizer: torch.optim.Optimizer, batches: Batches, device: torch.device) -> None:
    """One epoch; the loss is read in every step."""
    model.train()
    total = 0.0
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.item()


@torch.no_grad()
def accuracy(model: Any, batches: Batches, device: torch.device) -> float:
    """Per cent classified right."""
    model.eval()
    right = count = 0
    for images, labels in batches:
        right += int((model(images.to(device)).argmax(dim=1).cpu() == labels).sum())
        count += len(labels)
    return 100 * right / count
