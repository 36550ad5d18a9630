"""Goldens: what the authors' released code, or a formula written out, computed on a small ViT in float64.

Each `methods/golden/NAME.npz` holds the values by this project's names (`state:`), the logits of two images (`out`)
and, in float32, the gradients of `objective` (`grad:`). `meta` is JSON: method, settings, what the backbone differs in,
source, kind (`release` or `formula`) and, where they are not `SIZES`, the model's sizes. Weights that are the same in
several files lie in one whose name begins with `common`, which `meta` names; so do images (`x`) and the weights of the
objective (`w`) where torch does not draw them from fixed seeds. `extra:` holds what a method's own tests read;
`memory:KEY:0`, `memory:KEY:1` ... what `Context.remember` holds under a key, a list of tensors, where the choice is
given. For SCT there are labels, and the channels that the release chose on the training images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

from methods import registry
from methods.base import Attachment, Context, Method
from methods.blocks import replace_classifier

FOLDER = Path(__file__).parent / "methods" / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz") if not path.stem.startswith("common"))
WRITTEN_OUT = ["e2vpt", "mosa", "vapt", "vfpt"]
"""Methods whose release may not be quoted in numbers: `methods/test_NAME.py` has another implementation of each."""

STARTS = ["self_prompt_deep", "self_prompt_shallow"]
"""Methods of which `methods/golden/starts` has what they start from."""

SIZES = {"img_size": 56, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 5}


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One case: a method with settings, all weights, and what came out."""

    method: type[Method]
    values: Mapping[str, Any]
    """The method's settings."""

    sizes: Mapping[str, Any]
    """The model's sizes, as timm is told them."""

    backbone: Mapping[str, Any]
    """What timm is told beside the sizes."""

    kind: str
    """`release`: computed by the authors' code. `formula`: by the formula, written out."""

    source: str
    state: Mapping[str, Tensor]
    """Parameters and buffers by this project's names, the backbone's included, in float64; shared ones once."""

    images: Tensor
    """[2, 3, H, W]"""

    out: Tensor
    """Logits of the images: [2, 5]."""

    weights: Tensor
    """Weights of the logits in the objective: [2, 5]."""

    grads: Mapping[str, Tensor]
    """Gradients of `objective` by parameter; empty where none were computed."""

    extra: Mapping[str, Tensor]
    """What else was computed, or is needed to compute it."""

    memory: Mapping[str, list[Tensor]]
    """What the method remembers in place of looking at the training images."""

    labels: Tensor
    """Labels of the training images, which are `images(9, len(labels))`."""

    channels: list[list[int]] | None
    """The channels that the release chose on the training images."""

    def configured(self) -> Method:
        """The method with its settings."""
        return self.method.configure(self.values)

    def plain(self) -> Any:
        """The untouched timm model in float64."""
        model = timm.create_model("vit_tiny_patch16_224", **self.sizes, **self.backbone)
        model = model.double().requires_grad_(False).eval()
        own = {name: self.state[name] for name in model.state_dict() if name in self.state}
        if own["head.weight"].shape != model.head.weight.shape:  # a classifier for another read-out
            del own["head.weight"]
        model.load_state_dict(own, strict=False)
        return model

    def attached(self) -> tuple[Any, Attachment]:
        """The model with the method on it, as `attach` leaves it."""
        model = self.plain()
        attachment = self.configured().attach(model, self.context())
        if attachment.head_width is not None:
            replace_classifier(model, attachment.head_width, torch.Generator())
        return model.eval(), attachment

    def load(self, model: Any) -> None:
        """Give the model the golden's values. Fails where the model has a parameter or buffer that is not in it."""
        missing = [n for n, _ in [*model.named_parameters(), *model.named_buffers()] if n not in self.state]
        assert not missing, f"names changed: {missing[:3]} are not in the golden"
        model.load_state_dict({n: self.state[n] for n in model.state_dict() if n in self.state}, strict=False)

    def context(self) -> Context:
        """The training images as a method sees them."""
        shown = images(9, len(self.labels))
        return Context(
            num_classes=self.sizes["num_classes"],
            device=torch.device("cpu"),
            generator=torch.Generator().manual_seed(3),
            total_steps=100,
            calibration=lambda size: zip(shown.split(size), self.labels.split(size), strict=True),
            memory=dict(self.memory),
        )

    def objective(self, out: Tensor) -> Tensor:
        """What gradients are of: a weighted sum of the logits and of their squares."""
        return (out * self.weights).sum() + out.square().sum()


