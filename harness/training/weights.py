"""Tuned weights: what a run keeps of its model in `weights.safetensors`, and the model rebuilt from it.

The file holds what neither the pretrained checkpoint nor `attach` gives again (`AttachedModel.kept`): under `tensors/`
the trained parameters with the head, and what the method added or changed among the frozen ones; under `memory/` what
it chose by looking at the training images. Two runs that end at the same bits write the same file.
"""

import math
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from harness import device as devices
from harness import tensor_files
from harness.errors import HarnessError
from harness.records.place import Place
from harness.records.store import WEIGHTS_NAME, read_stored
from harness.schema import protocol
from harness.schema.keeping import Keeping
from harness.schema.preprocessing import Preprocessing
from harness.training import recorded
from harness.training.attached_model import AttachedModel
from harness.training.cost import state_digest

FORMAT = 1
"""Version of the file's layout."""

MOST = 32 * 2**20
"""Bytes that are kept where the user does not say."""

HOW = "Runs keep their weights up to 32 MiB, and with --keep-weights all those of any size and protocol"


def content(model: AttachedModel, keeping: Keeping) -> bytes | None:
    """What the file of a trained model holds; None if it is not to be kept."""
    kept = model.kept()
    small = protocol.get(model.spec.protocol).final and _bytes(kept) <= MOST
    if keeping.weights == "none" or (keeping.weights == "auto" and not small):
        return None
    facts = {"format": FORMAT, "run_id": model.spec.run_id, "random_backbone": _random_backbone(model)}
    return tensor_files.encode({**facts, "num_classes": model.num_classes, "total_steps": model.total_steps, **kept})


def _random_backbone(model: AttachedModel) -> str:
    """Digest of frozen random weights, which no checkpoint holds: they are drawn again from the run's seed."""
    return "" if model.spec.backbone.digest else model.frozen_digest()


def _bytes(value: Any) -> int:
    """Bytes of all tensors in nested containers."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def load(place: Place, weights: Path | None = None, method: str | None = None, device: str = "auto") -> AttachedModel:
    """The model of a run in eval mode, as it was at the end of its training.

    `weights`, `method`: the user's own files, where the run had any. `HarnessError` if the weights were not kept, are
    gone or altered, if the backbone or the method is not the run's, or if what comes out is not the model whose digest
    is in the record.
    """
    record, where = place.record, devices.choose(device)
    state = _read(place, where)
    recorded.find_method(record.spec, method)
    recorded.find_backbone(record.spec, weights)
    model = AttachedModel(
        record.spec,
        state["num_classes"],
        device=where,
        total_steps=state["total_steps"],
        calibration=_no_data,
        memory=state["memory"],
    )
    model.restore(state)
    if _random_backbone(model) != state["random_backbone"]:
        raise HarnessError(f"{place.folder}: the backbone's random weights are not drawn here as they were in the run")
    if state_digest(model.trained_state()) != record.weights:
        raise HarnessError(f"{place.folder}: the model rebuilt from {WEIGHTS_NAME} is not the one in the record")
    model.model.pretrained_cfg = {
        **model.model.pretrained_cfg,
        **timm_config(Preprocessing.from_id(record.spec.preprocessing)),
        "num_classes": state["num_classes"],
    }
    return model


def _read(place: Place, device: torch.device) -> dict[str, Any]:
    path, stored = place.folder / WEIGHTS_NAME, read_stored(place.folder, place.record, WEIGHTS_NAME, HOW)
    try:
        state: dict[str, Any] = tensor_files.decode_content(stored, device)
    except tensor_files.BadTensorFile as error:
        raise HarnessError(f"{path}: {error}") from None
    if (state["format"], state["run_id"]) != (FORMAT, place.record.spec.run_id):
        raise HarnessError(f"{path}: of another run or version ({state['run_id']})")
    return state


def _no_data(size: int) -> NoReturn:
    raise HarnessError("the method looks at training images when it is attached again: see Context.remember")


def timm_config(preprocessing: Preprocessing) -> dict[str, Any]:
    """The preprocessing in the terms of timm's `pretrained_cfg`, for `timm.data.create_transform`."""
    size, larger = preprocessing.image_size, preprocessing.resized
    share = size / larger
    if math.floor(size / share) < larger:  # timm rounds down what is the side itself but for the last bit
        share = math.nextafter(share, 0)
    return {
        "input_size": (3, size, size),
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "interpolation": preprocessing.interpolation,
        "crop_mode": "center" if preprocessing.fit == "crop" else "squash",
        "crop_pct": share,
    }
