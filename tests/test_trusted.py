"""Test which Python files of users are executed: those that the user has named, and no others."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from harness.cli.resolve import resolve_network
from harness.common import trusted, user_code
from harness.common.user_code import UserCode
from harness.config import ModelConfig, SearchConfig, search_from_json, to_json
from harness.data import executable_code, open_data
from harness.data.own import OwnOptions
from harness.data.prepare import prepare
from harness.lineage.recorded_network import read_model, trusted_source
from harness.models.sources import NotBuildableError
from recipes.presets.paper import cifar10

NET = b"def build(num_classes, channels, image_size): ...\n"
DATA = """
import numpy as np
open({mark!r}, "a").write("x")
def build(split):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    return [(image, index % 3) for index, image in enumerate(images)]
"""


# ------------------------------------------------------------------ a run's network


def _own(home: Path) -> None:
    """The user's own file, which a command named."""
    trusted.remember(home / "net.py", (home / "net.py").read_bytes())


def _moved(home: Path) -> None:
    _own(home)
    (home / "net.py").rename(home / "elsewhere.py")


def _edited(home: Path) -> None:
    _own(home)
    (home / "net.py").write_bytes(NET + b"\n")


def _named_edited(home: Path) -> None:
    """Another content was named than the recorded one."""
    trusted.remember(home / "net.py", NET + b"\n")


def _linked(home: Path) -> None:
    (home / "net.py").rename(home / "real.py")
    (home / "net.py").symlink_to(home / "real.py")
    _own(home)


def _link_to_copy(home: Path) -> None:
    (home / "net.py").unlink()
    (home / "net.py").symlink_to(home / "run" / "network.py")


def _equal_content(home: Path) -> None:
    """The user named a file of equal content, in another place and under another name."""
    trusted.remember(home / "own" / "mine.py", NET)


def _without_home(home: Path) -> None:
    os.environ["XDG_STATE_HOME"] = "/dev/null"
    _own(home)


def _home_of_another_process(home: Path) -> None:
    _without_home(home)
    trusted._named.clear()


def _listed_by_another_user(home: Path) -> None:
    _own(home)
    trusted._named.clear()
    trusted._file().chmod(0o666)


def _withdrawn(home: Path) -> None:
    _own(home)
    trusted._named.clear()
    trusted._file().write_text("")


def _commented_out(home: Path) -> None:
    _own(home)
    trusted._named.clear()
    digest = sha256(NET).hexdigest()
    trusted._file().write_text(trusted._file().read_text().replace(digest, f"# {digest}"))


def _nothing(home: Path) -> None:
    """A stranger's archive, unpacked so that its file lies at the recorded path with the recorded content."""


KINDS: list[tuple[Callable[[Path], None], bool]] = [
    *((kind, True) for kind in (_own, _moved, _edited, _linked, _equal_content, _without_home)),
    *((kind, False) for kind in (_nothing, _named_edited, _link_to_copy)),
    *((kind, False) for kind in (_home_of_another_process, _listed_by_another_user, _withdrawn, _commented_out)),
]


