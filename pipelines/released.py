"""The layout of the released pseudo-labels: one .npz file per image (specs: PSSL section 5).

`train/<wnid>/<image>.JPEG_eiseg.npz` holds an integer mask `arr_0` of the image's size: 1 is the object, -1 is ignored,
everything else is background. `imagenet_lsvrc_2015_synsets.txt` has one wnid per line, the line number is the class;
`train.txt` lists the files, one path per line.
"""

from __future__ import annotations

import io
import posixpath
import zipfile
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines import storage
from pipelines.labels import LabelSpace
from pipelines.shard_counts import RowError

SYNSETS = "imagenet_lsvrc_2015_synsets.txt"
TRAIN_LIST = "train.txt"
MAX_ITEM_BYTES = 8  # int64, the widest mask

MinusOne = Literal["void", "background"]


def read_synsets(folder: str) -> dict[str, int]:
    """Class index of every wnid, from the synset file of the release; empty where there is none."""
    place = storage.join(folder, SYNSETS)
    if not storage.exists(place):
        return {}
    lines = storage.read_bytes(place).decode().splitlines()
    return {line.split()[0]: index for index, line in enumerate(lines) if line.strip()}


def npz_path(image_id: str, *, wnid: str) -> str:
    """Path of an image's label below the release."""
    name = posixpath.basename(image_id)
    stem = posixpath.splitext(name)[0] if name.lower().endswith((".jpeg", ".jpg", ".png")) else name
    return f"train/{wnid}/{stem}.JPEG_eiseg.npz"


def npz_paths(image_id: str, *, wnid: str | None = None) -> list[tuple[str, str]]:
    """Where the released label of an image may lie, as (wnid, path): by its folder, the wnid in its name, its class."""
    folder, name = posixpath.split(image_id)
    wnids = [posixpath.basename(folder), posixpath.splitext(name)[0].partition("_")[0], wnid]
    return [(found, npz_path(image_id, wnid=found)) for found in dict.fromkeys(wnids) if found]


def read_mask(data: bytes, *, height: int, width: int) -> NDArray[np.integer[Any]]:
    """The integer mask (height, width) of an .npz file.

    Raises:
        RowError: damaged, of another size, or no integers.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            declared = archive.getinfo("arr_0.npy").file_size
        if declared > height * width * MAX_ITEM_BYTES + 4096:
            raise RowError(f"released label is larger than an image of {height}x{width} can need")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            mask = arrays["arr_0"]
    except (MemoryError, RowError):
        raise  # the first says something about the machine
    except Exception as error:  # zip, zlib and numpy raise anything on damaged bytes
        raise RowError(f"released label cannot be read ({type(error).__name__})") from error
    if mask.shape != (height, width):
        raise RowError(f"released label has shape {mask.shape}, the image {(height, width)}")
    if not np.issubdtype(mask.dtype, np.integer):
        raise RowError(f"released label holds {mask.dtype}, integers are expected")
    found: NDArray[np.integer[Any]] = mask
    return found


def mask_to_label(
    mask: NDArray[np.integer[Any]], *, class_index: int, space: LabelSpace, minus_one: MinusOne
) -> NDArray[Any]:
    """Label (H, W): 1 becomes the image's class, -1 void or background, everything else background."""
    label = np.full(mask.shape, space.background, space.dtype)
    label[mask == 1] = class_index
    if minus_one == "void":
        label[mask == -1] = space.void
    return label


def label_to_mask(label: NDArray[Any], *, class_index: int, space: LabelSpace) -> NDArray[np.int8]:
    """The released mask (H, W) of a label: 1 where it is of the image's class, 0 background, -1 void.

    Raises:
        RowError: it holds a further class, for which the layout has no value.
    """
    mask = np.where(label == class_index, 1, np.where(label == space.void, -1, 0)).astype(np.int8)
    background = -1 if space.background is None else space.background
    others = np.unique(label[(mask == 0) & (label != background)]).tolist()
    if others:
        raise RowError(f"label holds class {others[0]} beside the image's class {class_index}: a mask has one class")
    return mask


def npz_bytes(mask: NDArray[np.int8]) -> bytes:
    """Content of an .npz file with the mask as `arr_0`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, mask)
    return buffer.getvalue()
