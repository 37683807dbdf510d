"""_gguf_writer - a GGUF file of Q4_0 matrices; cpu_model.py runs it in an environment that has the `gguf` package.

    PYTHON _gguf_writer.py GIVEN FILE SHAPE

GIVEN: an .npz of Q4_0 blocks, uint8 [out, bytes], by name. SHAPE: JSON, fields of LlamaConfig. Norms are ones.
"""

import json
import sys

import gguf
import numpy as np


def main() -> None:
    shape = json.loads(sys.argv[3])
    layers = shape["num_hidden_layers"]
    writer = gguf.GGUFWriter(sys.argv[2], "llama")
    writer.add_block_count(layers)
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["num_attention_heads"])
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_rope_dimension_count(shape["head_dim"])
    writer.add_rope_freq_base(shape["rope_theta"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(shape["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    for name, blocks in np.load(sys.argv[1]).items():
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    ones = np.ones(shape["hidden_size"], np.float32)
    for name in ("output_norm", *(f"blk.{i}.{part}" for i in range(layers) for part in ("attn_norm", "ffn_norm"))):
        writer.add_tensor(f"{name}.weight", ones)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
