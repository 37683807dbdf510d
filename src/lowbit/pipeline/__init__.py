"""pipeline - recipe + checkpoint -> checkpoint, one decoder block at a time; knows no method by name.

source    MODEL (Hub id or folder) -> folder, config, skeleton, architecture
text      text, jsonl, datasets name, "generated", "bundled", A+B -> windows of tokens
stream    one block over all windows, paused at each stage so that every stage sees the inputs it will really get
blocks    one block's weights in, methods applied, one block's packed tensors out
turned    the whole model in another basis, before its blocks stream; online: what changes inputs while running
journal   what is finished, so that a killed run goes on
writer    the work folder: shards while the run goes on, a complete folder at its end
closing   the guards: the written folder, read back block by block, against the original
quantize  the whole run
"""
