"""Checkpoint files as users have them: every known form gives the model that wrote it, everything else is refused."""

import argparse
import pickle
import re

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import vision_transformer

from harness.errors import HarnessError
from harness.models import backbones, checkpoints
from harness.schema.spec import BackboneSpec

TINY = "vit_tiny_patch16_224"
GOOGLE_NORM = "Transformer/encoder_norm/scale"
GOOGLE_QUERY = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/"
IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def random_model(name=TINY, **arguments):
    torch.manual_seed(1)
    model = timm.create_model(name, **({"img_size": 64, "num_classes": 0} | arguments)).eval()
    for parameter in model.parameters():  # no zeros and ones, which would hide an exchange
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def to_google(model, classes=21843, pre_logits=True):
    """The arrays of Google's ViT release for the weights of a timm model."""

    def flat(tensor):
        return tensor.detach().numpy()

    d, heads = model.embed_dim, model.blocks[0].attn.num_heads
    arrays = {
        "cls": flat(model.cls_token),
        "embedding/kernel": flat(model.patch_embed.proj.weight.permute(2, 3, 1, 0)),
        "embedding/bias": flat(model.patch_embed.proj.bias),
        "Transformer/posembed_input/pos_embedding": flat(model.pos_embed),
        "Transformer/encoder_norm/scale": flat(model.norm.weight),
        "Transformer/encoder_norm/bias": flat(model.norm.bias),
        "head/kernel": np.zeros((d, classes), np.float32),
        "head/bias": np.zeros(classes, np.float32),
    }
    if pre_logits:
        arrays |= {"pre_logits/kernel": np.zeros((d, d), np.float32), "pre_logits/bias": np.zeros(d, np.float32)}
    for i, block in enumerate(model.blocks):
        attention = f"Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1"
        kernels, biases = block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3)
        for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
            arrays[f"{attention}/{name}/kernel"] = flat(kernel.T.reshape(d, heads, d // heads))
            arrays[f"{attention}/{name}/bias"] = flat(bias.reshape(heads, d // heads))
        arrays[f"{attention}/out/kernel"] = flat(block.attn.proj.weight.T.reshape(heads, d // heads, d))
        arrays[f"{attention}/out/bias"] = flat(block.attn.proj.bias)
        for name, norm in (("LayerNorm_0", block.norm1), ("LayerNorm_2", block.norm2)):
            arrays[f"Transformer/encoderblock_{i}/{name}/scale"] = flat(norm.weight)
            arrays[f"Transformer/encoderblock_{i}/{name}/bias"] = flat(norm.bias)
        for j, layer in enumerate((block.mlp.fc1, block.mlp.fc2)):
            arrays[f"Transformer/encoderblock_{i}/MlpBlock_3/Dense_{j}/kernel"] = flat(layer.weight.T)
            arrays[f"Transformer/encoderblock_{i}/MlpBlock_3/Dense_{j}/bias"] = flat(layer.bias)
    return arrays


def to_official_swin(model, classes=21841):
    """The content of Microsoft's `swin_*_22k.pth` for the weights of a timm model."""
    state = {}
    for name, tensor in model.state_dict().items():
        match = re.fullmatch(r"layers\.(\d)\.downsample\.(.+)", name)
        state[f"layers.{int(match[1]) - 1}.downsample.{match[2]}" if match else name] = tensor
    for i, stage in enumerate(model.layers):
        for j in range(len(stage.blocks)):
            state[f"layers.{i}.blocks.{j}.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
            if j % 2 and i < 3:
                state[f"layers.{i}.blocks.{j}.attn_mask"] = torch.zeros(4, 49, 49)
    state |= {"head.weight": torch.zeros(classes, model.num_features), "head.bias": torch.zeros(classes)}
    return {"model": state}


def built(name, file, image_size=64):
    return backbones.build(backbones.resolve(name, str(file), image_size), num_classes=2)


def same_features(model, source, image=IMAGE):
    with torch.inference_mode():
        return torch.equal(model.forward_features(image), source.forward_features(image))


def test_google_npz_is_read_back_as_timm_reads_it(tmp_path):
    """To the same features, and to what timm's own reader makes of the file; a ViT-B is the same, but wider."""
    source, file = random_model(img_size=224), tmp_path / "ViT-Ti_16.npz"
    np.savez(file, **to_google(source))
    model = built(TINY, file, 224)
    assert same_features(model, source, torch.nn.functional.interpolate(IMAGE, 224))
    for parameter in source.parameters():
        torch.nn.init.zeros_(parameter)
    source.load_pretrained(str(file))
    ours = model.state_dict()
    assert all(torch.equal(ours[k], v) for k, v in source.state_dict().items())


def test_google_npz_without_pre_logits(tmp_path):
    source = random_model()
    np.savez(tmp_path / "mine.npz", **to_google(source, pre_logits=False))
    assert same_features(built(TINY, tmp_path / "mine.npz"), source)


def test_positions_are_resized_the_same_from_every_form_of_file(tmp_path):
    source = random_model(img_size=224)
    np.savez(tmp_path / "a.npz", **to_google(source, classes=3))
    save_file(source.state_dict(), tmp_path / "b.safetensors")
    torch.save(source.state_dict(), tmp_path / "c.pth")
    small = timm.create_model(TINY, img_size=96, num_classes=0)
    expected = vision_transformer.checkpoint_filter_fn(source.state_dict(), small)["pos_embed"]
    assert expected.shape == (1, 1 + 6 * 6, 192)
    for name in ("a.npz", "b.safetensors", "c.pth"):
        assert torch.equal(built(TINY, tmp_path / name, 96).pos_embed, expected)


def test_official_swin(tmp_path):
    source = random_model("swin_tiny_patch4_window7_224", img_size=224)
    torch.save(to_official_swin(source), tmp_path / "swin_tiny_patch4_window7_224_22k.pth")
    model = built("swin_tiny_patch4_window7_224.ms_in22k", tmp_path / "swin_tiny_patch4_window7_224_22k.pth", 224)
    image = torch.nn.functional.interpolate(IMAGE, 224)
    assert same_features(model, source, image)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": state, "args": argparse.Namespace(lr=1.0)},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {"model": state | {"head.weight": torch.zeros(9, 192), "head.bias": torch.zeros(9)}},
        lambda state: state | {"pre_logits.fc.weight": torch.zeros(192, 192), "pre_logits.fc.bias": torch.zeros(192)},
    ],
    ids=["plain", "model", "timm training", "nested", "module.", "head", "pre_logits"],
)
def test_wrapped_states(tmp_path, wrap):
    source = random_model()
    torch.save(wrap(source.state_dict()), tmp_path / "mine.pth")
    assert same_features(built(TINY, tmp_path / "mine.pth"), source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.weight"), r"1 missing \(norm\.weight\)$"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1 unexpected \(extra\)$"),
        (
            lambda s: s.update({"norm.bias": torch.zeros(3)}),
            r"1 of another shape \(norm\.bias: file \[3\], model \[192",
        ),
        (
            lambda s: [s.pop(k) for k in list(s) if k.startswith("blocks.11.")],
            r"12 missing \(blocks\.11\.norm1\.weight, .*, \.\.\.\); the file has blocks 11, .* model blocks 12",
        ),
    ],
)
def test_differences_are_readable_and_come_before_any_run(tmp_path, change, message):
    state = dict(random_model().state_dict())
    change(state)
    torch.save(state, tmp_path / "mine.pth")
    with pytest.raises(HarnessError, match=rf"mine\.pth does not fit backbone '{TINY}': {message}"):
        backbones.resolve(TINY, str(tmp_path / "mine.pth"), 64)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "vit_small_patch16_224",
            "file has blocks 12, width 192, patch side 16, the model blocks 12, width 384",
        ),
        ("vit_tiny_r_s16_p8_224", "is no .*, which is what methods work on"),
        ("vit_large_patch16_224", "the model blocks 24, width 1024"),
        ("swin_tiny_patch4_window7_224", "does not fit backbone 'swin_tiny_patch4_window7_224'"),
        ("demo_vit", "has weights of its own"),
    ],
)
@pytest.mark.parametrize("form", ["mine.pth", "mine.npz"])
def test_weights_of_another_architecture(tmp_path, name, message, form):
    source, file = random_model(img_size=224), tmp_path / form
    if form == "mine.npz":
        np.savez(file, **to_google(source, classes=3))
    else:
        torch.save(source.state_dict(), file)
    with pytest.raises(HarnessError, match=message):
        backbones.resolve(name, str(file))


