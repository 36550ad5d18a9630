"""MoSA beside a second implementation, written out over timm's layers in double precision with whole experts."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from methods import mosa, registry
from methods.base import MethodError
from tests import goldens
from tests.method_checks import attach, trained, vit_b
from tests.methods.test_golden import relative
from tests.two_passes import first_pass, in_turn


def settled(share, experts=3):
    """The two-block ViT of the goldens without MoSA and with it, all that is trained drawn anew, and images."""
    golden = goldens.load("dyt")
    method = registry.get("mosa").configure({"share": share, "experts": experts, "bottleneck": 6, "dropout": 0.0})
    model = golden.plain()
    attachment = method.attach(model, golden.context())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return golden.plain(), model, attachment, golden.images


def written_out(model, share, experts):
    """A block's adapter after another, each as the release holds it: a list of whole weights and biases of the split
    projection, one for each expert, and the masks of their gradients; and the tensors of the rest."""
    found = []
    for block in model.blocks:
        (adapter,) = block.slots["mlp_parallel"]
        split, shared = (adapter.up, adapter.down) if share == "down" else (adapter.down, adapter.up)
        masks = [split.owner == j for j in range(experts)]
        whole = [torch.where(m, split.weight, split.start).detach().requires_grad_() for m in masks]
        biases = [row.detach().clone().requires_grad_() for row in split.bias]
        rest = [t.detach().clone().requires_grad_() for t in (adapter.norm.weight, adapter.norm.bias)]
        rest += [t.detach().clone().requires_grad_() for t in (shared.weight, shared.bias)]
        found.append((whole, biases, masks, rest))
    return found


def reference(vit, images, adapters, share, drawn):
    """Logits, and what each block gives; `drawn`: the expert of each block, or None for the mean of all."""
    x = torch.cat([vit.cls_token.expand(len(images), -1, -1), vit.patch_embed(images)], dim=1) + vit.pos_embed
    hidden = []
    for number, (block, (whole, biases, _, rest)) in enumerate(zip(vit.blocks, adapters, strict=True)):
        if drawn is None:
            weight, bias = sum(whole) / len(whole), sum(biases) / len(biases)
        else:
            weight, bias = whole[drawn[number]], biases[drawn[number]]
        gain, offset, shared_weight, shared_bias = rest
        down, a, up, u = (shared_weight, shared_bias, weight, bias)
        if share == "up":
            down, a, up, u = (weight, bias, shared_weight, shared_bias)
        h = x + block.attn(block.norm1(x))
        centred = h - h.mean(dim=-1, keepdim=True)
        z = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * gain + offset
        code = z @ down.T + a
        code = code * 0.5 * (1 + torch.erf(code / 2**0.5))
        x = h + block.mlp(block.norm2(h)) + 0.1 * (code @ up.T + u)
        hidden.append(x)
    return vit.head(vit.norm(x)[:, 0]), hidden


def agree(ours, theirs):
    assert relative(ours.detach(), theirs.detach()) < 1e-10


def agree_in_gradients(model, total, adapters, expected, share):
    names = list(trained(model))
    found = dict(zip(names, torch.autograd.grad(total, list(trained(model).values())), strict=True))
    split, shared = ("up", "down") if share == "down" else ("down", "up")
    for number, (whole, biases, masks, rest) in enumerate(adapters):
        theirs = torch.autograd.grad(expected, [*whole, *biases, *rest], materialize_grads=True, retain_graph=True)
        n, place = len(whole), f"blocks.{number}.slots.mlp_parallel.0."
        agree(found[f"{place}{split}.weight"], sum(g * m for g, m in zip(theirs[:n], masks, strict=True)))
        agree(found[f"{place}{split}.bias"], torch.stack(theirs[n : 2 * n]))
        others = ("norm.weight", "norm.bias", f"{shared}.weight", f"{shared}.bias")
        for name, gradient in zip(others, theirs[2 * n :], strict=True):
            agree(found[place + name], gradient)


@pytest.mark.parametrize("share", ["down", "up"])
def test_mosa_in_evaluation_is_the_mean_of_its_experts(share):
    plain, model, _, images = settled(share)
    adapters = written_out(model, share, 3)
    out, expected = model.eval()(images), reference(plain, images, adapters, share, None)[0]
    agree(out, expected)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    agree_in_gradients(model, (out * weights).sum(), adapters, (expected * weights).sum(), share)


@pytest.mark.parametrize("share", ["down", "up"])
@pytest.mark.parametrize("deep", [0.0, 0.01])
def test_a_training_step_of_mosa(share, deep, monkeypatch):
    plain, model, attachment, images = settled(share)
    if deep:
        method = registry.get("mosa").configure({"deep": deep})
        attachment = replace(attachment, penalty=partial(method.penalty, ("blocks.0",), 2), features=("blocks.0",))
    adapters, labels = written_out(model, share, 3), torch.tensor([1, 3])
    left = in_turn(monkeypatch, mosa, "draw_expert", torch.tensor([2, 0, 1, 0]).split(1))
    batch = first_pass(model.train(), attachment, images, labels)
    total = batch.loss(batch.logits) + attachment.penalty(batch)
    assert not left
    one, other = (reference(plain, images, adapters, share, drawn) for drawn in ([2, 0], [1, 0]))
    agree(batch.logits, one[0])
    p, q = one[0].softmax(dim=1), other[0].softmax(dim=1)
    apart = (q.detach() * (q.detach().log() - p.log())).sum() + (p.detach() * (p.detach().log() - q.log())).sum()
    expected = -p[range(2), labels].log().mean() + 0.5 * apart / 2
    expected = expected + deep / 2 * (one[1][0] - other[1][0]).square().mean()
    agree(total, expected)
    agree_in_gradients(model, total, adapters, expected, share)


def test_each_expert_of_mosa_owns_an_equal_share_and_all_begin_alike():
    model, attachment = attach("mosa", experts=3, bottleneck=5)
    splits = [module for module in model.modules() if isinstance(module, mosa.SparseExperts)]
    for split in splits:
        assert split.owner.unique(return_counts=True)[1].tolist() == [53, 53, 54]  # of 32 * 5
    assert not torch.equal(splits[0].owner, splits[1].owner)
    assert attachment.recomputed and not any(start.any() for start in attachment.recomputed)
    model, attachment = attach("mosa", share="up", deep=0.01)
    split = next(module for module in model.modules() if isinstance(module, mosa.SparseExperts))
    assert torch.equal(split.start, split.weight) and not attachment.recomputed
    assert attachment.features == ("blocks.0",)  # the first half of three blocks


def test_mosa_draws_another_expert_for_each_pass():
    split = mosa.SparseExperts(torch.nn.Linear(4, 3), 4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        split.bias.copy_(torch.arange(4.0)[:, None])
        drawn = {int(split(torch.zeros(2, 4))[0, 0]) for _ in range(50)}
    assert drawn == {0, 1, 2, 3}
    split(torch.ones(1, 4)).sum().backward()
    owners = split.owner[split.weight.grad != 0].unique().long()
    assert len(owners) == 1 and split.bias.grad[owners].all() and split.bias.grad.count_nonzero() == 3


@pytest.mark.parametrize(("config", "expected"), [({}, 350_400), ({"share": "up"}, 323_328)])
def test_count_on_vit_b(config, expected):
    assert registry.get("mosa").configure(config).expected_parameters(vit_b()) == expected


@pytest.mark.parametrize(("field", "value"), [("experts", 0), ("share", "both"), ("deep", -0.1)])
def test_bad_config_is_refused(field, value):
    with pytest.raises(MethodError, match=field):
        registry.get("mosa").configure({field: value})
