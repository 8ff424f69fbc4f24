"""Data sets are read in the layouts in which they are published: splits, classes, what is missing, what is misnamed."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from benchmarks.real_teachers import CITYSCAPES
from pipelines.codecs import decode_label
from pipelines.ingest import count_dataset, worker_args
from pipelines.ingest_plan import IngestPlan, plan_ingest
from pipelines.ingest_worker import IngestWorker, read_image_row, read_label_row
from pipelines.labels import LabelSpace
from pipelines.sources import (
    Ade20kSource,
    AnySource,
    CityscapesSource,
    LipSource,
    MapillarySource,
    PascalContextSource,
    Sample,
    Source,
    VocSource,
)
from pipelines.tables import Dataset
from tests.published_layouts import PUBLISHED, Published, picture, stripes, text
from tests.source_files import WIDTH, put


@pytest.fixture(params=PUBLISHED, name="published")
def each_published(request: pytest.FixtureRequest) -> Published:
    """Each of the published data sets."""
    return PUBLISHED[request.param]


def listed(source: Source) -> dict[str, str]:
    """Split by id."""
    return {sample.id: sample.split for sample in source.list_samples()}


def space_of(source: Source) -> LabelSpace:
    space = source.label_space()
    assert space is not None
    return space


def label_of(source: Source, sample: Sample) -> NDArray[Any]:
    """The label that ingest writes for a sample."""
    row = read_label_row(sample, read_image_row(sample, min_side_px=1), space=space_of(source), codec=source.codec)
    assert row.data is not None, row.reason
    return decode_label(row.data)


def names_in(source: Source, sample: Sample) -> list[str]:
    """The classes along a label's first row."""
    space = space_of(source)
    return ["(void)" if index == space.void else space.names[index] for index in label_of(source, sample)[0]]


def ingested(plan: IngestPlan) -> Dataset:
    """The dataset of a plan, made without Ray."""
    assert plan.labels is not None
    dataset = Dataset.create(plan.root, plan.info)
    dataset.create_labels(plan.labels, label_space=plan.info.label_space, plan={"made_by": "ingest"} | plan.info.source)
    receipts = [IngestWorker(**worker_args(plan, dataset))(shard) for shard in plan.shards]
    dataset.images.commit([receipt.images for receipt in receipts])
    dataset.labels(plan.labels).commit([receipt.labels for receipt in receipts if receipt.labels is not None])
    return dataset


def test_the_published_splits_are_found(published: Published, tmp_path: Path) -> None:
    published.make(tmp_path)
    listing = published.source(tmp_path).list_samples()
    assert {sample.id: sample.split for sample in listing} == published.splits
    assert [sample.label_reason for sample in listing] == [None] * len(published.splits)
    assert listing.notes == ()


def test_pixels_become_the_classes_they_stand_for(published: Published, tmp_path: Path) -> None:
    published.make(tmp_path)
    source = published.source(tmp_path)
    sample = next(iter(source.list_samples()))
    assert names_in(source, sample) == list(np.resize(list(published.pixels.values()), WIDTH))


def test_a_missing_label_keeps_the_image_and_says_what_was_expected(published: Published, tmp_path: Path) -> None:
    published.make(tmp_path / "raw")
    (tmp_path / "raw" / published.lost).unlink()
    plan = plan_ingest(published.source(tmp_path / "raw"), dataset=str(tmp_path / "dataset"))
    result = count_dataset(plan, ingested(plan), shards_done=1, seconds=1.0)
    assert (result.images_in, result.good, result.rejected) == (3, 2, 1)
    (row,) = result.rejected_rows
    assert (row.id, row.table) == (next(iter(published.splits)), "labels")
    assert row.reason == f"no label file (expected {published.expected}.*)"
    assert result.splits == dict(Counter(published.splits.values()))


def test_a_misspelt_folder_is_one_line_with_the_nearest_name(published: Published, tmp_path: Path) -> None:
    published.make(tmp_path)
    right, wrong = published.renamed
    (tmp_path / right).rename(tmp_path / wrong)
    with pytest.raises(ValueError, match=re.escape(published.message)) as caught:
        published.source(tmp_path).list_samples()
    assert "\n" not in str(caught.value)


