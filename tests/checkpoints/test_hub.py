import pytest

from jaxgen.checkpoints import hub
from jaxgen.errors import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A Hub cache that holds one snapshot of `owner/name`, with no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text("{}")
    return snapshot


@pytest.mark.parametrize("weights", ["model.safetensors", "weights.ckpt"])
def test_cached_snapshots_work_offline(cache, weights):
    (cache / weights).touch()
    assert hub.resolve("owner/name").samefile(cache)
    assert hub.resolve("owner/name", revision=COMMIT).samefile(cache)


def test_what_the_cache_lacks_is_one_line(cache):
    for name, revision in (("owner/other", None), ("owner/name", "v9")):
        with pytest.raises(InputError, match=rf"^{name}: .*HF_HOME") as error:
            hub.resolve(name, revision)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("failure", [OSError("no network"), ValueError("bad\nid"), RuntimeError("404 Not Found")])
def test_any_hub_failure_is_one_line(monkeypatch, failure):
    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(InputError, match="local folder") as error:
        hub.resolve("owner/name")
    assert "\n" not in str(error.value)


def test_safetensors_come_first_and_alone(monkeypatch, tmp_path):
    asked = []

    def download(name, revision, allow_patterns):
        asked.append(allow_patterns)
        if "*.bin" in allow_patterns:
            (tmp_path / "pytorch_model.bin").touch()
        elif have_safetensors:
            (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    have_safetensors = False
    assert hub.resolve("owner/name") == tmp_path
    assert len(asked) == 2
    have_safetensors = True
    (tmp_path / "pytorch_model.bin").unlink()
    hub.resolve("owner/name")
    assert len(asked) == 3


def test_folders_are_returned_as_they_are(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.resolve(tmp_path) == tmp_path
    assert str(hub.resolve("owner/name")) == "owner/name"


@pytest.mark.parametrize("name", ["./owner/name", "/absent/folder", "absent", "a/b/c", "~/absent-folder", "../a/b", "gs://bucket/x"])
def test_paths_that_do_not_exist(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        hub.resolve(name)


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match="give the folder"):
        hub.resolve(tmp_path / "model.safetensors")
