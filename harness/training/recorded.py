"""What a record's run needs to be done again, or to have its model rebuilt: its method and its backbone."""

from pathlib import Path

from harness.errors import HarnessError
from harness.models import backbones
from harness.schema.spec import RunSpec
from methods import registry


def find_method(spec: RunSpec, method: str | None) -> None:
    """Make the user's own method known. `HarnessError` if it is not the run's."""
    if method is not None and (name := registry.add_file(method).name) != spec.method:
        raise HarnessError(f"--method {method} is {name!r}, and the run's method is {spec.method!r}")
    registry.get(spec.method)


def find_backbone(spec: RunSpec, weights: Path | None) -> None:
    """Resolve the checkpoint. `HarnessError` if it is not the run's, or was a file that the user must name."""
    if weights is None and spec.backbone.weights not in ("pretrained", "random"):
        raise HarnessError(f"the run had its checkpoint from a file {spec.backbone.weights!r}: give it with --weights")
    source = str(weights or spec.backbone.weights)
    backbone = backbones.resolve(spec.backbone.name, source, spec.backbone.image_size)
    if backbone.digest != spec.backbone.digest:
        raise HarnessError(
            f"the run had a checkpoint {spec.backbone.weights!r} with sha256 {spec.backbone.digest[:12]}..., "
            f"not {backbone.digest[:12]}...: give the file with --weights"
        )
