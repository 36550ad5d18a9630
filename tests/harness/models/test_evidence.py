"""What a file is decides or contradicts name and input statistics: miniatures in the layouts of the releases."""

import re

import numpy as np
import pytest
import timm
import torch

from harness.errors import HarnessError
from harness.models import backbones, checkpoints, evidence
from harness.plans import experiment
from harness.schema.preprocessing import STATISTICS
from tests.harness.models.miniatures import clip, dinov3, google, timm_names

VIT_B, DEIT = "vit_base_patch16_224", "deit_base_patch16_224.fb_in1k"
SMALL, TINY = "vit_small_patch16_224", "vit_tiny_patch16_224"
AUGREG_21K = "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz"
DEIT_FILE, SWIN = "deit_tiny_patch16_224-a1311bcf.pth", "swin_base_patch4_window7_224"
QUICK = "vit_base_patch16_clip_quickgelu_224"

DINOV3_L, DINOV3_S = "vit_large_patch16_dinov3", "vit_small_patch16_dinov3"
SATELLITE = "dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth"
BEIT2_FILE = "beitv2_base_patch16_224_pt1k_ft21k.pth"
MASKED = timm_names() | {"lm_head.weight": torch.zeros(2, 2), "mask_token": torch.zeros(1, 1, 2)}

ORIGINAL = google(21843, pre_logits=True)
MAE = timm_names() | {"decoder_embed.weight": torch.zeros(2, 2)}
MAE_OF_HUGGING_FACE = timm_names(prefix="vit.") | {"decoder.decoder_embed.weight": torch.zeros(2, 2)}
DINO = timm_names(prefix="backbone.") | {"head.mlp.0.weight": torch.zeros(2, 2)}
MOCO = timm_names(prefix="base_encoder.") | timm_names(prefix="momentum_encoder.")


def found(state, file="mine.pth"):
    return evidence.examine(state, file)


@pytest.mark.parametrize(
    ("name", "state", "file"),
    [
        (f"{VIT_B}.orig_in21k", ORIGINAL, "ViT-B_16.npz"),
        (f"{VIT_B}.augreg_in21k", google(21843), AUGREG_21K),
        (f"{VIT_B}.sam_in1k", google(1000), "ViT-B_16.npz"),
        (f"{VIT_B}.orig_in21k_ft_in1k", google(1000), "ViT-B_16.npz"),
        (f"{VIT_B}.orig_in21k", timm_names(21843, pre_logits=True), "jx_vit_base_patch16_224_in21k-e5005f0a.pth"),
        (f"{VIT_B}.orig_in21k", timm_names(), "model.safetensors"),
        (f"{VIT_B}.mae", timm_names(), "mae_pretrain_vit_base.pth"),
        (f"{VIT_B}.mae", MAE, "mae_visualize_vit_base.pth"),
        (f"{VIT_B}.dino", DINO, "checkpoint.pth"),
        (DEIT, timm_names(1000), "deit_base_patch16_224-b5f2ef4d.pth"),
        ("vit_base_patch16_clip_quickgelu_224.openai", clip(), "mine.pt"),
        (VIT_B, google(7), "mine.npz"),
        (f"{DINOV3_S}.lvd1689m", dinov3(), "dinov3_vits16_pretrain_lvd1689m-08c60483.pth"),
        (f"{DINOV3_L}.sat493m", dinov3(), SATELLITE),
        ("eva02_base_patch14_224.mim_in22k", MASKED, "eva02_B_pt_in21k_p14.pt"),
        ("beitv2_base_patch16_224.in1k_ft_in22k", timm_names(21841), BEIT2_FILE),
        ("swinv2_base_window12_192.ms_in22k", timm_names(21841), "swinv2_base_patch4_window12_192_22k.pth"),
        ("convnextv2_base.fcmae", timm_names(), "convnextv2_base_1k_224_fcmae.pt"),
        ("convnext_base.fb_in22k", {"head.fc.weight": torch.zeros(21841, 4)}, "convnext_base_22k_224.pth"),
    ],
)
def test_a_file_that_is_what_the_name_says_is_taken(name, state, file):
    evidence.check_claim(found(state, file), name, file)


