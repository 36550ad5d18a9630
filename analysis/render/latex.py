r"""Tables as LaTeX, ready for `\input`; packages: booktabs, graphicx (for wide tables)."""

from __future__ import annotations

import unicodedata

from analysis.render.text import group_spans, row_texts
from analysis.tables.base import Table

SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: "\\" + character for character in "&%$#_"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': r"\char34{}",
    "±": r"$\pm$",
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
    "§": r"\S{}",
    "–": "--",
    "×": r"$\times$",
    "≠": r"$\neq$",
    "≈": r"$\approx$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
}

WIDE = 8
"""From this number of columns on, headers stand upright and the table is scaled to the width of the text."""


def _character(character: str) -> str:
    if character in SPECIAL:
        return SPECIAL[character]
    if character.isspace():
        return " "
    if ord(character) < 0x180 and character.isprintable():
        return character
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return "".join(SPECIAL.get(c, c) for c in plain) or "?"


def escape(text: str) -> str:
    """Text that LaTeX prints as it stands; characters that its standard fonts lack become ASCII or `?`."""
    return "".join(map(_character, text))


def _group_lines(table: Table) -> list[str]:
    r"""Header line of the groups with a \cmidrule under each; nothing where no column has a group."""
    spans = group_spans(table.columns)
    if not any(group for group, _ in spans):
        return []
    cells, rules, at = [], [], 2
    for group, width in spans:
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escape(group)}}}")
        rules += [rf"\cmidrule(lr){{{at}-{at + width - 1}}}"] if group else []
        at += width
    return [" & ".join(["", *cells]) + r" \\", " ".join(rules)]


def _body(table: Table) -> list[str]:
    lines = []
    for label, cells in row_texts(table, escape, r"\textbf{{}}", r"\underline{{}}"):
        guard = "{}" if label.startswith(("[", "*")) else ""  # or the command before it takes them for its own
        lines.append(" & ".join([guard + escape(label), *cells]) + r" \\")
    return lines


def to_latex(table: Table) -> str:
    """A floating `table` with grouped headers, caption and label `tab:...`; best bold, second best underlined."""
    wide = len(table.columns) >= WIDE
    names = [rf"\rotatebox{{90}}{{{escape(c.name)}}}" if wide else escape(c.name) for c in table.columns]
    lines = [
        r"% \usepackage{booktabs}" + (r" \usepackage{graphicx}" if wide else ""),
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{\textbf{{{escape(table.title)}.}} {escape(table.full_caption)}}}",
        rf"\label{{tab:{table.label}}}",
        *([r"\setlength{\tabcolsep}{3pt}", r"\resizebox{\textwidth}{!}{%"] if wide else []),
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        *_group_lines(table),
        " & ".join([escape(table.corner), *names]) + r" \\",
        r"\midrule",
        *_body(table),
        r"\bottomrule",
        r"\end{tabular}" + ("}" if wide else ""),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"
