"""Sources list the right samples, and say what is wrong before work starts."""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from pipelines import storage
from pipelines.labels import LabelSpace
from pipelines.sources import AnySource, CamVidSource, FolderSource, ImageNetSource, Source
from pipelines.sources.base import read_image, unique_ids
from pipelines.sources.synsets import load_classes
from tests.source_files import CLASSES, encoded, mask, pairs, put, scene, write_tar

TENCH, GOLDFISH = "n01440764", "n01443537"


def folder(root: Path, **changes: object) -> FolderSource:
    settings = {"images": str(root / "images"), "labels": str(root / "labels"), "classes": CLASSES}
    return FolderSource.model_validate(settings | changes)


def listed(source: Source) -> dict[str, str]:
    """Split by id."""
    return {sample.id: sample.split for sample in source.list_samples()}


def test_kind_selects_the_source() -> None:
    source = TypeAdapter(AnySource).validate_python({"kind": "camvid", "root": "somewhere"})
    assert isinstance(source, CamVidSource)


def test_an_unknown_kind_names_those_that_exist() -> None:
    with pytest.raises(ValidationError, match=r"'folder', 'camvid', 'imagenet'"):
        TypeAdapter(AnySource).validate_python({"kind": "folders"})


def test_images_pair_with_labels_of_the_same_stem_below_sub_folders(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 1, "day/b": 1, "night/b": 2})
    samples = {sample.id: sample for sample in folder(tmp_path).list_samples()}
    assert sorted(samples) == ["a", "day/b", "night/b"]
    assert samples["night/b"].label_uri == str(tmp_path / "labels" / "night" / "b.png")


def test_a_label_suffix_is_part_of_the_label_name(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 1}, suffix="_mask")
    (sample,) = folder(tmp_path, label_suffix="_mask").list_samples()
    assert sample.label_uri == str(tmp_path / "labels" / "a_mask.png")


def test_a_forgotten_label_suffix_is_suggested(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 1}, suffix="_mask")
    with pytest.raises(ValueError, match=r"no image has a label: .*set label_suffix = '_mask'"):
        folder(tmp_path).list_samples()


def test_folders_named_like_splits_are_splits(tmp_path: Path) -> None:
    pairs(tmp_path, {"train/a": 1, "val/a": 1})
    assert listed(folder(tmp_path)) == {"train/a": "train", "val/a": "val"}


def test_folders_of_other_names_are_no_splits(tmp_path: Path) -> None:
    pairs(tmp_path, {"rome/a": 1, "paris/a": 1, "b": 1})
    assert set(listed(folder(tmp_path)).values()) == {"train"}


def test_folders_of_other_names_beside_splits_are_never_guessed_about(tmp_path: Path) -> None:
    pairs(tmp_path, {"train/a": 1, "val/a": 1, "paris/a": 1})
    message = r"source.splits = 'auto': .*/images' holds the split folders 'train', 'val' beside 'paris'; name"
    with pytest.raises(ValueError, match=message):
        folder(tmp_path).list_samples()
    assert listed(folder(tmp_path, splits={"train": "train", "val": "val"})) == {"train/a": "train", "val/a": "val"}


def test_files_beside_split_folders_are_left_out_and_named(tmp_path: Path) -> None:
    pairs(tmp_path, {"train/a": 1, "val/a": 1, "loose": 1})
    put(tmp_path / "images" / "README.md", b"words")
    source = folder(tmp_path)
    assert listed(source) == {"train/a": "train", "val/a": "val"}
    note = "2 files lie beside the split folders 'train', 'val' and are left out: 'README.md', 'loose.jpg'"
    assert source.list_samples().notes[0] == note


def test_one_word_is_the_split_of_all_images(tmp_path: Path) -> None:
    pairs(tmp_path, {"train/a": 1, "b": 1})
    assert set(listed(folder(tmp_path, splits="test")).values()) == {"test"}


def test_a_table_gives_splits_by_folder_and_by_list(tmp_path: Path) -> None:
    pairs(tmp_path, {"big/a": 1, "b": 1, "c": 1})
    (tmp_path / "val.txt").write_text("b\n\nc.jpg\n")
    splits = {"train": "big", "val": str(tmp_path / "val.txt")}
    assert listed(folder(tmp_path, splits=splits)) == {"big/a": "train", "b": "val", "c": "val"}


