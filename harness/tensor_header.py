"""The header of a safetensors file, read without torch."""

from __future__ import annotations

import json


def header(content: bytes) -> bytes:
    """The JSON that says names, types and places of the tensors, of a file's content."""
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def metadata(content: bytes) -> dict[str, str]:
    """The texts beside the tensors. `ValueError` or `KeyError` if there are none."""
    texts: dict[str, str] = json.loads(header(content))["__metadata__"]
    return texts
