"""A run's model as files for others: with this package, with timm alone, or with peft alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

from harness.errors import HarnessError, did_you_mean
from harness.models import backbones
from harness.models.checkpoints import shapes_of
from harness.records.place import Place
from harness.records.store import RECORD_NAME, WEIGHTS_NAME
from harness.schema.preprocessing import Preprocessing
from harness.training import model_card, weights
from harness.training.attached_model import AttachedModel, untouched
from methods import registry
from methods.conformance_tools import relative_gap
from methods.peft_library.adapters import ADAPTER_FILES, save_adapter

CHECKPOINT = "model.safetensors"
"""timm's and Hugging Face's name of a checkpoint."""

TOLERANCE = 1e-4
"""How far a logit may be from the attached model's, relative to the largest."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is exported."""

    place: Place
    model: AttachedModel

    @property
    def timm_call(self) -> tuple[str, dict[str, Any]]:
        """Name and arguments with which timm makes a model of the same form."""
        backbone = self.place.record.spec.backbone
        name, arguments = backbones.timm_call(backbone.name, backbone.image_size)
        return name, {**arguments, "num_classes": self.model.num_classes}

    @property
    def hub_id(self) -> str | None:
        """Where timm has the weights that the backbone began with; None if they were others."""
        backbone = self.place.record.spec.backbone
        is_timms = backbone.weights == "pretrained" and backbone.name == self.timm_call[0]
        config = timm.get_pretrained_cfg(backbone.name) if is_timms else None
        return config.hf_hub_id if config else None


def export(
    place: Place, to: Path, form: str, weights_file: Path | None = None, method: str | None = None
) -> list[Path]:
    """Write a run's model and a model card into the folder `to`, which must be new or empty; returns the files.

    `form`: a name of `FORMS`. `weights_file`, `method`: see `harness.training.weights.load`. `HarnessError` or
    `MethodError`, with nothing written, where the method does not allow the form.
    """
    if form not in FORMS:
        raise HarnessError(f"--form {form!r}: {did_you_mean(form, list(FORMS))}")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise HarnessError(f"--to {to}: is there already and not an empty folder; name another")
    source = Source(place, weights.load(place, weights_file, method, "cpu"))
    write = FORMS[form](source)
    to.mkdir(parents=True, exist_ok=True)
    write(to)
    (to / "README.md").write_text(model_card.text(place.record, form, source.timm_call, source.hub_id))
    return sorted(path for path in to.iterdir())


Writer = Callable[[Path], Any]
"""Writes into a folder."""


def _trained(source: Source) -> Writer:
    """What the run kept, as it is."""

    def write(to: Path) -> None:
        for name in (RECORD_NAME, WEIGHTS_NAME):
            shutil.copyfile(source.place.folder / name, to / name)

    return write


def _merged(source: Source) -> Writer:
    """A plain timm checkpoint."""
    state = _plain_timm_model(source).state_dict()
    return lambda to: save_file(state, to / CHECKPOINT, {"format": "pt"})


def _timm(source: Source) -> Writer:
    """A folder as timm writes it for the Hugging Face hub, with its config."""
    model, (_, arguments) = _plain_timm_model(source), source.timm_call
    arguments = {key: value for key, value in arguments.items() if key != "num_classes"}
    names = source.place.record.class_names
    config = {"model_args": arguments, **({"label_names": names} if names else {})}
    return lambda to: save_for_hf(model, str(to), config, safe_serialization=True)


def _plain_timm_model(source: Source) -> Any:
    """timm's own model with the method folded into its weights. `HarnessError` if that cannot be.

    What comes out is compared with the attached model on random images.
    """
    model, spec = source.model, source.place.record.spec
    preprocessing = Preprocessing.from_id(spec.preprocessing)
    images = _noise(preprocessing)
    name, arguments = source.timm_call
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        expected = model.model(images)
        if model.attachment.merge is not None:
            model.attachment.merge()
        plain: Any = timm.create_model(name, **arguments).eval()
        state = model.model.state_dict()
        if state.keys() != plain.state_dict().keys():
            raise HarnessError(
                f"method {spec.method!r} cannot be folded into the backbone's weights: take --form trained, "
                "which sctbench.load reads"
            )
        plain.load_state_dict(state)
        gap = relative_gap(plain(images), expected)
    if not gap <= TOLERANCE:
        raise HarnessError(f"method {spec.method!r}: the merged model's logits differ by {gap:.1e} of the largest")
    plain.pretrained_cfg = {**plain.pretrained_cfg, **weights.timm_config(preprocessing)}
    if source.hub_id is None:
        plain.pretrained_cfg |= {"tag": "", "license": None}
    return plain


def _noise(preprocessing: Preprocessing) -> torch.Tensor:
    """Random images, normalised, [4, 3, H, W]."""
    size = (4, preprocessing.image_size, preprocessing.image_size, 3)
    pixels = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return preprocessing.normalise(pixels)


def _peft(source: Source) -> Writer:
    """An adapter folder of the peft package."""
    spec = source.place.record.spec
    if source.hub_id is not None:
        check_timm_loads_its_own(source)
    plain = untouched(spec, source.model.num_classes)
    method = registry.get(spec.method).of_run(spec.config)
    with TemporaryDirectory() as folder:
        save_adapter(
            source.model.model,
            method,
            Path(folder),
            source.hub_id or spec.backbone.name,
            plain=plain,
            memory=source.model.memory,
            images=_noise(Preprocessing.from_id(spec.preprocessing)),
        )
        contents = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name in ADAPTER_FILES}
    return lambda to: [(to / name).write_bytes(content) for name, content in contents.items()]


def check_timm_loads_its_own(source: Source) -> None:
    """`HarnessError` where timm's own weights do not load into the model, which is built in another way than timm's."""
    name, arguments = source.timm_call
    resized = {key: value for key, value in arguments.items() if key in ("img_size", "num_classes")}
    if arguments == resized:
        return
    with torch.device("meta"):
        ours, theirs = (timm.create_model(name, **given).state_dict() for given in (arguments, resized))
    if shapes_of(ours) != shapes_of(theirs):
        further = ", ".join(f"{key}={value!r}" for key, value in arguments.items() if key not in resized)
        raise HarnessError(
            f"--form peft: timm cannot load its own weights of {name} into the model with {further} that was tuned; "
            "take --form timm or merged, where the method allows it, or trained"
        )


FORMS: dict[str, Callable[[Source], Writer]] = {"trained": _trained, "merged": _merged, "timm": _timm, "peft": _peft}
"""How a model is written: each prepares everything that may fail, and returns what writes it."""
