"""The model card of an exported model: README.md in the form of the Hugging Face hub."""

from __future__ import annotations

from typing import Any

import yaml

from harness.schema import metrics, protocol
from harness.schema.preprocessing import Preprocessing
from harness.schema.record import RunRecord
from suites import known

USAGE = {
    "trained": """import sctbench

model = sctbench.load("FOLDER")""",
    "merged": """import timm

model = timm.create_model("NAME", ARGUMENTS, checkpoint_path="FOLDER/model.safetensors").eval()""",
    "timm": """import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()""",
    "peft": """import timm
from peft import PeftModel

base = timm.create_model("NAME", ARGUMENTS)  # BASE
model = PeftModel.from_pretrained(base, "FOLDER").eval()""",
}
"""Code that loads an exported model, by form; FOLDER is where the card lies."""


def text(record: RunRecord, form: str, timm_call: tuple[str, dict[str, Any]], hub_id: str | None) -> str:
    """The card of a run's model that was written in `form`, see `harness.training.export.FORMS`.

    `timm_call`: name and arguments with which timm makes a model of the same shape. `hub_id`: where timm has the
    weights that the backbone began with; None if they were others.
    """
    front = yaml.safe_dump(_front(record, form, hub_id), sort_keys=False, allow_unicode=True)
    spec, settings = record.spec, dict(record.spec.config)
    parameters = record.parameters
    facts = {
        "Backbone": f"`{spec.backbone.name}`, {_weights(record)}, {spec.backbone.image_size} px",
        "Method": f"{record.method_title} (`{spec.method}`); {record.method_paper}",
        "Settings": ", ".join(f"`{key}={value}`" for key, value in settings.items()) or "none",
        "Trained parameters": f"{parameters.trained_without_head:,} and {parameters.head:,} of the head"
        if parameters
        else "",
        "Data": f"suite `{spec.suite}`, task `{spec.task}`{_draw(record)}",
        "Classes": ", ".join(f"{label} {name}" for label, name in enumerate(record.class_names)),
        "Protocol": f"{spec.protocol}: {protocol.get(spec.protocol).caption}",
        "Preprocessing": f"`{spec.preprocessing}`",
        "Recipe": ", ".join(f"{key}={value}" for key, value in spec.as_dict()["recipe"].items()),
        "Seed": str(spec.seed),
        "Run": f"`{spec.run_id}`, weights sha256 `{record.weights[:12]}`",
    }
    lines = [
        f"# {record.method_title} on {spec.task}",
        "",
        *(f"* **{name}:** {value}" for name, value in facts.items() if value),
        "",
        "## Results",
        "",
        *_results(record),
        "",
        "## Use",
        "",
        f"```python\n{_usage(record, form, timm_call, hub_id is not None)}\n```",
    ]
    return f"---\n{front}---\n\n" + "\n".join(lines) + "\n"


def _weights(record: RunRecord) -> str:
    backbone = record.spec.backbone
    return f"weights `{backbone.weights}` (sha256 `{backbone.digest[:12]}`)" if backbone.digest else "random weights"


def _draw(record: RunRecord) -> str:
    spec = record.spec
    shots = f", {spec.shots} shots" if spec.shots is not None else ""
    return shots + (f", split seed {spec.split_seed}" if spec.split_seed is not None else "")


def _front(record: RunRecord, form: str, base_model: str | None) -> dict[str, Any]:
    """What the hub reads."""
    spec = record.spec
    suite = there.title if (there := known(spec.suite)) else spec.suite
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": f"{suite}: {spec.task}", "type": spec.task, "split": split},
            "metrics": [{"type": name, "value": value} for name, value in one.values.items()],
        }
        for split, one in record.metrics.items()
    ]
    return {
        "library_name": {"peft": "peft", "trained": "sctbench"}.get(form, "timm"),
        "pipeline_tag": "image-classification",
        **({"base_model": base_model} if base_model else {}),
        "tags": ["image-classification", "parameter-efficient-fine-tuning", spec.method],
        "model-index": [{"name": f"{spec.method}-{spec.run_id}", "results": results}],
    }


def _results(record: RunRecord) -> list[str]:
    """A table of the record's metrics."""
    shown = [
        metric for metric in metrics.METRICS.values() if any(metric.name in m.values for m in record.metrics.values())
    ]
    titles = [f"{metric.title} ({metric.unit})" if metric.unit else metric.title for metric in shown]
    rows = [
        [split, *(f"{one.values[metric.name]:.4g}" if metric.name in one.values else "" for metric in shown)]
        for split, one in record.metrics.items()
    ]
    table = [["split", *titles], ["---"] * (len(shown) + 1), *rows]
    return [f"| {' | '.join(row)} |" for row in table]


def _usage(record: RunRecord, form: str, timm_call: tuple[str, dict[str, Any]], from_timm: bool) -> str:
    """Code that loads what was written in that form."""
    (name, arguments), preprocessing = timm_call, Preprocessing.from_id(record.spec.preprocessing)
    given = {"pretrained": True, **arguments} if from_timm and form == "peft" else arguments
    replacements = {
        "NAME": name,
        "ARGUMENTS": ", ".join(f"{key}={value!r}" for key, value in given.items()),
        "  # BASE": "" if from_timm else "  # then load the weights that are named above",
    }
    code = USAGE[form]
    for word, replacement in replacements.items():
        code = code.replace(word, replacement)
    inputs = f"float32 [B, 3, H, W] in [0, 1], less {preprocessing.mean}, divided by {preprocessing.std}"
    return f"{code}\n# images: {inputs}"
