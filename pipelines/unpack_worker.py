"""The worker of unpacking: the address of a label shard in; one file per image written, counts out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines import storage
from pipelines.codecs import decode_deciles, decode_label
from pipelines.label_files import decile_png, file_name, label_png, map_jxl
from pipelines.labels import LabelSpace
from pipelines.released import label_to_mask, npz_bytes, npz_path
from pipelines.schema import ShardKey
from pipelines.shard_counts import RowError
from pipelines.tables import read_shard_file

FileFormat = Literal["png", "npz", "jxl"]
Content = Literal["label", "deciles"]


@dataclass(frozen=True)
class LabelShard:
    """Address of a committed shard of labels, and of the images beside it."""

    key: ShardKey
    path: str
    """Relative to the label table."""
    images_path: str
    num_rows: int


@dataclass
class UnpackResult:
    """What became of a shard."""

    written: int = 0
    existing: int = 0
    """Images whose file an earlier run had written."""
    num_bytes: int = 0
    """Of the files written."""
    failures: dict[str, str] = field(default_factory=dict)
    """Reason by id."""
    paths: dict[str, str] = field(default_factory=dict)
    """Path below the output, by id."""


class UnpackWorker:
    """Writes the labels of a shard as files.

    Args:
        labels_uri: the label table.
        images_uri: the image table; the released layout needs the class of each image.
        output_uri: folder the files' paths begin at.
        space: classes of the labels.
        synsets: of every class, for the released layout.
    """

    def __init__(
        self,
        *,
        labels_uri: str,
        images_uri: str,
        output_uri: str,
        format: FileFormat,
        content: Content,
        space: LabelSpace,
        synsets: tuple[str, ...],
    ) -> None:
        self._labels_uri, self._images_uri, self._output_uri = labels_uri, images_uri, output_uri
        self._format, self._content, self._space, self._synsets = format, content, space, synsets

    def __call__(self, shard: LabelShard) -> UnpackResult:
        """Write the files of a shard that are not there yet."""
        result = UnpackResult()
        columns = ("id", self._content, "reason")
        rows = read_shard_file(self._labels_uri, shard.path, columns=columns).to_pylist()
        classes = self._classes(shard)
        for row in rows:
            try:
                self._unpack(row, classes.get(row["id"]), result)
            except RowError as error:
                result.failures[row["id"]] = str(error)
        return result

    def _classes(self, shard: LabelShard) -> dict[str, int | None]:
        """Class index of every image, where the layout needs it."""
        if self._format != "npz":
            return {}
        images = read_shard_file(self._images_uri, shard.images_path, columns=("id", "class")).to_pylist()
        return {row["id"]: row["class"] for row in images}

    def _unpack(self, row: dict[str, Any], class_index: int | None, result: UnpackResult) -> None:
        """Write one file, unless it is there; files are seen whole or not at all.

        Raises:
            RowError: the row has nothing to write, or nothing that the format can hold.
        """
        if row["reason"] is not None or row[self._content] is None:
            raise RowError(row["reason"] or f"no {self._content} in this row")
        path = self._path(row["id"], class_index)
        place = storage.join(self._output_uri, path)
        if storage.exists(place):
            result.existing += 1
        else:
            data = self._file(row[self._content], class_index)
            storage.write_bytes(place, data)
            result.written, result.num_bytes = result.written + 1, result.num_bytes + len(data)
        result.paths[row["id"]] = path

    def _path(self, image_id: str, class_index: int | None) -> str:
        if self._format != "npz":
            return file_name(image_id, suffix=f".{self._format}")
        if class_index is None or not 0 <= class_index < len(self._synsets):
            raise RowError("no image-level class")
        return npz_path(image_id, wnid=self._synsets[class_index])

    def _file(self, code: bytes, class_index: int | None) -> bytes:
        """Content of the file."""
        if self._content == "deciles":
            deciles = decode_deciles(code)
            return map_jxl(deciles) if self._format == "jxl" else decile_png(deciles)
        label = decode_label(code)
        if self._format == "npz":
            assert class_index is not None
            return npz_bytes(label_to_mask(label, class_index=class_index, space=self._space))
        return map_jxl(label) if self._format == "jxl" else label_png(label, self._space)