def test_shares_draw_images_by_name_and_the_rest_is_train(tmp_path: Path) -> None:
    pairs(tmp_path, {f"{name:02}": 1 for name in range(20)})
    splits = listed(folder(tmp_path, splits={"val": 0.1, "test": 0.25}))
    assert Counter(splits.values()) == {"val": 2, "test": 5, "train": 13}
    assert listed(folder(tmp_path, splits={"val": 0.1, "test": 0.25})) == splits
    pairs(tmp_path / "again", {f"{name:02}": 1 for name in reversed(range(20))})
    assert listed(folder(tmp_path / "again", splits={"val": 0.1, "test": 0.25})) == splits
    assert set(listed(folder(tmp_path, splits={"a": 0.5, "b": 0.5})).values()) == {"a", "b"}


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"val": 1.2}, r"splits.val = 1.2 is no share .* above 0 and at most 1"),
        ({"val": 0.6, "test": 0.6}, "sum up to 1.2, which is over 1"),
        ({"val": 0.1, "train": "big"}, "all shares, or all sub-folders"),
        ({"val": 0.1}, r"splits.val: a share of 0.1 of 2 images is no image"),
    ],
)
def test_shares_that_cannot_be_are_refused(tmp_path: Path, splits: dict[str, str | float], message: str) -> None:
    pairs(tmp_path, {"big/a": 1, "big/b": 1})
    with pytest.raises(ValueError, match=message):
        folder(tmp_path, splits=splits).list_samples()


def test_images_in_no_split_of_a_table_are_named(tmp_path: Path) -> None:
    pairs(tmp_path, {"big/a": 1, "lost": 1})
    assert any(
        "1 files are in no split" in note and "lost" in note
        for note in folder(tmp_path, splits={"train": "big"}).list_samples().notes
    )


def test_a_list_that_names_a_missing_image_is_refused(tmp_path: Path) -> None:
    pairs(tmp_path, {"alpha": 1})
    (tmp_path / "val.txt").write_text("alpah\n")
    with pytest.raises(ValueError, match=r"splits.val: 1 of 1 images .*'alpah' \(did you mean 'alpha'\?\)"):
        folder(tmp_path, splits={"val": str(tmp_path / "val.txt")}).list_samples()


def test_an_image_listed_in_two_splits_is_refused(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 1})
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text("a\n")
    splits = {name: str(tmp_path / f"{name}.txt") for name in ("one", "two")}
    with pytest.raises(ValueError, match=r"'a.jpg' is in two splits, 'one' and 'two'"):
        folder(tmp_path, splits=splits).list_samples()


def test_a_split_placeholder_reads_one_pair_of_folders_a_split(tmp_path: Path) -> None:
    for split in ("train", "val"):
        pairs(tmp_path / split, {"a": 1})
    source = FolderSource(
        images=str(tmp_path / "{split}" / "images"), labels=str(tmp_path / "{split}" / "labels"), classes=CLASSES
    )
    samples = {sample.id: sample for sample in source.list_samples()}
    assert {key: sample.split for key, sample in samples.items()} == {"train/a": "train", "val/a": "val"}
    assert samples["val/a"].label_uri == str(tmp_path / "val" / "labels" / "a.png")


def test_images_without_label_stay_with_a_reason_and_are_named(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "labels" / "b.png").unlink()
    listing = folder(tmp_path).list_samples()
    assert {sample.id: sample.label_reason for sample in listing} == {"a": None, "b": "no label file (expected b.*)"}
    assert listing.notes == ("1 of 2 images have no label: 'b'",)


def test_two_labels_for_one_image_are_a_reason(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 1, "b": 1})
    put(tmp_path / "labels" / "a.bmp", mask())
    reasons = {sample.id: sample.label_reason for sample in folder(tmp_path).list_samples()}
    assert reasons == {"a": "several label files ('a.bmp', 'a.png'; keep one)", "b": None}


def test_labels_without_image_are_named(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 1})
    put(tmp_path / "labels" / "b.png", mask())
    assert folder(tmp_path).list_samples().notes == ("1 label files belong to no image: 'b.png'",)


def test_hidden_and_junk_files_are_counted_and_every_other_file_is_a_sample(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 1})
    for name in (".DS_Store", "Thumbs.db", ".cache/x.jpg", "notes.txt"):
        put(tmp_path / "images" / name, b"x")
    listing = folder(tmp_path).list_samples()
    assert (listing.num_ignored, {sample.id for sample in listing}) == (3, {"a", "notes"})


def test_a_class_list_among_the_images_is_no_sample(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 1})
    path = put(tmp_path / "images" / "classes.txt", "\n".join(CLASSES).encode())
    source = folder(tmp_path, classes=str(path))
    space = source.label_space()
    assert list(listed(source)) == ["a"]
    assert space is not None
    assert space.names == CLASSES


