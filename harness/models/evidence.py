"""What a checkpoint file tells about where its weights come from, held against the name that the user gave.

A name with a tag is a claim about the weights, and mean and standard deviation of the inputs are taken from it. The
file knows better: Google's arrays need inputs in [-1, 1] whatever they are called, a classifier tells its classes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor

from harness.errors import HarnessError
from harness.models.names import known_tags, pretrained_names
from harness.schema.preprocessing import STATISTICS, Statistics
from methods.architectures.vit_layouts import GOOGLE, HUGGING_FACE

IN21K_CLASSES = 21843

_TRAININGS = (
    ("an MAE training with its decoder", r"(^|\.)decoder_embed\.", ("mae",)),
    ("a DINO or iBOT training with its projection head", r"(^|\.)head\.(mlp|last_layer)\.", ("dino",)),
    ("a MoCo v3 training", r"(^|\.)momentum_encoder\.", ()),
)
"""Self-supervised trainings by the names that only they have, with timm's tags for their releases."""

SHOWN = 6
"""Names that an error offers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a file tells."""

    about: str
    """What the file is, as printed."""

    classes: int | None
    """Classes of its head, if it has one."""

    needs: Statistics | None = None
    """Input statistics that all weights of this layout were trained with."""

    google: bool = False
    """Whether it has the layout of Google's `vit_models` release."""

    pre_logits: bool = False
    """Whether it has the layer before the head that Google's original ImageNet-21k models have."""

    quickgelu: bool = False
    """Whether it is OpenAI's own CLIP file."""

    tags: tuple[str, ...] | None = None
    """timm's tags that it can have; None if any."""

    released_as: tuple[str, ...] = ()
    """timm's names for the weights that are released under this file name."""


def examine(state: Mapping[str, Tensor], file: str) -> Evidence:
    """What a file of that name with these tensors (as `checkpoints.read` gives them) is."""
    google, clip = GOOGLE in state, "visual.class_embedding" in state and "input_resolution" in state
    training = next((t for t in _TRAININGS if any(re.search(t[1], name) for name in state)), None)
    classes = _classes(state)
    pre_logits = any(re.search(r"(^|\.)pre_logits[./]", name) for name in state)
    released_as = _released().get(file, ())
    if google:
        kind = "a file in the layout of Google's ViT release"
    elif clip:
        kind = "OpenAI's CLIP, which computes with QuickGELU"
    elif training:
        kind = training[0]
    else:
        whose = "Hugging Face" if any(HUGGING_FACE in name for name in state) else "timm"
        kind = f"a file with {whose}'s names"
    parts = [kind, *(["with pre_logits"] if pre_logits else ["without pre_logits"] if google else [])]
    parts.append(f"with a head for {classes} classes" if classes else "without classifier")
    if released_as:
        parts.append(f"named like the release of {' and '.join(released_as)}")
    return Evidence(
        about=", ".join(parts),
        classes=classes,
        needs=STATISTICS["half"] if google else (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD) if clip else None,
        google=google,
        pre_logits=pre_logits,
        quickgelu=clip,
        tags=("openai",) if clip else training[2] if training else None,
        released_as=released_as,
    )


def _classes(state: Mapping[str, Tensor]) -> int | None:
    for name, tensor in state.items():
        if tensor.ndim == 2 and re.search(r"(^|[./])(head|classifier|cls_classifier)[./](weight|kernel)$", name):
            return tensor.shape[-1 if name.endswith("kernel") else 0]
    return None


@cache
def _released() -> dict[str, tuple[str, ...]]:
    """timm's names by the file name of the original release. `ViT-B_16.npz` names the architecture alone."""
    names: dict[str, tuple[str, ...]] = {}
    for name in pretrained_names():
        file = str(_config(name).url or "").rpartition("/")[2]
        if file and not file.startswith("ViT-"):
            names[file] = (*names.get(file, ()), name)
    return names


def _config(name: str) -> Any:
    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise HarnessError(f"timm knows no input statistics for backbone {name!r}")
    return config


