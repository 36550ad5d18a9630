"""SCT as a method: choose channels, plug a module in where they are."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from methods.architectures.base import Rows, Stream
from methods.base import Attachment, Context, Method, check
from methods.blocks import blocks, leaving, mixed, new_linear, plug, plug_layer, stages, the_one, width
from methods.layers import block_linears, projections
from methods.sct.module import SalientChannels, fold_channels
from methods.sct.selection import Tap, score, top_channels
from methods.settings import Count, Positive, Settings, one_of

SELECTIONS = ("class_aware", "l2", "random", "lowest", "gradient", "fixed")
SELECTION_BATCH = 50
"""Images per batch while scoring, as in the released code."""


@dataclass(frozen=True, slots=True)
class Site:
    """A place where a module goes, and the tap that its channels are chosen by."""

    tap: Tap
    channels: int
    offset: int
    """First column of the tap in what the module acts on (the values of a fused qkv start at 2 d)."""

    plug: Callable[[nn.Module], None]
    layer: nn.Module | None
    """The linear layer after which the module sits, into which it can be folded."""


def default_blocks(backbone: nn.Module) -> list[int]:
    """All blocks of a single stage, as a ViT has; of several, the second half of the last but one and the whole last,
    as in the released Swin-B code (9 of 18, and both)."""
    depths = [len(stage) for stage in stages(backbone)]
    total = sum(depths)
    count = total if len(depths) == 1 else depths[-1] + depths[-2] // 2
    return list(range(total - count, total))


class SCT(Method):
    """Trains a K x K map on the K most salient channels of each block: K*K + K parameters, twice for qkv."""

    name = "sct"
    title = "SCT"
    paper = "Zhao et al., SCT: Salient Channel Tuning, IJCV 2024, arXiv 2309.08513"
    family = "selective"
    composition_order = 10
    recipe = {"lr": 8e-3}
    search_space = {"lr": (2e-3, 4e-3, 8e-3, 1.6e-2), "weight_decay": (1e-4, 1e-2)}
    identity_at_start = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        mode: Annotated[str, one_of("attn", "mlp", "qkv")] = "attn"
        """Where: `attn` after the attention residual (of blocks without attention, on their output), `mlp` on the MLP's
        output, `qkv` on queries and values."""

        channels: Count | None = None
        """Number K of channels per block; None is one in eight of the width: 96 of ViT-B's 768, as published. It stays
        None where the blocks differ in width."""

        selection: Annotated[str, one_of(*SELECTIONS)] = "class_aware"
        """How channels are chosen: `class_aware` (the paper), `l2` (no classes), `random`, `lowest` (the least
        salient), `gradient` (feature times gradient, prefix tokens included), or `fixed` (given in `indices`)."""

        indices: tuple[tuple[int, ...], ...] = ()
        """For `fixed`: the channels, one tuple per tuned block (for qkv two: queries, values)."""

        scaling: Annotated[str, one_of("none", "output", "input")] = "none"
        """`none` as the released ViT code runs; `output` and `input` as its Swin code: a factor `scale` on the map's
        output, or on the channels themselves."""

        scale: Positive = 1.0
        """The factor of `scaling`."""

        init: Annotated[str, one_of("normal", "zero")] = "normal"
        """`normal`: weights trunc_normal(0.02), as released, not the identity at the start; `zero`: the identity."""

        blocks: tuple[int, ...] = ()
        """Which blocks, counted from 0 over all stages; empty for all of a ViT, and for Swin-B's last 9 + 2."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check(self.scaling != "none" or self.scale == 1, "scale", self.scale, "1 when scaling='none'")
            check(bool(self.indices) == (self.selection == "fixed"), "indices", self.indices, "given for fixed, only")
            check(len(set(self.blocks)) == len(self.blocks), "blocks", self.blocks, "without repetition")
            check(all(b >= 0 for b in self.blocks), "blocks", self.blocks, "at least 0")
            # What comes to the same has one name, so that runs that differ in it alone are one.
            object.__setattr__(self, "indices", tuple(tuple(sorted(given)) for given in self.indices))
            if not self.indices:  # which belong to the blocks in their order
                object.__setattr__(self, "blocks", tuple(sorted(self.blocks)))
            if self.scale == 1:
                object.__setattr__(self, "scaling", "none")

    config: Config

    def resolve(self, backbone: nn.Module) -> Config:
        channels = the_one(site.channels for site in self.sites(backbone))
        return replace(self.config, channels=channels, blocks=self.config.blocks or tuple(default_blocks(backbone)))

    def sites(self, backbone: nn.Module) -> list[Site]:
        """Where modules go on this backbone. Raises `MethodError` if a block or channel does not exist."""
        all_blocks = blocks(backbone)
        tuned = list(self.config.blocks) or default_blocks(backbone)
        count = len(all_blocks)
        check(max(tuned) < count, "blocks", self.config.blocks, f"below {count}, the number of blocks")
        sites = [site for number in tuned for site in self._block_sites(all_blocks[number])]
        if self.config.selection == "fixed":
            expected = f"{len(sites)} tuples of distinct channels, each below the width and with `channels` of them"
            fits = len(self.config.indices) == len(sites) and all(
                len(set(given)) == len(given) == site.channels and min(given) >= 0 and max(given) < site.tap.width
                for given, site in zip(self.config.indices, sites, strict=False)
            )
            check(fits, "indices", self.config.indices, expected)
        return sites

    def _block_sites(self, block: Any) -> list[Site]:
        d = width(block)
        k = d // 8 if self.config.channels is None else self.config.channels
        check(k <= d, "channels", k, f"at most the width of the backbone's blocks, {d}")
        if self.config.mode == "qkv":
            return [self._row_site(rows, k) for rows in projections(block)[::2]]
        if self.config.mode == "mlp":
            # The released code chooses by the residual stream after the block but acts on the MLP's output.
            ((_, fc2),) = block_linears(block, ["fc2"])
            return [Site(self._tap(leaving(block), d), k, 0, partial(plug_layer, fc2, "output"), fc2)]
        stream = mixed(block)
        return [Site(self._tap(stream, d), k, 0, partial(plug, block, stream.slot), None)]

    @staticmethod
    def _tap(stream: Stream, d: int) -> Tap:
        return Tap(stream.module, stream.where, slice(0, d), stream.channels_first)

    @staticmethod
    def _row_site(rows: Rows, k: int) -> Site:
        check(k <= rows.stop - rows.start, "channels", k, f"at most the channels of values, {rows.stop - rows.start}")
        tap = Tap(rows.layer, "output", slice(rows.start, rows.stop))
        return Site(tap, k, rows.start, partial(plug_layer, rows.layer, "output"), rows.layer)

    def expected_parameters(self, backbone: nn.Module) -> int:
        return sum(site.channels**2 + site.channels for site in self.sites(backbone))

    def choose_channels(self, backbone: nn.Module, sites: list[Site], context: Context) -> list[Tensor]:
        """Ascending channel indices [K] of each site, relative to its tap."""
        if self.config.selection == "fixed":
            return [torch.tensor(given) for given in self.config.indices]
        taps, batches = [site.tap for site in sites], context.calibration(SELECTION_BATCH)
        scores = score(self.config.selection, backbone, taps, batches, context.num_classes, context.generator)
        return [top_channels(s, site.channels) for s, site in zip(scores, sites, strict=True)]

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        c, sites = self.config, self.sites(backbone)
        start = time.perf_counter()
        selected = context.remember("channels", lambda: self.choose_channels(backbone, sites, context))
        channels = [indices.tolist() for indices in selected]  # waits for the device
        seconds = time.perf_counter() - start
        for site, indices in zip(sites, selected, strict=True):
            std = 0.02 if c.init == "normal" else 0.0
            linear = new_linear(site.channels, site.channels, context.generator, std=std)
            scale, keep = (c.scale if c.scaling == kind else 1.0 for kind in ("output", "input"))
            site.plug(SalientChannels(indices + site.offset, linear, scale, keep))
        layers = list(dict.fromkeys(site.layer for site in sites if site.layer is not None))
        foldable = bool(layers) and all(layer.bias is not None for layer in layers)  # or their biases had no place
        info = {"channels": channels, "selection_seconds": seconds}
        return Attachment(info=info, merge=partial(fold_channels, layers) if foldable else None)
