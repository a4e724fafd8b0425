"""Read numpy arrays from a pickle without running anything else that a pickle can hold."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import IO, Any, Union

import numpy as np

from sam4ir.priors.zoo.download import WeightsError

ArrayTree = dict[str, Union[np.ndarray, "ArrayTree"]]


def read_arrays(file: IO[bytes], name: str) -> ArrayTree:
    """Read the nested dictionary of numeric numpy arrays that `file` holds as a pickle.

    Only what numpy itself writes for an array is admitted: its reconstruction, ndarray, dtype and a latin-1
    _codecs.encode. Raises WeightsError naming `name` for anything else and for a broken pickle.
    """
    try:
        tree = _ArrayUnpickler(file).load()
    except (pickle.UnpicklingError, ValueError, TypeError, EOFError, AttributeError, LookupError) as error:
        raise WeightsError(f"{name}: {error}") from error
    _require_arrays(tree, name)
    return tree


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, only numpy arrays are read") from None


def _empty_array(kind: type, shape: tuple[int, ...], typecode: bytes) -> np.ndarray:
    """Replace numpy's _reconstruct: return an empty array, which the pickle then fills through __setstate__."""
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError(f"the pickle makes a {kind} of shape {shape}, only plain arrays are read")
    return np.ndarray(shape, np.dtype(typecode.decode("latin-1")))


def _latin1(text: str, encoding: str) -> bytes:
    """Return bytes as pickle protocol 2 spells them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the pickle asks for the encoding {encoding!r}, only latin1 is read")
    return text.encode("latin-1")


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,  # numpy 1
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,  # numpy 2
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


def _require_arrays(tree: object, name: str) -> None:
    if isinstance(tree, np.ndarray):
        if tree.dtype.kind not in "fiub":
            raise WeightsError(f"{name}: holds an array of {tree.dtype}, expected numbers")
    elif isinstance(tree, dict):
        for key, value in tree.items():
            _require_arrays(value, f"{name}: {key}")
    else:
        raise WeightsError(f"{name}: holds a {type(tree).__name__}, expected nested dictionaries of arrays")