def test_another_patch_size_is_not_resampled(tmp_path):
    torch.save(random_model("vit_small_patch32_224", img_size=224).state_dict(), tmp_path / "mine.pth")
    with pytest.raises(
        HarnessError, match=r"patch_embed\.proj\.weight: file \[384, 3, 32, 32\], model \[384, 3, 16, 16"
    ):
        backbones.resolve("vit_small_patch16_224", str(tmp_path / "mine.pth"))


class Evil:
    def __reduce__(self):
        return (open, ("/nowhere/at/all",))


@pytest.mark.parametrize("form", ["mine.pth", "legacy.pth", "mine.npz"])
def test_what_needs_pickle_is_refused(tmp_path, form):
    file = tmp_path / form
    if form == "mine.npz":
        np.savez(file, **to_google(random_model(), classes=3), thing=np.array([Evil()], dtype=object))
    else:
        torch.save({"model": Evil()}, file, _use_new_zipfile_serialization=form == "mine.pth")
    with pytest.raises(HarnessError, match=rf"{form}: needs pickle, which can run any program, and is refused\. \w+"):
        checkpoints.read(file)


@pytest.mark.parametrize("form", ["mine.pth", "mine.npz", "mine.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_damaged_files_are_named(tmp_path, form, damage):
    file, source = tmp_path / form, random_model()
    if form == "mine.npz":
        np.savez(file, **to_google(source, classes=3))
    elif form == "mine.pth":
        torch.save(source.state_dict(), file)
    else:
        save_file(source.state_dict(), file)
    whole = file.read_bytes()
    file.write_bytes({"truncated": whole[: len(whole) // 2], "garbage": b"hello " * 99, "empty": b""}[damage])
    with pytest.raises(HarnessError, match=rf"{form}: damaged, or not a checkpoint \(.+\)"):
        checkpoints.read(file)


@pytest.mark.parametrize("content", [{}, [1, 2], {"model": {"a": 3}}, {"epoch": 1}, torch.zeros(3)])
def test_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "mine.pth")
    with pytest.raises(HarnessError, match="holds no weights; expected tensors by name"):
        checkpoints.read(tmp_path / "mine.pth")


def test_a_bare_array_or_pickle_is_no_npz(tmp_path):
    with (tmp_path / "bare.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"a": 1}))
    for name, message in (("bare.npz", "damaged, or not a checkpoint"), ("pickle.npz", "needs pickle")):
        with pytest.raises(HarnessError, match=f"{name}: {message}"):
            checkpoints.read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.pth", {1: torch.zeros(2)}, "holds no weights"),
        ("mine.npz", {"a": np.array(["x"])}, "damaged, or not a checkpoint"),
        ("mine.npz", {GOOGLE_NORM: np.zeros(3), GOOGLE_QUERY + "foo": np.zeros((3, 3))}, "does not fit"),
        ("mine.npz", {GOOGLE_NORM: np.zeros(3), GOOGLE_QUERY + "kernel": np.zeros(())}, "does not fit"),
        ("mine.pth", lambda key, tensor: tensor.to(torch.int8), "hold NaN, infinity or whole numbers"),
        ("mine.pth", lambda key, tensor: tensor * float("nan"), "150 tensors hold NaN"),
        ("mine.pth", lambda key, tensor: tensor / 0 if key == "norm.bias" else tensor, r"\(norm\.bias\)"),
    ],
)
def test_odd_contents_are_answered_in_words(tmp_path, name, content, message):
    if callable(content):
        content = {key: content(key, tensor) for key, tensor in random_model().state_dict().items()}
    np.savez(tmp_path / name, **content) if name.endswith("npz") else torch.save(content, tmp_path / name)
    with pytest.raises(HarnessError, match=message):
        backbones.resolve(TINY, str(tmp_path / name), 64)


def test_an_ending_in_capitals_is_known(tmp_path):
    save_file(random_model().state_dict(), tmp_path / "A.SAFETENSORS")
    assert backbones.resolve(TINY, str(tmp_path / "A.SAFETENSORS"), 64).weights == "A.SAFETENSORS"


def test_runs_of_one_process_share_the_weights_that_were_used_last(tmp_path, monkeypatch):
    file, reads = tmp_path / "mine.safetensors", []
    save_file(random_model().state_dict(), file)
    spec = backbones.resolve(TINY, str(file), 64)
    monkeypatch.setattr(checkpoints, "read", lambda path, read=checkpoints.read: reads.append(path) or read(path))
    one, other = (backbones.build(spec, num_classes=2) for _ in range(2))
    assert reads == [file]
    torch.nn.init.zeros_(one.norm.bias)
    assert other.norm.bias.any() and backbones.build(spec, num_classes=2).norm.bias.any()


def test_a_file_that_changes_between_plan_and_run_is_refused(tmp_path):
    file = tmp_path / "mine.pth"
    torch.save(random_model().state_dict(), file)
    spec = backbones.resolve(TINY, str(file), 64)
    torch.save(random_model(depth=11).state_dict(), file)
    with pytest.raises(HarnessError, match=r"mine\.pth was changed: its sha256 is not"):
        backbones.build(spec, num_classes=2)
    file.unlink()
    with pytest.raises(HarnessError, match=r"checkpoint 'mine\.pth' of backbone .* is not there"):
        backbones.build(spec, num_classes=2)
    unknown = BackboneSpec(name=TINY, weights="other.pth", digest="0" * 64, image_size=64)
    with pytest.raises(HarnessError, match=r"checkpoint 'other\.pth'"):
        backbones.build(unknown, num_classes=2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_base_patch16_224_in21k", r"means the AugReg weights.*Did you mean 'vit_base_patch16_224\.orig_in21k'"),
        ("vit_large_patch16_224_in21k", r"AugReg weights.*Did you mean 'vit_large_patch16_224\.orig_in21k'"),
        ("vit_huge_patch14_224_in21k", r"Did you mean 'vit_huge_patch14_224\.orig_in21k'"),
        ("swin_base_patch4_window7_224_in22k", r"Did you mean 'swin_base_patch4_window7_224\.ms_in22k'"),
        ("vit_base_patch16_224", r"plain name means 'augreg2_in21k_ft_in1k'.*use 'vit_base_patch16_224\.orig_in21k'"),
        ("swin_base_patch4_window7_224", r"does not say which weights.*swin_base_patch4_window7_224\.ms_in22k"),
        ("vit_base_patch16_224.orig_in12k", r"has no weights 'orig_in12k'\. timm has: .*orig_in21k"),
        ("resnet50", "'resnet50' is no .*, which is what methods work on"),
        ("resnet50.a1_in1k", "is no .*, which is what methods work on"),
        ("vit_bse_patch16_224", "Did you mean"),
    ],
)
def test_names_that_mislead_are_answered_before_any_download(monkeypatch, name, message):
    def no_download(name):
        pytest.fail("a download was tried")

    monkeypatch.setattr(backbones, "_hub_file", no_download)
    with pytest.raises(HarnessError, match=message):
        backbones.resolve(name)


def test_names_that_say_enough_reach_the_download(monkeypatch):
    def offline(name):
        raise HarnessError(f"asked for {name}")

    monkeypatch.setattr(backbones, "_hub_file", offline)
    for name in [*backbones.RECOMMENDED, "deit_tiny_patch16_224"]:
        with pytest.raises(HarnessError, match=f"asked for {name}"):
            backbones.resolve(name)


def test_the_listing_counts_on_the_meta_device():
    rows = {row["name"]: row for row in backbones.listing()}
    assert rows["demo_vit"]["parameters"] == 10_885_248
    vit = rows["vit_base_patch16_224.orig_in21k"]
    assert (vit["parameters"], vit["image_size"], vit["statistics"]) == (85_798_656, 224, "half")
    assert rows["swin_base_patch4_window7_224.ms_in22k"]["statistics"] == "imagenet"
    assert rows["eva02_base_patch14_224.mim_in22k"]["statistics"] == "mean 0.481 0.458 0.408 and std 0.269 0.261 0.276"