def statistics_of(name: str) -> Statistics:
    """Mean and standard deviation per colour channel that timm gives for a name."""
    config = _config(name)
    return tuple(config.mean), tuple(config.std)


def in_words(statistics: Statistics) -> str:
    """`half`, `imagenet`, or the numbers."""
    known = next((name for name, value in STATISTICS.items() if value == statistics), "")
    return known or f"mean {statistics[0]}, std {statistics[1]}"


def check_claim(evidence: Evidence, name: str, file: str) -> None:
    """`HarnessError` if the file cannot be what the backbone's name says, with the names that it can have."""
    why = _contradiction(evidence, name)
    if not why:
        return
    architecture, _, tag = name.partition(".")
    own = f" For weights of your own name {architecture!r} without a tag, with --statistics." if tag else ""
    raise HarnessError(f"{file} is {evidence.about}: not {name!r}, for {why}.{_meant(evidence, architecture)}{own}")


def _meant(evidence: Evidence, architecture: str) -> str:
    """Names that the file can have: of the architecture, its QuickGELU twin, the plain ViT of its size."""
    plain = f"vit_{architecture.partition('_')[2]}"
    twins = (architecture, architecture.replace("_clip_", "_clip_quickgelu_"), plain)
    names = [*evidence.released_as, *(name for twin in twins for name in known_tags(twin))]
    fitting = list(dict.fromkeys(name for name in names if not _contradiction(evidence, name)))
    return f" Did you mean {' or '.join(map(repr, fitting[:SHOWN]))}?" if fitting else ""


def _contradiction(evidence: Evidence, name: str) -> str:
    """Why the file is not what the name says; empty if it may be."""
    architecture, _, tag = name.partition(".")
    if evidence.quickgelu and "quickgelu" not in architecture:
        return "that model computes with GELU"
    if not tag:
        return ""
    original = tag == "orig_in21k"
    released = IN21K_CLASSES if original else _config(name).num_classes  # timm's own copy has no head
    if evidence.needs and evidence.needs != statistics_of(name):
        return f"it needs the inputs as {in_words(evidence.needs)}, those have {in_words(statistics_of(name))}"
    if evidence.tags is not None and tag not in evidence.tags:
        return "those weights come from another training"
    if original and not evidence.pre_logits and (evidence.google or evidence.classes):
        return "those have pre_logits"
    if evidence.pre_logits and not original:
        return "those have no pre_logits"
    if evidence.classes and evidence.classes != released:
        return f"those have {f'{released} classes' if released else 'no classifier'}"
    if evidence.released_as and name not in evidence.released_as:
        return "the file's name says other weights"
    return ""


def decided_statistics(evidence: Evidence, name: str, file: str) -> Statistics:
    """The input statistics for a file under a name without tag: what the file needs, or what all tags agree on.

    `HarnessError` asks where neither decides.
    """
    tags = {tag: statistics_of(tag) for tag in known_tags(name)}
    known = set(tags.values())
    if evidence.needs and (not known or evidence.needs in known):
        return evidence.needs
    doubts = {statistics_of(other) for other in evidence.released_as}
    doubts |= {evidence.needs} if evidence.needs else set()
    doubts |= {STATISTICS["imagenet"]} if evidence.tags is not None and not evidence.needs else set()
    if len(known) == 1 and doubts <= known:
        return known.pop()
    groups = {in_words(value): [tag for tag in tags if tags[tag] == value] for value in tags.values()}
    listed = "; ".join(f"{words}: {', '.join(names)}" for words, names in groups.items())
    others = f" The file itself points to {' or '.join(map(in_words, doubts))}." if doubts else ""
    meant = _meant(evidence, name) if doubts else ""
    raise HarnessError(
        f"{file} is {evidence.about}, and {name!r} does not say which mean and standard deviation its inputs need. "
        f"Name the weights ({listed or 'timm has none of this name'}), or say --statistics imagenet, half or none."
        f"{others}{meant}"
    )