def test_a_root_that_is_not_there_names_its_neighbour(published: Published, tmp_path: Path) -> None:
    published.make(tmp_path / "published")
    with pytest.raises(ValueError, match=r"source.root: .*no such folder \(did you mean 'published'\?\)"):
        published.source(tmp_path / "publishd").list_samples()


def test_kind_and_root_are_all_a_job_file_needs(published: Published, tmp_path: Path) -> None:
    source = published.source(tmp_path)
    assert TypeAdapter(AnySource).validate_python({"kind": source.kind, "root": str(tmp_path)}) == source


def test_an_unknown_split_names_those_that_are_published(published: Published, tmp_path: Path) -> None:
    kind = published.source(tmp_path).kind
    with pytest.raises(ValidationError, match=r"'train'.*'val'"):
        TypeAdapter(AnySource).validate_python({"kind": kind, "root": "x", "splits": ["trian"]})


def test_no_class_is_named_twice(published: Published, tmp_path: Path) -> None:
    published.make(tmp_path)
    space = space_of(published.source(tmp_path))
    assert len(set(space.names)) == space.num_classes == published.num_classes


def test_cityscapes_train_ids_are_read_where_they_are_named(tmp_path: Path) -> None:
    PUBLISHED["cityscapes"].make(tmp_path)
    for path in list(tmp_path.rglob("*_labelIds.png")):
        put(path.with_name(path.name.replace("labelIds", "labelTrainIds")), stripes((0, 18, 255)))
    source = CityscapesSource(root=str(tmp_path), label_files="labelTrainIds")
    sample = next(iter(source.list_samples()))
    assert names_in(source, sample)[:3] == ["road", "bicycle", "(void)"]


def test_cityscapes_without_the_label_files_named_lists_the_kinds_that_are_there(tmp_path: Path) -> None:
    PUBLISHED["cityscapes"].make(tmp_path)
    message = r"source.label_files = 'labelTrainIds': no \*_gtFine_labelTrainIds.png in .*color, instanceIds, labelIds"
    with pytest.raises(ValueError, match=message):
        CityscapesSource(root=str(tmp_path), label_files="labelTrainIds").list_samples()


def test_cityscapes_knows_all_34_ids_and_names_its_classes_in_the_order_of_the_train_ids() -> None:
    space = space_of(CityscapesSource(root="x"))
    assert sorted((*space.raw_values, *(space.void_values or ()))) == list(range(34))
    assert list(space.raw_values) == sorted(space.raw_values)
    assert space.names == CITYSCAPES.names


def test_coarse_cityscapes_has_the_extra_training_frames(tmp_path: Path) -> None:
    for split in ("train", "train_extra"):
        picture(tmp_path / "leftImg8bit" / split / "bonn" / f"bonn_{split}_leftImg8bit.png")
        put(tmp_path / "gtCoarse" / split / "bonn" / f"bonn_{split}_gtCoarse_labelIds.png", stripes((7, 0)))
    source = CityscapesSource(root=str(tmp_path), annotations="coarse", splits=("train", "train_extra"))
    samples = {sample.id: sample for sample in source.list_samples()}
    assert {key: sample.split for key, sample in samples.items()} == {
        "train/bonn/bonn_train": "train",
        "train_extra/bonn/bonn_train_extra": "train_extra",
    }
    assert names_in(source, samples["train_extra/bonn/bonn_train_extra"])[:2] == ["road", "(void)"]


def test_the_test_frames_of_cityscapes_have_no_label_even_where_files_lie_there(tmp_path: Path) -> None:
    PUBLISHED["cityscapes"].make(tmp_path)
    picture(tmp_path / "leftImg8bit" / "test" / "berlin" / "berlin_0_leftImg8bit.png")
    put(tmp_path / "gtFine" / "test" / "berlin" / "berlin_0_gtFine_labelIds.png", stripes((0,)))
    listing = CityscapesSource(root=str(tmp_path), splits=("val", "test")).list_samples()
    reasons = {sample.id: (sample.label_uri is None, sample.label_reason) for sample in listing}
    assert reasons == {
        "val/lindau/lindau_000000_1": (False, None),
        "test/berlin/berlin_0": (True, "no label file (split 'test' is published without labels)"),
    }
    assert listing.notes == ("1 images have no label, because their split is published without: 'test'",)


