"""`python -m taste_grpc`: the `taste-grpc` command."""

from __future__ import annotations

import sys

from taste_grpc.cli import main

sys.exit(main())
