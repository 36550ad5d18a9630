"""Kinds of backbone: what one file must say so that methods, checks, checkpoints and the fast path know a kind."""

import pytest
import timm
import torch
from timm.models.eva import Eva, EvaBlock

from harness.errors import HarnessError
from harness.models import checkpoints
from harness.models.names import check_name
from methods import conformance, registry, sources, testbed
from methods.architectures import KINDS, Architecture, SlottedBlock, architecture_of, kind
from methods.base import MethodError
from methods.blocks import blocks, cut_points, plug, unplug


class SlottedEvaBlock(SlottedBlock, EvaBlock):
    """timm's EVA block, which is handed rotary positions beside its input."""

    plain = EvaBlock

    def attend(self, x, *arguments, **options):
        return self.attn(x, *arguments, **options)

    def feed_forward(self, x):
        return self.mlp(x)


class EvaKind(Architecture):
    """All that there is to say of the kind."""

    name = "eva"
    title = "EVA"
    model = Eva
    blocks = (SlottedEvaBlock,)
    timm_modules = ("eva",)
    small = (
        "eva02_tiny_patch14_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "attn_type": "rope"},
    )

    def steps(self, model):
        return []  # its blocks need the positions


@pytest.fixture
def eva(monkeypatch):
    monkeypatch.setitem(KINDS, EvaKind.name, EvaKind())
    return testbed.small("eva")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", 0),
        ("lora", 3 * 8 * (32 + 96)),
        ("adaptformer", 3 * (2 * 32 * 8 + 8 + 32)),
        ("sct", 3 * (4 * 4 + 4)),
        ("ln_tuning", 3 * 4 * 32),
    ],
)
def test_methods_count_attach_and_train_on_a_kind_that_is_one_class(eva, name, expected):
    method = registry.get(name)
    assert registry.parameters_on(method(), eva) == expected
    attached = testbed.attach(method, "eva")
    assert sum(p.numel() for p in attached.trained().values()) == expected
    before = {key: tensor.clone() for key, tensor in attached.state().items()}
    assert testbed.train(attached, steps=3) == set(attached.trained())
    assert not any(torch.equal(before[key], tensor) for key, tensor in attached.trained().items())


@pytest.mark.parametrize("check", ["declared", "backbones", "parameters", "identity", "gradients", "frozen"])
def test_a_new_kind_is_checked_with_the_others(eva, check):
    assert "eva" in registry.get("adaptformer").serves
    assert conformance.run_check(check, registry.get("adaptformer")) is None


def test_what_names_its_kinds_refuses_the_new_one(eva):
    assert kind(eva) == "eva"
    with pytest.raises(MethodError, match="'vpt_deep' serves vit, not eva"):
        registry.get("vpt_deep")().attach(eva, testbed.make_context())


def test_a_block_with_empty_slots_computes_what_timms_does(eva):
    images = testbed.batch()[0]
    expected, block, nothing = eva(images), blocks(eva)[1], torch.nn.Identity()
    plug(block, "output", nothing)
    assert type(block) is SlottedEvaBlock and torch.equal(eva(images), expected)
    unplug(block, "output", nothing)
    assert type(block) is EvaBlock


def test_the_harness_knows_names_and_checkpoints_of_the_kind(eva, monkeypatch):
    check_name("eva02_tiny_patch14_224.mim_in22k", [])
    bare = timm.create_model(EvaKind.small[0], num_classes=0, **EvaKind.small[1])
    fitted = checkpoints.fit(dict(eva.state_dict()), bare, "mine.pth", "eva")
    assert all(torch.equal(fitted[key], eva.state_dict()[key]) for key in bare.state_dict())
    assert [cut.name for cut in cut_points(eva)] == ["head"]
    monkeypatch.delitem(KINDS, "eva")
    with pytest.raises(HarnessError, match="not a plain Swin or ViT"):
        check_name("eva02_tiny_patch14_224.mim_in22k", [])


def test_a_subclass_of_a_known_model_can_be_a_kind_of_its_own(monkeypatch):
    class Own(KINDS["vit"].model):
        pass

    class OwnKind(type(KINDS["vit"])):
        name, model = "own", Own

    model = testbed.small_vit()
    model.__class__ = Own
    assert kind(model) == "vit"
    monkeypatch.setitem(KINDS, "own", OwnKind())
    assert kind(model) == "own" and kind(testbed.small_vit()) == "vit"


def test_a_model_of_no_known_kind_is_named():
    model = timm.create_model("resnet18", num_classes=2)
    with pytest.raises(MethodError, match=r"ResNet is not a backbone of a known kind \(timm's Swin.* or VisionT"):
        architecture_of(model)
    assert kind(model) == "ResNet"


def test_an_edited_adapter_makes_no_method_stale():
    """Adapters belong to the contract, which is no method's own source; what methods share beside it is."""
    files = {path.name for path in sources._own_files("methods.sct.method")}
    assert "layers.py" in files and not files & {"vit.py", "swin.py", "blocks.py"}
