"""What a checkpoint file tells about where its weights come from, held against the name that the user gave.

A name with a tag is a claim about the weights, and mean and standard deviation of the inputs are taken from it. The
file knows better: Google's arrays need inputs in [-1, 1] whatever they are called, a classifier tells its classes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Any

import timm
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor

from harness.errors import HarnessError
from harness.models.names import known_tags, pretrained_names
from harness.schema.preprocessing import STATISTICS, Statistics
from methods.architectures.convnext import META
from methods.architectures.eva_layouts import DINOV3
from methods.architectures.eva_layouts import HUGGING_FACE as HUGGING_FACE_DINOV3
from methods.architectures.vit_layouts import GOOGLE, HUGGING_FACE

IN21K_CLASSES = 21843


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A training without labels, by the names that only its files have."""

    title: str
    names: str
    """A pattern of a name."""

    tags: tuple[str, ...]
    """timm's tags for its releases."""

    needs: Statistics | None = STATISTICS["imagenet"]
    """What its inputs were; None if that differs by model."""


_TRAININGS = (
    Training(title="an MAE training with its decoder", names=r"(^|\.)decoder_embed\.", tags=("mae",)),
    Training(
        title="a DINO or iBOT training with its projection head",
        names=r"(^|\.)head\.(mlp|last_layer)\.",
        tags=("dino",),
    ),
    Training(title="a MoCo v3 training", names=r"(^|\.)momentum_encoder\.", tags=()),
    Training(
        title="a BEiT or EVA-02 training by masked images, with its head",
        names=r"^lm_head\.",
        tags=("mim_in22k", "mim_m38m"),
        needs=None,
    ),
)

_LAYOUTS = (
    ("Hugging Face's names", rf"({re.escape(HUGGING_FACE)}|{re.escape(HUGGING_FACE_DINOV3)})$"),
    ("Meta's names of DINOv3", rf"^{DINOV3}$"),
    ("Meta's names of ConvNeXt", rf"{re.escape(META)}$"),
    ("CLIP's names", r"^visual\."),
)
"""Whose names a file has, by one of them; timm's if none of these."""

CLASSIFIER = r"(^|[./])(head|head\.fc|classifier|cls_classifier)[./](weight|kernel)$"
"""Names of a classifier's weight."""

TELLING = len("sat493m")
"""Letters of a tag from which on it is no chance that it stands in a file's name, as `pt`, `fb` or `in21k` may."""

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

    trained_with: Statistics | None = None
    """Input statistics of trainings of its kind."""

    said: Statistics | None = None
    """Input statistics of the weights that its name speaks of."""

    released_as: tuple[str, ...] = ()
    """timm's names for the weights that are released under this file name."""


def examine(state: Mapping[str, Tensor], file: str) -> Evidence:
    """What a file of that name with these tensors (as `checkpoints.read` gives them) is."""
    google, clip = GOOGLE in state, "visual.class_embedding" in state and "input_resolution" in state
    training = next((t for t in _TRAININGS if _has(state, t.names)), None)
    classes = _classes(state)
    pre_logits = _has(state, r"(^|\.)pre_logits[./]")
    released_as = _released().get(file, ())
    if google:
        kind = "a file in the layout of Google's ViT release"
    elif clip:
        kind = "OpenAI's CLIP, which computes with QuickGELU"
    elif training:
        kind = training.title
    else:
        kind = "a file with " + next((whose for whose, names in _LAYOUTS if _has(state, names)), "timm's names")
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
        tags=("openai",) if clip else training.tags if training else None,
        trained_with=training.needs if training else None,
        said=_said_by(file),
        released_as=released_as,
    )


def _has(state: Mapping[str, Tensor], pattern: str) -> bool:
    return any(re.search(pattern, name) for name in state)


def _classes(state: Mapping[str, Tensor]) -> int | None:
    for name, tensor in state.items():
        if tensor.ndim == 2 and re.search(CLASSIFIER, name):
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


def _said_by(file: str) -> Statistics | None:
    """Input statistics by the longest tag or architecture in a file's name that has but one kind of them, such as
    `sat493m` of DINOv3's satellite images or `beitv2_base_patch16_224`."""
    stem = PurePath(file).stem.lower()
    found = [w for w in _words() if w in stem and re.search(rf"(?<![a-z0-9]){re.escape(w)}(?![a-z0-9])", stem)]
    return _words()[max(found, key=len)] if found else None


@cache
def _words() -> dict[str, Statistics]:
    """Tags and architectures of timm all of whose weights have the same input statistics."""
    words: dict[str, set[Statistics]] = {}
    for name in pretrained_names():
        for word in name.split("."):
            words.setdefault(word, set()).add(statistics_of(name))
    return {word: next(iter(values)) for word, values in words.items() if len(values) == 1 and len(word) >= TELLING}


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
    mean, std = (" ".join(f"{value:.3g}" for value in values) for values in statistics)
    return next((name for name, value in STATISTICS.items() if value == statistics), f"mean {mean} and std {std}")


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
    if evidence.said and evidence.said != statistics_of(name):
        return (
            f"the file's name speaks of inputs as {in_words(evidence.said)}, those have {in_words(statistics_of(name))}"
        )
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
    doubts |= {value for value in (evidence.needs, evidence.trained_with, evidence.said) if value}
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
