"""Test opening prepared data: error messages name missing, truncated, altered and foreign files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.data import manifest as manifest_module
from harness.data import open_data, verify_data


@pytest.fixture
def directory(digits_directory: Path, tmp_path: Path) -> Path:
    shutil.copytree(digits_directory / "digits", tmp_path / "data" / "digits")
    return tmp_path / "data"


LOADERS = [("ffcv", "train.beton"), ("memory", "train.safetensors")]


def test_missing_data_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        open_data("digits", tmp_path, "ffcv")
    assert f"python tools/prepare_data.py digits --out {tmp_path}" in str(caught.value)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'fashion_mnist'.*known: .*digits"):
        open_data("fashion-mnist", "data", "ffcv")
    with pytest.raises(ValueError, match="unknown loader 'mem'"):
        open_data("digits", "data", "mem")  # type: ignore[arg-type]


@pytest.mark.parametrize(("loader", "name"), LOADERS)
def test_a_truncated_file_is_named(directory: Path, loader: str, name: str) -> None:
    path = directory / "digits" / name
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ValueError, match=f"{name} has .* bytes, but its manifest says"):
        open_data("digits", directory, loader)


@pytest.mark.parametrize(("loader", "name"), LOADERS)
def test_an_altered_file_of_the_same_size_is_named(directory: Path, loader: str, name: str) -> None:
    open_data("digits", directory, loader)
    path = directory / "digits" / name
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} was altered"):
        open_data("digits", directory, loader)


@pytest.mark.parametrize(("loader", "name"), LOADERS)
def test_a_file_of_another_split_is_named(directory: Path, loader: str, name: str) -> None:
    shutil.copy(directory / "digits" / name.replace("train", "test"), directory / "digits" / name)
    with pytest.raises(ValueError, match=name):
        open_data("digits", directory, loader)
    (directory / "digits" / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing, but its manifest exists"):
        open_data("digits", directory, loader)


def test_a_file_is_hashed_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    real = manifest_module.sha256_file
    monkeypatch.setattr(manifest_module, "sha256_file", lambda path: hashed.append(Path(path).name) or real(path))
    for _ in range(2):
        open_data("digits", directory, "ffcv")
    assert sorted(hashed) == ["test.beton", "train.beton"]  # the files are copies, so they are not yet verified
    os.utime(directory / "digits" / "train.beton")
    open_data("digits", directory, "ffcv")
    assert hashed[2:] == ["train.beton"]


@pytest.fixture
def hashed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives the names of hashed files.

    The directory behaves as read-only, so that no verification note can be stored beside the data.
    """
    names: list[str] = []
    real = manifest_module.sha256_file
    monkeypatch.setattr(manifest_module, "sha256_file", lambda path: names.append(Path(path).name) or real(path))

    def refuse(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(manifest_module, "write_atomically", refuse)
    return names


def test_a_verification_by_another_process_avoids_hashing(directory: Path, hashed: list[str]) -> None:
    word = verify_data("digits", directory, "ffcv")
    assert hashed == ["train.beton", "test.beton"]
    assert open_data("digits", directory, "ffcv", vouched=word).num_train == 1297
    assert hashed[2:] == []
    open_data("digits", directory, "ffcv")
    assert hashed[2:] == ["train.beton", "test.beton"]


def _touched(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(directory / "test.beton", ns=(1, 1))


def _replaced(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace a file by a copy with another inode.

    Size and times stay the same.
    """
    status = (directory / "test.beton").stat()
    (directory / "test.beton").rename(directory / "before")
    shutil.copy(directory / "before", directory / "test.beton")
    os.utime(directory / "test.beton", ns=(status.st_atime_ns, status.st_mtime_ns))


def _on_another_host(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module.socket, "gethostname", lambda: "another")


def _on_another_device(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.stat

    def stat(path: Path, **how: bool) -> SimpleNamespace:
        found = real(path, **how)
        values = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        return SimpleNamespace(**values | {"st_dev": found.st_dev + 1})

    monkeypatch.setattr(Path, "stat", stat)


@pytest.mark.parametrize("change", [_touched, _replaced, _on_another_host, _on_another_device])
def test_a_verification_holds_only_for_the_same_files(
    directory: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch, change
) -> None:
    word = verify_data("digits", directory, "ffcv")
    change(directory / "digits", monkeypatch)
    open_data("digits", directory, "ffcv", vouched=word)
    assert hashed[2:] == ["train.beton", "test.beton"]


def test_a_verification_does_not_cover_another_manifest_or_a_truncated_file(directory: Path, hashed: list[str]) -> None:
    word = verify_data("digits", directory, "ffcv")
    manifest = directory / "digits" / "train.json"
    text = manifest.read_text()
    content = json.loads(text)
    content["files"]["train.beton"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"train\.beton was altered"):
        open_data("digits", directory, "ffcv", vouched=word)
    manifest.write_text(text)
    os.truncate(directory / "digits" / "train.beton", 7)
    with pytest.raises(ValueError, match=r"train\.beton has 7 bytes"):
        open_data("digits", directory, "ffcv", vouched=word)


def test_a_file_altered_during_hashing_is_hashed_again(
    directory: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory / "digits" / "test.beton"
    real = manifest_module.sha256_file

    def slow(file: Path) -> str:
        digest = real(file)
        os.utime(path, ns=(1, 1))
        return digest

    monkeypatch.setattr(manifest_module, "sha256_file", slow)
    word = verify_data("digits", directory, "ffcv")
    hashed.clear()
    open_data("digits", directory, "ffcv", vouched=word)
    assert hashed == ["train.beton", "test.beton"]


def test_the_verification_note_does_not_cover_another_manifest(directory: Path) -> None:
    open_data("digits", directory, "ffcv")
    path = directory / "digits" / "train.json"
    content = json.loads(path.read_text())
    content["files"]["train.beton"]["sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"train\.beton was altered"):
        open_data("digits", directory, "ffcv")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other/1"}', '{"format": "harness.data/1"}'])
def test_an_invalid_manifest_is_named(directory: Path, text: str) -> None:
    (directory / "digits" / "test.json").write_text(text)
    with pytest.raises(ValueError, match=r"test\.json is not a manifest"):
        open_data("digits", directory, "ffcv")


def test_a_manifest_of_another_data_set_is_refused(directory: Path) -> None:
    shutil.copy(directory / "digits" / "train.json", directory / "digits" / "test.json")
    with pytest.raises(ValueError, match=r"test\.json describes digits train, not digits test"):
        open_data("digits", directory, "ffcv")


def test_a_read_only_directory_works(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(manifest_module, "write_atomically", refuse)
    assert open_data("digits", directory, "memory").num_train == 1297