def test_splits_without_labels_alone_write_no_label_set(tmp_path: Path) -> None:
    PUBLISHED["cityscapes"].make(tmp_path / "raw")
    picture(tmp_path / "raw" / "leftImg8bit" / "train_extra" / "bonn" / "bonn_0_leftImg8bit.png")
    source = CityscapesSource(root=str(tmp_path / "raw"), splits=("train_extra",))
    plan = plan_ingest(source, dataset=str(tmp_path / "dataset"))
    assert (plan.labels, plan.num_images, plan.notes) == (None, 1, ())
    assert plan.info.label_space.num_classes == 19


def test_voc_is_found_below_the_folder_of_its_archive(tmp_path: Path) -> None:
    PUBLISHED["voc"].make(tmp_path / "VOCdevkit" / "VOC2012")
    assert listed(VocSource(root=str(tmp_path))) == PUBLISHED["voc"].splits
    assert listed(VocSource(root=str(tmp_path / "VOCdevkit"))) == PUBLISHED["voc"].splits


def test_test_images_of_voc_have_no_label(tmp_path: Path) -> None:
    PUBLISHED["voc"].make(tmp_path)
    source = VocSource(root=str(tmp_path), splits=("val", "test"))
    reasons = {sample.id: sample.label_reason for sample in source.list_samples()}
    assert reasons["2008_000001"] == "no label file (split 'test' is published without labels)"
    assert not VocSource(root=str(tmp_path), splits=("test",)).has_labels


@pytest.mark.parametrize("line", ["{0}", "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png", "{0}.jpg"])
@pytest.mark.parametrize("path", ["Segmentation/trainaug.txt", "SegmentationAug/train_aug.txt"])
def test_augmented_voc_takes_its_list_and_keeps_the_finer_labels(line: str, path: str, tmp_path: Path) -> None:
    PUBLISHED["voc"].make(tmp_path)
    extra = tmp_path / "SegmentationClassAug"
    put(extra / "2007_000032.png", stripes((2,)))
    put(extra / "2008_000002.png", stripes((3, 0)))
    text(tmp_path / "ImageSets" / path, line.format("2007_000032"), line.format("2008_000002"))
    source = VocSource(root=str(tmp_path), augmented=True)
    samples = {sample.id: sample for sample in source.list_samples()}
    assert {key: sample.split for key, sample in samples.items()} == {
        "2007_000032": "train",
        "2008_000002": "train",
        "2007_000033": "val",
    }
    assert names_in(source, samples["2008_000002"])[:2] == ["bird", "background"]
    assert samples["2007_000032"].label_uri == str(tmp_path / "SegmentationClass" / "2007_000032.png")


def test_augmented_voc_without_its_list_or_folder_says_so(tmp_path: Path) -> None:
    PUBLISHED["voc"].make(tmp_path)
    with pytest.raises(ValueError, match=r"source.root: .*trainaug.txt: no such file \(did you mean 'train.txt'\?\)"):
        VocSource(root=str(tmp_path), augmented=True).list_samples()
    text(tmp_path / "ImageSets" / "Segmentation" / "trainaug.txt", "2007_000032")
    with pytest.raises(
        ValueError, match=r"SegmentationClassAug: no such folder \(did you mean 'SegmentationClass'\?\)"
    ):
        VocSource(root=str(tmp_path), augmented=True).list_samples()
    with pytest.raises(ValidationError, match="`augmented` takes no effect without 'train'"):
        VocSource(root=str(tmp_path), augmented=True, splits=("val",))


def test_a_list_that_names_an_image_that_is_not_there_is_refused(tmp_path: Path) -> None:
    PUBLISHED["voc"].make(tmp_path)
    text(tmp_path / "ImageSets" / "Segmentation" / "val.txt", "2007_00033")
    message = r"source.root: 1 of 1 images of .*val.txt' are not there: '2007_00033' \(did you mean '2007_000033'\?\)"
    with pytest.raises(ValueError, match=message):
        VocSource(root=str(tmp_path)).list_samples()


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    PUBLISHED["voc"].make(tmp_path)
    text(tmp_path / "ImageSets" / "Segmentation" / "val.txt", "")
    with pytest.raises(ValueError, match=r"source.root: .*val.txt' lists no image"):
        VocSource(root=str(tmp_path)).list_samples()