def test_ids_are_unique_where_stems_are_not() -> None:
    names = ["a.jpg", "a.png", "b.jpg", "a.jpg.png"]
    assert unique_ids(names) == ["a.jpg", "a.png", "b", "a.jpg~2"]


def test_names_that_are_no_utf8_become_visible_ids_and_stay_readable(tmp_path: Path) -> None:
    put(tmp_path / "images" / os.fsdecode(b"caf\xe9.jpg"), b"content")
    (sample,) = FolderSource(images=str(tmp_path / "images")).list_samples()
    assert sample.id == r"caf\xe9"
    assert read_image(sample) == b"content"


def test_a_folder_without_labels_needs_no_classes(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 1})
    source = FolderSource(images=str(tmp_path / "images"))
    assert source.label_space() is None
    assert not source.has_labels
    assert [sample.label_reason for sample in source.list_samples()] == [None]


def test_a_missing_folder_names_its_nearest_sibling(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 1})
    with pytest.raises(ValueError, match=r"source.images: .*imges: no such folder \(did you mean 'images'\?\)"):
        folder(tmp_path, images=str(tmp_path / "imges")).list_samples()
    with pytest.raises(ValueError, match=r"source.labels: .*did you mean 'labels'"):
        folder(tmp_path, labels=str(tmp_path / "lables")).list_samples()


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    put(tmp_path / "images" / ".DS_Store", b"x")
    with pytest.raises(ValueError, match=r"the data set is empty: no file in .*\(1 hidden"):
        FolderSource(images=str(tmp_path / "images")).list_samples()


def test_labels_without_class_list_are_refused_and_a_class_list_nearby_is_named(tmp_path: Path) -> None:
    pairs(tmp_path, {"a": 1})
    with pytest.raises(ValueError, match="class list is missing: add classes"):
        folder(tmp_path, classes=None).label_space()
    (tmp_path / "classes.txt").write_text("x\n")
    with pytest.raises(ValueError, match=r"found '.*/classes.txt'"):
        folder(tmp_path, classes=None).label_space()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None, "label_suffix": "_m"}, "`label_suffix` takes no effect without `labels`"),
        ({"labels": None, "raw_values": (0, 1, 2)}, "`raw_values` takes no effect"),
        ({"label_codec": "rgb"}, "needs `colors`"),
        ({"classes": None, "colors": ((0, 0, 0),)}, "`colors` needs `classes`"),
        ({"images": "x/{split}/images", "labels": "x/labels"}, "must be in both"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=message):
        folder(tmp_path, **changes)


def test_a_class_list_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('{\n  "names": [\n    "road"\n  ]\n}\n')
    with pytest.raises(ValueError, match=r"source\.classes: found '.*classes\.json'; allowed: names, or a text file"):
        folder(tmp_path, classes=str(tmp_path / "classes.json")).label_space()


def test_a_class_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'road' is listed twice"):
        folder(tmp_path, classes=("road", "sky", "road")).label_space()


def test_classes_that_change_places_in_a_mirrored_image_are_named_by_name(tmp_path: Path) -> None:
    sides = ("body", "left arm", "right arm")
    assert [folder(tmp_path, classes=sides, mirror_pairs=given).label_space() for given in (None, ())] == [
        LabelSpace(names=sides, mirror_pairs=((1, 2),)),
        LabelSpace(names=sides, mirror_pairs=()),
    ]
    space = folder(tmp_path, classes=sides, mirror_pairs=(("left arm", "right arm"),)).label_space()
    assert space is not None
    assert space.mirrored == (0, 2, 1)
    with pytest.raises(ValueError, match=r"source.mirror_pairs: found 'left am' .did you mean 'left arm'"):
        folder(tmp_path, classes=sides, mirror_pairs=(("left am", "right arm"),)).label_space()
    with pytest.raises(ValueError, match=r"mirror_pairs: 'left arm' is named twice; a class has one counterpart"):
        folder(tmp_path, classes=sides, mirror_pairs=(("left arm", "right arm"), ("body", "left arm")))


def test_a_class_list_and_colours_that_do_not_fit_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^source: colors has 1 entries for 2 classes$"):
        folder(tmp_path, classes=("road", "sky"), colors=((1, 2, 3),)).label_space()


