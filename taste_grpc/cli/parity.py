"""`taste-grpc parity`."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taste_grpc.cli.connection import JsonOption
from taste_grpc.cli.failure import FAILURE, usage_error
from taste_grpc.cli.progress import ProgressLine

if TYPE_CHECKING:
    from taste_grpc.model.parity.runner import Comparison


def parity(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint directory with a goldens/ folder.")],
    stage: Annotated[str, typer.Option(metavar="PATTERN", help="Only stages that match, e.g. 'flow.*'.")] = "*",
    failures: Annotated[bool, typer.Option("--failures", help="Print only what fails, and the totals.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check that a checkpoint computes the numbers recorded with it.

    There is a line for each comparison, with --json an object; the last has the totals.
    """
    from taste_grpc.parity import NoSuchStageError, NotGoldenError, ParityCheck

    # Lines that come one by one show how far it is.
    silent = failures or not sys.stdout.isatty()
    with ProgressLine(shown=silent and not as_json) as progress:
        progress.say("loading")
        try:
            check = ParityCheck(directory, stage)
        except NotGoldenError as error:
            raise usage_error("DIR", str(error)) from None
        except NoSuchStageError as error:
            raise usage_error("--stage", str(error)) from None
        for count, comparison in enumerate(check, 1):
            progress.say(comparison.stage, count, check.expected)
            if not (comparison.ok and failures):
                typer.echo(_as_json(comparison) if as_json else str(comparison))
    if as_json:
        (values_ok, values), (tensors_ok, tensors) = check.values, check.tensors
        totals = {"values": values, "values_ok": values_ok, "tensors": tensors, "tensors_ok": tensors_ok}
        typer.echo(json.dumps({**totals, "ok": check.ok}))
    else:
        typer.echo("\n".join(check.totals()))
    if not check.ok:
        raise typer.Exit(FAILURE)


def _as_json(comparison: Comparison) -> str:
    error = comparison.error if math.isfinite(comparison.error) else None  # JSON knows no infinity
    return json.dumps({**asdict(comparison), "error": error})
