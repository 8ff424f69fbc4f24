"""A folder as people really have them: every file is accounted for, and no bytes stop a shard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import ingest as ingest_verb
from jobs.specs import IngestJob, TrackingSpec
from pipelines.codecs import decode_label
from pipelines.images import decode_image
from pipelines.ingest_worker import ImageRow, read_image_row, read_label_row
from pipelines.labels import LabelSpace
from pipelines.shard_counts import group
from pipelines.shards import ComputeSpec
from pipelines.sources import FolderSource, Sample
from pipelines.tables import Dataset
from tests.source_files import CLASSES, HEIGHT, WIDTH, encoded, hostile_folder, mask, put, scene


@pytest.mark.usefixtures("ray_local")
def test_twenty_good_and_twelve_difficult_files_are_all_accounted_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = hostile_folder(tmp_path)
    source = FolderSource(
        images=str(tmp_path / "images"), labels=str(tmp_path / "labels"), classes=str(tmp_path / "classes.txt")
    )
    job = IngestJob(
        source=source,
        dataset=str(tmp_path / "dataset"),
        shard_rows=10,
        compute=ComputeSpec(actors=1),
        tracking=TrackingSpec(enabled=False),
        report=False,
    )
    result = ingest_verb.run(job)
    rejected = {row["id"]: group(row["reason"]) for row in result["rejected_rows"]}
    assert {key: rejected.get(key) for key in expected} == expected
    assert (result["images_in"], result["good"], result["rejected"]) == (32, 25, 7)
    assert (result["rejected_images"], result["rejected_labels"], result["ignored_files"]) == (5, 2, 2)
    assert sum(result["reasons"].values()) == 7
    out = capsys.readouterr().out
    assert all(f"{row['id']}: {row['reason']}" in out for row in result["rejected_rows"])
    check_tables(Dataset.open(job.dataset), expected)


def check_tables(dataset: Dataset, expected: dict[str, str | None]) -> None:
    """Every id is in both tables once; rejected rows have no data, good ones upright data that decodes."""
    images, labels = dataset.images, dataset.labels("human")
    assert [file.key for file in images.files()] == [file.key for file in labels.files()]
    seen = []
    for file in images.files():
        for image, label in zip(images.read(file.key).to_pylist(), labels.read(file.key).to_pylist(), strict=True):
            assert image["id"] == label["id"]
            seen.append(image["id"])
            assert (label["label"] is None) == (label["reason"] is not None) == (expected[image["id"]] is not None)
            assert (image["image"] is None) == (image["reason"] is not None)
            if label["label"] is not None:
                assert decode_image(image["image"]).shape == (HEIGHT, WIDTH, 3)
                assert decode_label(label["label"]).shape == (HEIGHT, WIDTH)
    assert sorted(seen) == sorted(expected)


SPACE = LabelSpace(names=CLASSES)
GOOD = ImageRow(data=b"x", height=HEIGHT, width=WIDTH)
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """A file with some bytes changed, cut off, or repeated."""
    content = bytearray(data)
    for _ in range(int(rng.integers(1, 12))):
        content[int(rng.integers(len(content)))] = int(rng.integers(256))
    match int(rng.integers(4)):
        case 0:
            content = content[: int(rng.integers(len(content)))]
        case 1:
            start = int(rng.integers(len(content)))
            content[start:start] = content[: int(rng.integers(200))]
    return bytes(content)


@pytest.mark.filterwarnings("ignore")  # decoders may warn about such files; a warning is no reason
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_of_every_format_give_a_row_and_never_an_exception(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(FORMATS.index(kind))
    picture = encoded(scene(3), kind)
    label = encoded(Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)), kind)
    num_rejected = 0
    for _ in range(150):
        path = put(tmp_path / "image", damaged(picture, rng))
        sample = Sample("a", "train", str(path), path.stat().st_size, label_uri=str(tmp_path / "label"))
        row = read_image_row(sample, min_side_px=8)
        put(tmp_path / "label", damaged(label, rng))
        label_row = read_label_row(sample, GOOD, space=SPACE, codec="index")
        assert (row.data is None) == (row.reason is not None)
        assert (label_row.data is None) == (label_row.reason is not None)
        num_rejected += row.reason is not None
    assert num_rejected > 0


def test_a_label_that_declares_a_huge_size_is_rejected_before_decoding(tmp_path: Path) -> None:
    path = put(tmp_path / "label.png", encoded(Image.new("L", (9000, 9000)), "PNG"))
    row = read_label_row(Sample("a", "train", "", 0, label_uri=str(path)), GOOD, space=SPACE, codec="index")
    assert row.reason == f"label size differs (label.png: 9000x9000, image {WIDTH}x{HEIGHT} px)"


def test_a_label_of_a_rejected_image_says_why_there_is_no_image(tmp_path: Path) -> None:
    path = put(tmp_path / "label.png", mask())
    sample = Sample("a", "train", "", 0, label_uri=str(path))
    row = read_label_row(sample, ImageRow(reason="unreadable image: empty file"), space=SPACE, codec="index")
    assert row.reason == "no image (unreadable image: empty file)"


def test_a_file_that_shrank_since_it_was_listed_is_rejected(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jpg", encoded(scene(1)))
    size = path.stat().st_size
    row = read_image_row(Sample("a", "train", str(path), size + 9), min_side_px=8)
    assert row.reason == f"unreadable file ({size} of {size + 9} bytes)"
