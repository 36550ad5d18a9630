"""Checkpoint files as users have them, read without running anything in them, and fitted strictly to a timm model.

Known: Google's `ViT-B_16.npz` and its siblings (the `vit_models` release), Swin's official `.pth`, timm's `.pth` and
`.safetensors`, and any of these inside `state_dict`, `model` and the like, with `module.` in front of the names. timm's
checkpoint filters rename and resize; what a file and a model do not share is an error before anything is trained.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import clean_state_dict, swin_transformer, vision_transformer
from torch import Tensor

from harness.errors import HarnessError

State = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys under which files keep the weights, in timm's order: averaged weights first."""

HEADS = ("head.", "head_dist.", "head/", "pre_logits/")
"""What belongs to the pretraining's classifier. Every run gets a head of its own."""

SHOWN = 3
"""Names per kind of difference that an error prints."""


def read(file: Path) -> State:
    """The tensors of a checkpoint by the names in the file, without wrappers and `module.` prefixes.

    `.npz` and `.safetensors` are known by their ending, all else is read as a torch file. `HarnessError` if the file is
    damaged, holds something else, or cannot be read without running pickled code.
    """
    readers: dict[str, Callable[[Path], Any]] = {".npz": _read_npz, ".safetensors": load_file}
    try:
        state = _unwrap(readers.get(file.suffix.lower(), _read_torch)(file))
    except (
        OSError,
        EOFError,
        RuntimeError,
        AttributeError,
        TypeError,
        ValueError,
        KeyError,
        BadZipFile,
        SafetensorError,
        pickle.PickleError,
    ) as e:
        if isinstance(e, HarnessError):
            raise
        reason = str(e).strip().split("\n")[0][:200] or type(e).__name__
        raise HarnessError(f"{file}: damaged, or not a checkpoint ({reason})") from None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise HarnessError(f"{file}: holds no weights; expected tensors by name, or such under {', '.join(WRAPPERS)}")
    return state


def _needs_pickle(file: Path, advice: str) -> HarnessError:
    return HarnessError(f"{file}: needs pickle, which can run any program, and is refused. {advice}")


def _read_npz(file: Path) -> State:
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("not an .npz archive")
    with archive:
        try:
            return {name: torch.from_numpy(archive[name]) for name in archive.files}
        except ValueError as error:
            if "allow_pickle" not in str(error):
                raise
            raise _needs_pickle(file, "Store plain arrays with numpy.savez.") from None


def _read_torch(file: Path) -> Any:
    try:
        # timm stores its arguments as a Namespace, which holds data only.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" not in str(error):
            raise
        advice = "If you trust it, store its weights alone: torch.save(model.state_dict(), FILE), or as safetensors."
        raise _needs_pickle(file, advice) from None


def _unwrap(content: Any) -> Any:
    while isinstance(content, Mapping) and (inner := next((k for k in WRAPPERS if k in content), None)):
        content = content[inner]
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        return {}
    return clean_state_dict(dict(content))


_GOOGLE = {
    "cls": "cls_token",
    "embedding/kernel": "patch_embed.proj.weight",
    "embedding/bias": "patch_embed.proj.bias",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
}
_GOOGLE_BLOCK = {"MultiHeadDotProductAttention_1/out": "attn.proj"}
_GOOGLE_BLOCK |= {f"LayerNorm_{source}": f"norm{i}" for source, i in ((0, 1), (2, 2))}
_GOOGLE_BLOCK |= {f"MlpBlock_3/Dense_{i}": f"mlp.fc{i + 1}" for i in (0, 1)}
_PART = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def from_google(state: State) -> State:
    """timm's names and layout for the arrays of the `vit_models` release; names that it does not know stay."""
    result: State = {}
    fused: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"Transformer/encoderblock_(\d+)/(.+)/(\w+)", name)
        block, module, part = match.groups() if match else ("", "", "")
        *_, last = module.split("/")
        if last in ("query", "key", "value"):
            # [d, heads, d / heads] and [heads, d / heads]
            rows = tensor.flatten(1).T if part == "kernel" else tensor.flatten()
            fused.setdefault(f"blocks.{block}.attn.qkv.{_PART[part]}", {})[last] = rows
        elif module in _GOOGLE_BLOCK:
            result[f"blocks.{block}.{_GOOGLE_BLOCK[module]}.{_PART[part]}"] = _google_layout(tensor)
        else:
            result[_GOOGLE.get(name, name)] = _google_layout(tensor) if name.endswith("kernel") else tensor
    for name, parts in fused.items():
        if len(parts) == 3:
            result[name] = torch.cat([parts["query"], parts["key"], parts["value"]])
    return {name: tensor.contiguous() for name, tensor in result.items()}


