"""Prefixes and Hugging Face's names are read strictly; what only looks like a checkpoint is called what it is."""

import gzip
import json
import re

import pytest
import torch
from safetensors.torch import save_file

from harness.errors import HarnessError
from harness.models import backbones, checkpoints
from tests.harness.models.test_checkpoints import TINY, built, random_model, same_features

HEAD = {"head.weight": torch.zeros(9, 192), "head.bias": torch.zeros(9)}
MODEL_HEAD = {f"model.{name}": tensor for name, tensor in HEAD.items()}


def to_hugging_face(model, prefix=""):
    """The state of Hugging Face's ViTModel (or Dinov2Model, of a timm DINOv2) for the weights of a timm model."""
    dinov2 = hasattr(model.blocks[0].ls1, "gamma")
    state = {
        "embeddings.cls_token": model.cls_token,
        "embeddings.position_embeddings": model.pos_embed,
        "embeddings.patch_embeddings.projection.weight": model.patch_embed.proj.weight,
        "embeddings.patch_embeddings.projection.bias": model.patch_embed.proj.bias,
        "layernorm.weight": model.norm.weight,
        "layernorm.bias": model.norm.bias,
    }
    state |= {"embeddings.mask_token": torch.zeros(1, model.embed_dim)} if dinov2 else {}
    for i, block in enumerate(model.blocks):
        parts = {
            "attention.output.dense": block.attn.proj,
            "norm1" if dinov2 else "layernorm_before": block.norm1,
            "norm2" if dinov2 else "layernorm_after": block.norm2,
            "mlp.fc1" if dinov2 else "intermediate.dense": block.mlp.fc1,
            "mlp.fc2" if dinov2 else "output.dense": block.mlp.fc2,
        }
        for part in ("weight", "bias"):
            pieces = getattr(block.attn.qkv, part).chunk(3)
            for name, piece in zip(("query", "key", "value"), pieces, strict=True):
                state[f"encoder.layer.{i}.attention.attention.{name}.{part}"] = piece
            state |= {f"encoder.layer.{i}.{name}.{part}": getattr(layer, part) for name, layer in parts.items()}
        if dinov2:
            state |= {f"encoder.layer.{i}.layer_scale{j}.lambda1": getattr(block, f"ls{j}").gamma for j in (1, 2)}
    return {prefix + name: tensor.detach().contiguous() for name, tensor in state.items()}


POOLER = {"pooler.dense.weight": torch.zeros(192, 192), "pooler.dense.bias": torch.zeros(192)}
CLASSIFIER = {"classifier.weight": torch.zeros(9, 192), "classifier.bias": torch.zeros(9)}
DECODER = {"decoder.decoder_embed.weight": torch.zeros(4, 192), "decoder.mask_token": torch.zeros(1, 1, 4)}


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [("", {}), ("", POOLER), ("vit.", CLASSIFIER), ("deit.", CLASSIFIER)],
    ids=["bare", "ViTModel", "ViTForImageClassification", "DeiTForImageClassification"],
)
def test_hugging_face_names(tmp_path, prefix, beside):
    source, file = random_model(), tmp_path / "model.safetensors"
    save_file(to_hugging_face(source, prefix) | beside, file)
    assert same_features(built(TINY, file), source)


