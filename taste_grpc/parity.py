"""`python -m taste_grpc.parity DIR`: does a checkpoint compute what was recorded with it?"""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from taste_grpc.errors import TasteError

if TYPE_CHECKING:
    from taste_grpc.model.parity.goldens import GoldenOutput, GoldenSet
    from taste_grpc.model.parity.runner import Comparison

NOT_GOLDEN = 2
"""Exit status when a directory is no checkpoint with recorded numbers."""
NO_SUCH_STAGE = 2
"""Exit status when there is no stage to visit."""

_DESCRIPTION = """\
Check that the checkpoint in DIR computes the numbers recorded in DIR/goldens.

DIR is a checkpoint in the published TASTE layout with a folder goldens/ beside it: index.json
lists recorded inputs and outputs of every stage and says how each is compared. Every comparable
tensor is recomputed from its recorded inputs, in float32 on the CPU, and printed as one line:
stage, name, largest absolute error, tolerance, ok or FAIL. Integers must be equal.

Use it after converting or moving a checkpoint: a wrong tensor shows in the first stage that uses it.

Exit status: 0 all comparisons hold, 1 some do not, 2 DIR is not such a directory or has no such stage.
"""


class NotGoldenError(TasteError):
    """A directory is no checkpoint with recorded numbers beside it."""


class NoSuchStageError(TasteError):
    """A pattern matches no stage of a golden set."""


class ParityCheck:
    """The comparisons of one checkpoint; iterate to run them, once.

    Args:
        directory: the checkpoint, with a folder `goldens/`.
        stage: shell pattern of the stages to visit.
        verbose: print a traceback for stages that cannot run.

    Attributes:
        values, tensors: how many listed values and tensors held, and how many were compared.

    Raises:
        NotGoldenError: it is no such directory.
        NoSuchStageError: nothing that can be compared is of a stage that matches.
    """

    def __init__(self, directory: Path, stage: str = "*", *, verbose: bool = False) -> None:
        self._directory, self._stage, self._verbose = directory, stage, verbose
        self._goldens, outputs = _read(directory)
        self.expected = len(outputs) + len(self._goldens.json_values())
        """How many comparisons there are at most."""
        _check_pattern(stage, self._goldens, outputs)
        self.values, self.tensors = (0, 0), (0, 0)

    @property
    def ok(self) -> bool:
        """Whether there was something to compare, and all of it held."""
        (values_passed, values), (passed, tensors) = self.values, self.tensors
        return (values_passed, passed) == (values, tensors) and values + tensors > 0

    def __iter__(self) -> Iterator[Comparison]:
        # imported late: what is no golden set is told without waiting for the whole model's code
        from taste_grpc.model.parity.runner import run_json, run_tensors
        from taste_grpc.model.parity.stage import Checkpoint

        checkpoint = Checkpoint(self._directory)
        for comparison in run_json(self._goldens, checkpoint, self._stage, verbose=self._verbose):
            self.values = (self.values[0] + comparison.ok, self.values[1] + 1)
            yield comparison
        for comparison in run_tensors(self._goldens, checkpoint, self._stage, verbose=self._verbose):
            self.tensors = (self.tensors[0] + comparison.ok, self.tensors[1] + 1)
            yield comparison

    def totals(self) -> list[str]:
        """The last lines of the report."""
        values = [f"{self.values[0]} of {self.values[1]} listed values ok"] if self.values[1] else []
        return [*values, f"{self.tensors[0]} of {self.tensors[1]} ok"]


def _read(directory: Path) -> tuple[GoldenSet, list[GoldenOutput]]:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import torch

    from taste_grpc.model.parity.goldens import GoldenFormatError, GoldenSet

    torch.set_num_threads(1)
    try:
        goldens = GoldenSet(directory)
        outputs = goldens.outputs()
    except GoldenFormatError as error:
        raise NotGoldenError(str(error)) from None
    except (LookupError, TypeError, AttributeError) as error:
        raise NotGoldenError(f"{directory}/goldens/index.json is not as expected: {error!r}") from None
    if not outputs:
        raise NotGoldenError(f"{directory}/goldens/index.json lists nothing to compare")
    return goldens, outputs


def _check_pattern(pattern: str, goldens: GoldenSet, outputs: list[GoldenOutput]) -> None:
    values = [entry for entry in goldens.json_values() if entry.get("compare") != "info"]
    stages = {output.stage for output in outputs} | {entry["stage"] for entry in values}
    if not fnmatch.filter(stages, pattern):
        # by their first names: there can be a hundred
        groups = sorted({re.sub(r"\..*", ".*", name) for name in stages})
        raise NoSuchStageError(f"{pattern!r} matches none of the stages: {', '.join(groups)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        check = ParityCheck(arguments.directory, arguments.stage, verbose=arguments.verbose)
    except NotGoldenError as error:
        _say(f"parity: {error}", sys.stderr)
        return NOT_GOLDEN
    except NoSuchStageError as error:
        _say(f"parity: --stage: {error}", sys.stderr)
        return NO_SUCH_STAGE
    for comparison in check:
        if not (comparison.ok and arguments.failures):
            _say(str(comparison))
    for line in check.totals():
        _say(line)
    return 0 if check.ok else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m taste_grpc.parity",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="checkpoint directory with a goldens/ folder")
    parser.add_argument("--stage", default="*", metavar="PATTERN", help="only stages that match, e.g. 'flow.*'")
    parser.add_argument("--failures", action="store_true", help="print only the lines that FAIL, and the totals")
    parser.add_argument("--verbose", action="store_true", help="print a traceback for stages that cannot run")
    return parser


def _say(line: str, to: TextIO | None = None) -> None:
    (to or sys.stdout).write(f"{line}\n")
    (to or sys.stdout).flush()


if __name__ == "__main__":
    sys.exit(main())