@pytest.mark.parametrize("layout", [("{}/images", "{}/labels"), ("{}", "{}annot")])
def test_camvid_is_read_in_both_layouts(layout: tuple[str, str], tmp_path: Path) -> None:
    for split in ("train", "val"):
        put(tmp_path / layout[0].format(split) / "f1.png", encoded(scene(1), "PNG"))
        put(tmp_path / layout[1].format(split) / "f1.png", mask(11))
    source = CamVidSource(root=str(tmp_path))
    assert listed(source) == {"train/f1": "train", "val/f1": "val"}
    assert all(sample.label_uri for sample in source.list_samples())
    assert source.label_space().void_values == (11,)


def test_camvid_refuses_another_class_list(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match="does not list the 11 classes of CamVid-11 but cat, dog"):
        CamVidSource(root=str(tmp_path)).label_space()


def test_a_folder_that_is_no_camvid_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected train/images with train/labels"):
        CamVidSource(root=str(tmp_path)).list_samples()


def test_the_built_in_synsets_are_the_thousand_in_order() -> None:
    classes = load_classes(None)
    assert len(classes) == len(set(classes.names)) == 1000
    assert list(classes.ids) == sorted(classes.ids)
    assert (classes.names[0], classes.names[999]) == ("tench", "toilet tissue")


def test_class_folders_give_split_and_class(tmp_path: Path) -> None:
    for path in (f"train/{TENCH}/x.JPEG", f"train/{GOLDFISH}/x.JPEG", f"val/{GOLDFISH}/y.JPEG"):
        put(tmp_path / path, b"x")
    source = ImageNetSource(root=str(tmp_path))
    found = {sample.id: (sample.split, sample.class_index) for sample in source.list_samples()}
    assert found == {
        f"train/{TENCH}/x": ("train", 0),
        f"train/{GOLDFISH}/x": ("train", 1),
        f"val/{GOLDFISH}/y": ("val", 1),
    }
    assert source.label_space().num_classes == 1001
    assert source.label_space().background == 1000


def test_class_folders_without_splits_take_the_split_from_the_root(tmp_path: Path) -> None:
    put(tmp_path / "val" / TENCH / "x.JPEG", b"x")
    assert listed(ImageNetSource(root=str(tmp_path / "val"))) == {f"{TENCH}/x": "val"}
    assert listed(ImageNetSource(root=str(tmp_path))) == {f"val/{TENCH}/x": "val"}


@pytest.mark.parametrize(
    ("name", "hint"), [("n0144076", f"did you mean '{TENCH}'"), ("goldfish", f"did you mean '{GOLDFISH}', goldfish")]
)
def test_a_class_folder_that_is_no_synset_is_refused_with_the_nearest(name: str, hint: str, tmp_path: Path) -> None:
    put(tmp_path / "train" / name / "x.JPEG", b"x")
    with pytest.raises(ValueError, match=rf"class folder 'train/{name}' is no known synset \({re.escape(hint)}\?\)"):
        ImageNetSource(root=str(tmp_path)).list_samples()


