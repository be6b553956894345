"""Writes tests/golden/onnx and tests/golden/safetensors with the packages of those formats.

    pip install onnx safetensors ml_dtypes && python tools/golden_weight_files.py

A tensor is named for its dtype and holds 0 … 5 as `[2 3]`, less 3 where it has a sign; booleans are odd or even.
"""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
import safetensors.numpy  # pyright: ignore[reportMissingImports]
from onnx import helper, numpy_helper  # pyright: ignore[reportMissingImports]

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
KINDS = ["bool", "bfloat16", *(f"float{bits}" for bits in (16, 32, 64))]
KINDS += [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


def values(kind: str) -> np.ndarray:
    """The values of the tensor that is named for a dtype."""
    array = np.arange(6).reshape(2, 3)
    if kind == "bool":
        return array % 2 == 1
    dtype = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else kind)
    return (array if kind.startswith("u") else array - 3).astype(dtype)


def onnx_model(tensors: list) -> "onnx.ModelProto":
    """A model of one node, with the tensors beside it."""
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "a graph", [x], [y], tensors)
    return helper.make_model(graph, producer_name="golden")


def write_onnx(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raw bytes, numbers in fields, and raw bytes in a file beside the model."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in arrays.items()}
    numbers = [helper.make_tensor(name, types[name], array.shape, array.ravel()) for name, array in arrays.items()]
    (folder / "raw.onnx").write_bytes(onnx_model(raw).SerializeToString(deterministic=True))
    (folder / "numbers.onnx").write_bytes(onnx_model(numbers).SerializeToString(deterministic=True))
    beside = folder / "external.bin"
    beside.unlink(missing_ok=True)
    external = {"save_as_external_data": True, "location": beside.name, "size_threshold": 0}
    onnx.save_model(onnx_model(raw), str(folder / "external.onnx"), **external)
    beside.chmod(0o644)


def main() -> None:
    """Writes all golden files."""
    arrays = {kind: values(kind) for kind in KINDS}
    write_onnx(GOLDEN / "onnx", arrays)
    folder = GOLDEN / "safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    arrays |= {"scalar": np.array(0.5, np.float32), "empty": np.zeros((0, 3), np.float32)}
    path = folder / "dtypes.safetensors"
    safetensors.numpy.save_file(arrays, path, {"made by": "the package"})
    path.chmod(0o644)


if __name__ == "__main__":
    main()
