"""The report of a run folder: what it records, and what its networks do, on one page.

A run writes it at its end and every `train.report_every` steps; `python -m vologan_fast.report` writes it for any run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vologan_fast.config import Config
from vologan_fast.data import Dataset
from vologan_fast.evaluation.inputs import Images, held_out_images
from vologan_fast.quantities.clouds import FIELD_OF_VIEW
from vologan_fast.quantities.observation import LOOKED_AT, Observation
from vologan_fast.report.page import write_page
from vologan_fast.report.record import RunRecord, find_grids, read_lines, read_tables, skipped_of
from vologan_fast.report.sections import of_run, of_runs
from vologan_fast.training.checkpoint import find_best, list_checkpoints, step_of
from vologan_fast.words import say_error


def held_out(dataset: Dataset, step: int = 0) -> dict[str, Images]:
    """Return the held-out images that a report looks at, with names relative to the data set's folder.

    `step` is as in `held_out_batches`.
    """
    found = held_out_images(dataset, LOOKED_AT, step)
    root = f"{dataset.root}/"
    return {
        domain: Images(images.pixels, [name.removeprefix(root) for name in images.names])
        for domain, images in found.items()
    }


def read_record(run: Path, data: str, config: Config) -> RunRecord:
    """Return what a run folder says without its networks. `data` and `config` are those of its config.json."""
    checkpoints, log = run / "checkpoints", run / "metrics.jsonl"
    best, steps = find_best(checkpoints), [step_of(path) for path in list_checkpoints(checkpoints)]
    if any(steps) and not log.exists():  # step 1 has a line in any case
        say_error(f"warning: {log}: no such file, although the run has checkpoints; the report has no curves of losses")
    return RunRecord(
        name=run.resolve().name,
        path=run,
        data=data,
        config=config,
        lines=read_lines(log),
        skipped=read_lines(run / "skipped.jsonl", skipped_of),
        grids=find_grids(run / "samples"),
        steps=steps,
        best=None if best is None else step_of(best),
        tables=read_tables(run / "evaluation"),
    )


def write_report(
    path: Path, runs: Sequence[tuple[RunRecord, Observation]], field_of_view: float = FIELD_OF_VIEW
) -> Path:
    """Write the report of a run, or the comparison of several, and return its path.

    Raises ReportError if a package is missing, and OSError if a file cannot be read or written.
    """
    records = [record for record, _ in runs]
    if len(runs) == 1:
        title, sections = f"Report of {records[0].name}", of_run(*runs[0], field_of_view)
    else:
        title, sections = f"Comparison of {len(runs)} runs", of_runs(runs, field_of_view)
    subtitle = ", ".join(f"{record.name} at step {observation.step:,}" for record, observation in runs)
    return write_page(path, title, f"vologan_fast · {subtitle}", sections)
