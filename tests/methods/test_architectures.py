"""Kinds of backbone: what one file must say so that methods, checks, checkpoints and the fast path know a kind."""

from types import MappingProxyType

import pytest
import timm
import torch
from timm.models.vision_transformer_relpos import RelPosBlock, VisionTransformerRelPos

from harness.errors import HarnessError
from harness.models import checkpoints
from harness.models.names import check_name
from methods import conformance, registry, sources, testbed
from methods.architectures import KINDS, Architecture, SlottedBlock, architecture_of, kind, prepare
from methods.architectures.base import SMALL, TwoBranchBlock
from methods.base import MethodError
from methods.blocks import blocks, cut_points, plug, unplug


class SlottedRelPosBlock(TwoBranchBlock, RelPosBlock):
    """timm's block with relative positions, which may be handed shared ones beside its input."""

    plain = RelPosBlock

    def attend(self, x, *arguments, **options):
        return self.ls1(self.attn(x, *arguments, **options))

    def feed_forward(self, x):
        return self.ls2(self.mlp(x))


class RelPosKind(Architecture):
    """All that there is to say of the kind."""

    name = "relpos"
    title = "relative-position ViT"
    model = VisionTransformerRelPos
    blocks = (SlottedRelPosBlock,)
    timm_modules = ("vision_transformer_relpos",)
    small = MappingProxyType({"relpos": ("vit_relpos_small_patch16_224", {**SMALL, "depth": 2, "fc_norm": True})})

    def fit(self, state, model):
        return state


ALL = testbed.MODELS | testbed.VARIANTS

SOME = (
    *("full", "bitfit", "norm_tuning", "sct", "lora", "lora_qv", "lora_ga", "ssf", "adaptformer", "convpass", "arc"),
    *("vpt_deep", "prefix_tuning", "spt_lora", "dtl", "oft", "vqt"),
)
"""Methods that differ in what they open of a model."""


@pytest.mark.parametrize("name", SOME)
def test_variants_of_the_kinds_are_served_or_refused(name, monkeypatch):
    monkeypatch.setattr(testbed, "MODELS", testbed.VARIANTS)
    monkeypatch.setattr(testbed, "standing_for", lambda kind: "")  # these may be refused for their shapes
    assert conformance.run_check("backbones", registry.get(name)) is None


@pytest.fixture
def relpos(monkeypatch):
    monkeypatch.setitem(KINDS, RelPosKind.name, RelPosKind())
    monkeypatch.setitem(testbed.MODELS, "relpos", KINDS["relpos"])
    return testbed.small("relpos")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", 0),
        ("lora", 2 * 8 * (32 + 96)),
        ("adaptformer", 2 * (2 * 32 * 8 + 8 + 32)),
        ("sct", 2 * (4 * 4 + 4)),
        ("ln_tuning", 2 * 4 * 32),
    ],
)
def test_methods_count_attach_and_train_on_a_kind_that_is_one_class(relpos, name, expected):
    method = registry.get(name)
    assert registry.parameters_on(method(), relpos) == expected
    attached = testbed.attach(method, "relpos")
    assert sum(p.numel() for p in attached.trained().values()) == expected
    before = {key: tensor.clone() for key, tensor in attached.state().items()}
    assert testbed.train(attached, steps=3) == set(attached.trained())
    assert not any(torch.equal(before[key], tensor) for key, tensor in attached.trained().items())


def test_a_new_kind_is_checked_with_the_others(relpos, monkeypatch):
    assert "relpos" in registry.get("adaptformer").serves
    monkeypatch.setattr(testbed, "MODELS", {"relpos": KINDS["relpos"]})
    assert conformance.run_check("backbones", registry.get("adaptformer")) is None


def test_what_names_its_kinds_refuses_the_new_one(relpos):
    assert kind(relpos) == "relpos"
    with pytest.raises(MethodError, match="'vqt' serves vit, not relpos"):
        registry.get("vqt")().attach(relpos, testbed.make_context())