def _google_layout(tensor: Tensor) -> Tensor:
    """Kernels [in, out], [heads, d / heads, out] and [height, width, in, out] with the outputs first."""
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1)
    return tensor.flatten(0, -2).T if tensor.ndim > 1 else tensor


def fit(state: State, model: Any, file: str, name: str) -> State:
    """The weights under the names of `model`, a timm ViT or Swin without head, which may lie on the meta device.

    Position embeddings and Swin's relative positions are resized to the model's image size, as timm does for its own
    checkpoints, whichever form the file has. `HarnessError` lists how file and model differ otherwise.
    """
    patches = None
    try:
        if "Transformer/encoder_norm/scale" in state:
            state = from_google(state)
        patches = state.get("patch_embed.proj.weight")
        fitted = _timm_filter(state, model)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        fitted = state  # of another architecture: the differences below say so
    if patches is not None and patches.ndim == 4:
        fitted["patch_embed.proj.weight"] = patches  # timm would resample those of another patch size
    drop = HEADS if getattr(model, "attn_pool", None) is not None else (*HEADS, "attn_pool.")
    fitted = {key: tensor for key, tensor in fitted.items() if not key.startswith(drop)}
    problem = difference(shapes_of(fitted), shapes_of(model.state_dict()))
    if problem:
        raise HarnessError(f"{file} does not fit backbone {name!r}: {problem}")
    broken = [key for key, tensor in fitted.items() if not (tensor.is_floating_point() and tensor.isfinite().all())]
    if broken:
        raise HarnessError(f"{file}: {len(broken)} tensors hold NaN, infinity or whole numbers ({_first(broken)})")
    return fitted


def _timm_filter(state: State, model: Any) -> State:
    if isinstance(model, swin_transformer.SwinTransformer):
        return swin_transformer.checkpoint_filter_fn(dict(state), model)
    return vision_transformer.checkpoint_filter_fn(dict(state), model, adapt_layer_scale=True)


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def difference(found: Shapes, expected: Shapes) -> str:
    """How the tensors of a file differ from those of a model: counts, first names, and sizes; empty if they agree."""
    common = [name for name in expected if name in found]
    kinds = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name}: file {list(found[name])}, model {list(expected[name])}"
            for name in common
            if found[name] != expected[name]
        ],
    }
    parts = [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names]
    theirs, ours = _size(found), _size(expected)
    if parts and any(theirs[what] != ours[what] for what in theirs.keys() & ours.keys()):
        parts.append(f"the file has {_in_words(theirs)}, the model {_in_words(ours)}: name the model it was made for")
    return "; ".join(parts)


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _size(shapes: Shapes) -> dict[str, int]:
    """Number of blocks, and where the names tell them width and patch side."""
    size = {"blocks": len({m[0] for name in shapes if (m := re.match(r"(layers\.\d+\.)?blocks\.\d+\.", name))})}
    for what, name in (("width", "norm.weight"), ("patch side", "patch_embed.proj.weight")):
        if name in shapes:
            size[what] = shapes[name][-1]
    return size


def _in_words(size: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {number}" for what, number in size.items())