def test_an_image_in_two_lists_of_voc_is_refused(tmp_path: Path) -> None:
    PUBLISHED["voc"].make(tmp_path)
    text(tmp_path / "ImageSets" / "Segmentation" / "trainval.txt", "2007_000032")
    with pytest.raises(ValueError, match=r"'2007_000032.jpg' is in two splits, 'train' and 'trainval'"):
        VocSource(root=str(tmp_path), splits=("train", "trainval")).list_samples()


def test_ade20k_is_found_below_the_folder_of_its_archive(tmp_path: Path) -> None:
    PUBLISHED["ade20k"].make(tmp_path / "ADEChallengeData2016")
    assert listed(Ade20kSource(root=str(tmp_path))) == PUBLISHED["ade20k"].splits


def test_pascal_context_with_sixty_classes_counts_background(tmp_path: Path) -> None:
    PUBLISHED["pascal_context"].make(tmp_path / "VOCdevkit" / "VOC2010")
    source = PascalContextSource(root=str(tmp_path), num_classes=60)
    sample = next(iter(source.list_samples()))
    assert names_in(source, sample)[:3] == ["background", "aeroplane", "bag"]
    assert (space_of(source).num_classes, space_of(source).background) == (60, 0)


def test_pascal_context_in_the_authors_order_begins_with_the_classes_of_voc(tmp_path: Path) -> None:
    PUBLISHED["pascal_context"].make(tmp_path)
    source = PascalContextSource(root=str(tmp_path), order="voc_first")
    sample = next(iter(source.list_samples()))
    assert names_in(source, sample)[:6] == ["(void)", "aeroplane", "bicycle", "truck", "window", "wood"]
    shared = [name for name in space_of(VocSource(root="x")).names[1:] if name != "diningtable"]
    assert [name for name in space_of(source).names[:20] if name != "table"] == shared


def test_mapillary_1_2_is_read_from_the_archive_of_2_0(tmp_path: Path) -> None:
    PUBLISHED["mapillary"].make(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "config_v1.2.json")
    for folder in ("training", "validation"):
        (tmp_path / folder / "v1.2").mkdir()
        (tmp_path / folder / "labels").rename(tmp_path / folder / "v1.2" / "labels")
    source = MapillarySource(root=str(tmp_path))
    samples = {sample.id: sample for sample in source.list_samples()}
    assert {key: sample.split for key, sample in samples.items()} == PUBLISHED["mapillary"].splits
    assert names_in(source, samples["val/c3"])[:4] == ["Bird", "Road", "Sky", "(void)"]


