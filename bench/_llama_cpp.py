"""_llama_cpp - a whole model decoded by llama.cpp, timed on demand; cpu_model.py runs it where llama-cpp-python is.

    PYTHON _llama_cpp.py FILE THREADS CONTEXT TOKENS

It reads a prompt of CONTEXT tokens, 1, 2, 3 ..; prints the logits of its last token as text, then for each line on stdin
the seconds of TOKENS more tokens, each the likeliest. It needs numpy and llama-cpp-python alone.
"""

import sys
import time
from typing import Any

import llama_cpp as engine
import numpy as np


def logits(context: Any, words: int) -> Any:
    return np.ctypeslib.as_array(engine.llama_get_logits_ith(context, -1), (words,))


def feed(context: Any, tokens: list[int]) -> None:
    held = (engine.llama_token * len(tokens))(*tokens)
    if engine.llama_decode(context, engine.llama_batch_get_one(held, len(tokens))):
        sys.exit("llama_decode failed")


def main() -> None:
    file, (threads, length, count) = sys.argv[1], map(int, sys.argv[2:])
    engine.llama_backend_init()
    model = engine.llama_model_load_from_file(file.encode(), engine.llama_model_default_params())
    told = engine.llama_context_default_params()
    told.n_ctx, told.n_batch, told.n_threads, told.n_threads_batch = 1024, length, threads, threads
    context = engine.llama_init_from_model(model, told)
    words = engine.llama_vocab_n_tokens(engine.llama_model_get_vocab(model))
    feed(context, list(range(1, length + 1)))
    print(" ".join(f"{v:.5g}" for v in logits(context, words)), flush=True)
    for _ in sys.stdin:
        engine.llama_memory_seq_rm(engine.llama_get_memory(context), 0, length, -1)
        token, start = 1, time.perf_counter()
        for _ in range(count):
            feed(context, [token])
            token = int(logits(context, words).argmax())
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
