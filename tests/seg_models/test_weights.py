"""Weights: found, verified, matched to networks, or refused with a remedy."""

from __future__ import annotations

import csv
import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.numerics import Numerics
from seg_models.weights.classifiers import ClassifierSpec, build_classifier, input_size, lite_ensemble
from seg_models.weights.collected import collected_ensemble
from seg_models.weights.ensembles import named_ensemble
from seg_models.weights.files import file_sha256, load_tensors, resolve_weights, weights_place, weights_source
from seg_models.weights.matching import load_by_name, load_by_order


def save_classifier(path: Path, *, seed: int = 0, num_classes: int = 6) -> nn.Module:
    """A random timm network and its weights in a file."""
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model("test_resnet", num_classes=num_classes).eval()
    save_file(model.state_dict(), path)
    return model


def test_a_missing_local_file_is_named_with_the_place_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"'a.safetensors' are missing: put the file at {tmp_path}/a.safetensors"):
        resolve_weights(str(tmp_path / "a.safetensors"))


def test_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_classifier(path)
    digest = file_sha256(path)
    for good in (digest, digest.upper(), digest[:8], digest[:20]):
        assert resolve_weights(str(path), sha256=good) == path
    for wrong in ("0" * 64, digest[1:9], digest[:-1] + ("0" if digest[-1] != "0" else "1")):
        with pytest.raises(ValueError, match="SHA-256"):
            resolve_weights(str(path), sha256=wrong)


@pytest.mark.parametrize("sha256", ["1234567", "0" * 65, "not-hexadecimal", ""])
def test_fewer_than_eight_digits_are_no_hash(sha256: str) -> None:
    for kind in (ClassifierSpec, BackboneSpec):
        with pytest.raises(ValidationError, match="weights_sha256"):
            kind(name="resnet18", weights="a.pth", weights_sha256=sha256)
        assert kind(name="resnet18", weights="a.pth", weights_sha256="12345678").weights_sha256 == "12345678"


def test_package_references_find_files_inside_installed_packages() -> None:
    assert resolve_weights("package:timm/models/resnet.py").is_file()
    with pytest.raises(ValueError, match=r"no file 'nothing\.pth'"):
        resolve_weights("package:timm/nothing.pth")
    with pytest.raises(ValueError, match="pip install no-such-package-here"):
        resolve_weights("package:no_such_package_here/a.pth")
    with pytest.raises(ValueError, match="of the form"):
        resolve_weights("package:timm")


def test_a_url_is_fetched_once_into_the_cache_of_torch_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def fetch(url: str, target: str, *, hash_prefix: str | None, progress: bool) -> None:
        calls.append(url)
        if "broken" in url:
            raise OSError("no route")
        Path(target).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    first, again = (resolve_weights("https://example.org/a.pth") for _ in range(2))
    assert first == again
    assert first.parent == tmp_path / "checkpoints"
    assert first.name.endswith("-a.pth")
    assert len(calls) == 1
    with pytest.raises(
        ValueError, match=r"cannot be fetched \(no route\): put the file at .*broken.pth; `segray weights`"
    ):
        resolve_weights("https://example.org/broken.pth")


def test_a_file_that_holds_its_hash_in_its_name_keeps_the_name_and_a_wrong_one_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    (tmp_path / f"net-{digest[:8]}.pth").write_bytes(content)
    (tmp_path / "net-00000000.pth").write_bytes(content)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    # torch refuses other schemes than those urllib knows; a file's address stands for the server's
    fetch = torch.hub.download_url_to_file
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda url, *rest, **named: fetch(f"file://{url[8:]}", *rest, **named)
    )
    good, wrong = (f"https://{tmp_path}/net-{tag}.pth" for tag in (digest[:8], "00000000"))
    assert resolve_weights(good, sha256=digest[:8]) == tmp_path / "hub" / "checkpoints" / f"net-{digest[:8]}.pth"
    with pytest.raises(
        ValueError, match=r"cannot be fetched \(invalid hash value .*put the file at .*net-00000000\.pth"
    ):
        resolve_weights(wrong, sha256="00000000")
    assert [path.name for path in (tmp_path / "hub" / "checkpoints").iterdir()] == [f"net-{digest[:8]}.pth"]


