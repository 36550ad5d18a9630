"""A plain ViT written out in double precision, for references of methods that share no code with them."""

import torch
from torch.nn import functional

from methods.testbed import small_vit
from tests.goldens import images as random_images
from tests.method_checks import trained


def double_vit(**arguments):
    """The small ViT in double precision."""
    return small_vit(**arguments).double()


def given(model, std=0.3, seed=0):
    """Random numbers in all that is trained, which is returned by name."""
    generator = torch.Generator().manual_seed(seed)
    parameters = trained(model)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return parameters


def small_images(count=2, seed=5):
    """Images [count, 3, 32, 32] in double precision."""
    return random_images(seed, count)[:, :, :32, :32]


def embedded(vit, images):
    """Class token and patches with their positions: [images, tokens, channels]."""
    patches = functional.conv2d(images, vit.patch_embed.proj.weight, vit.patch_embed.proj.bias, stride=8)
    patches = patches.flatten(2).transpose(1, 2)
    return torch.cat([vit.cls_token.expand(len(images), -1, -1), patches], 1) + vit.pos_embed


def attention(layer, x, keys=None, values=None):
    """Attention head by head; further keys and values [heads, n, channels per head] stand behind the image's."""
    d, heads = x.shape[-1], layer.num_heads
    each = d // heads
    q, k, v = (x @ w.T + b for w, b in zip(layer.qkv.weight.split(d), layer.qkv.bias.split(d), strict=True))
    outputs = []
    for head in range(heads):
        here = slice(head * each, (head + 1) * each)
        own_keys, own_values = k[..., here], v[..., here]
        if keys is not None:
            own_keys = torch.cat([own_keys, keys[head].expand(len(x), -1, -1)], 1)
            own_values = torch.cat([own_values, values[head].expand(len(x), -1, -1)], 1)
        outputs.append((q[..., here] @ own_keys.mT / each**0.5).softmax(-1) @ own_values)
    return torch.cat(outputs, -1) @ layer.proj.weight.T + layer.proj.bias


def run_block(block, x, keys=None, values=None):
    """A pre-norm block."""
    x = x + attention(block.attn, block.norm1(x), keys, values)
    hidden = functional.gelu(block.norm2(x) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
    return x + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias


def classified(vit, x):
    """Logits from the class token."""
    return vit.norm(x)[:, 0] @ vit.head.weight.T + vit.head.bias


def worst(model, expected, images):
    """Largest relative differences between a model and what a reference made of the same trained tensors: of logits,
    and of the gradients of one objective."""
    parameters, out = list(trained(model).values()), model(images)
    ours, theirs = (
        torch.autograd.grad(y.square().sum() + y[:, 0].sum(), parameters, materialize_grads=True)
        for y in (out, expected)
    )
    pairs = [(out.detach(), expected.detach())], list(zip(ours, theirs, strict=True))
    return tuple(max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in each) for each in pairs)
