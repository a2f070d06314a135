"""Tables of a page: their headers are buttons that sort, and a line above them filters. Without a script they are plain tables."""

from __future__ import annotations

import html
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from influx.report.tables import significant

LONG, LONGEST = 40, 200  # characters from which a cell is broken into lines, and gets more room for them
MOST_CHOICES = 12  # values of a column that a choice above the table lists
FEW = 12  # rows up to which nothing needs a filter


def table(
    name: str,
    rows: pd.DataFrame,
    *,
    caption: str,
    choices: Sequence[str] = (),
    chosen: Mapping[str, str] | None = None,
    code: Collection[str] = (),
    headings: Mapping[str, str] | None = None,
) -> str:
    """A table with its filters.

    `choices` are columns that can be filtered by value, `chosen` what is chosen at first, `code` the columns that hold commands.
    Numbers are shown to three significant digits; what sorts them is the whole number, in `data-value`.
    """
    headings = headings or {}
    head = "".join(_heading(headings.get(str(column), _words(str(column))), _numeric(rows[column])) for column in rows)
    body = "".join(_row(row, rows, code) for row in rows.to_dict("records"))
    return (
        f'<div class="table" id="{name}">{_filters(name, rows, choices, chosen or {}, headings)}'
        f'<div class="scroll" role="region" aria-labelledby="{name}-caption" tabindex="0"><table>'
        f'<caption id="{name}-caption">{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></div>\n"
    )


def definitions(pairs: Mapping[str, str]) -> str:
    """Names and what they stand for."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs.items() if value)
    return f'<dl class="facts">{items}</dl>\n'


def escape(text: Any) -> str:
    return html.escape(str(text))


def _filters(name: str, rows: pd.DataFrame, choices: Sequence[str], chosen: Mapping[str, str], headings: Mapping[str, str]) -> str:
    """Nothing for a table of few rows."""
    if len(rows) <= FEW:
        return ""
    parts = []
    for column in choices:
        values = [value for value in dict.fromkeys(map(_text, rows[column])) if value]
        if not 1 < len(values) <= MOST_CHOICES:
            continue
        options = "".join(
            f'<option value="{escape(value)}"{" selected" if chosen.get(column) == value else ""}>{escape(value)}</option>'
            for value in values
        )
        label = escape(headings.get(column, _words(column)))
        where = list(rows.columns).index(column)
        parts.append(f'<label>{label} <select data-column="{where}"><option value="">all</option>{options}</select></label>')
    search = f'<label>rows with <input type="search" name="{name}-search" autocomplete="off"></label>'
    return f'<div class="filters">{"".join(parts)}{search}<span class="count" role="status"></span></div>'


def _heading(words: str, numeric: bool) -> str:
    number = ' class="number"' if numeric else ""
    return f'<th scope="col" aria-sort="none"{number}><button type="button">{escape(words)}</button></th>'


def _row(row: Mapping[Any, Any], rows: pd.DataFrame, code: Collection[str]) -> str:
    return f"<tr>{''.join(_cell(value, _numeric(rows[column]), column in code) for column, value in row.items())}</tr>"


def _cell(value: Any, numeric: bool, code: bool) -> str:
    if numeric:
        missing = pd.isna(value)
        exact = "" if missing else f' data-value="{value!r}"' if isinstance(value, float) else f' data-value="{value}"'
        return f'<td class="number"{exact}>{"" if missing else _shown(value)}</td>'
    text = escape(_text(value))
    if code and text:
        return f'<td class="command"><code>{text}</code></td>'
    size = "longest" if len(text) > LONGEST else "long" if len(text) > LONG else ""
    return f'<td class="{size}">{text}</td>' if size else f"<td>{text}</td>"


def _shown(value: float) -> str:
    return significant(value) if isinstance(value, float) else str(value)


def _numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)


def _text(value: Any) -> str:
    return "" if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)) else str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")