def test_the_place_of_a_file_follows_the_variables_of_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    place = weights_place("https://example.org/net-0123abcd.pth", sha256="0123abcd")
    assert place == tmp_path / "torch" / "hub" / "checkpoints" / "net-0123abcd.pth"
    assert weights_place("https://example.org/net-0123abcd.pth").name.endswith("-net-0123abcd.pth")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--timm--resnet18.a1_in1k"
    assert weights_place("timm:resnet18.a1_in1k") == folder
    file = folder / "snapshots" / "c0ffee" / "model.safetensors"
    for path, text in ((file, "weights"), (folder / "refs" / "main", "c0ffee")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert weights_place("timm:resnet18.a1_in1k") == file


def test_where_a_file_can_be_had_is_an_address_or_a_pip_command() -> None:
    assert weights_source("https://example.org/a.pth") == "https://example.org/a.pth"
    assert weights_source("package:some_package/a.pth") == "pip install some-package"
    hub = weights_source("timm:resnet18.a1_in1k")
    assert hub == "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors"
    assert weights_source("folder/a.pth") is None


def test_urls_that_end_in_one_name_are_different_files_of_the_same_suffix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(url: str, target: str, *, hash_prefix: str | None, progress: bool) -> None:
        save_file({"a": torch.full((1,), float("small" in url))}, target)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    urls = [f"https://huggingface.co/{name}/resolve/main/model.safetensors?download=true" for name in ("big", "small")]
    assert [float(load_tensors(resolve_weights(url))["a"]) for url in urls] == [0.0, 1.0]


def test_an_address_that_only_jobs_can_read_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"weights 's3://b/a.pth': allowed are a local path, package:"):
        resolve_weights("s3://b/a.pth")


def test_collected_classifiers_lie_in_a_folder_or_below_an_address() -> None:
    for place in ("s3://bucket/w", "s3://bucket/w/", "some/folder", "/w"):
        expected = f"{place.rstrip('/')}/squeezenet1_1_caffe.safetensors"
        assert named_ensemble(f"collected:{place}")[-1].weights == expected


def test_published_timm_weights_come_from_the_hub_or_the_message_says_what_to_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def fetch(repo: str, file_name: str) -> str:
        if repo != "timm/resnet18.a1_in1k":
            raise ConnectionError("offline")
        (tmp_path / file_name).write_bytes(b"weights")
        return str(tmp_path / file_name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert resolve_weights("timm:resnet18.a1_in1k").name == "model.safetensors"
    with pytest.raises(ValueError, match=r"offline.*copy 'model.safetensors' of timm/resnet34.a1_in1k"):
        resolve_weights("timm:resnet34.a1_in1k")
    with pytest.raises(ValueError, match="no published weights"):
        resolve_weights("timm:resnet18.no_such_tag")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_damaged_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(ValueError, match="cannot be read"):
        load_tensors(path)


def test_a_file_with_a_few_wrong_bytes_is_read_or_refused_by_its_name(tmp_path: Path) -> None:
    path, damage = tmp_path / "a.pth", random.Random(0)
    torch.save({"a": torch.ones(3, 4), "b": torch.arange(5)}, path, _use_new_zipfile_serialization=False)
    whole, refusals = path.read_bytes(), []
    for _ in range(300):
        content = bytearray(whole)
        content[damage.randrange(len(content))] = damage.randrange(256)
        path.write_bytes(content)
        try:
            load_tensors(path)
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 50
    assert all(refusal.startswith(f"weights {path}") for refusal in refusals)


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"weights {tmp_path}: found a folder, a file is needed"):
        resolve_weights(str(tmp_path))


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (canary,)

    torch.save({"weight": Bomb()}, tmp_path / "bomb.pth")
    message = r"cannot be read: it asks for \S+, and no code of a file is run; save its table"
    with pytest.raises(ValueError, match=message):
        load_tensors(tmp_path / "bomb.pth")
    assert not canary.exists()


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="'b' holds NaN"):
        load_tensors(tmp_path / "a.safetensors")


def test_torch_files_are_unwrapped(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "epoch": 3}, tmp_path / "a.pth")
    assert list(load_tensors(tmp_path / "a.pth")) == ["a"]
    torch.save([1, 2], tmp_path / "b.pth")
    with pytest.raises(ValueError, match="no table of named tensors"):
        load_tensors(tmp_path / "b.pth")


def test_loading_by_name_accounts_for_every_tensor() -> None:
    source, model = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
    assert load_by_name(model, source.state_dict(), origin="file") == 2
    assert torch.equal(model.weight, source.weight)
    wrong = {"weight": torch.zeros(4, 3, 3, 3), "extra": torch.zeros(1)}
    with pytest.raises(
        ValueError, match=r"weights file .*missing bias; left over extra; weight has shape \(4, 3, 3, 3\)"
    ):
        load_by_name(model, wrong, origin="file")
    assert torch.equal(model.weight, source.weight)


def test_loading_by_order_renames_and_checks_shapes() -> None:
    source, model = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
    renamed = {f"other.{name}": tensor for name, tensor in source.state_dict().items()}
    assert load_by_order(model, renamed, origin="file") == 2
    assert torch.equal(model.weight, source.weight)
    with pytest.raises(ValueError, match="1 tensors for a network of 2"):
        load_by_order(model, {"weight": source.weight}, origin="file")
    with pytest.raises(ValueError, match=r"weight <- b has shape \(4,\)"):
        load_by_order(model, {"b": torch.zeros(4), "w": torch.zeros(4, 3, 1, 1)}, origin="file")