def test_hugging_face_mae_and_dinov2(tmp_path):
    mae, dinov2 = random_model(), random_model("vit_small_patch14_dinov2", img_size=28)
    torch.save(to_hugging_face(mae, "vit.") | DECODER, tmp_path / "pytorch_model.bin")
    save_file(to_hugging_face(dinov2), tmp_path / "model.safetensors")
    state = checkpoints.fit(checkpoints.read(tmp_path / "pytorch_model.bin"), mae, "file", TINY)
    assert all(torch.equal(state[name], tensor) for name, tensor in mae.state_dict().items())
    model = built("vit_small_patch14_dinov2", tmp_path / "model.safetensors", 28)
    assert same_features(model, dinov2, torch.ones(1, 3, 28, 28))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"backbone.{k}": v for k, v in (state | HEAD).items()},
        lambda state: {f"model.{k}": v for k, v in (state | HEAD).items()},
        lambda state: {"state_dict": {f"model.backbone.{k}": v for k, v in state.items()} | MODEL_HEAD},
        lambda state: {"teacher": {f"module.backbone.{k}": v for k, v in state.items()}, "student": {}, "epoch": 3},
        lambda state: {"state_dict": {f"_orig_mod.encoder.{k}": v for k, v in state.items()}},
        lambda state: (
            {f"base_encoder.{k}": v for k, v in state.items()}
            | {f"momentum_encoder.{k}": v * 2 for k, v in state.items()}
            | {"base_encoder.head.0.weight": torch.zeros(9, 192), "predictor.0.weight": torch.zeros(9, 9)}
        ),
        lambda state: state | {"mask_token": torch.zeros(1, 1, 4), "decoder_blocks.0.norm1.weight": torch.zeros(4)},
    ],
    ids=["backbone.", "model.", "model.backbone.", "DINO's teacher", "compiled", "MoCo v3", "MAE with decoder"],
)
def test_prefixes(tmp_path, wrap):
    source, file = random_model(), tmp_path / "mine.pth"
    torch.save(wrap(dict(source.state_dict())), file)
    fitted = checkpoints.fit(checkpoints.read(file), source, "mine.pth", TINY)
    assert all(torch.equal(fitted[name], tensor) for name, tensor in source.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: {f"student.{k}": v for k, v in state.items()} | {f"ema.{k}": v for k, v in state.items()},
            "mine.pth holds several models, under 'ema.' and 'student.': store the weights of the one",
        ),
        (
            lambda state: {f"backbone.{k}": v for k, v in state.items()} | {"neck.conv.weight": torch.zeros(1)},
            r"begin with 'backbone\.', but .* neither backbone nor head \(1 names: neck\.conv\.weight\)",
        ),
        (
            lambda state: {f"backbone.{k}": v for k, v in state.items() if k != "norm.weight"},
            r"does not fit backbone .*: 1 missing \(norm\.weight\)$",
        ),
        (
            lambda state: {f"backbone.{k}": v for k, v in (state | {"extra.weight": torch.zeros(1)}).items()},
            r"does not fit backbone .*: 1 unexpected \(extra\.weight\)$",
        ),
        (
            lambda state: {"net": state, "epoch": torch.tensor(3)},
            r"holds no weights; .*It has: net, epoch",
        ),
    ],
)
def test_prefixes_that_leave_something_open_are_asked_about(tmp_path, change, message):
    torch.save(change(dict(random_model().state_dict())), tmp_path / "mine.pth")
    with pytest.raises(HarnessError, match=message):
        backbones.resolve(TINY, str(tmp_path / "mine.pth"), 64)


def test_hugging_face_states_must_be_whole(tmp_path):
    state = to_hugging_face(random_model())
    del state["encoder.layer.3.attention.attention.key.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(HarnessError, match=r"1 missing \(blocks\.3\.attn\.qkv\.bias\)$"):
        backbones.resolve(TINY, str(tmp_path / "model.safetensors"), 64)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a2146" * 8 + b"\nsize 343\n"
INDEX = json.dumps({"metadata": {"total_size": 9}, "weight_map": {"norm.weight": "model-00001.safetensors"}}).encode()


@pytest.mark.parametrize("ending", ["pth", "npz", "safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS, "a git-LFS pointer.*git lfs pull"),
        (b"../../.git/annex/objects/xx/yy/SHA256E-s1--00.pth", "a git-annex pointer"),
        (b"\n<!DOCTYPE html>\n<html><title>Sign in</title></html>", "an HTML page.*Download again"),
        (b"\xef\xbb\xbf<HTML><body>404</body></HTML>", "an HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML text, such as a server's error"),
        (b'{"error": "Repository not found"}', "a JSON text: a server's answer"),
        (INDEX, "a JSON text: .*the index of a checkpoint in several files"),
        (gzip.compress(b"x" * 600, mtime=0), "packed. Unpack it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "an HDF5 file, as Keras writes"),
    ],
)
def test_what_only_looks_like_a_checkpoint_is_called_what_it_is(tmp_path, ending, content, message):
    file = tmp_path / f"mine.{ending}"
    file.write_bytes(content)
    with pytest.raises(HarnessError, match=rf"{re.escape(str(file))}: no checkpoint, but {message}"):
        backbones.resolve(TINY, str(file), 64)


def test_the_content_tells_the_format_whatever_the_ending(tmp_path):
    source = random_model()
    save_file(source.state_dict(), tmp_path / "mine.pth")
    torch.save(source.state_dict(), tmp_path / "mine.npz")
    torch.save(source.state_dict(), tmp_path / "mine.safetensors", _use_new_zipfile_serialization=False)
    for file in tmp_path.iterdir():
        assert torch.equal(checkpoints.read(file)["norm.bias"], source.norm.bias)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_torchscript_archive_is_refused_with_the_way_to_its_weights(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "ViT-B-16.pt")
    with pytest.raises(HarnessError, match=r"ViT-B-16\.pt: a TorchScript archive.*torch\.jit\.load\(FILE\)"):
        checkpoints.read(tmp_path / "ViT-B-16.pt")


def test_folders_are_named(tmp_path):
    with pytest.raises(HarnessError, match=r"a folder; name the file in it, such as model\.safetensors"):
        backbones.resolve(TINY, str(tmp_path))
