"""States of few numbers under exactly the names of released checkpoints."""

import torch

WIDTH = 4


def google(classes, pre_logits=False):
    """Arrays of Google's `vit_models` release, one block."""
    state = {
        "cls": torch.zeros(1, 1, WIDTH),
        "embedding/kernel": torch.zeros(2, 2, 3, WIDTH),
        "Transformer/posembed_input/pos_embedding": torch.zeros(1, 5, WIDTH),
        "Transformer/encoder_norm/scale": torch.zeros(WIDTH),
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel": torch.zeros(WIDTH, 2, WIDTH // 2),
        "head/kernel": torch.zeros(WIDTH, classes),
        "head/bias": torch.zeros(classes),
    }
    return state | ({"pre_logits/kernel": torch.zeros(WIDTH, WIDTH)} if pre_logits else {})


def timm_names(classes=None, pre_logits=False, prefix=""):
    """timm's names, which DeiT, DINO and MAE have too."""
    state = {
        "cls_token": torch.zeros(1, 1, WIDTH),
        "patch_embed.proj.weight": torch.zeros(WIDTH, 3, 2, 2),
        "blocks.0.attn.qkv.weight": torch.zeros(3 * WIDTH, WIDTH),
        "norm.weight": torch.zeros(WIDTH),
    }
    state |= {"head.weight": torch.zeros(classes, WIDTH)} if classes else {}
    state |= {"pre_logits.fc.weight": torch.zeros(WIDTH, WIDTH)} if pre_logits else {}
    return {prefix + name: tensor for name, tensor in state.items()}


def clip():
    """OpenAI's own CLIP, as its TorchScript archive's state has it."""
    return {
        "visual.class_embedding": torch.zeros(WIDTH),
        "visual.conv1.weight": torch.zeros(WIDTH, 3, 2, 2),
        "visual.proj": torch.zeros(WIDTH, 3),
        "logit_scale": torch.zeros(()),
        "input_resolution": torch.tensor(224),
    }


def dinov3():
    """Meta's DINOv3, one block."""
    return timm_names() | {"storage_tokens": torch.zeros(1, 4, WIDTH), "mask_token": torch.zeros(1, WIDTH)}
