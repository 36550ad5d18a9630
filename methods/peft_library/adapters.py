"""A trained tuner as a folder that the peft package loads by itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from methods.base import Method, MethodError
from methods.conformance_tools import relative_gap
from methods.peft_library.common import ADAPTER, PeftMethod, quiet, seeded

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""peft's names."""

TOLERANCE = 1e-4
"""By how much the logits may differ, relative to the largest: float32 rounds in another order."""


def save_adapter(
    backbone: nn.Module,
    method: Method,
    folder: Path,
    base_model_name: str,
    *,
    plain: nn.Module,
    memory: Mapping[str, Any],
    images: Tensor,
) -> None:
    """Write the trained update and the head into `folder`: `adapter_config.json` and `adapter_model.safetensors`.

    `peft.PeftModel.from_pretrained(timm_model, folder)` then gives the model of these logits, for a `timm_model` with
    the pretrained weights and a head of as many classes. PiSSA, OLoRA and LoRA-GA become plain LoRA of twice the rank,
    because their frozen weights are not the pretrained ones.

    `backbone`: the trained model, not merged. `method`: what was attached to it. `base_model_name`: what the config
    names as the model to load it on, such as `timm/vit_base_patch16_224.augreg_in21k`; nothing is looked up. `plain`:
    the pretrained timm model without the method, whose head does not matter. `memory`: what the method remembered
    (`Context.memory`). `images`: at least two normalised pictures [B, 3, H, W], on which the written folder is loaded
    and compared.

    Neither model is changed. Raises `MethodError`, with the form to take in its place, for a method that is not of the
    peft package, for one whose parts peft's loader cannot give again, and where the loaded logits differ; nothing is
    left in `folder` then.
    """
    if not isinstance(method, PeftMethod):
        raise _refusal(method, "it is no tuner of the peft package")
    if method.not_loadable:
        raise _refusal(method, method.not_loadable)
    plain = copy.deepcopy(plain).cpu().eval()
    with seeded(0, torch.device("cpu")), quiet():  # peft draws, and what it draws must not matter
        _write(plain, *_adapter(backbone, method, plain, memory, base_model_name), folder)
        gap = _gap(backbone, plain, folder, images.cpu())
    if not gap <= TOLERANCE:
        for name in ADAPTER_FILES:
            (folder / name).unlink()
        raise _refusal(method, f"peft's loader gives other logits, by {gap:.1e} of the largest")


def _refusal(method: Method, reason: str) -> MethodError:
    forms = "`merged` or `trained`" if method.mergeable else "`trained`"
    return MethodError(f"method {method.name!r} cannot be exported as a peft adapter: {reason}. Take the form {forms}")


def _adapter(
    backbone: nn.Module, method: PeftMethod, plain: Any, memory: Mapping[str, Any], base_model_name: str
) -> tuple[Any, dict[str, Tensor]]:
    """The peft config with the head, and the tensors by their names in a `PeftModel`."""
    config, state = method.adapter(plain, {n: t.cpu() for n, t in backbone.state_dict().items()}, memory)
    classifier = plain.get_classifier()
    head = next(name for name, module in plain.named_modules() if module is classifier)
    config.base_model_name_or_path, config.modules_to_save, config.inference_mode = base_model_name, [head], True
    saved = f"{head}.modules_to_save.{ADAPTER}."
    return config, {f"base_model.model.{n.replace(f'{head}.', saved, 1)}": t for n, t in state.items()}


def _write(plain: nn.Module, config: Any, tensors: dict[str, Tensor], folder: Path) -> None:
    """Save as peft does, which knows what of each tuner belongs into the file."""
    import peft

    model = peft.PeftModel(copy.deepcopy(plain), config)
    model.load_state_dict(tensors, strict=False)
    kept = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.detach().clone().contiguous() for n, t in kept.items()}, folder / ADAPTER_FILES[1])
    config.save_pretrained(folder)


@torch.no_grad()
def _gap(backbone: nn.Module, plain: nn.Module, folder: Path, images: Tensor) -> float:
    """Largest difference of the logits of the loaded model, relative to the largest logit."""
    import peft

    expected = copy.deepcopy(backbone).cpu().eval()(images)
    loaded = peft.PeftModel.from_pretrained(plain, str(folder), torch_device="cpu").eval()(images)
    return relative_gap(loaded, expected)
