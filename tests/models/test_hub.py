import pathlib
import sys
import types

import numpy as np
import pytest
from flax import nnx

import gw_jax
from gw_jax.errors import CheckpointError, ConfigError
from gw_jax.models.hub import HubAddress, parse_address
from gw_jax.tree import variables

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def model():
    return gw_jax.create_model("mlp", num_classes=3, depth=1, width=4, norm="bn", image_size=4, rngs=nnx.Rngs(0))


@pytest.fixture
def hub(monkeypatch):
    """A hub without a network; ``hub.found`` is what it has downloaded, or raises."""
    fake = types.ModuleType("huggingface_hub")
    fake.calls = []

    def snapshot_download(repo_id, *, revision, allow_patterns):
        fake.calls.append((repo_id, revision, allow_patterns))
        if isinstance(fake.found, Exception):
            raise fake.found
        return str(fake.found)

    fake.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hf://someone/resnet50_gw", HubAddress("someone/resnet50_gw", None, "")),
        ("hf://some-one/gw.v2@v1.0", HubAddress("some-one/gw.v2", "v1.0", "")),
        ("hf://someone/gw/deep/er/", HubAddress("someone/gw", None, "deep/er")),
        ("hf://someone/gw@refs%2Fpr%2F1/deep", HubAddress("someone/gw", "refs/pr/1", "deep")),
        ("hf:/someone/gw", HubAddress("someone/gw", None, "")),
    ],
)
def test_addresses(address, expected):
    assert parse_address(address) == expected


@pytest.mark.parametrize(
    "address",
    [
        *("hf://", "hf://someone", "hf://someone/", "hf:///a/b", "hf://../a", "hf://a/../b", "hf://a b/c", "hf://a/b?x=1"),
        *("hf://a/b@", "hf://a/b@/c", "hf://a/b@v1@v2", "hf://a/b/../c", "hf://a/b/*", "hf://a/b//c", "hf://a/b\n"),
        "hf://a/b\\c",
    ],
)
def test_malformed_addresses_are_refused_before_anything_is_fetched(address, hub):
    with pytest.raises(ConfigError, match=r"is no address of a model; give 'hf://OWNER/NAME\[@REVISION\]\[/SUBFOLDER\]'"):
        gw_jax.load_pretrained(address)
    assert hub.calls == []


@pytest.mark.parametrize(("folder", "revision"), [("", None), ("imagenet/best", "v1.0")])
def test_a_model_is_loaded_and_only_its_files_are_fetched(model, hub, tmp_path, folder, revision):
    gw_jax.save_pretrained(tmp_path / folder / "model" if folder == "" else tmp_path / folder, model)
    hub.found = tmp_path / "model" if folder == "" else tmp_path
    address = f"hf://someone/gw{f'@{revision}' if revision else ''}{f'/{folder}' if folder else ''}"
    for given in (address, pathlib.Path(address)):
        loaded = gw_jax.load_pretrained(given)
        assert isinstance(loaded, gw_jax.models.MLP)
        for path, value in variables(model).items():
            np.testing.assert_array_equal(variables(loaded)[path], value)
    prefix = f"{folder}/" if folder else ""
    assert hub.calls == 2 * [("someone/gw", revision, [f"{prefix}config.json", f"{prefix}model.safetensors"])]


def named(name, base=Exception):
    return type(name, (base,), {})("the hub's own words")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (named("RepositoryNotFoundError"), "there is no such repository, or it is private"),
        (named("GatedRepoError", type(named("RepositoryNotFoundError"))), "is gated"),
        (named("RevisionNotFoundError"), "has no such revision"),
        (named("LocalEntryNotFoundError", FileNotFoundError), "not in the local cache, and the hub cannot be reached"),
        (named("OfflineModeIsEnabled", ConnectionError), "HF_HUB_OFFLINE"),
        (OSError(28, "No space left on device"), "OSError: .*No space left"),
    ],
)
def test_what_the_hub_refuses_is_named(hub, error, message):
    hub.found = error
    with pytest.raises(CheckpointError, match=rf"'hf://someone/gw' cannot be downloaded: .*{message}"):
        gw_jax.load_pretrained("hf://someone/gw")


def test_a_repository_without_a_model(hub, tmp_path):
    hub.found = tmp_path
    with pytest.raises(CheckpointError, match=r"no a/config\.json and no a/model\.safetensors"):
        gw_jax.load_pretrained("hf://someone/gw/a")


def test_hostile_content_is_refused_by_the_loader(hub, model, tmp_path):
    gw_jax.save_pretrained(tmp_path / "model", model)
    hub.found = tmp_path / "model"
    (tmp_path / "model" / "config.json").write_text('{"format": 1, "model": {"name": "mlp", "depth": 100000000}}')
    with pytest.raises(CheckpointError, match="depth 100000000"):
        gw_jax.load_pretrained("hf://someone/gw")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="cannot be read"):
        gw_jax.load_pretrained("hf://someone/gw")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'gw_jax\[hub\]'"):
        gw_jax.load_pretrained("hf://someone/gw")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The real package, offline, with an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed (extra hub)")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_offline_a_model_in_the_cache_is_loaded(cache, model):
    repository = cache / "models--someone--gw"
    gw_jax.save_pretrained(repository / "snapshots" / COMMIT / "best", model)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    loaded = gw_jax.load_pretrained("hf://someone/gw/best")
    np.testing.assert_array_equal(variables(loaded)["head.kernel"], variables(model)["head.kernel"])
    with pytest.raises(CheckpointError, match=r"no config\.json.*For a subfolder give hf://someone/gw/SUBFOLDER"):
        gw_jax.load_pretrained("hf://someone/gw")


def test_offline_without_the_model(cache):
    with pytest.raises(CheckpointError, match="not in the local cache"):
        gw_jax.load_pretrained("hf://someone/else@v2")
