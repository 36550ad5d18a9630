"""Checkpoint files as users have them, read without running anything in them, and fitted strictly to a timm model.

Known: Google's `ViT-B_16.npz` and its siblings (the `vit_models` release), the official files of DeiT, MAE, MoCo v3,
DINO, DINOv2, DINOv3, CLIP, the Perception Encoder, EVA-02, BEiT, Swin, Swin v2, ConvNeXt and ConvNeXt v2, timm's `.pth`
and `.safetensors`, Hugging Face's ViTs and DINOv3, and any of these inside `state_dict`, `model`, `teacher` and the
like, with a prefix (`module.`, `backbone.`) in front of the names. `layouts` and timm's checkpoint filters rename and
resize; what a file and a model do not share is an error before anything is trained.
"""

import argparse
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor

from harness.errors import HarnessError
from harness.models.layouts import as_timm
from methods.architectures import architecture_of
from methods.architectures.base import State
from methods.base import MethodError

Shapes = Mapping[str, tuple[int, ...]]

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module", "teacher")
"""Keys under which files keep the weights, in timm's order: averaged weights first, as DINO's teacher is."""

HEADS = ("head.", "head_dist.", "head/", "pre_logits/", "pooler.", "decoder_")
"""What belongs to the pretraining: classifier, projection, MAE's decoder. Every run gets a head of its own."""

PATCHES = ("patch_embed.proj.weight", "patchifier.proj.weight", "conv1.weight")
"""How names of a ViT's first layer end, in all layouts that timm's filters know."""

SHOWN = 3
"""Names per kind of difference that an error prints."""


UNREADABLE = (
    *(OSError, EOFError, RuntimeError, AttributeError, TypeError, ValueError, KeyError),
    *(BadZipFile, SafetensorError, pickle.PickleError),
)
"""What readers raise on a damaged file."""