@pytest.mark.parametrize(("kind", "executed"), KINDS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_recorded_network_is_executed_only_if_it_was_named(
    stranger: Path, kind: Callable[[Path], None], executed: bool
) -> None:
    # Phase: a run with the copy of a file, and this file at the recorded path
    (run := stranger / "run").mkdir()
    for path in (run / "network.py", stranger / "net.py"):
        path.write_bytes(NET)
    kind(stranger)
    typed, digest = f"{stranger / 'net.py'}:build", sha256(NET).hexdigest()

    # Phase: only a named content is returned
    if executed:
        assert trusted_source(typed, digest, run, trust_code=False) == NET
    else:
        with pytest.raises(NotBuildableError) as caught:
            trusted_source(typed, digest, run, trust_code=False)
        for part in ("net.py", digest[:12], f"read {run / 'network.py'}", "--trust-code", "trust_code=True"):
            assert part in str(caught.value)
    assert trusted_source(typed, digest, run, trust_code=True) == NET


def test_no_option_executes_an_altered_copy(stranger: Path) -> None:
    (copy := stranger / "network.py").write_bytes(NET + b"\n")
    digest = sha256(NET).hexdigest()
    with pytest.raises(NotBuildableError, match=r"network.py was altered: its SHA-256 is not"):
        trusted_source("net.py:build", digest, stranger, trust_code=True)
    copy.unlink()
    with pytest.raises(NotBuildableError, match="is missing"):
        trusted_source("net.py:build", digest, stranger, trust_code=True)


def test_a_downloaded_copy_is_named_as_an_artifact(stranger: Path) -> None:
    """The download is deleted after the error, so that its path would help nobody."""
    sizes = {"num_classes": 3, "channels": 3, "image_size": 8}
    model = {"name": "net.py:build", "sha256": sha256(NET).hexdigest(), "args": {}, "classifier": ["fc"], "tensors": ""}
    (stranger / "determinants.json").write_text(json.dumps({"model": model, "spec": sizes}))
    (stranger / "config.json").write_text(json.dumps({"search": {"model": {"name": "net.py:build"}}}))
    (stranger / "network.py").write_bytes(NET)
    with pytest.raises(NotBuildableError, match="read the run's artifact network.py in MLflow, then give --trust-code"):
        read_model(stranger / "determinants.json", lambda name: stranger / name)
    (stranger / "record.json").write_text("{}")  # a local run, whose copy stays
    with pytest.raises(NotBuildableError, match=f"read {stranger / 'network.py'}, then give"):
        read_model(stranger / "determinants.json", lambda name: stranger / name)


def test_a_strangers_name_cannot_add_lines_to_the_message(stranger: Path) -> None:
    with pytest.raises(trusted.UntrustedCodeError) as caught:
        trusted.require_trust("this network", "net\x1b[1m\n.py", "0" * 64, "copy\n.py", trust_code=False)
    assert str(caught.value).isprintable()


def test_a_record_does_not_decide_that_its_code_is_trusted() -> None:
    config: SearchConfig = cifar10("resnet20")
    values = to_json(config)
    assert "trust_code" not in values, "so that records and keys are those of older versions"
    assert search_from_json(values | {"trust_code": True}).trust_code is False


# ------------------------------------------------------------------ data of a file


def _prepared(home: Path) -> Path:
    """Prepare data of a file that leaves a mark when it is executed."""
    (home / "mine.py").write_text(DATA.format(mark=str(home / "executed")))
    prepare("mine", home / "data", f"{home / 'mine.py'}:build", own=OwnOptions(size=8))
    (home / "executed").unlink()
    return home / "data"


@pytest.mark.parametrize("moved", [False, True])
def test_data_of_a_file_are_read_without_further_words_by_the_user_who_named_it(stranger: Path, moved: bool) -> None:
    data = _prepared(stranger)
    trusted._named.clear()  # a later command
    if moved:
        (stranger / "mine.py").rename(stranger / "other.py")
    source = open_data("mine", data, "torch")
    assert source.train_loader(global_batch_size=4).order.num_samples == 12
    assert (stranger / "executed").exists()


@pytest.mark.parametrize("kind", ["unpacked at the recorded path", "only the copy", "the copy is recorded"])
def test_data_of_a_strangers_file_execute_nothing(stranger: Path, forget: Callable[[], None], kind: str) -> None:
    data, file = _prepared(stranger), stranger / "mine.py"
    forget()
    if kind != "unpacked at the recorded path":
        file.unlink()
    if kind == "the copy is recorded":
        for split in ("train", "test"):
            manifest = json.loads((path := data / "mine" / f"{split}.json").read_text())
            manifest["source"]["given"] = f"{data / 'mine' / 'source.py'}:build"
            path.write_text(json.dumps(manifest))
    with pytest.raises(trusted.UntrustedCodeError, match=r"\(sha256 \w+…\).*read .*source.py, then give --trust-code"):
        open_data("mine", data, "torch")
    assert not (stranger / "executed").exists()

    # Phase: the option trusts this file in this command only
    code = executable_code("mine", data, "torch", trust_code=True)
    assert next(iter(open_data("mine", data, "torch", code=code).test_loader(batch_size=4))).images_NHWC.shape[0] == 4
    assert (stranger / "executed").exists() and not trusted.is_trusted(code)


def test_an_edited_file_of_data_is_an_error_even_for_its_user(stranger: Path) -> None:
    data, file = _prepared(stranger), stranger / "mine.py"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(ValueError, match=r"mine.py has changed since mine was prepared.*--overwrite"):
        open_data("mine", data, "torch").train_loader(global_batch_size=4)
    file.unlink()
    copy = data / "mine" / "source.py"
    copy.write_bytes(copy.read_bytes().replace(b"12", b"13"))
    with pytest.raises(ValueError, match="source.py was altered"):
        open_data("mine", data, "torch")
    assert not (stranger / "executed").exists()


# ------------------------------------------------------------------ several processes


class _OtherRank:
    """Rank 1 of a launch on another node. It has no home of its own, and no copy of the user's file."""

    size = 2

    def __init__(self, shared: str) -> None:
        self.shared = shared

    def on_main(self, work: Callable[[], object]) -> None:
        return None

    def share_text(self, text: str) -> str:
        return self.shared


def test_the_other_ranks_need_neither_a_home_nor_the_file(stranger: Path, forget: Callable[[], None]) -> None:
    data, digest = _prepared(stranger), sha256((stranger / "mine.py").read_bytes()).hexdigest()
    assert executable_code("mine", data, "torch") == digest, "rank 0"
    forget()
    rank: Any = _OtherRank(NET.decode())
    assert resolve_network(rank, ModelConfig(f"{stranger / 'nowhere.py'}:build")).source == NET
    assert open_data("mine", data, "torch", code=digest).num_train == 12
    with pytest.raises(trusted.UntrustedCodeError):
        open_data("mine", data, "torch", code="0" * 64)


# ------------------------------------------------------------------ the list


def test_the_list_is_private_readable_and_written_once(stranger: Path) -> None:
    for _ in range(2):
        trusted.remember(stranger / "net\x1b\udcff.py", NET)
    file = trusted._file()
    head, line = file.read_text().splitlines()
    assert head.startswith("# ") and line.split("  ")[0] == sha256(NET).hexdigest()
    assert line.endswith(r"net\x1b\udcff.py") and line.split("  ")[1].endswith("Z")
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o077 == 0
    file.write_text(file.read_text() + "a note without a line's end")
    trusted.remember(stranger / "other.py", b"other")
    assert "a note without a line's end\n" in file.read_text() and trusted.is_trusted(sha256(b"other").hexdigest())


def test_a_list_that_another_user_owns_or_that_is_too_large_is_ignored(stranger: Path, monkeypatch, caplog) -> None:
    # Phase: a list with one file
    trusted.remember(stranger / "net.py", NET)
    trusted._named.clear()
    digest, user = sha256(NET).hexdigest(), os.geteuid()
    assert trusted.is_trusted(digest)

    # Phase: it counts for its owner only, and up to a size
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert not trusted.is_trusted(digest)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(trusted, "_MOST_BYTES", 10)
    assert not trusted.is_trusted(digest)
    messages = [one.message for one in caplog.records if "use --trust-code" in one.message]
    assert len(messages) == 2 and "other users can write" in messages[0] and "at most 10 are read" in messages[1]


def test_a_line_of_another_launch_is_not_written_twice(stranger: Path, monkeypatch) -> None:
    trusted.remember(stranger / "net.py", NET)
    monkeypatch.setattr(trusted, "_remembered", lambda file: set())  # the other launch writes after this look
    trusted.remember(stranger / "net.py", NET)
    assert len(trusted._file().read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOLCK, "No locks available"), ""),
        (NotImplementedError("no locks"), ""),
        (OSError(errno.EACCES, "Permission denied"), "Permission denied"),
        (Timeout("trusted.lock"), "another process holds the lock of the list"),
    ],
)
def test_a_file_system_without_locks_is_no_obstacle(
    stranger: Path, monkeypatch, caplog, error: Exception, said: str
) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(FileLock, "acquire", acquire)
    trusted.remember(stranger / "net.py", NET)
    trusted._named.clear()
    assert trusted.is_trusted(sha256(NET).hexdigest()) is not bool(said)
    assert said in caplog.text and bool(caplog.text) is bool(said)