def test_the_harness_knows_names_and_checkpoints_of_the_kind(relpos, monkeypatch):
    name, arguments = RelPosKind.small["relpos"]
    check_name(f"{name}.sw_in1k", [])
    bare = timm.create_model(name, num_classes=0, **arguments)
    fitted = checkpoints.fit(dict(relpos.state_dict()), bare, "mine.pth", "relpos")
    assert all(torch.equal(fitted[key], relpos.state_dict()[key]) for key in bare.state_dict())
    monkeypatch.delitem(KINDS, "relpos")
    with pytest.raises(HarnessError, match=r"is no BEiT, ConvNeXt, .* or NaFlexViT"):
        check_name(f"{name}.sw_in1k", [])


@pytest.mark.parametrize("name", ALL)
def test_blocks_with_empty_slots_compute_what_timms_do(name):
    model, images, nothing = testbed.small(name), testbed.batch()[0], torch.nn.Identity()
    expected = model(images)
    plain = [type(block) for block in blocks(model)]
    for block in blocks(model):
        plug(block, "output", nothing)
    assert all(isinstance(block, SlottedBlock) for block in blocks(model))
    assert torch.allclose(model(images), expected, atol=1e-6)
    for block in blocks(model):
        unplug(block, "output", nothing)
    assert [type(block) for block in blocks(model)] == plain


@pytest.mark.parametrize("name", ALL)
def test_the_pass_goes_on_from_every_cut_point(name):
    """Each cut point's value, taken where it comes through, gives the same logits; with and without slots."""
    model, images = testbed.small(name), testbed.batch(2)[0]
    for number, block in enumerate(blocks(model)):
        if number % 2 == 0:
            plug(block, "mlp_input", torch.nn.Identity())
    expected, heard = model(images), {}
    cuts = cut_points(model)
    handles = [
        cut.entrance.register_forward_pre_hook(lambda _, inputs, cut=cut: heard.setdefault(cut.name, inputs[0]))
        for cut in cuts
    ]
    model(images)
    for handle in handles:
        handle.remove()
    assert len(cuts) >= len(blocks(model)) == len(set(map(id, blocks(model))))
    for cut in cuts:
        assert torch.allclose(cut.run(heard[cut.name]), expected, atol=1e-5), cut.name


def test_a_model_that_was_not_prepared_is_refused_with_what_to_do():
    for name in ("beit", "deit_distilled"):
        timm_name, arguments = testbed.MODELS[name].small[name]
        model = timm.create_model(timm_name, num_classes=4, **arguments)
        with pytest.raises(MethodError, match=r"call methods.architectures.prepare\(model\)"):
            registry.parameters_on(registry.get("lora")(), model)
        prepare(model)
        assert registry.parameters_on(registry.get("lora")(), model) > 0


def test_preparing_changes_no_output_of_a_model():
    images = testbed.batch(2)[0]
    for name, known in ALL.items():
        if name == "deit_distilled":  # which has one head instead of two
            continue
        timm_name, arguments = {**known.small, **known.variants}[name]
        model = timm.create_model(timm_name, num_classes=4, **arguments).eval()
        expected = model(images)
        prepare(model)
        assert torch.allclose(model(images), expected, atol=1e-6), name


def test_one_head_reads_both_tokens_of_a_distilled_model_and_loads_in_timm():
    model, images = testbed.small("deit_distilled"), testbed.batch(2)[0]
    features = model.forward_features(images)
    expected = model.head((features[:, 0] + features[:, 1]) / 2)
    assert torch.allclose(model(images), expected, atol=1e-6)
    assert len([p for p in model.parameters() if p.shape == (4, 32)]) == 1
    timm_name, arguments = testbed.MODELS["deit_distilled"].small["deit_distilled"]
    plain = timm.create_model(timm_name, num_classes=4, **arguments).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.allclose(plain(images), expected, atol=1e-6)


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
    with pytest.raises(MethodError, match=r"ResNet is not a backbone of a known kind \(timm's Beit, .* or VisionT"):
        architecture_of(model)
    assert kind(model) == "ResNet"


def test_an_edited_adapter_makes_no_method_stale():
    """Adapters belong to the contract, which is no method's own source; what methods share beside it is."""
    files = {path.name for path in sources._own_files("methods.sct.method")}
    assert "layers.py" in files and not files & {"vit.py", "swin.py", "blocks.py"}
