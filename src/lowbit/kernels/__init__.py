"""kernels - packed bytes, x -> y. One file is one op for one layout on one device; reached through `dispatch` only.

Folders: reference/ (plain torch, the law), cpu/, triton/, cuda/. Contract of a file (its name is "folder.file"):
    supports(format, shape, device, dtype, tokens) -> str     "" = takes it; else the reason why not, for a person to read
    prepare(format, packed, parts, shape) -> dict[str, Tensor]     bytes of the checkpoint -> what `linear` wants, once at load
    linear(x, prepared, format, shape) -> Tensor      x [tokens, in] -> y [tokens, out] = x @ decode(W).T, without bias
    restore(prepared, format, shape) -> (packed, parts)   prepare's way back, so that a layer holds one copy of its weights
    RANK: int     among the kernels that take a layer the highest rank runs
    FORM: str     (optional) files with the same FORM prepare a layer in the same way, so one may run what another prepared:
                  a layer is prepared once, for one token; a call with more tokens goes to the file of this form that ranks
                  highest among those that take it. Without FORM a file shares with none.
    bound(prepared, format, shape) -> (x, bias) -> y      (optional) `linear` of one matrix, where all is looked up that stays
                  the same between calls; x [.., in], bias [out] or None -> y [.., out], None where it takes no such x
    missing() -> str          (optional) why this machine can never run it, as a compiler that is not there; "" where it can
Where a call fits no file of the prepared form (another dtype, too many tokens) the reference runs on what `restore` gives.
A file imports on every machine, or raises ImportError with the reason; `supports` costs next to nothing and reads no data.
`packed` is what lowbit.layouts gives for the codes (layout "dense": int32 words, little-endian bit stream along the inputs),
`parts` the scales and zeros of lowbit.formats. `packing` makes both of a Quantized and back.
"""