def test_a_known_file_needs_no_lock(stranger: Path, monkeypatch, caplog) -> None:
    trusted.remember(stranger / "net.py", NET)
    monkeypatch.setattr(FileLock, "acquire", None)
    trusted.remember(stranger / "net.py", NET)
    assert not caplog.text


def _remember_ten(first: int) -> None:
    for number in range(first, first + 10):
        trusted.remember(Path(f"{number}.py"), str(number).encode())


def test_launches_at_once_lose_no_line(stranger: Path, forget: Callable[[], None]) -> None:
    context = multiprocessing.get_context("fork")
    launches = [context.Process(target=_remember_ten, args=(first,)) for first in (0, 10, 20)]
    for launch in launches:
        launch.start()
    for launch in launches:
        launch.join(60)
    trusted._named.clear()
    assert all(trusted.is_trusted(sha256(str(number).encode()).hexdigest()) for number in range(30))
    assert len(trusted._file().read_text().splitlines()) == 31


@pytest.mark.parametrize("state", ["/dev/null", "/proc"])
def test_a_home_that_cannot_be_written_is_said_once(stranger: Path, monkeypatch, caplog, state: str) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", state)
    for number in range(3):
        trusted.remember(Path("net.py"), str(number).encode())
    assert trusted.is_trusted(sha256(b"1").hexdigest()), "this process has named it"
    (record,) = [one for one in caplog.records if "later commands need --trust-code" in one.message]
    assert record.levelname == "WARNING" and "cannot remember that net.py is yours" in record.message


