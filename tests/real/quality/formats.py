"""How Kaito and llama.cpp hold weights and activations: quantised by their own code, and read back as numbers."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import dequantize

GROUP, ROWS = 128, 16
CODEBOOK = np.array([-21, -17, -14, -11, -8, -6, -4, -2, 0, 2, 4, 6, 8, 11, 14, 19], np.int8)
MULTIPLIERS = np.array([3, 4, 5, 6, -3, -4, -5, -6], np.int8)


def padded(matrix: np.ndarray, columns: int) -> np.ndarray:
    return np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % columns)))


HADAMARD = np.ones((1, 1))
while len(HADAMARD) < GROUP:
    HADAMARD = np.block([[HADAMARD, HADAMARD], [HADAMARD, -HADAMARD]])


def rotated(matrix: np.ndarray) -> np.ndarray:
    """The Walsh-Hadamard transform of each group of 128 columns, in 64 bits."""
    return (matrix.reshape(-1, GROUP).astype(np.float64, copy=False) @ HADAMARD).reshape(matrix.shape)


class Ours:
    """`int8` and `int4`: weights by the program `quantize`, read as the kernels' documentation lays them out."""

    def __init__(self, program: Path):
        self.program = program

    def weights(self, matrix: np.ndarray, name: str) -> np.ndarray:
        rows, cols = matrix.shape
        source = np.ascontiguousarray(matrix, "<f4").tobytes()
        command = [self.program, name, str(rows), str(cols)]
        data = np.frombuffer(subprocess.run(command, input=source, stdout=subprocess.PIPE, check=True).stdout, np.uint8)
        blocks, groups = -(-rows // ROWS), -(-cols // GROUP)
        quants, side = {"int8": (ROWS * GROUP, 32), "int4": (ROWS * GROUP // 2, 80)}[name]
        sides = data[blocks * groups * quants:].reshape(blocks, groups, side)
        quants = data[:blocks * groups * quants]
        scales = (sides[..., :32].copy().view("<u2").astype(np.uint32) << 16).view(np.float32)
        if name == "int8":
            # [block][group][quad][row][column of the quad]
            numbers = (quants ^ 128).view(np.int8).reshape(blocks, groups, GROUP // 4, ROWS, 4)
        else:
            pairs = quants.reshape(blocks, groups, GROUP // 8, 1, ROWS, 4)
            nibbles = np.concatenate([pairs & 15, pairs >> 4], 3).reshape(blocks, groups, GROUP // 4, ROWS, 4)
            planes = sides[..., 32:].reshape(blocks, groups, 3, ROWS)
            subgroups = np.arange(8)[:, None]
            magnitudes = planes[:, :, np.arange(8) // 4] >> (2 * (subgroups % 4)).astype(np.uint8) & 3
            signs = planes[:, :, 2:3] >> subgroups.astype(np.uint8) & 1
            multipliers = MULTIPLIERS[magnitudes + 4 * signs]
            # Four quads are a subgroup. No product is larger than 21 * 6.
            numbers = CODEBOOK[nibbles] * multipliers.repeat(4, 2)[..., None]
        # [block][row][group][column]
        numbers = numbers.transpose(0, 3, 1, 2, 4).reshape(blocks, ROWS, groups, GROUP)
        values = numbers * scales.transpose(0, 2, 1)[..., None]
        values = rotated(values.reshape(blocks * ROWS, groups * GROUP))[:rows, :cols] / GROUP
        return values.astype(np.float32)

    @staticmethod
    def activations(values: np.ndarray) -> np.ndarray:
        return rotated(eight_bits(rotated(padded(values, GROUP)), GROUP))[:, :values.shape[1]] / GROUP


class Rounded:
    """Weights in bf16, as a model is published, and activations as `--compute` has them."""

    @staticmethod
    def weights(matrix: np.ndarray, _: str) -> np.ndarray:
        return to_bf16(matrix)


def to_bf16(values: np.ndarray) -> np.ndarray:
    """Each number rounded to the nearest of 8 bits of precision, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def eight_bits(values: np.ndarray, group: int) -> np.ndarray:
    groups = values.reshape(-1, group)
    scales = np.abs(groups).max(1, keepdims=True) / 127
    scales[scales == 0] = 1
    return (np.rint(groups / scales) * scales).reshape(values.shape)


class LlamaCpp:
    """llama.cpp's formats by its own library. A matrix is quantised as if its rows had 256 columns, so that formats whose blocks have as
    many can be compared on a model whose rows are no multiple of it; where llama.cpp would take another format, with more bits."""

    def __init__(self, library: Path):
        self.quantize = ctypes.CDLL(str(library)).ggml_quantize_chunk
        self.quantize.restype = ctypes.c_size_t
        self.quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]

    def weights(self, matrix: np.ndarray, name: str) -> np.ndarray:
        source = np.ascontiguousarray(matrix, np.float32).reshape(-1, 256)
        target = np.zeros(2 * source.size, np.uint8)
        kind = Kind[name]
        size = self.quantize(int(kind), source.ctypes.data, target.ctypes.data, 0, source.shape[0], 256, None)
        return dequantize(target[:size].reshape(source.shape[0], -1), kind).reshape(matrix.shape).astype(np.float32)

    @staticmethod
    def activations(values: np.ndarray, group: int) -> np.ndarray:
        """In groups of 32 (Q8_0) or 256 (Q8_K)."""
        return eight_bits(padded(values, group), group)[:, :values.shape[1]]
