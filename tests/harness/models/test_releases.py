"""Checkpoints as their authors released them give the model that wrote them, or an error that names the tensor."""

import sys

import pytest
import timm
import torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from harness.errors import HarnessError
from harness.models import backbones, checkpoints
from harness.models.names import kind_named
from methods.architectures.base import SMALL
from methods.architectures.convnext import SMALL_CONVNEXT
from methods.architectures.eva import DINOV3
from methods.architectures.swin import SMALL_SWIN
from tests.harness.models import releases

DINOV3_S, BEIT = "vit_small_patch16_dinov3", "beit_base_patch16_224"
CONVNEXT = {**SMALL_CONVNEXT, "patch_size": 4}
NAFLEX = {name: value for name, value in SMALL.items() if name != "img_size"}
V2 = {**CONVNEXT, "ls_init_value": None}
IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))

RELEASES = {
    "DINOv3": (DINOV3_S, DINOV3, releases.dinov3),
    "DINOv3 with biases": (f"{DINOV3_S}_qkvb", DINOV3, releases.dinov3),
    "DINOv3 gated": ("vit_small_plus_patch16_dinov3_qkvb", DINOV3, releases.dinov3),
    "DINOv3 7B": ("vit_7b_patch16_dinov3", DINOV3, releases.dinov3_7b),
    "EVA-02": ("eva02_base_patch14_224.mim_in22k", SMALL, releases.eva02_pretrained),
    "EVA-02 tuned": ("eva02_large_patch14_448.mim_in22k_ft_in22k", SMALL, releases.eva02),
    "EVA-02 S": ("eva02_small_patch14_224", SMALL, releases.eva02_pretrained),
    "EVA-02 CLIP": ("eva02_base_patch16_clip_224", SMALL, releases.eva_clip),
    "PE-core": ("vit_pe_core_base_patch16_224.fb", SMALL, releases.perception_encoder),
    "PE-core T": ("vit_pe_core_tiny_patch16_384", SMALL, releases.perception_encoder),
    "BEiT": (f"{BEIT}.in22k_ft_in22k", SMALL, releases.beit),
    "BEiT v2": ("beitv2_base_patch16_224", SMALL, releases.beit_pretrained),
    "Swin v2": ("swinv2_base_window12_192.ms_in22k", SMALL_SWIN, releases.swin_v2),
    "ConvNeXt": ("convnext_base.fb_in22k", CONVNEXT, releases.convnext),
    "ConvNeXt DINOv3": ("convnext_tiny.dinov3_lvd1689m", CONVNEXT, releases.convnext_dinov3),
    "ConvNeXt v2": ("convnextv2_base", V2, releases.convnext),
    "ConvNeXt v2 FCMAE": ("convnextv2_base.fcmae", V2, releases.convnext_pretrained),
    "MAE": ("vit_base_patch16_224.mae", SMALL, releases.mae),
    "DINOv2": ("vit_base_patch14_dinov2", {**SMALL, "init_values": 0.1}, releases.dinov2),
    "DINOv2 registers": ("vit_base_patch14_reg4_dinov2.lvd142m", {**SMALL, "init_values": 0.1}, releases.dinov2),
    "MoCo v3": ("vit_base_patch16_224", SMALL, releases.moco_v3),
    "open_clip": ("vit_base_patch16_clip_224.laion2b", SMALL, releases.open_clip),
    "OpenAI's CLIP": ("vit_base_patch16_clip_quickgelu_224.openai", SMALL, releases.openai_clip),
    "DeiT distilled": ("deit_base_distilled_patch16_224.fb_in1k", SMALL, releases.deit_distilled),
}
"""timm's name, arguments that make it small, and the writer of the release."""


def small_model(name, arguments, seed=1):
    torch.manual_seed(seed)
    model = timm.create_model(name.partition(".")[0], **arguments, num_classes=0).eval()
    for parameter in model.parameters():  # no zeros and ones, which would hide an exchange
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def written(key):
    """A small model of the release's name, what its authors' file would hold, and the tensors in that."""
    name, arguments, writer = RELEASES[key]
    model = small_model(name, arguments)
    if writer is releases.beit_pretrained:
        share_position_biases(model)
    if writer is releases.convnext_pretrained:
        model.head.norm.reset_parameters()
    if writer is releases.openai_clip:
        model.load_state_dict({name: tensor.half() for name, tensor in model.state_dict().items()})
    content = writer(model)
    state = next((content[key] for key in ("model", "module", "state_dict") if key in content), content)
    return name, model, content, state


