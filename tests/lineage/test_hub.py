"""Test uploads to the Hugging Face Hub and downloads from it, against a stand-in of its HTTP API."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from harness import load_checkpoint, load_network, load_signed_mask
from harness.cli import export as export_command
from harness.cli import pull as pull_command
from harness.lineage.bundle import write_bundle
from harness.lineage.proof.verify import verify
from harness.lineage.sharing.export import Exported, export_run
from harness.lineage.sharing.hub import Repository, check_upload, pull, upload
from harness.lineage.store import LineageStore
from tests.free_port import free_port
from tests.lineage.hub_server import TOKEN, HubServer, hub_server
from tests.lineage.shared_run import local_store, made_search
from tests.made_search import MadeSearch

REPO = "someone/ticket"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeSearch:
    """Return a search with two levels. Tests must not change it."""
    return made_search(tmp_path_factory.mktemp("made") / "runs")


@pytest.fixture(scope="module")
def exported(made: MadeSearch) -> Exported:
    """Return its deepest level, exported. Tests must not change it."""
    store = LineageStore(None, made.nodes)
    return export_run(store, made.keys["L01"], made.nodes.directory.parent / "exported", repo=REPO)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Run the stand-in, with an empty cache and no token."""
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    with hub_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture
def shared(hub: HubServer, exported: Exported) -> HubServer:
    """Return the stand-in with the exported level in a public repository."""
    hub.put(REPO, exported.directory)
    hub.requests.clear()
    return hub


# ---------------------------------------------------------------------- download


def test_a_signed_mask_is_loaded_from_the_hub_with_its_lineage(
    shared: HubServer, made: MadeSearch, tmp_path: Path
) -> None:
    # Phase: the mask alone, without the network's weights
    runs = tmp_path / "runs"
    mask = load_signed_mask(f"hf://{REPO}", local_dir=runs)
    assert mask.digest == load_signed_mask(made.keys["L01"], local_dir=made.nodes.directory).digest
    assert not [one for one in shared.requests if "model.safetensors" in one]
    # Phase: the lineage is there, and can be verified
    findings = verify(local_store(runs))
    assert findings.problems == [] and findings.checked["parents"] > 0
    assert {path.name.split("-")[0] for path in runs.iterdir() if "-" in path.name} == {"search", "level"}
    # Phase: the network completes the imported run
    images = torch.randn(2, 1, 8, 8)
    network = load_network(f"hf://{REPO}", local_dir=runs)
    assert torch.equal(network(images), load_network(made.keys["L01"], local_dir=made.nodes.directory)(images))
    assert load_checkpoint(made.keys["L01"], local_dir=runs).level == 1
    # Phase: files that are in the cache are not downloaded again
    shared.requests.clear()
    load_signed_mask(f"hf://{REPO}", local_dir=runs)
    assert not [one for one in shared.requests if "/resolve/" in one]


def test_a_revision_names_a_branch_a_tag_or_a_commit(shared: HubServer, made: MadeSearch, tmp_path: Path) -> None:
    first = shared.repositories[REPO].refs["main"]
    shared.repositories[REPO].refs |= {"v1": first, "refs/pr/1": first}
    store = LineageStore(None, made.nodes)
    other = export_run(store, made.keys["L00"], tmp_path / "other")
    second = shared.put(REPO, other.directory)
    for revision, expected in ((first, "L01"), ("v1", "L01"), ("refs/pr/1", "L01"), ("main", "L00"), (second, "L00")):
        pulled = pull(local_store(tmp_path / "runs"), f"{REPO}@{revision}")
        assert pulled.key == made.keys[expected], revision
        assert pulled.commit == (first if expected == "L01" else second)


@pytest.mark.parametrize("text", ["hf://ticket", "hf://a/b/c", "hf://datasets/a/b", "hf://a/b@", "hf://a b/c", "hf://"])
def test_a_malformed_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="names no model repository: give hf://USER/NAME or hf://USER/NAME@REV"):
        Repository.of(text)


