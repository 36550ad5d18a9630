"""What the authors of backbones released, written for the weights of a timm model: names, shapes and wrappers."""

import re

import torch


def renamed(state, *pairs):
    """The tensors with each pattern of `pairs` replaced in their names, in order."""
    result = {}
    for name, tensor in state.items():
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        result[name] = tensor.detach().clone()
    return result


def classifier(width, classes=21841, name="head"):
    return {f"{name}.weight": torch.zeros(classes, width), f"{name}.bias": torch.zeros(classes)}


def dinov3(model):
    """Meta's `dinov3_vit*.pth`. Of the biases of q, k and v, `bias_mask` leaves out that of k, whatever it holds."""
    d, heads = model.embed_dim, model.blocks[0].attn.num_heads
    gated = hasattr(model.blocks[0].mlp, "fc1_g")
    mlp = [(r"fc1_g", "w1"), (r"fc1_x", "w2"), (r"fc2", "w3")] if gated else []
    state = renamed(model.state_dict(), (r"gamma_(\d)", r"ls\1.gamma"), ("reg_token", "storage_tokens"), *mlp)
    for i in range(len(model.blocks)):
        ends = [state.pop(f"blocks.{i}.attn.{part}_bias", torch.zeros(d)) for part in "qv"]
        state[f"blocks.{i}.attn.qkv.bias"] = torch.cat([ends[0], torch.full((d,), 0.3), ends[1]])
        state[f"blocks.{i}.attn.qkv.bias_mask"] = torch.cat([torch.ones(d), torch.zeros(d), torch.ones(d)])
    return state | {"mask_token": torch.ones(1, d), "rope_embed.periods": torch.ones(d // heads // 4)}


def dinov3_7b(model):
    """The same of the 7B model: no biases of q, k and v, and a norm that only the pretraining used."""
    state = {name: tensor for name, tensor in dinov3(model).items() if ".qkv.bias" not in name}
    return state | {f"local_cls_norm.{part}": torch.ones(model.embed_dim) for part in ("weight", "bias")}


def eva02(model):
    """`eva02_B_pt_in21k_medft_*.pt`: a classifier on the mean of the patches."""
    pairs = [(r"\.([qv])_proj\.bias", r".\1_bias"), ("mlp.norm", "mlp.ffn_ln"), ("attn.norm", "attn.inner_attn_ln")]
    packed = [(r"mlp\.fc1\.", "mlp.w12."), ("mlp.fc1_g", "mlp.w1"), ("mlp.fc1_x", "mlp.w2"), ("mlp.fc2", "mlp.w3")]
    state = renamed(model.state_dict(), *pairs, *packed)
    for prefix in ("", *(f"blocks.{i}.attn." for i in range(len(model.blocks)))):
        state |= {f"{prefix}rope.freqs_{part}": torch.ones(16, 8) for part in ("cos", "sin")}
    return {"model": state | classifier(model.embed_dim)}


def eva02_pretrained(model):
    """`eva02_B_pt_in21k_p14.pt`: masked images, the norm before their head."""
    state = renamed(eva02(model)["model"], ("fc_norm", "norm"))
    state |= {"mask_token": torch.ones(1, 1, model.embed_dim)} | classifier(model.embed_dim, 24, "lm_head")
    return {"module": {name: tensor for name, tensor in state.items() if not name.startswith("head.")}}


def eva_clip(model):
    """`EVA02_CLIP_*.pt`: both towers."""
    state = {k: v for k, v in eva02(model)["model"].items() if not k.startswith("head.")}
    tower = {f"visual.{name}": tensor for name, tensor in (state | classifier(model.embed_dim, 24)).items()}
    return tower | {"text.positional_embedding": torch.ones(7, 8), "logit_scale": torch.ones(())}


def clip_tower(model):
    """`visual.*` of OpenAI's names, which open_clip and the Perception Encoder have too."""
    pairs = [
        (r"^patch_embed\.proj", "conv1"),
        (r"^blocks", "transformer.resblocks"),
        (r"^norm_pre", "ln_pre"),
        (r"^norm\.", "ln_post."),
        (r"\.norm(\d)", r".ln_\1"),
        (r"\.gamma_(\d)", r".ls_\1.gamma"),
        (r"attn\.qkv\.", "attn.in_proj_"),
        (r"attn\.proj", "attn.out_proj"),
        (r"mlp\.fc1", "mlp.c_fc"),
        (r"mlp\.fc2", "mlp.c_proj"),
    ]
    state = renamed(model.state_dict(), *pairs)
    if "cls_token" in state:
        state["class_embedding"] = state.pop("cls_token")[0, 0]
    state["positional_embedding"] = state.pop("pos_embed")[0]
    state["proj"] = torch.zeros(model.embed_dim, 24)
    return {f"visual.{name}": tensor for name, tensor in state.items()}


def text_tower():
    """Some of the text encoder beside it."""
    names = ("transformer.resblocks.0.ln_1.weight", "token_embedding.weight", "text_projection", "positional_embedding")
    return {name: torch.ones(7, 8) for name in names} | {"logit_scale": torch.ones(())}


def open_clip(model):
    """`open_clip_pytorch_model.bin` and `.safetensors`."""
    return clip_tower(model) | text_tower()


def openai_clip(model):
    """The state of OpenAI's `ViT-B-16.pt`, in half precision, with the integers of its archive."""
    numbers = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77), "vocab_size": torch.tensor(9)}
    return {name: tensor.half() for name, tensor in open_clip(model).items()} | numbers


