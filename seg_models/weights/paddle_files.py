"""Paddle's files of weights (`.pdparams`) without Paddle: pickled tables from name to numpy array.

A pickle is a program, and numpy's own way to read an array trusts what it is told about memory. So nothing of the file
is looked up in a module: the few names that such a table needs stand for classes of this file, which check what they
are given and hold bytes; any other name is refused before it is imported.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NAME_TABLE = "StructuredToParameterName@@"
"""Entry that paddle.save adds: name -> name inside Paddle."""
KINDS = {f"{kind}{size}" for kind, sizes in {"f": "248", "i": "1248", "u": "1"}.items() for size in sizes} | {"b1"}
"""numpy's names of the element types that a tensor of weights may have."""


def load_paddle(path: Path) -> dict[str, Tensor]:
    """The named tensors of a file that `paddle.save` wrote of a state dict, in file order; no code of it runs.

    Raises:
        ValueError: it is no pickle, or holds anything but numpy arrays under their names.
    """
    try:
        with path.open("rb") as file:
            content = _Unpickler(file).load()
        return _tensors(content)
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean, MemoryError too
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"weights {path} cannot be read: {reason}") from error


def _tensors(content: object) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        raise pickle.UnpicklingError(f"it holds no table of named arrays but a {type(content).__name__}")
    named = {name: value for name, value in content.items() if name != NAME_TABLE}
    for name, value in named.items():
        if not isinstance(name, str) or not isinstance(value, _Array) or value.array is None:
            raise pickle.UnpicklingError(f"entry {name!r} is no array but a {type(value).__name__}")
    return {name: torch.from_numpy(value.array) for name, value in named.items()}


class _Unpickler(pickle.Unpickler):
    """Reads tables, texts, numbers and arrays."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name of the file.

        Raises:
            pickle.UnpicklingError: any name that an array does not need.
        """
        place = module.replace("numpy._core", "numpy.core")  # numpy 2 and 1
        if (place, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}; only numpy arrays are read")
        return _STAND_INS[place, name]


class _Kind:
    """What stands for numpy.dtype: an element type by its short name."""

    def __init__(self, name: str, *flags: object) -> None:
        if name not in KINDS:
            raise pickle.UnpicklingError(f"elements of type {name!r} are not read; allowed: {', '.join(sorted(KINDS))}")
        self.name = name
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """numpy's state of a plain type: (version, byte order, nothing …)."""
        if state[1] not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("an element type with parts or of unknown byte order")
        self.order = state[1]

    def dtype(self) -> np.dtype[Any]:
        """The type itself."""
        return np.dtype(self.order.replace("|", "=") + self.name)


class _Array:
    """What stands for numpy.ndarray: nothing until its state comes."""

    array: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """numpy's state of an array: (version, shape, element type, Fortran order, bytes)."""
        _, shape, kind, fortran, raw = state
        self.fill(raw, kind, shape, "F" if fortran else "C")

    def fill(self, raw: object, kind: object, shape: object, order: str) -> None:
        """Take bytes as elements; numpy refuses where they are too few or too many for the shape."""
        if not isinstance(raw, bytes | bytearray) or not isinstance(kind, _Kind) or not isinstance(shape, tuple):
            raise pickle.UnpicklingError("an array without bytes, element type or shape")
        elements = np.frombuffer(raw, kind.dtype())
        native = elements.astype(elements.dtype.newbyteorder("="))  # a copy, which may be written to
        self.array = np.ascontiguousarray(native.reshape(shape, order="F" if order == "F" else "C")).reshape(shape)


def _empty_array(*_: object) -> _Array:
    """What stands for numpy's `_reconstruct`."""
    return _Array()


def _array_of_bytes(raw: object, kind: object, shape: object, order: str) -> _Array:
    """What stands for numpy's `_frombuffer`."""
    found = _Array()
    found.fill(raw, kind, shape, order)
    return found


def _latin1(text: str, encoding: str) -> bytes:
    """What stands for `_codecs.encode`: how old protocols hold bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}; only numpy arrays are read")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """What stands for `bytes`: how old protocols hold none."""
    return b""


_STAND_INS: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy", "dtype"): _Kind,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.numeric", "_frombuffer"): _array_of_bytes,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _no_bytes,
}
"""(module, name) that a table of arrays may ask for, and what it gets."""
