"""`python -m taste_grpc.parity DIR`: does a checkpoint compute what was recorded with it?"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TextIO

_DESCRIPTION = """\
Check that the checkpoint in DIR computes the numbers recorded in DIR/goldens.

DIR is a checkpoint in the published TASTE layout with a folder goldens/ beside it: index.json
lists recorded inputs and outputs of every stage and says how each is compared. Every comparable
tensor is recomputed from its recorded inputs, in float32 on the CPU, and printed as one line:
stage, name, largest absolute error, tolerance, ok or FAIL. Integers must be equal.

Use it after converting or moving a checkpoint: a wrong tensor shows in the first stage that uses it.

Exit status: 0 all comparisons hold, 1 some do not, 2 DIR is not such a directory.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m taste_grpc.parity",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="checkpoint directory with a goldens/ folder")
    parser.add_argument("--stage", default="*", metavar="PATTERN", help="only stages that match, e.g. 'flow.*'")
    parser.add_argument("--failures", action="store_true", help="print only the lines that FAIL, and the totals")
    parser.add_argument("--verbose", action="store_true", help="print a traceback for stages that cannot run")
    arguments = parser.parse_args(argv)

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import torch

    from taste_grpc.model.parity.goldens import GoldenFormatError, GoldenSet

    torch.set_num_threads(1)
    try:
        goldens = GoldenSet(arguments.directory)
        outputs = goldens.outputs()
    except GoldenFormatError as error:
        _say(f"parity: {error}", sys.stderr)
        return 2
    except (LookupError, TypeError, AttributeError) as error:
        _say(f"parity: {arguments.directory}/goldens/index.json is not as expected: {error!r}", sys.stderr)
        return 2
    if not outputs:
        _say(f"parity: {arguments.directory}/goldens/index.json lists nothing to compare", sys.stderr)
        return 2

    # imported late: what is no golden set is told without waiting for the whole model's code
    from taste_grpc.model.parity.runner import run_json, run_tensors
    from taste_grpc.model.parity.stage import Checkpoint

    checkpoint = Checkpoint(arguments.directory)
    totals = []
    for run in (run_json, run_tensors):
        passed = total = 0
        for comparison in run(goldens, checkpoint, arguments.stage, verbose=arguments.verbose):
            passed, total = passed + comparison.ok, total + 1
            if not (comparison.ok and arguments.failures):
                _say(str(comparison))
        totals.append((passed, total))
    (values_passed, values_total), (passed, total) = totals
    if values_total:
        _say(f"{values_passed} of {values_total} listed values ok")
    _say(f"{passed} of {total} ok")
    return 0 if (passed, values_passed) == (total, values_total) and total + values_total > 0 else 1


def _say(line: str, to: TextIO | None = None) -> None:
    (to or sys.stdout).write(f"{line}\n")
    (to or sys.stdout).flush()


if __name__ == "__main__":
    sys.exit(main())