@pytest.mark.parametrize(
    ("name", "state", "file", "message"),
    [
        (f"{VIT_B}.orig_in21k", google(21843), "ViT-B_16.npz", r"without pre_logits.*Did you mean .*\.augreg_in21k'"),
        (f"{VIT_B}.orig_in21k", google(1000), "ViT-B_16.npz", r"a head for 1000 classes.*orig_in21k_ft_in1k'"),
        (f"{VIT_B}.orig_in21k", google(1000, pre_logits=True), "ViT-B_16.npz", "those have 21843 classes"),
        (f"{VIT_B}.orig_in21k", timm_names(21843), "mine.pth", "those have pre_logits"),
        (f"{VIT_B}.augreg_in21k", ORIGINAL, "ViT-B_16.npz", r"no pre_logits\. Did .*\.orig_in21k'\? For weights of"),
        (f"{VIT_B}.augreg_in21k", timm_names(), "mae_pretrain_vit_base.pth", r"Did you mean '.*_patch16_224\.mae'\?"),
        (f"{VIT_B}.mae", ORIGINAL, "ViT-B_16.npz", "needs the inputs as half, those have imagenet"),
        (f"{VIT_B}.mae", timm_names(1000), "mae_finetuned_vit_base.pth", "1000 classes.*those have no classifier"),
        (f"{VIT_B}.dino", MOCO, "vit-b-300ep.pth.tar", "a MoCo v3 training.*another training"),
        (f"{VIT_B}.dino", MAE_OF_HUGGING_FACE, "model.safetensors", "an MAE training.*another training"),
        (DEIT, ORIGINAL, "ViT-B_16.npz", r"half, those have imagenet\. Did you mean 'vit_base_.*\.orig_in21k'"),
        (f"{TINY}.augreg_in21k", timm_names(), DEIT_FILE, r"Did you mean 'deit_tiny_patch16_224\.fb_in1k'"),
        (f"{SWIN}.ms_in22k", timm_names(1000), "mine.pth", r"those have 21841 classes\. Did you mean .*ms_in1k"),
        ("vit_base_patch16_clip_224", clip(), "mine.pt", rf"computes with GELU\. Did you mean '{QUICK}\.openai'\?"),
        (f"{QUICK}.metaclip_400m", clip(), "mine.pt", "another training"),
        (f"{DINOV3_L}.lvd1689m", dinov3(), SATELLITE, r"as mean .*, those have imagenet\. Did you mean '"),
        ("beit_base_patch16_224.in22k_ft_in22k", timm_names(21841), BEIT2_FILE, "as imagenet, those have half"),
        ("beit_base_patch16_224.in22k_ft_in22k", MASKED, "mine.pth", "masked images, .*another training"),
        ("convnextv2_base.fcmae", timm_names(1000), "mine.pt", "those have no classifier"),
        ("convnext_base.fb_in1k", {"head.fc.weight": torch.zeros(21841, 4)}, "a.pth", r"1000 classes\..*fb_in22k'"),
        ("convnextv2_base.fcmae_ft_in1k", timm_names(), "convnextv2_base_1k_224_fcmae.pt", r"Did you mean '.*\.fcmae'"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_what_the_name_says_is_named_and_asked_about(name, state, file, message):
    with pytest.raises(HarnessError, match=rf"^{re.escape(file)} is .*: not '{re.escape(name)}', for .*") as error:
        evidence.check_claim(found(state, file), name, file)
    assert re.search(message, str(error.value))


@pytest.mark.parametrize(
    ("name", "state", "file", "expected"),
    [
        (VIT_B, ORIGINAL, "ViT-B_16.npz", "half"),
        (VIT_B, google(9), "mine.npz", "half"),
        ("vit_small_patch16_18x2_224", google(9), "mine.npz", "half"),
        (TINY, timm_names(9), "mine.pth", "half"),
        ("deit_tiny_patch16_224", timm_names(9), "mine.pth", "imagenet"),
        ("swin_tiny_patch4_window7_224", timm_names(9), "mine.pth", "imagenet"),
        (DINOV3_S, dinov3(), "mine.pth", "imagenet"),
        ("beit_base_patch16_224", MASKED, "mine.pth", "half"),
        ("beitv2_base_patch16_224", MASKED, "mine.pth", "imagenet"),
    ],
)
def test_without_a_tag_the_file_or_all_tags_decide(name, state, file, expected):
    assert evidence.decided_statistics(found(state, file), name, file) == STATISTICS[expected]


@pytest.mark.parametrize(
    ("name", "state", "file", "message"),
    [
        (SMALL, timm_names(), "mine.pth", r"half: .*augreg_in21k.*; imagenet: vit_small_patch16_224\.dino\)"),
        (SMALL, timm_names(), "dino_deitsmall16_pretrain.pth", r"Did you mean 'vit_small_patch16_224\.dino'\?"),
        (TINY, timm_names(1000), DEIT_FILE, "file itself points to imagenet"),
        (TINY, MAE, "mine.pth", "file itself points to imagenet"),
        ("deit_base_patch16_224", ORIGINAL, "ViT-B_16.npz", r"points to half\. Did you mean 'vit_b"),
        ("vit_small_patch16_18x2_224", timm_names(), "mine.pth", "timm has none of this name"),
        (DINOV3_L, dinov3(), "mine.pth", r"imagenet: vit_large_patch16_dinov3\.lvd1689m; mean"),
        (DINOV3_L, dinov3(), SATELLITE, r"points to mean .*Did you mean 'vit_large_patch16_dinov3\.sat493m'"),
    ],
)  # fmt: skip
def test_without_a_tag_it_is_asked_where_nothing_decides(name, state, file, message):
    with pytest.raises(HarnessError, match=r"does not say which mean and standard .*--statistics imagenet") as error:
        evidence.decided_statistics(found(state, file), name, file)
    assert re.search(message, str(error.value))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A ViT-S file that nothing tells about."""
    file = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save(timm.create_model(SMALL, num_classes=0, img_size=32).state_dict(), file)
    return str(file)


def asked(**flags):
    return experiment.select({"suite": "demo", "methods": ["linear"], "image_size": 32} | flags)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"backbone": f"{SMALL}.dino"}, "imagenet"),
        ({"backbone": f"{SMALL}.augreg_in21k"}, "half"),
        ({"backbone": SMALL, "statistics": "imagenet"}, "imagenet"),
    ],
)
def test_the_tag_or_the_option_says_the_statistics_of_a_file(small, flags, expected):
    selection = asked(weights=small, **flags)
    assert selection.preprocessing.id == f"32px-squash-bicubic-{expected}"
    assert backbones.about_file(selection.backbone) == "a file with timm's names, without classifier"


def test_a_selection_with_a_file_of_unknown_statistics_is_refused(small):
    with pytest.raises(HarnessError, match=r"mine\.pth is a file with timm's names.*does not say which mean"):
        asked(weights=small, backbone=SMALL)


def test_an_experiment_file_is_blamed_with_its_line(small, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"suite: demo\nmethods: [linear]\nimage_size: 32\nbackbone: {SMALL}\nweights: {small}\n")
    with pytest.raises(HarnessError, match=r"mine\.yaml:5: mine\.pth is .*does not say which mean"):
        experiment.select({}, experiment.read_file(file))


def test_a_file_under_another_name_is_refused_whatever_the_statistics(tmp_path):
    model = timm.create_model(TINY, num_classes=1000, img_size=32)
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    with pytest.raises(HarnessError, match=r"a head for 1000 classes: not 'vit_tiny_patch16_224\.augreg_in21k'"):
        asked(weights=str(tmp_path / "mine.pth"), backbone=f"{TINY}.augreg_in21k", statistics="half")


def test_miniatures_are_read_back_as_they_were_written(tmp_path):
    np.savez(tmp_path / "a.npz", **{name: tensor.numpy() for name, tensor in google(5).items()})
    assert found(checkpoints.read(tmp_path / "a.npz")).classes == 5


@pytest.mark.parametrize("name", ["vit_base_patch16_clip_224.openai", "vit_large_patch14_clip_224.metaclip_400m"])
def test_weights_of_quickgelu_under_a_model_of_gelu_are_named(monkeypatch, name):
    monkeypatch.setattr(backbones, "_hub_file", lambda name: pytest.fail("a download was tried"))
    meant = name.replace("_clip_", "_clip_quickgelu_")
    with pytest.raises(HarnessError, match=rf"trained with QuickGELU.*Did you mean '{re.escape(meant)}'"):
        backbones.resolve(name)


def test_weights_of_gelu_and_random_ones_are_no_matter_of_quickgelu(monkeypatch):
    monkeypatch.setattr(backbones, "_hub_file", lambda name: (_ for _ in ()).throw(HarnessError(f"asked for {name}")))
    for name in ("vit_base_patch16_clip_224.laion2b", "vit_base_patch16_clip_quickgelu_224.openai"):
        with pytest.raises(HarnessError, match=f"asked for {name}"):
            backbones.resolve(name)
    assert backbones.resolve("vit_base_patch16_clip_224.openai", "random").digest == ""


@pytest.mark.parametrize(
    ("state", "about"),
    [
        (dinov3(), "a file with Meta's names of DINOv3"),
        ({"downsample_layers.0.0.weight": torch.zeros(4, 3, 4, 4)}, "a file with Meta's names of ConvNeXt"),
        ({"embeddings.patch_embeddings.weight": torch.zeros(4, 3, 2, 2)}, "a file with Hugging Face's names"),
        ({"visual.conv1.weight": torch.zeros(4, 3, 2, 2)}, "a file with CLIP's names"),
    ],
)
def test_a_file_is_described_by_whose_names_it_has(state, about):
    assert found(state).about == f"{about}, without classifier"
