"""Which method serves which kind of backbone, as the methods themselves say of a small model of each."""

from __future__ import annotations

from methods.base import MethodError
from methods.registry import all_methods, parameters_on
from methods.testbed import MODELS, small_model

YES, NO = "yes", "-"


def refusals() -> list[dict[str, str]]:
    """A row per method: under the name of each small model why it is refused, empty where it is served."""
    return [{"method": name, **{model: _refusal(name, model) for model in MODELS}} for name in all_methods()]


def _refusal(name: str, model: str) -> str:
    try:
        parameters_on(all_methods()[name](), small_model(model))
    except MethodError as refusal:
        return str(refusal)
    return ""


def groups() -> list[dict[str, str]]:
    """A row for all methods that serve the same models, the largest group first: the models, and the methods."""
    named: dict[tuple[bool, ...], list[str]] = {}
    for row in refusals():
        named.setdefault(tuple(not row[model] for model in MODELS), []).append(row["method"])
    rows = []
    for served, methods in sorted(named.items(), key=lambda item: -len(item[1])):
        cells = {model: YES if yes else NO for model, yes in zip(MODELS, served, strict=True)}
        rows.append({**cells, "methods": f"{len(methods)}: {', '.join(methods)}"})
    return rows


def markdown() -> str:
    """The groups as a table."""
    rows = groups()
    head = f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}\n"
    return head + "".join(f"| {' | '.join(row.values())} |\n" for row in rows)