def _damage(name: str, content: bytes | None) -> Callable[[HubServer], None]:
    """Return a function that changes a file of the latest commit, or removes it."""

    def change(hub: HubServer) -> None:
        files = hub.repositories[REPO].files
        inside = name.removeprefix("nodes/")
        path = next(one for one in files if one == name or (inside != name and one.endswith(f"/{inside}")))
        if content is None:
            del files[path]
        else:
            files[path] = content

    return change


def _private(hub: HubServer) -> None:
    hub.repositories[REPO].private = True


def _refuse(pattern: str, status: int) -> Callable[[HubServer], None]:
    return lambda hub: hub.refused.update({pattern: status})


# what happens: (change of the hub, name to load, exception, message)
FAULTS: dict[str, tuple[Callable[[HubServer], None], str, type[Exception], str]] = {
    "damaged mask": (
        _damage("nodes/signed_mask.safetensors", b"x" * 40),
        REPO,
        ValueError,
        "signed_mask.safetensors was altered: its SHA-256 is",
    ),
    "damaged copy of the mask": (
        _damage("signed_mask.safetensors", b"x" * 40),
        REPO,
        ValueError,
        "hf://someone/ticket: signed_mask.safetensors was altered",
    ),
    "damaged record": (_damage("nodes/record.json", b"{}"), REPO, ValueError, "record.json was altered"),
    "damaged list": (_damage("bundle.json", b"[["), REPO, ValueError, "hf://someone/ticket: "),
    "missing mask": (_damage("nodes/signed_mask.safetensors", None), REPO, ValueError, "is missing, or not a file"),
    "missing list": (_damage("bundle.json", None), REPO, LookupError, "is no exported run: it has no bundle.json"),
    "unknown repository": (lambda hub: None, "someone/else", LookupError, "no such repository, or it is private"),
    "private, no token": (_private, REPO, LookupError, "or it is private.*run `hf auth login`, or set HF_TOKEN"),
    "unknown revision": (lambda hub: None, f"{REPO}@v9", LookupError, "no revision 'v9'; give a branch, a tag or a co"),
    "forbidden": (_refuse("GET /api", 403), REPO, LookupError, "lacks the permission .403."),
    "broken hub": (_refuse("GET /api", 500), REPO, ConnectionError, "the Hub answers 500 .refused by the test."),
    "file refused": (_refuse("resolve.*record", 403), REPO, LookupError, "lacks the permission .403."),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_of_a_download_is_one_line_and_imports_nothing(shared: HubServer, tmp_path: Path, what: str) -> None:
    change, name, kind, message = FAULTS[what]
    change(shared)
    with pytest.raises(kind, match=message) as caught:
        load_signed_mask(f"hf://{name}", local_dir=tmp_path / "runs")
    assert "\n" not in str(caught.value) and TOKEN not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_repository_of_several_runs_is_refused(hub: HubServer, made: MadeSearch, tmp_path: Path) -> None:
    write_bundle(local_store(made.nodes.directory), [made.keys["L00"], made.keys["L01"]], tmp_path / "bundle")
    hub.put(REPO, tmp_path / "bundle")
    with pytest.raises(
        ValueError, match="hf://someone/ticket shares 2 runs instead of one: it was not made by `export`"
    ):
        pull(local_store(tmp_path / "runs"), REPO)
    assert not (tmp_path / "runs").exists()


def test_damaged_weights_are_refused(shared: HubServer, tmp_path: Path) -> None:
    _damage("model.safetensors", b"x" * 100)(shared)
    with pytest.raises(ValueError, match="hf://someone/ticket: model.safetensors was altered: its SHA-256 is"):
        pull(local_store(tmp_path / "runs"), REPO)
    assert not (tmp_path / "runs").exists()
    load_signed_mask(f"hf://{REPO}", local_dir=tmp_path / "runs")  # does not need them


def test_a_damaged_cache_is_downloaded_again(
    shared: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_signed_mask(f"hf://{REPO}", local_dir=tmp_path / "runs")
    for path in (tmp_path / "cache").rglob("signed_mask.safetensors"):
        path.resolve().write_bytes(b"damaged")
    load_signed_mask(f"hf://{REPO}", local_dir=tmp_path / "others")
    assert "the cached files are downloaded again" in caplog.text


def test_an_unreachable_hub_is_one_line_and_the_cache_is_used(
    shared: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_signed_mask(f"hf://{REPO}", local_dir=tmp_path / "runs")
    commit = shared.repositories[REPO].refs["main"]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    for name, warns in ((REPO, True), (f"{REPO}@{commit}", False)):  # a commit cannot be out of date
        caplog.clear()
        load_signed_mask(f"hf://{name}", local_dir=tmp_path / "again")
        assert ("using commit" in caplog.text) is warns
    monkeypatch.setenv("HF_ENDPOINT", shared.endpoint)
    from huggingface_hub import constants

    caplog.clear()
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        load_signed_mask(f"hf://{REPO}", local_dir=tmp_path / "again")
    assert "using commit" in caplog.text
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ConnectionError, match="cannot read hf://someone/new: the Hub is unreachable") as caught:
        load_signed_mask("hf://someone/new", local_dir=tmp_path / "runs")
    assert "\n" not in str(caught.value)


def test_a_run_with_other_bits_under_the_same_key_stays(shared: HubServer, made: MadeSearch, tmp_path: Path) -> None:
    store = local_store(tmp_path / "runs")
    record = made.nodes.load(made.keys["L01"])
    mask = load_signed_mask(made.keys["L00"], local_dir=made.nodes.directory)
    store.local.commit(record, lambda directory: mask.save(directory / "signed_mask.safetensors"))
    with pytest.raises(ValueError, match="already local with another signed_mask.safetensors"):
        load_signed_mask(f"hf://{REPO}", local_dir=tmp_path / "runs")


# ---------------------------------------------------------------------- upload


def test_an_upload_is_one_commit_with_exactly_the_exported_files(
    hub: HubServer, exported: Exported, made: MadeSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Phase: upload to a new repository, which is private
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    address = upload(exported, check_upload(REPO, public=False))
    repository = hub.repositories[REPO]
    assert repository.private and address.endswith(repository.refs["main"])
    assert repository.messages == ["", f"Share {exported.shared.record.name}"]
    files = {name: (exported.directory / name).read_bytes() for name in exported.files}
    assert {name: content for name, content in repository.files.items() if name != ".gitattributes"} == files
    assert f"tickets pull {REPO}\n".encode() in repository.files["README.md"]
    # Phase: load it again
    mask = load_signed_mask(f"hf://{REPO}", local_dir=tmp_path / "runs")
    assert mask.digest == load_signed_mask(exported.directory).digest
    # Phase: another run takes its place. Files of other people stay, those of the old lineage do not.
    repository.files["notes.txt"] = b"mine"
    other = export_run(LineageStore(None, made.nodes), made.keys["L00"], tmp_path / "other", repo=REPO)
    upload(other, check_upload(REPO, public=False), message="level 0")
    assert repository.messages[-1] == "level 0"
    assert set(repository.files) == {*other.files, ".gitattributes", "notes.txt"}
    assert pull(local_store(tmp_path / "theirs"), REPO).key == made.keys["L00"]


def test_a_private_run_is_not_uploaded_to_a_public_repository(
    hub: HubServer, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.put(REPO, exported.directory, private=False)
    with pytest.raises(ValueError, match="someone/ticket exists and is public: give --public"):
        check_upload(REPO, public=False)
    upload(exported, check_upload(REPO, public=True), public=True)
    hub.repositories.clear()
    upload(exported, check_upload(REPO, public=True), public=True)
    assert not hub.repositories[REPO].private


UPLOADS: dict[str, tuple[str, str, type[Exception], str]] = {
    "no permission": ("POST /api/repos/create", "403", LookupError, "the token lacks the permission .403."),
    "commit refused": ("POST .*/commit/", "403", LookupError, "the token lacks the permission .403."),
    "large file refused": ("PUT /objects", "403", LookupError, "the token lacks the permission .403."),
    "hub fails": ("POST .*/commit/", "500", ConnectionError, "the Hub answers 500"),
}


@pytest.mark.parametrize("what", UPLOADS)
def test_a_fault_of_an_upload_is_one_line(
    hub: HubServer, exported: Exported, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    pattern, status, kind, message = UPLOADS[what]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.refused[pattern] = int(status)
    with pytest.raises(kind, match=f"cannot write hf://someone/ticket: {message}") as caught:
        upload(exported, check_upload(REPO, public=False))
    assert "\n" not in str(caught.value) and TOKEN not in str(caught.value)


def test_an_upload_without_a_token_or_a_hub_ends_before_anything_is_written(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LookupError, match="there is no token of the Hugging Face Hub; run `hf auth login`, or set HF_"):
        check_upload(REPO, public=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(ValueError, match="without @"):
        check_upload(f"{REPO}@v1", public=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ConnectionError, match="cannot write hf://someone/ticket: the Hub is unreachable"):
        check_upload(REPO, public=False)
    assert hub.requests == []
    # Phase: a message that repeats the answer of the Hub has no credentials
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    hub.refused["GET /api"], hub.reason = 500, "proxy http://me:secret@proxy failed"
    with pytest.raises(ConnectionError, match="the Hub answers 500 .proxy http://.*@proxy failed") as caught:
        check_upload(REPO, public=False)
    assert "secret" not in str(caught.value)


# ---------------------------------------------------------------------- commands


def test_the_commands_export_and_pull(
    hub: HubServer,
    made: MadeSearch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    options = ["--runs", str(made.nodes.directory), "--offline"]
    # Phase: list, without sending
    export_command.main([made.keys["L01"][:12], "--to", "hub", "--repo", REPO, "--dry-run", *options])
    said = capsys.readouterr().out
    assert "would upload" in said and "model.safetensors" in said and "private" in said and hub.requests == []
    # Phase: upload. The list comes first.
    export_command.main([made.keys["L01"][:12], "--to", "hub", "--repo", REPO, "--licence", "mit", *options])
    said = capsys.readouterr().out
    assert said.startswith("uploads 2") and f'harness.load_signed_mask("hf://{REPO}")' in said
    listed = {line.split()[1] for line in said.splitlines() if line.startswith("  ")}
    assert listed == set(hub.repositories[REPO].files) - {".gitattributes"}
    assert b'license: "mit"' in hub.repositories[REPO].files["README.md"]
    # Phase: pull into another directory
    theirs = ["--runs", str(tmp_path / "theirs"), "--offline"]
    pull_command.main([REPO, *theirs])
    said = capsys.readouterr().out
    assert said.count(": new") == 3 and made.keys["L01"] in said
    pull_command.main([REPO, "--json", *theirs])
    answer = json.loads(capsys.readouterr().out)
    assert answer["key"] == made.keys["L01"] and {one["outcome"] for one in answer["imported"]} == {"there already"}
    # Phase: errors are one line
    for words in (
        [made.keys["search"], "--to", "dir"],
        [made.keys["L01"], "--to", "hub"],
        [made.keys["L01"], "--public"],
    ):
        with pytest.raises(SystemExit):
            export_command.main([*words, *options])
        assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit):
        pull_command.main(["someone/else", *theirs])
    assert "no such repository" in capsys.readouterr().err


def test_export_to_a_directory_names_it_after_the_run(
    made: MadeSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--runs", str(made.nodes.directory), "--offline"]
    export_command.main([made.keys["L01"], *options])
    said = capsys.readouterr().out
    (out,) = tmp_path.iterdir()
    assert out.name == f"aws-resnet8-w2-digits-L01-{made.keys['L01'][:8]}"
    assert f"written to {out.name}" in said and "--licence states one" in said
    with pytest.raises(SystemExit):
        export_command.main([made.keys["L01"], *options])
    assert "exists: give another --out" in capsys.readouterr().err
