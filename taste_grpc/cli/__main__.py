"""`python -m taste_grpc.cli`: the `taste-grpc` command."""

from __future__ import annotations

import sys

from taste_grpc.cli import main

if __name__ == "__main__":
    sys.exit(main())