def test_test_images_of_mapillary_have_no_label(tmp_path: Path) -> None:
    PUBLISHED["mapillary"].make(tmp_path)
    picture(tmp_path / "testing" / "images" / "d4.jpg")
    source = MapillarySource(root=str(tmp_path), splits=("test",))
    assert listed(source) == {"test/d4": "test"}
    assert not source.has_labels


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json' is no class list of Mapillary Vistas: the file: Invalid JSON"),
        ('{"labels": []}', "is no class list of Mapillary Vistas: labels: List should have at least 1 item"),
        ('{"labels": [{"readable": "Bird", "color": [1, 2, 3]}]}', "Vistas: labels.0.evaluate: Field required"),
    ],
)
def test_a_faulty_class_list_of_mapillary_is_one_line(content: str, message: str, tmp_path: Path) -> None:
    PUBLISHED["mapillary"].make(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        MapillarySource(root=str(tmp_path)).label_space()
    assert "\n" not in str(caught.value)


def test_mapillary_without_its_class_list_names_the_nearest_file(tmp_path: Path) -> None:
    PUBLISHED["mapillary"].make(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "confg.json")
    with pytest.raises(ValueError, match=r"config.json: no such file \(did you mean 'confg.json'\?\)"):
        MapillarySource(root=str(tmp_path)).label_space()


def test_lip_is_read_without_the_folders_of_its_archives_and_where_they_were_unpacked_twice(tmp_path: Path) -> None:
    PUBLISHED["lip"].make(tmp_path / "twice")
    images, labels = (tmp_path / "twice" / name for name in ("TrainVal_images", "TrainVal_parsing_annotations"))
    (tmp_path / "flat").mkdir()
    for path in [*images.iterdir(), *labels.iterdir()]:
        (tmp_path / "flat" / path.name).symlink_to(path)
    assert listed(LipSource(root=str(tmp_path / "flat"))) == PUBLISHED["lip"].splits
    for folder in (images, labels):
        inner = folder.rename(tmp_path / folder.name)
        folder.mkdir()
        inner.rename(folder / folder.name)
    assert listed(LipSource(root=str(tmp_path / "twice"))) == PUBLISHED["lip"].splits


def test_left_and_right_of_lip_change_places_in_a_mirrored_image(tmp_path: Path) -> None:
    space = space_of(LipSource(root=str(tmp_path)))
    moved = {space.names[index]: space.names[to] for index, to in enumerate(space.mirrored) if index != to}
    pairs = {f"left-{part}": f"right-{part}" for part in ("arm", "leg", "shoe")}
    assert moved == pairs | {right: left for left, right in pairs.items()}


def test_a_missing_list_or_label_folder_of_lip_is_named_with_the_nearest(tmp_path: Path) -> None:
    PUBLISHED["lip"].make(tmp_path)
    (tmp_path / "TrainVal_images" / "val_id.txt").rename(tmp_path / "TrainVal_images" / "val_ids.txt")
    with pytest.raises(ValueError, match=r"TrainVal_images/val_id.txt: no such file \(did you mean 'val_ids.txt'\?\)"):
        LipSource(root=str(tmp_path)).list_samples()
    labels = tmp_path / "TrainVal_parsing_annotations"
    labels.rename(tmp_path / "TrainVal_parsing")
    with pytest.raises(ValueError, match=r"source.root: .*no such folder \(did you mean 'TrainVal_parsing'\?\)"):
        LipSource(root=str(tmp_path), splits=("train",)).list_samples()


@pytest.mark.real
def test_real_ade20k_labels_become_the_classes_of_its_list(shared_data: Path, tmp_path: Path) -> None:
    samples = shared_data / "datasets" / "ade20k-3"
    for ours, theirs in (("images", "images"), ("annotations", "labels")):
        (tmp_path / ours).mkdir()
        (tmp_path / ours / "validation").symlink_to(samples / theirs)
    source = Ade20kSource(root=str(tmp_path), splits=("val",))
    rows = [line.split("\t") for line in (samples / "objectInfo150.txt").read_text().splitlines()[1:]]
    space = space_of(source)
    assert space.names == tuple(row[4].split(",")[0].strip() for row in rows)
    assert space.raw_values == tuple(int(row[0]) for row in rows)
    for sample in source.list_samples():
        raw = np.asarray(Image.open(str(sample.label_uri))).astype(int)
        assert np.array_equal(label_of(source, sample), np.where(raw == 0, space.void, raw - 1))


@pytest.mark.real
def test_real_voc_labels_keep_their_pixels(shared_data: Path, tmp_path: Path) -> None:
    samples = shared_data / "datasets" / "voc-6"
    names = sorted(path.stem for path in (samples / "images").iterdir())
    (tmp_path / "JPEGImages").symlink_to(samples / "images")
    (tmp_path / "SegmentationClass").symlink_to(samples / "labels")
    text(tmp_path / "ImageSets" / "Segmentation" / "val.txt", *names)
    source = VocSource(root=str(tmp_path), splits=("val",))
    assert space_of(source).names == tuple((samples / "classes.txt").read_text().split())
    for sample in source.list_samples():
        raw = np.asarray(Image.open(samples / "labels" / f"{sample.id}.png"))
        assert np.array_equal(label_of(source, sample), raw)


@pytest.mark.real
def test_the_colours_of_voc_are_those_of_its_files(shared_data: Path) -> None:
    labels = shared_data / "datasets" / "voc-6" / "labels"
    palette = Image.open(labels / "2011_000003.png").getpalette()
    assert palette is not None
    colors = [tuple(palette[3 * index : 3 * index + 3]) for index in range(21)]
    assert colors == list(space_of(VocSource(root="x")).colors)
