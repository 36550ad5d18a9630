"""The kernels of the SCT module: in Triton's interpreter without a GPU, compiled where there is one."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from methods.blocks import new_linear
from methods.registry import get
from methods.sct import kernels_module
from methods.sct.module import SalientChannels
from tests.conftest import batch, make_context, small_vit

DEVICES = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else ["cpu"]
pytestmark = pytest.mark.parametrize("device", DEVICES)


def module(device, channels, count, scale=1.0, keep=1.0):
    generator = torch.Generator().manual_seed(count)
    linear = new_linear(count, count, generator, std=0.3)
    torch.nn.init.normal_(linear.bias, generator=generator)
    indices = torch.randperm(channels, generator=generator)[:count].sort().values
    return SalientChannels(indices, linear, scale, keep).to(device)


def random(device, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(device)


def through_kernels(part, x):
    return kernels_module.apply(x, part.linear.weight, part.linear.bias, part.indices, part.scale, part.keep)


def with_gradients(forward, part, x, weights):
    """Output and gradients of x, W and b of a weighted sum of the outputs."""
    x = x.detach().requires_grad_(True)
    y = forward(x)
    return y.detach(), *torch.autograd.grad((y * weights).sum(), (x, part.linear.weight, part.linear.bias))


def reference(part, x, weights):
    """The same in float64, by the module without kernels."""
    double = SalientChannels(part.indices, torch.nn.Linear(len(part.indices), len(part.indices)), part.scale, part.keep)
    double.linear.load_state_dict(part.linear.state_dict())
    double = double.double().to(x.device)
    return with_gradients(double.by_torch, double, x.double(), weights.double())


def gap(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def check(part, x, tolerance=1e-6):
    weights = random(x.device, *x.shape)
    found = with_gradients(lambda x: through_kernels(part, x), part, x, weights)
    for ours, exact in zip(found, reference(part, x, weights), strict=True):
        assert gap(ours, exact) < tolerance


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ((1, 1, 1), 1),
        ((1, 1, 33), 33),
        ((2, 17, 48), 6),
        ((3, 50, 130), 17),
        ((1, 1370, 20), 2),
        ((5, 4, 4, 24), 3),
        ((1, 20, 300), 96),
        ((1, 9, 140), 140),
    ],
)
def test_output_and_gradients_equal_float64(device, shape, count):
    check(module(device, shape[-1], count), random(device, *shape))


@pytest.mark.parametrize(("scale", "keep"), [(0.3, 1.0), (1.0, 0.3)])
def test_factors(device, scale, keep):
    check(module(device, 20, 5, scale, keep), random(device, 2, 9, 20))


def test_inputs_of_any_strides(device):
    part = module(device, 24, 5)
    wide = random(device, 2, 9, 72)
    check(part, wide[..., 24:48])
    check(part, random(device, 2, 24, 9).transpose(1, 2))
    check(part, random(device, 1, 1, 24).expand(2, 9, 24))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_keep_what_is_not_chosen_bit_for_bit(device, dtype):
    part, x = module(device, 40, 7), random(device, 3, 9, 40).to(dtype)
    y = through_kernels(part, x)
    others = [c for c in range(40) if c not in part.indices.tolist()]
    assert y.dtype == dtype and torch.equal(y[..., others], x[..., others])
    assert gap(y.detach(), part.double().by_torch(x.double()).detach()) < 5e-3


def test_large_fp16_values_do_not_overflow_in_between(device):
    """65504 * 0.4 + 65504 * 0.4 - 65504 fits into fp16 where its parts' sum does not."""
    linear = torch.nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[0.4, 0.4], [0.0, 0.0]]))
        linear.bias.zero_()
    part = SalientChannels(torch.tensor([0, 2]), linear, 1.0, -1.0).to(device)
    x = torch.full((1, 2, 3), 65504.0, dtype=torch.float16, device=device)
    expected = torch.tensor([0.8 * 65504 - 65504, 65504, -65504], device=device).to(torch.float16)
    torch.testing.assert_close(through_kernels(part, x), expected.expand(1, 2, 3), rtol=2e-3, atol=0)


def test_autocast_multiplies_bf16_operands_and_keeps_a_float32_residual(device):
    part, x = module(device, 40, 20), random(device, 2, 9, 40)
    weights = x.flip(1)
    with torch.autocast(device, torch.bfloat16):
        found = with_gradients(lambda x: through_kernels(part, x), part, x, weights)
    assert {t.dtype for t in found} == {torch.float32}
    for ours, exact in zip(found, reference(part, x, weights), strict=True):
        assert 1e-5 < gap(ours, exact) < 1e-2


def test_only_what_is_asked_for_is_computed(device):
    """Nothing before the module is trained; then nothing of the module is."""
    part, x = module(device, 20, 4), random(device, 2, 5, 20)
    with FlopCounterMode(display=False) as counter:
        through_kernels(part, x).sum().backward()
    product = 2 * 10 * 4 * 4
    assert counter.get_total_flops() == 2 * product
    _, _, dw, db = reference(part, x, torch.ones_like(x))
    assert gap(part.linear.weight.grad, dw) < 1e-6 and gap(part.linear.bias.grad, db) < 1e-6
    part.requires_grad_(False)
    x.requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        through_kernels(part, x).sum().backward()
    assert counter.get_total_flops() == 2 * product


def test_torch_accepts_the_operators(device):
    """Schema, fake tensors, autograd registration and tracing, by torch's own checks."""
    x, weight, bias = (t.requires_grad_(True) for t in (random(device, 6, 8), random(device, 3, 3), random(device, 3)))
    indices = torch.tensor([0, 5, 7], device=device)
    torch.library.opcheck(kernels_module.map_channels, (x, weight, bias, indices, 0.5, 1.0, torch.float32))
    torch.library.opcheck(kernels_module.map_gradients, (random(device, 6, 3), random(device, 6, 3)))


class Through(torch.nn.Module):
    """A module's kernels, whatever the device."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return through_kernels(self.part, x)


def vit_with_sct(device):
    """SCT on a small ViT, its modules through the kernels."""
    model = small_vit()
    get("sct").configure({"channels": 4}).attach(model, make_context())
    for block in model.blocks:
        slot = block.slots["after_attention"]
        slot[0] = Through(slot[0])
    return model.to(device)


def losses(model, forward, device, steps=2):
    images = batch(2)[0].to(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    found = []
    for _ in range(steps):
        loss = forward(images).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("way", ["eager", "checkpointed", "compiled"])
def test_a_model_trains_with_kernels_as_without(device, way):
    plain = small_vit()
    get("sct").configure({"channels": 4}).attach(plain, make_context())
    expected = losses(plain, plain, "cpu")
    model = vit_with_sct(device)
    forward = model
    if way == "checkpointed":

        def forward(images):
            return checkpoint(model, images, use_reentrant=False)
    elif way == "compiled":
        forward = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert losses(model, forward, device) == pytest.approx(expected, rel=1e-4)


def test_twice_gives_the_same_bits(device):
    part, x = module(device, 50, 20), random(device, 4, 40, 50)
    first, second = (with_gradients(lambda x: through_kernels(part, x), part, x, torch.ones_like(x)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