def perception_encoder(model):
    """`PE-Core-*.pt`: its pooling's q, k and v are one layer."""
    state = clip_tower(model)
    for part in ("weight", "bias"):
        pieces = [state.pop(f"visual.attn_pool.{name}.{part}") for name in ("q", "kv")]
        state[f"visual.attn_pool.attn.in_proj_{part}"] = torch.cat(pieces)
    pairs = [("attn_pool.proj", "attn_pool.attn.out_proj"), ("attn_pool.norm", "attn_pool.layernorm")]
    return renamed(state, *pairs, ("attn_pool.latent", "attn_pool.probe")) | text_tower()


def beit(model):
    """`beit_base_patch16_224_pt22k_ft22k.pth`."""
    state = dict(model.state_dict())
    for i, block in enumerate(model.blocks):
        state[f"blocks.{i}.attn.relative_position_index"] = block.attn.relative_position_index
    return {"model": state | classifier(model.embed_dim)}


def beit_pretrained(model):
    """`beitv2_base_patch16_224_pt1k.pth`: masked images, one position bias for all blocks, further layers."""
    own = "blocks.0.attn.relative_position_bias_table"
    state = renamed({k: v for k, v in model.state_dict().items() if "bias_table" not in k}, ("fc_norm", "norm"))
    state["rel_pos_bias.relative_position_bias_table"] = model.state_dict()[own]
    state["rel_pos_bias.relative_position_index"] = model.blocks[0].attn.relative_position_index
    state |= {"mask_token": torch.ones(1, 1, model.embed_dim), "cls_pt_layers.0.gamma_1": torch.ones(model.embed_dim)}
    return {"model": state | classifier(model.embed_dim, 24, "lm_head")}


def swin_v2(model):
    """`swinv2_base_patch4_window12_192_22k.pth`: downsampling ends a stage, and buffers are stored."""
    state = {}
    for name, tensor in model.state_dict().items():
        match = re.fullmatch(r"layers\.(\d)\.downsample\.(.+)", name)
        state[f"layers.{int(match[1]) - 1}.downsample.{match[2]}" if match else name] = tensor
    for i, stage in enumerate(model.layers):
        for j, block in enumerate(stage.blocks):
            for buffer in ("relative_coords_table", "relative_position_index"):
                state[f"layers.{i}.blocks.{j}.attn.{buffer}"] = getattr(block.attn, buffer)
            if block.attn_mask is not None:
                state[f"layers.{i}.blocks.{j}.attn_mask"] = block.attn_mask
    return {"model": state | classifier(model.num_features)}


def convnext(model):
    """Meta's `convnext_*_22k_224.pth` and `convnextv2_*_ema.pt`."""
    pairs = [
        (r"^stem", "downsample_layers.0"),
        (r"^stages\.(\d)\.downsample", r"downsample_layers.\1"),
        (r"^stages\.(\d)\.blocks", r"stages.\1"),
        ("conv_dw", "dwconv"),
        (r"mlp\.grn\.weight", "grn.gamma"),
        (r"mlp\.grn\.bias", "grn.beta"),
        (r"mlp\.fc", "pwconv"),
        (r"^head\.norm", "norm"),
    ]
    state = renamed(model.state_dict(), *pairs)
    state = {name: tensor[None, None, None] if ".grn." in name else tensor for name, tensor in state.items()}
    return {"model": state | classifier(model.num_features)}


def convnext_pretrained(model):
    """`convnextv2_*_fcmae.pt`: the stages alone."""
    state = convnext(model)["model"]
    return {"model": {name: tensor for name, tensor in state.items() if not name.startswith(("norm.", "head."))}}


def convnext_dinov3(model):
    """`dinov3_convnext_*.pth`: no wrapper, no classifier, and the last norm twice."""
    state = {name: tensor for name, tensor in convnext(model)["model"].items() if not name.startswith("head.")}
    return state | {f"norms.3.{part}": state[f"norm.{part}"] for part in ("weight", "bias")}


def mae(model):
    """`mae_visualize_vit_base.pth`: encoder and decoder. `mae_pretrain_vit_base.pth` has the encoder alone."""
    decoder = {"mask_token": torch.ones(1, 1, 8), "decoder_pos_embed": torch.ones(1, 17, 8)}
    decoder |= {"decoder_embed.weight": torch.ones(8, model.embed_dim), "decoder_blocks.0.norm1.weight": torch.ones(8)}
    return {"model": dict(model.state_dict()) | decoder}


def dinov2(model):
    """`dinov2_vitb14_pretrain.pth`, and with registers `dinov2_vitb14_reg4_pretrain.pth`."""
    state = dict(model.state_dict()) | {"mask_token": torch.ones(1, model.embed_dim)}
    if "reg_token" not in state:
        return state
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([torch.zeros(1, 1, model.embed_dim), state["pos_embed"]], dim=1)
    return state


def moco_v3(model):
    """`vit-b-300ep.pth.tar`: two encoders with their projections, and a predictor."""
    state = {f"module.base_encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {f"module.momentum_encoder.{name}": tensor * 2 for name, tensor in model.state_dict().items()}
    for part in ("base_encoder.head", "momentum_encoder.head", "predictor"):
        state |= {f"module.{part}.0.weight": torch.ones(8, 8), f"module.{part}.1.num_batches_tracked": torch.tensor(3)}
    return {"epoch": 300, "arch": "vit_base", "state_dict": state}


def deit_distilled(model):
    """`deit_base_distilled_patch16_224-*.pth`: a head for each token."""
    d = model.embed_dim
    return {"model": dict(model.state_dict()) | classifier(d, 1000) | classifier(d, 1000, "head_dist")}
