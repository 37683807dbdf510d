"""_build - CUDA C++ compiled at run time by NVRTC and launched by the driver, through the cuda-bindings that torch brings.

Idea      A kernel is one .cu file of this folder and its macros; compiled once a process for each set of macros, to machine
          code of the device at hand. A launch may overlap the kernel before it (programmatic dependent launch): the .cu file
          waits itself before it reads what other kernels write.
Traps     The stream is torch's current one, so capture into CUDA graphs works once a kernel has been compiled by a first call.
"""

import ctypes
import functools
import importlib.util
import struct
from importlib import resources

import torch
from torch import Tensor

from lowbit.core.errors import KernelUnavailable

Macros = tuple[tuple[str, int], ...]
WEIGHTS = "weights.cuh"
SHARED = 227 << 10
"""Bytes of shared memory that a block can have on Hopper, what the .cu file declares itself included."""
DECLARED = 1 << 10
"""Of them at most what a .cu file declares itself, with the gap before the rest."""
THREADS, BLOCKS = 1024, (2**31 - 1, 65535, 65535)
"""Threads of a block and blocks of a grid (x, y, z) at most."""


@functools.cache
def missing() -> str:
    """What is not installed, or ""."""
    try:
        found = importlib.util.find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:
        found = False
    return "" if found else "cuda-bindings is not installed"


def not_hopper(device: torch.device) -> str:
    """Why wgmma cannot run on a device, or ""."""
    if device.type != "cuda" or torch.version.hip is not None:
        return f"device {device.type} is not an NVIDIA GPU"
    if torch.cuda.get_device_capability(device)[0] != 9:
        return "the GPU is not Hopper (compute capability 9), whose wgmma no other has"
    return ""


def impossible(grid: tuple[int, int, int], threads: int, shared: int) -> str:
    """Why no Hopper GPU can launch such a grid of blocks, or ""; shared: bytes of dynamic shared memory of a block."""
    if not all(1 <= n <= most for n, most in zip(grid, BLOCKS, strict=True)):
        return f"a grid of {' x '.join(map(str, grid))} blocks; each side is at least 1 and at most {BLOCKS}"
    if not 1 <= threads <= THREADS:
        return f"{threads} threads a block; 1 to {THREADS} can be"
    room = SHARED - DECLARED
    return "" if 0 <= shared <= room else f"{shared} bytes of shared memory a block; {room} are there"


def _checked(result, what: str):  # type: ignore[no-untyped-def]
    """The values after the error code of a driver or compiler call. Raises KernelUnavailable."""
    code, *values = result
    if int(code) != 0:
        raise KernelUnavailable(f"{what}: CUDA answers {code.name}. Update the driver, or use another kernel.")
    return values[0] if len(values) == 1 else values


def _compiled(file: str, macros: Macros, capability: tuple[int, int]) -> bytes:
    """Machine code of a .cu file."""
    from cuda.bindings import nvrtc

    here = resources.files(__package__)
    source = here.joinpath("instructions.cuh").read_bytes() + here.joinpath(file).read_bytes()
    included = [here.joinpath(WEIGHTS).read_bytes()], [WEIGHTS.encode()]
    program = _checked(nvrtc.nvrtcCreateProgram(source, file.encode(), 1, *included), file)
    architecture = f"sm_{capability[0]}{capability[1]}" + ("a" if capability[0] >= 9 else "")
    options = [f"-arch={architecture}".encode(), b"-std=c++17", *(f"-D{name}={value}".encode() for name, value in macros)]
    (code,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if int(code) != 0:
        log = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program), file)
        _checked(nvrtc.nvrtcGetProgramLog(program, log), file)
        raise KernelUnavailable(
            f"{file} with {dict(macros)} for {architecture}: {log.decode()}. This is a bug of lowbit; report it."
        )
    binary: bytes = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program), file)
    _checked(nvrtc.nvrtcGetCUBIN(program, binary), file)
    _checked(nvrtc.nvrtcDestroyProgram(program), file)
    return binary