def images(seed: int, count: int) -> Tensor:
    """Random images [count, 3, 56, 56] in float64."""
    return torch.randn(count, 3, 56, 56, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in arrays.items() if k.startswith(prefix)}


def _memory(parts: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """Tensors by `KEY:NUMBER` as lists by key."""
    memory: dict[str, list[Tensor]] = {}
    for name in sorted(parts):
        memory.setdefault(name.partition(":")[0], []).append(parts[name])
    return memory


@cache
def _arrays(name: str) -> dict[str, np.ndarray]:
    """What a file holds; numbers of half precision, which are exact in it, in double."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return {k: v.astype(np.float64) if v.dtype == np.float16 else v for k, v in file.items()}


@cache
def _common(name: str) -> dict[str, Tensor]:
    found = _part(_arrays(name), "state:")
    # lora_noah: peft's layers hold the backbone's under this name
    return found | {n.replace(".qkv.", ".qkv.base_layer."): t for n, t in found.items() if ".qkv." in n}


def _drawn(seed: int) -> Tensor:
    """Weights of the logits in the objective."""
    return torch.randn(2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def load(name: str) -> Golden:
    """The golden of that name."""
    arrays = _arrays(name)
    meta = json.loads(bytes(arrays["meta"]).decode())
    common = meta.get("common", "common")
    arrays = {k: v for k, v in _arrays(common).items() if k in ("x", "w")} | arrays
    sizes = meta.get("sizes", SIZES)
    labels = arrays.get("labels", np.arange(10) % sizes["num_classes"])
    return Golden(
        method=registry.get(meta["method"]),
        values=meta["values"],
        sizes=sizes,
        backbone=meta["backbone"],
        kind=meta["kind"],
        source=meta["source"],
        state=_common(common) | _part(arrays, "state:"),
        images=torch.from_numpy(arrays["x"]) if "x" in arrays else images(5, 2),
        out=torch.from_numpy(arrays["out"]),
        weights=torch.from_numpy(arrays["w"]) if "w" in arrays else _drawn(77),
        grads=_part(arrays, "grad:"),
        extra=_part(arrays, "extra:"),
        memory=_memory(_part(arrays, "memory:")),
        labels=torch.from_numpy(labels.astype(np.int64)),
        channels=arrays["channels"].tolist() if "channels" in arrays else None,
    )


def comparison() -> str:
    """The lines of methods/README.md that say which methods are proved equal to what."""
    goldens = [load(name) for name in NAMES]
    lines = ["| method | compared with |", "|---|---|"]
    for kind, words in (("release", ""), ("formula", "formula only: ")):
        for golden in (g for g in goldens if g.kind == kind):
            settings = "".join(f":{key}={value}" for key, value in golden.values.items())
            lines.append(f"| `{golden.method.name}{settings}` | {words}{golden.source} |")
    named = {golden.method.name for golden in goldens} | {*WRITTEN_OUT, *STARTS}
    rest = set(registry.all_methods()) - named
    ours = sorted(name for name in rest if "peft_library" not in registry.get(name).__module__)
    tuners = sorted(rest - set(ours))
    return "\n".join(
        [
            *lines,
            "",
            f"Equal to a second implementation in double precision that stands in the tests: {listed(WRITTEN_OUT)}.",
            f"Equal to the release in their starts, and VPT otherwise: {listed(STARTS)}.",
            f"Not compared: {listed(ours)}.",
            "",
            f"Computed by peft's own layers: {listed(tuners)}.",
        ]
    )


def listed(names: list[str]) -> str:
    """Names as Markdown, in one line."""
    return ", ".join(f"`{name}`" for name in names)
