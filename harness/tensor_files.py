"""Nested plain values and tensors as one safetensors file that knows its own digest.

The tensors lie under readable names (`model/head.weight`); the structure around them is JSON in the file's metadata, so
nothing is ever unpickled. The digest covers structure, names, types, shapes and bytes as they are read back: a file
that was truncated or altered anywhere that matters is refused.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from harness.tensor_header import metadata

PLAIN = (str, int, float, bool, type(None))


class BadTensorFile(ValueError):
    """A file that must not be used; the message is the reason."""


def encode(value: Any) -> bytes:
    """The file's content, the same bytes for the same value. Dicts (keys: text or numbers), lists, tuples, plain values
    and tensors may nest; `TypeError` for anything else."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_flatten(value, "", tensors))
    facts = json.dumps({"digest": _digest(tree, tensors), "tree": tree})
    return save(tensors, {"content": facts})  # one entry: the order of several is not the same in every process


def decode(path: Path, device: torch.device) -> Any:
    """The value in a file; tensors that lay on an accelerator are put on `device`, all others stay on the CPU.

    Raises `BadTensorFile` if the file was read and is torn or altered, `OSError` if it cannot be read: the two must
    never be confused.
    """
    return decode_content(path.read_bytes(), device)


def decode_content(content: bytes, device: torch.device) -> Any:
    """`decode` of what a file holds. Raises `BadTensorFile`."""
    try:
        tensors = load(content)
        facts = json.loads(metadata(content)["content"])
        if facts["digest"] != _digest(facts["tree"], tensors):
            raise BadTensorFile("altered: its digest does not fit its content")
        tree = json.loads(facts["tree"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise BadTensorFile(str(error) or type(error).__name__) from None
    return _rebuild(tree, tensors, device)


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for `value`, whose tensors are put into `tensors`; every container and tensor is a list `[kind, ...]`."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return ["tensor", name, value.device.type != "cpu"]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, PLAIN):
                raise TypeError(f"{name}: a key of type {type(key).__name__}")
        return ["dict", [[key, _flatten(item, f"{name}/{key}".lstrip("/"), tensors)] for key, item in value.items()]]
    if isinstance(value, list | tuple):
        items = [_flatten(item, f"{name}/{i}".lstrip("/"), tensors) for i, item in enumerate(value)]
        return ["list" if isinstance(value, list) else "tuple", items]
    if not isinstance(value, PLAIN):
        raise TypeError(f"{name}: a {type(value).__name__}, where tensors and plain values are kept")
    return value


def _rebuild(tree: Any, tensors: dict[str, Tensor], device: torch.device) -> Any:
    if not isinstance(tree, list):
        return tree
    kind, content = tree[:2]
    if kind == "tensor":
        return tensors[content].to(device) if tree[2] else tensors[content]
    if kind == "dict":
        return {key: _rebuild(item, tensors, device) for key, item in content}
    items = [_rebuild(item, tensors, device) for item in content]
    return items if kind == "list" else tuple(items)


def _digest(tree: str, tensors: dict[str, Tensor]) -> str:
    sha = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
