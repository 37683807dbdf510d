"""_vllm_engine - runs inside vLLM's own environment: FOLDER TOKENS.json -> what the engine says, as one line of JSON.

Idea   No import of lowbit: the environment has none. One process a folder, since an engine that fails may not be tried again.
Traps  The engine must run in this process (no multiprocessing): then its error is the error of the process.
"""

import json
import os
import sys

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
MARK = "vllm_check:"
NEW_TOKENS = 16


def main(folder: str, tokens: list[int], dtype: str) -> dict[str, object]:
    """Log-probabilities of tokens 1, 2, ... given those before, and the greedy continuation."""
    import vllm

    engine = vllm.LLM(folder, dtype=dtype, skip_tokenizer_init=True, enforce_eager=True, max_model_len=512, max_num_seqs=2)
    sampling = vllm.SamplingParams(temperature=0, max_tokens=NEW_TOKENS, prompt_logprobs=0, ignore_eos=True, detokenize=False)
    (told,) = engine.generate([{"prompt_token_ids": tokens}], sampling)
    logprobs = [found[token].logprob for token, found in zip(tokens[1:], told.prompt_logprobs[1:], strict=True)]
    return {"version": vllm.__version__, "logprobs": logprobs, "tokens": list(told.outputs[0].token_ids)}


if __name__ == "__main__":
    print(MARK + json.dumps(main(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])))
