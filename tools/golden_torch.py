"""Writes tests/golden/torch/: small checkpoints by torch.save itself, as an oracle for the reader that does without it.

Runs where torch is installed, which this project does not need:

    python -m venv .venv-torch && .venv-torch/bin/pip install torch numpy
    .venv-torch/bin/python tools/golden_torch.py            # all of them
    .venv-torch/bin/python tools/golden_torch.py training   # one

The files here are of torch 2.13.0. What a tensor holds is `ramp` of its first value, so that the tests can say it in
a line of NumPy. Keys of legacy files are addresses in memory, so that no two runs write the same bytes.

A new file is a function with a row in FILES.
"""

import argparse
import collections
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "golden" / "torch"


def ramp(first: int, *shape: int, dtype: Any = torch.float32) -> Any:
    """first, first + 1, … in C order; a quarter of it in dtypes that hold fractions, whether it is odd as a bool."""
    values = torch.arange(first, first + int(np.prod(shape)), dtype=torch.int64).reshape(shape)
    if dtype == torch.bool:
        return values % 2 == 1
    return (values / 4 if dtype.is_floating_point else values).to(dtype)


def state() -> Any:
    """A state dict as modules give it, with `_metadata`, and a tensor of each dtype that is read."""
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2))
    tensors = module.state_dict()
    for index, name in enumerate(tensors):
        tensors[name] = ramp(index, *tensors[name].shape, dtype=tensors[name].dtype)
    kinds = "float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool uint16 uint32 uint64"
    for index, kind in enumerate(kinds.split()):
        tensors[f"kinds.{kind}"] = ramp(index, 2, 3, dtype=getattr(torch, kind))
    tensors["scalar"] = ramp(6)
    tensors["empty"] = torch.empty(0, 3)
    return tensors


def views() -> Any:
    """Tensors that share storages, begin within them, and have strides that are not those of C order."""
    matrix = ramp(0, 4, 6)
    kernel = ramp(0, 2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    halves = ramp(0, 4, 6, dtype=torch.bfloat16)
    return {
        "matrix": matrix,
        "again": matrix,
        "transposed": matrix.t(),
        "rows": matrix[1:3],
        "column": matrix[:, 2],
        "every_second": matrix[::2, 1::2].t(),
        "one": matrix[3:, 5:],
        "channels_last": kernel,
        "parameter": torch.nn.Parameter(ramp(40, 3)),
        "buffer": torch.nn.Buffer(ramp(50, 3)),
        "halves": halves[:, ::3],
        "size": matrix.shape,
    }


def training() -> Any:
    """A checkpoint of a training run in the form that wkentaro/pytorch-fcn writes, with more that such files hold."""
    module = torch.nn.Conv2d(2, 3, 1)
    with torch.no_grad():
        module.weight.copy_(ramp(0, 3, 2, 1, 1))
        module.bias.copy_(ramp(10, 3))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.ones(1, 2, 1, 1)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        module.weight.copy_(ramp(0, 3, 2, 1, 1))
        module.bias.copy_(ramp(10, 3))
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    return {
        "epoch": 3,
        "iteration": 1 << 40,
        "arch": "FCN32s",
        "optim_state_dict": optimizer.state_dict(),
        "model_state_dict": module.state_dict(),
        "best_mean_iu": np.float64(0.625),
        "confusion": np.eye(3),
        "args": argparse.Namespace(lr=0.1, out=Path("logs"), sizes=(1, 2), flags={"a"}, device=torch.device("cpu")),
        "lr_scheduler": scheduler.state_dict(),
        "rng": bytearray(b"\x00\xff"),
        "losses": collections.defaultdict(list, train=[0.5]),
        "dtype": torch.float16,
    }


def nested() -> Any:
    """Two nets in dicts of names that mean nothing to a reader."""
    return {"encoder": {"weight": ramp(0, 2)}, "heads": {"a": {"bias": ramp(5, 1)}, "b": {}}, "epoch": 1}


def unread() -> Any:
    """Tensors of sorts that are not read, beside one that is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.qint8)
    return {
        "read": ramp(0, 2),
        "complex": torch.zeros(2, dtype=torch.complex64),
        "float8": torch.zeros(2, dtype=torch.float8_e4m3fn),
        "negated": torch.zeros(2, dtype=torch.complex64).conj().imag,
        "quantised": quantised,
        "sparse": torch.eye(2).to_sparse(),
        "meta": torch.zeros(2, device="meta"),
    }


def script(path: Path) -> None:
    module = torch.nn.Linear(1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(module, torch.ones(1, 1)).save(str(path))


def zipped(value: Callable[[], Any], **options: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(value(), path, **options)


def legacy(value: Callable[[], Any], **options: Any) -> Callable[[Path], None]:
    return zipped(value, _use_new_zipfile_serialization=False, **options)


FILES: dict[str, Callable[[Path], None]] = {
    "state": zipped(state),
    "state-legacy": legacy(state),
    "state-protocol4": zipped(state, pickle_protocol=4),
    "views": zipped(views),
    "views-legacy": legacy(views),
    "training": zipped(training),
    "training-legacy": legacy(training),
    "training-protocol5": zipped(training, pickle_protocol=5),
    "nested": zipped(nested),
    "unread": zipped(unread),
    "script": script,
}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or FILES:
        path = FOLDER / f"{name}.pth"
        FILES[name](path)
        print(f"{path.stat().st_size:7} {path.name}")


if __name__ == "__main__":
    main()