def test_a_classifier_of_ones_own_gives_the_scores_of_the_network_it_was_saved_from(tmp_path: Path) -> None:
    model = save_classifier(tmp_path / "own.safetensors")
    spec = ClassifierSpec(name="test_resnet", weights=str(tmp_path / "own.safetensors"), num_classes=6, size=32)
    images = torch.randn(2, 3, 32, 32)
    for channels_last in (False, True):
        classifier = build_classifier(spec, numerics=Numerics(channels_last=channels_last))
        assert not classifier.training
        assert not any(parameter.requires_grad for parameter in classifier.parameters())
        torch.testing.assert_close(classifier(images), model(images), rtol=1e-4, atol=1e-5)
    half = build_classifier(spec, numerics=Numerics(dtype="bfloat16"))(images)
    assert half.dtype == torch.bfloat16
    assert float((half.float() - model(images).detach()).abs().max()) < 0.1


def test_a_network_of_other_classes_or_an_unknown_name_is_refused(tmp_path: Path) -> None:
    save_classifier(tmp_path / "own.safetensors")
    base = ClassifierSpec(name="test_resnet", weights=str(tmp_path / "own.safetensors"))
    with pytest.raises(ValueError, match="do not fit the network"):
        build_classifier(base)
    with pytest.raises(ValueError, match="did you mean 'test_resnet'"):
        build_classifier(base.model_copy(update={"name": "test_resnt"}))
    with pytest.raises(ValueError, match="has no module 'bn9'"):
        build_classifier(base.model_copy(update={"num_classes": 6, "identity": ("bn9",)}))
    with pytest.raises(ValueError, match="cannot be built"):
        build_classifier(base.model_copy(update={"model_kwargs": {"nonsense": 1}}))


def test_modules_named_identity_are_taken_out(tmp_path: Path) -> None:
    model = save_classifier(tmp_path / "own.safetensors")
    spec = ClassifierSpec(
        name="test_resnet", weights=str(tmp_path / "own.safetensors"), num_classes=6, identity=("fc",)
    )
    images = torch.randn(1, 3, 32, 32)
    features = build_classifier(spec)(images)
    assert features.shape == (1, 96)
    torch.testing.assert_close(model.get_submodule("fc")(features), model(images))


def test_input_is_scaled_then_normalised(tmp_path: Path) -> None:
    save_classifier(tmp_path / "own.safetensors")
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    base = ClassifierSpec(name="test_resnet", weights=str(tmp_path / "own.safetensors"), num_classes=6, size=32)
    imagenet = build_classifier(base).prepare(image)
    torch.testing.assert_close(imagenet[1], (image[1] / 255 - 0.456) / 0.224)
    caffe = base.model_copy(update={"input_scale": 1.0, "mean": (122.68, 116.67, 104.01), "std": (1.0, 1.0, 1.0)})
    torch.testing.assert_close(build_classifier(caffe).prepare(image)[0], image[0].float() - 122.68)
    assert build_classifier(base).prepare(torch.zeros(3, 64, 100, dtype=torch.uint8)).shape == (3, 32, 64)


@pytest.mark.parametrize(
    ("height", "width", "size", "expected"),
    [
        (375, 500, 224, (224, 288)),
        (500, 375, 224, (288, 224)),
        (300, 300, 224, (224, 224)),
        (100, 101, 227, (227, 227)),
        (1, 1000, 224, (224, 896)),
        (1, 1, 64, (64, 64)),
    ],
)
def test_the_short_side_gets_the_classifiers_size_and_the_aspect_is_kept(
    height: int, width: int, size: int, expected: tuple[int, int]
) -> None:
    assert input_size(height, width, size=size, resize="short_side") == expected
    assert input_size(height, width, size=size, resize="square") == (size, size)


def test_the_named_ensembles_hold_what_they_say() -> None:
    assert [spec.size for spec in lite_ensemble()] == [224, 240, 260]
    assert len(named_ensemble("collected:some/folder")) == 11
    assert len(named_ensemble("timm15")) == 15
    for wrong, nearest in (
        ("efficientnet_light", "efficientnet_lite"),
        ("collected", "collected:FOLDER"),
        ("timm15:", "timm15:FOLDER"),
        ("tim15:some/folder", "timm15:FOLDER"),
    ):
        with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
            named_ensemble(wrong)


@pytest.mark.real
def test_every_collected_classifier_recognises_the_sample_images(shared_data: Path) -> None:
    """12 of these 14 know at least half of six images; the two MobileNets of quarter width at least one of them."""
    root = shared_data / "images" / "imagenet-sample-1000"
    rows = list(csv.DictReader((root / "index.tsv").read_text().splitlines(), delimiter="\t"))[::180]
    classes = [int(row["class_index"]) for row in rows]
    pictures = [np.array(Image.open(root / row["file"]).convert("RGB")) for row in rows]
    specs = (*collected_ensemble(str(shared_data / "weights" / "imagenet-classifiers")), *lite_ensemble())
    for spec in specs:
        classifier = build_classifier(spec)
        images = [torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures]
        with torch.no_grad():
            found = [int(classifier(classifier.prepare(image)[None]).argmax()) for image in images]
        hits = sum(a == b for a, b in zip(found, classes, strict=True))
        assert hits >= (1 if "025" in spec.label else len(classes) // 2), (spec.label, hits, len(classes))
