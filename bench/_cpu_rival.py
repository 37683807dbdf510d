"""_cpu_rival - one layer of another engine, timed on demand; cpu_linear.py runs it in that engine's own environment.

    PYTHON _cpu_rival.py ENGINE ROWS INPUTS BITS GROUP TOKENS THREADS COPIES [FOLDER]

For each line on stdin it runs the layer once on each of COPIES sets of weights and prints the median of their milliseconds;
of one set the least of several calls.
ENGINE: onnxruntime, openvino, or ggml (FOLDER: where libggml-cpu.so is; Q4_0, repacked where ggml repacks, whatever BITS).
It needs numpy and the engine alone, neither torch nor lowbit.
"""

import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[], object]
AGAIN = 12


def onnxruntime(rows: int, inputs: int, bits: int, group: int, tokens: int, threads: int, folder: str) -> Call:
    """MatMulNBits with activations of 8 bits, its fastest."""
    import onnxruntime as engine
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (rows, inputs // group, group * bits // 8), dtype=np.uint8)
    scales = random.random(rows * inputs // group, dtype=np.float32) / 100
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=inputs, N=rows, bits=bits, block_size=group,
        accuracy_level=4,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [tokens, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [tokens, rows])],
        [numpy_helper.from_array(codes, "w"), numpy_helper.from_array(scales, "s")],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    options = engine.SessionOptions()
    options.intra_op_num_threads = threads
    session = engine.InferenceSession(model.SerializeToString(), options)
    x = {"x": random.standard_normal((tokens, inputs), dtype=np.float32)}
    return lambda: session.run(None, x)


def openvino(rows: int, inputs: int, bits: int, group: int, tokens: int, threads: int, folder: str) -> Call:
    """Compressed weights of 4 bits, activations quantized on the way."""
    import openvino as engine
    from openvino import opset13 as op

    random = np.random.default_rng(0)
    shape = [rows, inputs // group, group]
    codes = random.integers(0, 16, shape, dtype=np.uint8)
    packed = (codes.reshape(-1)[::2] | codes.reshape(-1)[1::2] << 4).astype(np.uint8)
    weight = op.constant(engine.Tensor(packed, engine.Shape(shape), engine.Type.u4))
    zero = op.constant(np.full([rows, inputs // group, 1], 8, np.float16))
    scale = op.constant((random.random([rows, inputs // group, 1]) / 100).astype(np.float16))
    values = op.multiply(op.subtract(op.convert(weight, "f16"), zero), scale)
    dense = op.convert(op.reshape(values, op.constant(np.array([rows, inputs])), False), "f32")
    x = op.parameter([tokens, inputs], np.float32, "x")
    model = engine.Model([op.matmul(x, dense, False, True)], [x])
    told = {"INFERENCE_NUM_THREADS": threads, "DYNAMIC_QUANTIZATION_GROUP_SIZE": group, "NUM_STREAMS": 1}
    request = engine.Core().compile_model(model, "CPU", told).create_infer_request()
    request.set_input_tensor(engine.Tensor(random.standard_normal((tokens, inputs), dtype=np.float32)))
    return lambda: request.infer()


class Parameters(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Pool(ctypes.Structure):
    """ggml_threadpool_params."""

    _fields_ = (
        ("mask", ctypes.c_bool * 512), ("threads", ctypes.c_int), ("priority", ctypes.c_int), ("poll", ctypes.c_uint32),
        ("strict", ctypes.c_bool), ("paused", ctypes.c_bool),
    )  # fmt: skip


def ggml(rows: int, inputs: int, bits: int, group: int, tokens: int, threads: int, folder: str) -> Call:
    """Q4_0 in the buffer that repacks it for this processor."""
    base, cpu = (ctypes.CDLL(str(Path(folder) / f"libggml-{part}.so"), ctypes.RTLD_GLOBAL) for part in ("base", "cpu"))

    def call(library: Any, name: str, *arguments: Any) -> Any:
        found = getattr(library, name)
        found.restype = ctypes.c_void_p
        return found(*(ctypes.c_void_p(a) if type(a) is int and a >> 31 else a for a in arguments))

    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    size = ctypes.c_int64
    weights, work = (call(base, "ggml_init", Parameters(1 << 20, None, True)) for _ in range(2))
    w = call(base, "ggml_new_tensor_2d", weights, 2, size(inputs), size(rows))
    registry = call(cpu, "ggml_backend_cpu_reg")
    device = call(base, "ggml_backend_reg_dev_get", registry, ctypes.c_size_t(0))
    extra = call(base, "ggml_backend_reg_get_proc_address", registry, b"ggml_backend_dev_get_extra_bufts")
    kinds = ctypes.cast(ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(extra)(device), ctypes.POINTER(ctypes.c_void_p))
    call(base, "ggml_backend_alloc_ctx_tensors_from_buft", weights, kinds[0])
    floats = np.random.default_rng(0).standard_normal((rows, inputs), dtype=np.float32)
    packed = np.empty(rows * inputs // 32 * 18, np.uint8)
    at = ctypes.c_void_p(packed.ctypes.data)
    base.ggml_quantize_chunk(2, ctypes.c_void_p(floats.ctypes.data), at, size(0), size(rows), size(inputs), None)
    base.ggml_backend_tensor_set(ctypes.c_void_p(w), at, ctypes.c_size_t(0), ctypes.c_size_t(packed.nbytes))
    backend = call(cpu, "ggml_backend_cpu_init")
    x = call(base, "ggml_new_tensor_2d", work, 0, size(inputs), size(tokens))
    graph = call(base, "ggml_new_graph", work)
    call(base, "ggml_build_forward_expand", graph, call(base, "ggml_mul_mat", work, w, x))
    call(base, "ggml_backend_alloc_ctx_tensors", work, backend)
    given = np.random.default_rng(1).standard_normal((tokens, inputs), dtype=np.float32)
    base.ggml_backend_tensor_set(
        ctypes.c_void_p(x), ctypes.c_void_p(given.ctypes.data), ctypes.c_size_t(0), ctypes.c_size_t(given.nbytes)
    )
    base.ggml_threadpool_params_default.restype = Pool
    told = base.ggml_threadpool_params_default(threads)
    call(cpu, "ggml_backend_cpu_set_n_threads", backend, threads)
    call(cpu, "ggml_backend_cpu_set_threadpool", backend, call(cpu, "ggml_threadpool_new", ctypes.byref(told)))
    run, held = base.ggml_backend_graph_compute, (ctypes.c_void_p(backend), ctypes.c_void_p(graph))
    return lambda: run(*held)


def main() -> None:
    engine, *numbers = sys.argv[1:9]
    *layer, copies = map(int, numbers)
    folder = sys.argv[9] if len(sys.argv) > 9 else ""
    calls = [globals()[engine](*layer, folder) for _ in range(copies)]
    for call in calls:
        call()
    print("ready", flush=True)
    for _ in sys.stdin:
        found = []
        for call in calls if copies > 1 else calls * AGAIN:
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
        print((statistics.median(found) if copies > 1 else min(found)) * 1e3, flush=True)


if __name__ == "__main__":
    main()