def test_the_place_of_the_list(stranger: Path, monkeypatch) -> None:
    assert trusted._file() == Path(os.environ["XDG_STATE_HOME"]) / "signed-tickets" / "trusted"
    monkeypatch.setenv("HOME", "/home/me")
    for given in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", given)
        assert trusted._file() == Path("/home/me/.local/state/signed-tickets/trusted")
    monkeypatch.setenv("HOME", "nowhere")
    with pytest.raises(FileNotFoundError, match="XDG_STATE_HOME"):
        trusted._file()


# ------------------------------------------------------------------ imports of the file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import helper", r"net.py, line 1: imports helper from .*helper.py; .* not the files beside it"),
        ("def build():\n    from helper import x", "line 2: imports helper"),
        ("import folder.helper", "imports folder from"),
        ("from . import helper", "relative import .*not the files beside it"),
        (
            "import sys\nsys.path.insert(0, {home!r})\ndef build():\n    import moved\n    return moved.x",
            "line 4: imports moved from .*moved.py",
        ),
        ("import sys\nsys.exit(3)", "line 2: SystemExit: 3"),
        ("import nowhere_to_be_found", "ModuleNotFoundError: .*installed packages, but not the files beside it"),
    ],
)
def test_a_file_cannot_import_a_file_beside_it(tmp_path: Path, monkeypatch, text: str, message: str) -> None:
    """Keys and trust cover one file. So an edited module beside it would give other bits under an old key."""
    # Phase: modules beside the file, some of which Python finds
    (tmp_path / "folder").mkdir()
    for name in ("helper.py", "moved.py", "folder/helper.py"):
        (tmp_path / name).write_text("x = 1\n")
    if "sys.path" not in text:
        monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=message):
        code = UserCode(text.format(home=str(tmp_path)).encode(), str(tmp_path / "net.py"), "network")
        code.call(code.function("build"))


def test_a_file_cannot_import_a_file_of_the_working_directory(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "nearby.py").write_text("")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    with pytest.raises(ValueError, match="line 1: imports nearby from .*nearby.py"):
        UserCode(b"import nearby", str(tmp_path / "elsewhere" / "net.py"), "network")


@pytest.mark.parametrize("installed", ["nearby", None])
def test_packages_that_are_installed_from_a_clone_can_be_imported(
    tmp_path: Path, monkeypatch, installed: str | None
) -> None:
    """The harness, even if it is not installed, and an editable package that lies beside the file."""
    (tmp_path / "nearby.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(Path(__file__).parents[1])
    monkeypatch.setattr(user_code, "_installed_names", lambda: {installed})
    UserCode(f"import {installed or 'harness, signed_tickets'}".encode(), str(tmp_path / "net.py"), "network")


def test_a_file_that_fails_leaves_the_modules_as_they_were(tmp_path: Path) -> None:
    """The private name belongs to a content, so a second execution has the same name."""
    text = b"import os\nif 'FAIL_HERE' in os.environ: raise ValueError\nclass Net: ..."

    def registered() -> object:
        name = f"_network_{sha256(text).hexdigest()[:16]}"
        return sys.modules.get(name)

    # Phase: an error at the first execution, then at the second
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAIL_HERE", "1")
        with pytest.raises(ValueError, match="line 2"):
            UserCode(text, str(tmp_path / "net.py"), "network")
        assert registered() is None
    code = UserCode(text, str(tmp_path / "net.py"), "network")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAIL_HERE", "1")
        with pytest.raises(ValueError, match="line 2"):
            UserCode(text, str(tmp_path / "net.py"), "network")
    assert registered() is code.module


def test_a_file_can_import_installed_packages_and_the_harness(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])  # the harness lies in the working directory
    text = "import dataclasses, json, numpy.linalg, torch\nfrom harness.config import ModelConfig\nbuild = ModelConfig"
    code = UserCode(text.encode(), str(tmp_path / "net.py"), "network")
    assert code.call(code.function("build"), "resnet20") == ModelConfig("resnet20")
