"""A trained tuner leaves a folder that the peft package loads on a plain timm model, with the same logits."""

import copy
import json

import peft
import pytest
import timm
import torch

from methods.base import MethodError
from methods.conformance_tools import without_data
from methods.kept import all_tensors
from methods.peft_library.adapters import save_adapter
from methods.peft_library.common import PeftMethod
from methods.registry import all_methods
from methods.testbed import CLASSES, attach, batch, small_swin

PEFT = {name: method for name, method in all_methods().items() if issubclass(method, PeftMethod)}
REFUSED = {"adamss", "lily", "psoft"}
IMAGES = batch(4)[0]


def vit():
    """A plain timm model, whose head is as fresh as that of a user."""
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=CLASSES, img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=3
    )


@torch.no_grad()
def trained(method, plain, config=None):
    """The method on a copy of the model, with every trained number moved, the head's too."""
    attached = attach(method, model=copy.deepcopy(plain).requires_grad_(False).eval(), config=config)
    attached.model.get_classifier().requires_grad_(True)
    noise = torch.Generator().manual_seed(1)
    for parameter in (p for p in attached.model.parameters() if p.requires_grad):
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=noise))
    return attached


def save(attached, method, folder, plain):
    save_adapter(
        attached.model, method, folder, "timm/vit_tiny", plain=plain, memory=attached.memory, images=IMAGES[:2]
    )


@torch.no_grad()
def same_logits(attached, plain, folder):
    plain.get_classifier().weight.normal_()  # the folder brings the head
    loaded = peft.PeftModel.from_pretrained(plain, str(folder)).eval()
    return torch.allclose(loaded(IMAGES), attached.model.eval()(IMAGES), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(PEFT) - REFUSED))
def test_peft_loads_what_a_tuner_leaves(name, tmp_path):
    attached = trained(PEFT[name], vit())
    save(attached, PEFT[name](), tmp_path, vit())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "timm/vit_tiny"
    assert same_logits(attached, vit(), tmp_path)


@pytest.mark.parametrize("name", ["fourierft", "pissa", "shira", "unilora", "waveft"])
@torch.no_grad()
def test_a_model_that_was_restored_under_another_seed_is_exported_too(name, tmp_path):
    attached = trained(PEFT[name], vit())
    model = vit().requires_grad_(False).eval()
    restored = attach(PEFT[name], model=model, context=without_data(attached.memory, seed=5))
    for key, tensor in [*attached.state().items(), *attached.model.get_classifier().named_parameters("head")]:
        all_tensors(restored.model)[key].copy_(tensor)
    save(restored, PEFT[name](), tmp_path, vit())
    assert same_logits(attached, vit(), tmp_path)


@pytest.mark.parametrize("name", ["lora", "lora_ga", "pissa"])
def test_other_scales_and_layers_too(name, tmp_path):
    method = PEFT[name].configure({"rank": 4, "alpha": 6.0, "targets": ("proj", "fc1")})
    attached = trained(PEFT[name], vit(), method.config)
    save(attached, method, tmp_path, vit())
    assert same_logits(attached, vit(), tmp_path)


def test_the_head_of_another_backbone_goes_in_too(tmp_path):
    attached = trained(PEFT["lora"], small_swin())
    save(attached, PEFT["lora"](), tmp_path, small_swin())
    assert same_logits(attached, small_swin(), tmp_path)


@pytest.mark.parametrize("name", [*sorted(REFUSED), "ssf", "vpt_deep"])
def test_what_peft_cannot_load_is_refused_with_the_form_to_take(name, tmp_path):
    method = all_methods()[name]
    form = "Take the form `merged` or `trained`$" if method.mergeable else "Take the form `trained`$"
    with pytest.raises(MethodError, match=f"method '{name}' cannot be exported as a peft adapter: .*{form}"):
        save(trained(method, vit()), method(), tmp_path, vit())
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_loads_to_other_logits_is_refused_and_not_left(tmp_path):
    attached = trained(PEFT["lora"], vit())
    attached.model.norm.weight.data.add_(0.5)
    with pytest.raises(MethodError, match="peft's loader gives other logits, by"):
        save(attached, PEFT["lora"](), tmp_path, vit())
    assert not list(tmp_path.iterdir())