class Kernel:
    """One function of a compiled file on one device."""

    def __init__(self, file: str, function: str, macros: Macros, device: int) -> None:
        from cuda.bindings import driver

        with torch.cuda.device(device):
            if not torch.cuda.is_current_stream_capturing():
                torch.cuda.current_stream().synchronize()  # makes the device's context the current one
            binary = _compiled(file, macros, torch.cuda.get_device_capability(device))
            self._module = _checked(driver.cuModuleLoadData(binary), file)
            self._function = _checked(driver.cuModuleGetFunction(self._module, function.encode()), function)
        self._driver = driver
        self._name = function
        self._shared = 0  # the 48 KB that every kernel may have hold what the .cu file declares itself too

    def allow_shared(self, size: int) -> None:
        """Let a block have `size` bytes of shared memory beside what the .cu file declares."""
        if size > self._shared:
            attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _checked(self._driver.cuFuncSetAttribute(self._function, attribute, size), f"{self._name} with {size} bytes")
            self._shared = size

    def launch(
        self,
        grid: tuple[int, int, int],
        threads: int,
        arguments: "tuple[int | TensorMap, ...]",
        shared: int = 0,
        overlap: bool = False,
    ) -> None:
        """Run on torch's current stream. arguments: `Pointer`s, 32-bit integers, a `TensorMap`, in the order of the .cu file.

        overlap: may start before the kernel before it has ended. Raises KernelUnavailable.
        """
        driver = self._driver
        reason = impossible(grid, threads, shared)
        if reason:
            raise KernelUnavailable(f"{self._name}: {reason}. This is a bug of lowbit; report it with the shapes.")
        self.allow_shared(shared)
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
        config.sharedMemBytes = shared
        config.hStream = torch.cuda.current_stream().cuda_stream
        config.attrs = _attributes(overlap)
        config.numAttrs = len(config.attrs)
        values = tuple(a if isinstance(a, TensorMap) else int(a) for a in arguments)
        _checked(driver.cuLaunchKernelEx(config, self._function, (values, tuple(map(_type_of, arguments))), 0), self._name)


def _type_of(argument: "int | TensorMap"):  # type: ignore[no-untyped-def]
    if isinstance(argument, TensorMap):
        return None  # takes getPtr()
    return ctypes.c_void_p if isinstance(argument, Pointer) else ctypes.c_int


def float_bits(value: float) -> int:
    """A float32 among the integers of a launch."""
    found: int = struct.unpack("i", struct.pack("f", value))[0]
    return found


class Pointer(int):
    """An address of device memory among the arguments of a launch."""


class TensorMap:
    """A matrix of 16-bit numbers as the tensor copy engine reads it: boxes of `box` rows by 64 columns, swizzled by 128 bytes.

    Rows and columns beyond the matrix are zeros. The driver wants 128 bytes that begin at a multiple of 64.
    """

    def __init__(self, matrix: Tensor, box: int) -> None:
        rows, columns = matrix.shape
        self._fill(matrix, (columns, rows), (columns,), (64, box))

    @classmethod
    def of_pairs(cls, matrix: Tensor, sixteens: int) -> "TensorMap":
        """Rows as sixteens of four fours; a box has two rows of each four of `sixteens` sixteens (copy_pairs in .cu files)."""
        (rows, columns), made = matrix.shape, cls.__new__(cls)
        made._fill(matrix, (columns, 4, 4, rows // 16), (columns, 4 * columns, 16 * columns), (64, 2, 4, sixteens))
        return made

    def _fill(self, matrix: Tensor, sizes: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...]) -> None:
        """sizes, strides (but the first, which is 1) and box: from the columns outwards."""
        self._bytes = ctypes.create_string_buffer(128 + 64)
        at = ctypes.addressof(self._bytes)
        self._at = at + -at % 64
        words, halves, rank = ctypes.c_uint64, ctypes.c_uint32, len(sizes)
        uint16, no_interleave, swizzle_128, promote_256, zeros = 1, 0, 3, 3, 0
        code = _libcuda().cuTensorMapEncodeTiled(
            ctypes.c_void_p(self._at), uint16, rank, ctypes.c_void_p(matrix.data_ptr()), (words * rank)(*sizes),
            (words * (rank - 1))(*[2 * stride for stride in strides]), (halves * rank)(*box), (halves * rank)(*[1] * rank),
            no_interleave, swizzle_128, promote_256, zeros,
        )  # fmt: skip
        if code:
            raise KernelUnavailable(f"a tensor map of {sizes}: CUDA answers error {code}. Use another kernel.")

    def getPtr(self) -> int:  # the name that cuda-bindings asks for
        return self._at


@functools.cache
def _libcuda() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


@functools.cache
def _attributes(overlap: bool):  # type: ignore[no-untyped-def]
    from cuda.bindings import driver

    found = []
    if overlap:
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        found.append(attribute)
    return found


def counters(device: torch.device, number: int) -> Tensor:
    """Zeros where blocks count who came; every launch leaves zeros. Launches on two streams at once must not share them.

    Made in one piece by a first call, so that no capture of a graph makes them anew: to be zero when it is replayed alone.
    """
    return _zeros(device, max(1 << 16, 1 << number.bit_length()))[:number]


@functools.cache
def _zeros(device: torch.device, number: int) -> Tensor:
    return torch.zeros(number, dtype=torch.int32, device=device)


@functools.cache
def kernel(file: str, function: str, macros: Macros, device: int) -> Kernel:
    """The function of a .cu file of this folder, compiled with `macros`."""
    return Kernel(file, function, macros, device)