@pytest.fixture
def release(monkeypatch, tmp_path):
    """Writes a release of a small model, which then stands for timm's of that name: its name, file and model."""

    def write(key):
        name, model, content, _ = written(key)
        arguments = RELEASES[key][1]
        monkeypatch.setattr(backbones, "timm_call", lambda name, size: (name.partition(".")[0], sized(arguments, size)))
        torch.save(content, tmp_path / "mine.pth")
        return name, str(tmp_path / "mine.pth"), model

    return write


def refused(key, change):
    """The error for a release that was changed."""
    name, model, _, state = written(key)
    change(state)
    with pytest.raises(HarnessError, match=f"^mine.pth does not fit backbone '{name}': ") as error:
        checkpoints.fit(state, model, "mine.pth", name)
    return str(error.value).partition("': ")[2]


def sized(arguments, size):
    return {**arguments, "img_size": size} if "img_size" in arguments else arguments


def share_position_biases(model):
    tables = [block.attn.relative_position_bias_table for block in model.blocks]
    for table in tables[1:]:
        table.data.copy_(tables[0])


def built(name, file, size=32):
    return backbones.build(backbones.resolve(name, file, size), num_classes=2)


@pytest.mark.parametrize("key", RELEASES)
def test_a_release_gives_the_model_that_wrote_it(release, key):
    name, file, source = release(key)
    model = built(name, file)
    ours, theirs = model.state_dict(), source.state_dict()
    assert [name for name, tensor in theirs.items() if not torch.equal(ours[name], tensor)] == []
    source.reset_classifier(2)
    source.load_state_dict(ours)
    with torch.inference_mode():
        torch.testing.assert_close(model(IMAGE), source(IMAGE))


STRICT = {
    "DINOv3": ("blocks.1.ls2.gamma", "blocks.1.gamma_2", "neck.weight"),
    "EVA-02": ("blocks.2.attn.k_proj.weight", "blocks.2.attn.k_proj.weight", "neck.weight"),
    "PE-core": ("visual.ln_pre.bias", "norm_pre.bias", "visual.neck.weight"),
    "BEiT": ("blocks.0.attn.relative_position_bias_table", "blocks.0.attn.relative_position_bias_table", "neck.weight"),
    "BEiT v2": ("blocks.0.gamma_1", "blocks.0.gamma_1", "neck.weight"),
    "Swin v2": ("layers.1.blocks.1.attn.logit_scale", "layers.1.blocks.1.attn.logit_scale", "neck.weight"),
    "ConvNeXt": ("stages.1.1.pwconv1.weight", "stages.1.blocks.1.mlp.fc1.weight", "stages.1.2.pwconv1.weight"),
    "ConvNeXt v2": ("norm.bias", "head.norm.bias", "neck.weight"),
    "ConvNeXt v2 FCMAE": ("downsample_layers.0.1.bias", "stem.1.bias", "stages.2.1.gamma"),
    "DINOv2": ("blocks.0.ls1.gamma", "blocks.0.ls1.gamma", "neck.weight"),
    "open_clip": ("visual.ln_post.weight", "norm.weight", "visual.neck.weight"),
    "DeiT distilled": ("dist_token", "dist_token", "neck.weight"),
}
"""A tensor of the release, timm's name for it, and a name that the release does not have."""


@pytest.mark.parametrize("key", STRICT)
def test_a_tensor_missing_too_many_or_of_another_shape_is_named(key):
    theirs, ours, unknown = STRICT[key]

    assert refused(key, lambda state: state.pop(theirs)).startswith(f"1 missing ({ours})")
    surplus = refused(key, lambda state: state.update({unknown: torch.ones(2, 2)}))
    assert surplus.startswith(f"1 unexpected ({unknown.removeprefix('visual.')})")
    shape = refused(key, lambda state: state.update({theirs: torch.ones(3)}))
    assert f"1 of another shape ({ours}: file [3]" in shape


@pytest.mark.parametrize("part", [slice(None), slice(-1, None)])
def test_biases_that_a_dinov3_without_has_no_place_for_are_not_dropped(part):
    message = refused("DINOv3", lambda state: state["blocks.1.attn.qkv.bias"][part].fill_(0.1))
    assert message.startswith("blocks.1.attn.qkv.bias has biases of the queries and values: name the model with _qkvb")


