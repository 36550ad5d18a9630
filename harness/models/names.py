"""Names of backbones: which are known, which say too little, and which to recommend."""

import timm
from timm.models import get_deprecated_models, is_model_in_modules

from harness.errors import HarnessError
from methods.architectures import KINDS, Architecture
from methods.base import did_you_mean

RECOMMENDED = {
    "vit_base_patch16_224.orig_in21k": "Google's ViT-B_16.npz of ImageNet-21k: published SCT, NOAH, VPT and FacT rows",
    "vit_large_patch16_224.orig_in21k": "the same for ViT-L_16.npz",
    "vit_huge_patch14_224.orig_in21k": "the same for ViT-H_14.npz",
    "swin_base_patch4_window7_224.ms_in22k": "Microsoft's swin_base_patch4_window7_224_22k.pth: published Swin-B rows",
    "vit_base_patch16_224.augreg_in21k": "AugReg weights, which SSF's released scripts load: not those of SCT and NOAH",
    "vit_base_patch14_dinov2.lvd142m": "DINOv2",
    "vit_small_patch16_dinov3.lvd1689m": "DINOv3, whose .pth and Hugging Face files --weights takes too",
    "vit_base_patch16_dinov3.lvd1689m": "the same, ViT-B",
    "vit_large_patch16_dinov3.lvd1689m": "the same, ViT-L; .sat493m is trained on satellite images",
    "eva02_base_patch14_224.mim_in22k": "EVA-02, masked images of ImageNet-22k: eva02_B_pt_in21k_p14.pt",
    "vit_pe_core_base_patch16_224.fb": "Perception Encoder: PE-Core-B16-224.pt",
    "beitv2_base_patch16_224.in1k_ft_in22k": "BEiT v2, tuned on ImageNet-22k",
    "swinv2_base_window12_192.ms_in22k": "Microsoft's swinv2_base_patch4_window12_192_22k.pth",
    "convnext_base.fb_in22k": "Meta's convnext_base_22k_224.pth: published ConvNeXt-B rows",
    "convnextv2_base.fcmae_ft_in22k_in1k": "Meta's convnextv2_base_22k_224_ema.pt",
}
"""Names to take, and what they stand for in the literature."""


def _modules() -> list[str]:
    """timm's modules of the models that methods work on."""
    return [module for kind in KINDS.values() for module in kind.timm_modules]


def _titles() -> str:
    """The known kinds, as messages say them."""
    *first, last = (kind.title for kind in KINDS.values())
    return f"{', '.join(first)} or {last}"


def kind_named(name: str) -> Architecture:
    """The kind of timm's model of that name. `HarnessError` if it is of none."""
    architecture = name.partition(".")[0]
    for kind in KINDS.values():
        if is_model_in_modules(architecture, kind.timm_modules):
            return kind
    raise HarnessError(f"backbone {name!r} is no {_titles()}, which is what methods work on")


def pretrained_names() -> list[str]:
    """timm's names with tag of all models of a known kind that have pretrained weights."""
    return [name for module in _modules() for name in timm.list_models(module=module, pretrained=True)]


def known_tags(architecture: str) -> list[str]:
    """timm's names with tag of this architecture that have pretrained weights."""
    return timm.list_pretrained(f"{architecture}.*")


def check_name(name: str, embedded: list[str]) -> None:
    """`HarnessError` with the right names if `name` is neither `embedded` nor one of timm's models of a known kind."""
    architecture, _, tag = name.partition(".")
    if name in embedded:
        return
    if architecture in get_deprecated_models():
        raise HarnessError(_deprecated(name, architecture))
    if not timm.is_model(architecture):
        options = [*embedded, *(model for module in _modules() for model in timm.list_models(module=module))]
        hint = did_you_mean(name, options)
        raise HarnessError(
            f"unknown backbone {name!r}. {hint if len(hint) < 200 else f'Any {_titles()} of timm is known.'}"
        )
    kind_named(name)
    if tag and name not in known_tags(architecture):
        tags = ", ".join(known.partition(".")[2] for known in known_tags(architecture)) or "none"
        raise HarnessError(f"backbone {architecture!r} has no weights {tag!r}. timm has: {tags}")


def _deprecated(name: str, architecture: str) -> str:
    current = get_deprecated_models()[architecture]
    if not current:
        return f"backbone {name!r}: timm has removed this model"
    original = f"{current.partition('.')[0]}.orig_in21k"
    if current != original and ".augreg_in21k" in current and original in known_tags(current.partition(".")[0]):
        return (
            f"backbone {name!r}: in timm this old name means the AugReg weights, {current!r}, while published SCT and "
            f"NOAH rows use the original ones. Did you mean {original!r}?"
        )
    return f"backbone {name!r}: timm's old name. Did you mean {current!r}?"


def check_weights_are_named(name: str) -> None:
    """`HarnessError` if timm has several pretrained weights for `name`, which has no tag."""
    tags = known_tags(name)
    if "." in name or len(tags) < 2:
        return
    plain = timm.get_pretrained_cfg(name)
    rows = [tag for tag in tags if tag in RECOMMENDED]
    hint = f" Published SCT and NOAH rows use {rows[-1]!r}." if rows and rows[-1].endswith("orig_in21k") else ""
    default = f"timm's plain name means {plain.tag!r}. " if plain is not None else ""
    raise HarnessError(f"backbone {name!r} does not say which weights. {default}Name one: {', '.join(tags)}.{hint}")


def check_activation(name: str) -> None:
    """`HarnessError` if the weights of `name` were trained with QuickGELU and the model computes with GELU."""
    config = timm.get_pretrained_cfg(name)
    trained_with = any("QuickGELU" in note for note in config.notes or ()) if config and "." in name else False
    if trained_with and "_clip_quickgelu_" not in name:
        meant = name.replace("_clip_", "_clip_quickgelu_")
        raise HarnessError(
            f"backbone {name!r}: these weights were trained with QuickGELU, and timm's model of this name computes "
            f"with GELU. Did you mean {meant!r}?"
        )