def test_a_list_of_ones_own_replaces_the_synsets(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat tabby cat\ndog\n")
    put(tmp_path / "data" / "dog" / "x.png", b"x")
    source = ImageNetSource(root=str(tmp_path / "data"), synsets=str(tmp_path / "classes.txt"))
    (sample,) = source.list_samples()
    assert sample.class_index == 1
    assert source.label_space().names == ("tabby cat", "dog", "background")


@pytest.mark.parametrize(
    "index",
    ["file,class_index\na.jpg,1\nsub/b.jpg,0\n", f"id,wnid\na,{GOLDFISH}\nsub/b,{TENCH}\n"],
)
def test_a_flat_folder_takes_classes_from_its_list(index: str, tmp_path: Path) -> None:
    for name in ("a.jpg", "sub/b.jpg", "c.jpg"):
        put(tmp_path / name, b"x")
    (tmp_path / "index.csv").write_text(index)
    listing = ImageNetSource(root=str(tmp_path)).list_samples()
    assert {sample.id: sample.class_index for sample in listing} == {"a": 1, "sub/b": 0, "c": None}
    assert listing.notes == ("1 images are not in the class list and have no class: 'c.jpg'",)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("file\tclas_index\n", "one of class_index, wnid.* is missing.*did you mean 'clas_index'"),
        ("file\twnid\na.jpg\tn99\n", "index.tsv:2: 'n99' is neither a class index nor a known synset"),
        ("file\tclass_index\na.jpg\t1000\n", r"class index 1000 is not in 0..999"),
        (f"file\tclass_index\twnid\na.jpg\t3\t{TENCH}\n", "class_index '3', wnid 'n01440764' disagree"),
        ("file\tclass_index\nzzz.jpg\t0\n", "names no image of source.root"),
    ],
)
def test_a_faulty_class_list_is_refused(index: str, message: str, tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", b"x")
    (tmp_path / "index.tsv").write_text(index)
    with pytest.raises(ValueError, match=message):
        ImageNetSource(root=str(tmp_path)).list_samples()


def test_webdataset_members_are_read_by_range(tmp_path: Path) -> None:
    pictures = {f"{number:04d}": encoded(scene(number)) for number in range(3)}
    members = {f"{key}.jpg": data for key, data in pictures.items()} | {"0000.cls": b"7", "0001.cls": TENCH.encode()}
    write_tar(tmp_path / "imagenet-val-000000.tar", members | {"0000.json": b"{}", "0009.cls": b"1"})
    write_tar(tmp_path / "imagenet-train-000000.tar", {"0000.jpg": pictures["0002"], "0000.cls": b"999\n"})
    listing = ImageNetSource(root=str(tmp_path)).list_samples()
    found = {sample.id: sample for sample in listing}
    assert {key: sample.class_index for key, sample in found.items()} == {
        "train/0000": 999,
        "val/0000": 7,
        "val/0001": 0,
        "val/0002": None,
    }
    assert {key: read_image(found[f"val/{key}"]) for key in pictures} == pictures
    assert read_image(found["train/0000"]) == pictures["0002"]
    assert listing.num_ignored == 1
    assert [note.partition(":")[0] for note in listing.notes] == [
        "1 images have no .cls member and no class",
        "1 keys have a class and no image",
    ]


def test_a_tar_cut_off_or_compressed_is_refused_by_name(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", {"0.jpg": encoded(scene(0)), "0.cls": b"0"})
    tar.write_bytes(tar.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"'a.tar' is damaged or no tar"):
        ImageNetSource(root=str(tmp_path)).list_samples()
    tar.rename(tmp_path / "a.tar.gz")
    with pytest.raises(ValueError, match=r"'a.tar.gz' is compressed"):
        ImageNetSource(root=str(tmp_path)).list_samples()


def test_a_wrong_class_in_a_tar_names_tar_and_member(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.jpg": b"x", "0.cls": b"1001"})
    with pytest.raises(ValueError, match=r"'a.tar', member '0.cls': class index 1001 is not in 0..999"):
        ImageNetSource(root=str(tmp_path)).list_samples()


def test_listing_a_tar_reads_headers_and_not_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = os.urandom(2_000_000)
    write_tar(tmp_path / "a.tar", {"0.jpg": big, "0.cls": b"1", "1.jpg": big, "1.cls": b"2"})
    read_bytes = Counter[str]()

    class Counting(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(-1 if size is None else size) or b""
            read_bytes["total"] += len(data)
            return data

    monkeypatch.setattr(storage, "open_input", lambda uri: Counting(uri))
    assert len(ImageNetSource(root=str(tmp_path)).list_samples()) == 2
    assert read_bytes["total"] < 10_000


def test_an_index_that_the_layout_does_not_use_is_refused(tmp_path: Path) -> None:
    put(tmp_path / TENCH / "a.jpg", b"x")
    with pytest.raises(ValueError, match=r"source.index: takes no effect in the layout 'class_folders'"):
        ImageNetSource(root=str(tmp_path), layout="class_folders", index="list.csv").list_samples()


@pytest.mark.real
def test_camvid_11_lists_all_frames_with_labels(shared_data: Path) -> None:
    listing = CamVidSource(root=str(shared_data / "datasets" / "camvid-11")).list_samples()
    assert Counter(sample.split for sample in listing) == {"train": 367, "val": 101, "test": 233}
    assert all(sample.label_uri for sample in listing)
    assert listing.notes == ()


@pytest.mark.real
def test_the_imagenet_sample_has_each_class_once(shared_data: Path) -> None:
    listing = ImageNetSource(root=str(shared_data / "images" / "imagenet-sample-1000")).list_samples()
    classes = load_classes(None)
    assert [sample.class_index for sample in listing] == list(range(1000))
    assert [sample.id for sample in listing] == list(classes.ids)


@pytest.mark.real
def test_a_list_with_ids_gives_classes_to_the_ecssd_photographs(shared_data: Path) -> None:
    root = shared_data / "datasets" / "ecssd-500"
    listing = ImageNetSource(root=str(root / "images"), index=str(root / "index.tsv")).list_samples()
    assert len(listing) == 500
    assert all(sample.class_index is not None for sample in listing)