def test_biases_of_the_keys_that_no_mask_leaves_out_are_refused():
    message = refused("DINOv3 with biases", lambda state: state.pop("blocks.2.attn.qkv.bias_mask"))
    assert message.startswith("blocks.2.attn.qkv.bias has biases of the keys")


@pytest.mark.parametrize("key", ["PE-core", "open_clip", "EVA-02", "BEiT"])
def test_patches_of_another_size_are_not_resampled(key):
    def change(state):
        name = next(name for name in state if name.endswith(("conv1.weight", "patch_embed.proj.weight")))
        state[name] = state[name][..., :4, :4]

    assert "1 of another shape (patch_embed.proj.weight: file [32, 3, 4, 4]" in refused(key, change)


RESIZED = {
    "EVA-02": "pos_embed",
    "PE-core": "pos_embed",
    "open_clip": "pos_embed",
    "BEiT": "blocks.1.attn.relative_position_bias_table",
    "BEiT v2": "blocks.1.attn.relative_position_bias_table",
}


@pytest.mark.parametrize("key", RESIZED)
def test_positions_are_resized_as_timm_does_with_its_own_files(release, key):
    name, file, source = release(key)
    ours = built(name, file, 48).state_dict()
    larger = small_model(name, {**RELEASES[key][1], "img_size": 48})
    theirs = sys.modules[type(larger).__module__].checkpoint_filter_fn(source.state_dict(), larger)
    assert (
        theirs[RESIZED[key]].shape == larger.state_dict()[RESIZED[key]].shape != source.state_dict()[RESIZED[key]].shape
    )
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("key", ["DINOv3", "Swin v2", "ConvNeXt"])
def test_positions_that_are_computed_need_no_resizing(release, key):
    name, file, source = release(key)
    ours = built(name, file, 64).state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in source.state_dict().items())


BUILT_ANEW = {
    "grid of positions": ("naflexvit_base_patch16_gap", NAFLEX),
    "rows and columns": ("naflexvit_base_patch16_parfac_gap", NAFLEX),
    "aligned corners": ("naflexvit_base_patch16_radio_v3", NAFLEX),
    "another kind of resizing": ("naflexvit_so400m_patch16_radio_v4", NAFLEX),
    "pooled by attention": ("naflexvit_base_patch16_siglip", NAFLEX),
    "convolutions": ("convnext_atto", CONVNEXT),
    "convolutions, v2": ("convnextv2_atto", V2),
    "convolutions, RMS norms": ("convnext_zepto_rms", CONVNEXT),
}
"""timm's name and arguments that make it small, of models that the harness builds in another way than timm."""


@pytest.mark.parametrize("key", BUILT_ANEW)
def test_a_model_that_is_built_in_another_way_computes_what_timms_own_does(tmp_path, monkeypatch, key):
    name, arguments = BUILT_ANEW[key]
    source, size = small_model(name, arguments), 64
    torch.save(source.state_dict(), tmp_path / "mine.pth")
    ours = kind_named(name).arguments(name, size)
    if "naflex" in name:
        ours["pos_embed_grid_size"] = (size // SMALL["patch_size"],) * 2
    monkeypatch.setattr(backbones, "timm_call", lambda name, size: (name, {**arguments, **ours}))
    model = built(name, str(tmp_path / "mine.pth"), size)
    shapes = checkpoints.shapes_of(model.state_dict())
    assert any(shapes[name] != shape for name, shape in checkpoints.shapes_of(source.state_dict()).items())
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(features, source(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gated", [False, True])
def test_hugging_faces_dinov3_computes_the_same_here(tmp_path, monkeypatch, gated):
    """The file is written by Hugging Face's own model, whose features are compared."""
    name = "vit_small_plus_patch16_dinov3_qkvb" if gated else f"{DINOV3_S}_qkvb"
    monkeypatch.setattr(backbones, "timm_call", lambda name, size: (name, DINOV3))
    config = DINOv3ViTConfig(
        **{"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
        **{"num_register_tokens": 4, "use_gated_mlp": gated, "hidden_act": "silu" if gated else "gelu"},
        intermediate_size=backbones.skeleton(name).blocks[0].mlp.fc2.in_features,
    )
    torch.manual_seed(1)
    source = DINOv3ViTModel(config).eval()
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    source.save_pretrained(tmp_path)
    model = built(name, str(tmp_path / "model.safetensors"))
    with torch.inference_mode():
        torch.testing.assert_close(model.forward_features(IMAGE), source(IMAGE).last_hidden_state, atol=1e-5, rtol=1e-4)