_OTHER_THINGS = (
    (rb"version https://git-lfs", "a git-LFS pointer, which stands for the checkpoint. Run `git lfs pull` beside it"),
    (rb"(\.\./|/)*(\.git/)?annex/objects/", "a git-annex pointer. Run `git annex get` beside it"),
    (rb"(\xef\xbb\xbf)?\s*<(!doctype|!--|html|head)", "an HTML page, such as a notice or a sign-in. Download again"),
    (rb"\s*<(\?xml|error)", "an XML text, such as a server's error message. Download again"),
    (rb"\s*[{\[]", "a JSON text: a server's answer, or the index of a checkpoint in several files. Join these first"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|.{257}ustar", "packed. Unpack it, and name the file inside"),
    (rb"\x89HDF", "an HDF5 file, as Keras writes. Store its arrays under timm's names, with torch.save or as .npz"),
)
"""How files begin that are taken for checkpoints, and what they are."""


def read(file: Path) -> State:
    """The tensors of a checkpoint by the names in the file, without wrappers and `module.` prefixes.

    The content tells the format, whatever the ending. `HarnessError` if the file is damaged, holds something else, or
    cannot be read without running pickled code.
    """
    try:
        content = _reader(file)(file)
        state: State = _unwrap(content)
    except HarnessError:
        raise
    except UNREADABLE as error:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise HarnessError(f"{file}: damaged, or not a checkpoint ({reason})") from None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        keys = f". It has: {_first([str(key) for key in content])}" if isinstance(content, Mapping) and content else ""
        expected = f"expected tensors by name, or such under {', '.join(WRAPPERS)}"
        raise HarnessError(f"{file}: holds no weights; {expected}{keys}")
    return state


def _reader(file: Path) -> Callable[[Path], Any]:
    """What reads the file, by how it begins. `HarnessError` if it is something else than a checkpoint."""
    with file.open("rb") as opened:
        start, size = opened.read(512), opened.seek(0, 2)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size:
        return load_file
    if start.startswith(b"PK"):
        return _reader_of_zip(file)
    for pattern, what in _OTHER_THINGS:
        if re.match(pattern, start, re.IGNORECASE | re.DOTALL):
            raise HarnessError(f"{file}: no checkpoint, but {what}")
    if not start:
        raise ValueError("it is empty")
    if start.startswith(b"\x80"):  # a pickle, as torch wrote before its archives
        return _read_torch
    raise ValueError("neither a torch file nor .npz nor .safetensors")


def _reader_of_zip(file: Path) -> Callable[[Path], Any]:
    with ZipFile(file) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        raise HarnessError(
            f"{file}: a TorchScript archive, which is a program, and is refused. If you trust it, store its weights "
            "alone: torch.save(torch.jit.load(FILE).state_dict(), OTHER_FILE)"
        )
    return _read_npz if any(name.endswith(".npy") for name in names) else _read_torch


def _needs_pickle(file: Path, advice: str) -> HarnessError:
    return HarnessError(f"{file}: needs pickle, which can run any program, and is refused. {advice}")


def _read_npz(file: Path) -> State:
    with np.load(file, allow_pickle=False) as archive:
        try:
            return {name: torch.from_numpy(archive[name]) for name in archive.files}
        except ValueError as error:
            if "allow_pickle" not in str(error):
                raise
            raise _needs_pickle(file, "Store plain arrays with numpy.savez.") from None


def _read_torch(file: Path) -> Any:
    try:
        # timm stores its arguments as a Namespace, which holds data only.
        with torch.serialization.safe_globals([argparse.Namespace]), file.open("rb") as opened:
            return torch.load(opened, map_location="cpu", weights_only=True)
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


def fit(state: State, model: Any, file: str, name: str) -> State:
    """The weights under the names of `model`, a timm model without head, which may lie on the meta device.

    Position embeddings are resized to the model's image size, as timm does for its own checkpoints, whichever layout
    the file has. `HarnessError` lists how file and model differ otherwise.
    """
    architecture, patches, expected = architecture_of(model), None, shapes_of(model.state_dict())
    try:
        state = as_timm(state, file)
        patches = next((tensor for key, tensor in state.items() if key.endswith(PATCHES) and tensor.ndim == 4), None)
        fitted = architecture.fit(state, model)
    except MethodError as error:
        raise HarnessError(f"{file} does not fit backbone {name!r}: {error}") from None
    except HarnessError:
        raise
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        fitted = state  # of another architecture: the differences below say so
    if patches is not None and architecture.first_layer in fitted:
        fitted[architecture.first_layer] = patches  # timm would resample those of another patch size
    fitted = {key: tensor for key, tensor in fitted.items() if key in expected or not key.startswith(HEADS)}
    problem = difference(shapes_of(fitted), expected)
    if problem:
        raise HarnessError(f"{file} does not fit backbone {name!r}: {problem}")
    broken = [key for key, tensor in fitted.items() if not (tensor.is_floating_point() and tensor.isfinite().all())]
    if broken:
        raise HarnessError(f"{file}: {len(broken)} tensors hold NaN, infinity or whole numbers ({_first(broken)})")
    return fitted


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def difference(given: Shapes, expected: Shapes) -> str:
    """How the tensors of a file differ from those of a model: counts, first names, and sizes; empty if they agree."""
    common = [name for name in expected if name in given]
    kinds = {
        "missing": [name for name in expected if name not in given],
        "unexpected": [name for name in given if name not in expected],
        "of another shape": [
            f"{name}: file {list(given[name])}, model {list(expected[name])}"
            for name in common
            if given[name] != expected[name]
        ],
    }
    parts = [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names]
    theirs, ours = _size(given), _size(expected)
    if parts and any(theirs[what] != ours[what] for what in theirs.keys() & ours.keys()):
        parts.append(f"the file has {_in_words(theirs)}, the model {_in_words(ours)}: name the model it was made for")
    return "; ".join(parts)


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _size(shapes: Shapes) -> dict[str, int]:
    """Number of blocks, and where the names tell them width and patch side."""
    size = {
        "blocks": len({m[0] for name in shapes if (m := re.match(r"((layers|stages)\.\d+\.)?blocks\.\d+\.", name))})
    }
    for what, name in (("width", "norm.weight"), ("patch side", "patch_embed.proj.weight")):
        if name in shapes:
            size[what] = shapes[name][-1]
    return size


def _in_words(size: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {number}" for what, number in size.items())
