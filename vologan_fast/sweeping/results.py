"""What a sweep has found: a table for the terminal, a CSV file, and a page with plots that needs no network."""

from __future__ import annotations

import csv
import html
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Column, Table
from rich.text import Text

from vologan_fast.files import write_whole
from vologan_fast.sweeping.outcome import FINISHED
from vologan_fast.sweeping.study import Record, folder_of
from vologan_fast.words import in_a_sentence, printable

if TYPE_CHECKING:
    import optuna

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 75rem; padding: 0 1rem;
  overflow-wrap: anywhere }}
table {{ border-collapse: collapse; font-size: 85% }} .wide {{ overflow-x: auto }}
td, th {{ border-bottom: 1px solid #ccc; padding: .2rem .6rem; text-align: left; white-space: nowrap }}
</style></head><body>
<h1>{title}</h1>
<p>{summary}</p>
{parts}
</body></html>
"""


_AXIS_REM = 7
"""The least distance of the axes of parallel coordinates, in rem. On a phone, they are moved sideways."""


def table(record: Record) -> Table:
    """Return the trials as a table, the best first, then those without a value."""
    header, rows = _rows(record)
    shown = Table(*(Column(Text(printable(name))) for name in header))
    for row in rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    return shown


def write_results(record: Record, title: str) -> Path:
    """Write trials.csv and sweep.html into the folder of the sweep, and return the path of the page. Raises OSError."""
    header, rows = _rows(record)
    lines = io.StringIO()
    csv.writer(lines).writerows([header, *rows])
    write_whole(record.out / "trials.csv", lines.getvalue().encode())
    page = record.out / "sweep.html"
    cells = [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    names = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    parts = [f'<div class="wide"><table><tr>{names}</tr>\n{chr(10).join(cells)}\n</table></div>', *_plots(record.study)]
    text = _PAGE.format(title=html.escape(title), summary=html.escape(summary(record)), parts="\n".join(parts))
    write_whole(page, text.encode())
    return page


def summary(record: Record) -> str:
    """Return a sentence that says how many trials there are, and which is the best."""
    settings, trials = record.space.settings, _sorted(record)
    found = f"{record.ended} of {settings.trials} trials have ended"
    finished = [trial for trial in trials if trial.user_attrs.get("outcome") == FINISHED]
    if not finished:
        return f"{found}, none of them with a value."
    best = finished[0]
    return (
        f"{found}, {len(finished)} of them with a value of {settings.objective} ({settings.direction}). "
        f"The best is trial {folder_of(best)} with {best.value:.6g}, in {record.run_folder(best)}."
    )


def _sorted(record: Record) -> list[optuna.trial.FrozenTrial]:
    sign = 1 if record.space.settings.direction == "minimize" else -1

    def key(trial: optuna.trial.FrozenTrial) -> tuple[bool, float, int]:
        finished = trial.user_attrs.get("outcome") == FINISHED and trial.value is not None
        return not finished, sign * (trial.value or 0.0) if finished else 0.0, folder_of(trial)

    return sorted(record.latest(), key=key)


def _rows(record: Record) -> tuple[list[str], list[list[str]]]:
    options = [parameter.option for parameter in record.space.parameters]
    rows = []
    for trial in _sorted(record):
        outcome = trial.user_attrs.get("outcome", trial.state.name.lower())
        value = f"{trial.value:.6g}" if outcome == FINISHED and trial.value is not None else ""
        cells = [_cell(trial.params.get(option, "")) for option in options]
        rows.append([str(folder_of(trial)), outcome, value, *cells, str(trial.user_attrs.get("reason", ""))])
    return ["trial", "outcome", record.space.settings.objective, *options, "reason"], rows


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plots(study: optuna.study.Study) -> Iterator[str]:
    """Yield the plots as parts of a page, or a sentence where there is none. The first one has all of plotly.js."""
    import plotly.io
    from optuna import visualization

    titles: Sequence[tuple[str, Any]] = (
        ("Importance of the options", visualization.plot_param_importances),
        ("All trials that finished, in parallel coordinates", visualization.plot_parallel_coordinate),
        ("The best value over the trials", visualization.plot_optimization_history),
        ("Values while they trained", visualization.plot_intermediate_values),
    )
    include = True
    for title, plot in titles:
        yield f"<h2>{title}</h2>"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                figure = plot(study)
            figure.update_layout(title=None, margin_t=40, legend={"orientation": "h", "y": 1.15})
            least = 0
            if plot is visualization.plot_parallel_coordinate:
                figure.update_layout(plot_bgcolor="#b8c0cc")  # the line of the worst trial is white
                least = _AXIS_REM * (1 + max(len(trial.params) for trial in study.trials))
            # The bar has buttons that lead to other hosts.
            options = {"displayModeBar": False, "responsive": True}
            part: str = plotly.io.to_html(figure, options, full_html=False, include_plotlyjs=include)
        except Exception as error:  # of many types: too few trials, or all with equal values
            yield f"<p>No plot: {html.escape(in_a_sentence(error))}.</p>"
            continue
        include = False
        yield f'<div class="wide"><div style="min-width: {least}rem">{part}</div></div>'
