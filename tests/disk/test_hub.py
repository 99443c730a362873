"""Hub ids against a hub on 127.0.0.1, and offline on the cache that huggingface_hub then has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("huggingface_hub")

import huggingface_hub
from huggingface_hub import constants

from avops.disk.checkpoint import INDEX, open_checkpoint
from avops.disk.hub import is_hub_id, local_path, resolve
from avops.errors import CheckpointError, MissingExtraError
from fake_hub import FakeHub, Repo, fake_hub

Save = Callable[..., Path]
SIDE = {
    "config.json": b'{"model_type": "mistral"}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{ }",
    "tokenizer.model.v3": b"spm",
    "chat_template.jinja": b"{{ x }}",
}
LEFT = {
    "pytorch_model.bin": b"pickle",
    "pytorch_model.bin.index.json": b"{}",
    "consolidated.safetensors": b"twice",
    "model.fp16.safetensors": b"another copy",
    "original/model.safetensors": b"nested",
    "original/params.json": b"{}",
    "onnx/model.onnx": b"onnx",
    "README.md": b"card",
    ".gitattributes": b"",
}


@pytest.fixture(scope="module")
def _server() -> Iterator[FakeHub]:
    with fake_hub() as hub:
        yield hub


@pytest.fixture
def hub(_server: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeHub:
    """The hub, empty, and an empty cache."""
    for clear in (_server.repos, _server.requests, _server.broken):
        clear.clear()
    endpoint(monkeypatch, _server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    return _server


def endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What HF_ENDPOINT does where it is set before huggingface_hub is imported."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def sharded(save: Save) -> dict[str, bytes]:
    """A sharded repository's files."""
    one = save("made/model-00001-of-00002.safetensors", {"a": np.arange(4, dtype=np.float32)})
    two = save("made/model-00002-of-00002.safetensors", {"b": np.arange(6, dtype=np.float32)})
    index = f'{{"weight_map": {{"a": "{one.name}", "b": "{two.name}"}}}}'
    weights = {path.name: path.read_bytes() for path in (one, two)}
    return {**weights, INDEX: index.encode(), **SIDE, **LEFT}


@pytest.fixture
def single(save: Save) -> dict[str, bytes]:
    path = save("made/model.safetensors", {"a": np.arange(4, dtype=np.float32)})
    return {"model.safetensors": path.read_bytes(), **SIDE, **LEFT}


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def message(text: str, **options: bool) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve(text, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.3", True),
        ("owner/name@main", True),
        ("owner/name@refs/pr/1", True),
        ("owner/name@" + "a" * 40, True),
        ("name", False),
        ("owner/name/more", False),
        ("./owner/name", False),
        ("../name", False),
        ("/owner/name", False),
        ("~/name", False),
        ("owner/", False),
        ("owner/..", False),
        ("owner/name@", False),
        ("owner/name@../../x", False),
        ("owner/na me", False),
        ("owner/name\n", False),
        ("ownér/name", False),
        ("models/base.safetensors", False),
        ("models/pytorch_model.bin", False),
        ("o/" + "x" * 97, False),
    ],
)
def test_the_form_of_an_id(text: str, expected: bool) -> None:
    assert is_hub_id(text) is expected


def test_sharded_download_then_offline(
    hub: FakeHub, sharded: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["owner/name"] = Repo(sharded)
    seen: list[tuple[int, int]] = []
    path = resolve("owner/name", progress=lambda done, total: seen.append((done, total)))
    assert list(open_checkpoint(path).tensors) == ["a", "b"]
    assert {p.name: p.read_bytes() for p in path.iterdir()} == {
        name: data for name, data in sharded.items() if name not in LEFT
    }
    rest = sum(len(data) for name, data in sharded.items() if name not in (*LEFT, INDEX))
    assert seen[-1] == (rest, rest)
    assert seen == sorted(seen)
    hub.requests.clear()
    assert resolve("owner/name") == path
    assert resolve("owner/name@main") == path
    assert resolve("owner/name", allow_download=False) == path
    assert local_path("owner/name") == str(path)
    offline(monkeypatch)
    assert resolve("owner/name") == path
    assert hub.requests == []


def test_single_file_and_revisions(hub: FakeHub, single: dict[str, bytes]) -> None:
    repo = Repo(single, ("main", "v1.0", "refs"))
    hub.repos["owner/name"] = repo
    path = resolve("owner/name@v1.0")
    assert path.name == repo.sha
    assert sorted(p.name for p in path.iterdir()) == sorted({"model.safetensors", *SIDE})
    assert resolve(f"owner/name@{repo.sha}", allow_download=False) == path
    # Another branch is another question, even where its commit is in the cache.
    assert "not in the hub's cache" in message("owner/name@main", allow_download=False)
    assert "has no revision 'v2'" in message("owner/name@v2")


def test_adapters(hub: FakeHub) -> None:
    adapter = {"adapter_model.safetensors": b"x", "adapter_config.json": b"{}"}
    hub.repos["owner/lora"] = Repo({**adapter, "training_args.bin": b"pickle"})
    path = resolve("owner/lora")
    assert sorted(p.name for p in path.iterdir()) == sorted(adapter)


def test_one_weight_file_of_any_name(hub: FakeHub) -> None:
    hub.repos["owner/av"] = Repo({"med.safetensors": b"x"})
    assert [p.name for p in resolve("owner/av").iterdir()] == ["med.safetensors"]
    hub.repos["owner/two"] = Repo({"med.safetensors": b"x", "consolidated.safetensors": b"y"})
    assert [p.name for p in resolve("owner/two").iterdir()] == ["med.safetensors"]
    hub.repos["owner/old"] = Repo({"consolidated.safetensors": b"x", "params.json": b"{}"})
    assert (resolve("owner/old") / "consolidated.safetensors").exists()


def test_a_local_path_wins(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "owner/name").mkdir(parents=True)
    assert resolve("owner/name") == Path("owner/name")
    assert local_path("owner/name") == "owner/name"
    assert local_path("not an id") == "not an id"
    assert "no hub id either" in message("no/such/path")
    assert hub.requests == []


def test_an_interrupted_download_is_finished(
    hub: FakeHub, sharded: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["owner/name"] = Repo(sharded)
    path = resolve("owner/name")
    (path / "model-00002-of-00002.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    text = message("owner/name")
    assert "only a part is in the hub's cache" in text
    assert "lacks model-00002-of-00002.safetensors" in text
    assert "offline mode is on (HF_HUB_OFFLINE)" in text
    assert "`hf download owner/name`" in text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert resolve("owner/name") == path
    assert list(open_checkpoint(path).tensors) == ["a", "b"]


def test_a_missing_small_file_is_fetched_or_done_without(
    hub: FakeHub, single: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["owner/name"] = Repo(single)
    path = resolve("owner/name")
    (path / "tokenizer.json").unlink()
    offline(monkeypatch)
    assert resolve("owner/name") == path
    assert not (path / "tokenizer.json").exists()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert (resolve("owner/name") / "tokenizer.json").exists()


def test_a_cache_that_transformers_filled(
    hub: FakeHub, sharded: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single files without a listing: the index says what is whole."""
    hub.repos["owner/name"] = Repo(sharded)
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for name in ("config.json", shards[0]):
        huggingface_hub.hf_hub_download("owner/name", name)
    assert "lacks model.safetensors" in message("owner/name", allow_download=False)
    huggingface_hub.hf_hub_download("owner/name", INDEX)
    assert f"lacks {shards[1]}" in message("owner/name", allow_download=False)
    path = Path(huggingface_hub.hf_hub_download("owner/name", shards[1])).parent
    offline(monkeypatch)
    assert resolve("owner/name") == path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # There may be a tokenizer on the hub, and there is.
    assert (resolve("owner/name") / "tokenizer.json").exists()
    assert hub.downloaded().count(shards[0]) == 1


def test_refusals_of_the_hub(hub: FakeHub) -> None:
    text = message("owner/nowhere")
    assert text.startswith("owner/nowhere: no such file or directory here, and no such repository")
    assert f"{hub.url}/owner/nowhere; check the spelling" in text
    assert "`hf auth login`" in text
    hub.repos["owner/gated"] = Repo({}, error="GatedRepo")
    text = message("owner/gated")
    assert f"a gated repository; accept its licence at {hub.url}/owner/gated, log in" in text
    hub.repos["owner/closed"] = Repo({}, error="Closed")
    assert "the hub refused access" in message("owner/closed")
    assert "no valid hub id: Cannot have -- or .." in message("owner/a--b")


def test_what_is_no_checkpoint(hub: FakeHub, sharded: dict[str, bytes]) -> None:
    hub.repos["owner/bin"] = Repo({"pytorch_model.bin": b"x", "config.json": b"{}"})
    text = message("owner/bin")
    assert "holds PyTorch pickles (pytorch_model.bin)" in text
    assert "M.from_pretrained('owner/bin').save_pretrained('bin-safetensors')" in text
    assert "revision='main'" in message("owner/bin@main")
    hub.repos["owner/lora"] = Repo({"adapter_model.bin": b"x", "adapter_config.json": b"{}"})
    assert "AutoPeftModelForCausalLM" in message("owner/lora")
    hub.repos["owner/data"] = Repo({"config.json": b"{}"})
    assert "holds no safetensors file" in message("owner/data")
    hub.repos["owner/many"] = Repo({"a.safetensors": b"x", "b.safetensors": b"x"})
    assert "`hf download owner/many a.safetensors`" in message("owner/many")
    del sharded["model-00002-of-00002.safetensors"]
    hub.repos["owner/torn"] = Repo(sharded)
    assert "which the repository does not hold" in message("owner/torn")
    hub.repos["owner/odd"] = Repo({INDEX: b"[", "model.safetensors": b""})
    assert "not a valid index" in message("owner/odd")
    assert [name for name in hub.downloaded() if name != INDEX] == []


def test_no_network(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    offline(monkeypatch)
    text = message("owner/name")
    assert text.startswith("owner/name: no such file or directory here, and not in the hub's cache")
    assert "offline mode is on (HF_HUB_OFFLINE)" in text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    endpoint(monkeypatch, "http://127.0.0.1:9")
    text = message("owner/name@v1")
    assert "downloading it failed: ConnectError" in text
    assert "`hf download owner/name --revision v1`" in text
    assert "downloads are not allowed here" in message("owner/name", allow_download=False)


def test_the_hub_fails_midway(hub: FakeHub, single: dict[str, bytes]) -> None:
    hub.repos["owner/name"] = Repo(single)
    hub.broken.add("model.safetensors")
    assert "downloading it failed" in message("owner/name")
    hub.broken.clear()
    assert (resolve("owner/name") / "model.safetensors").exists()


def test_without_huggingface_hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"owner/name is no local path.*'avops\[hub\]'"):
        resolve("owner/name")


def test_environment_variables_are_obeyed(
    hub: FakeHub, single: dict[str, bytes], tmp_path: Path
) -> None:
    """HF_ENDPOINT and HF_HOME reach a fresh process; HF_HUB_OFFLINE keeps it off the network."""
    hub.repos["owner/name"] = Repo(single)
    code = "from avops.disk.hub import resolve; print(resolve('owner/name'))"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env = {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}

    def run(**extra: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**env, **extra},
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    path = run()
    assert Path(path).is_relative_to(tmp_path / "home")
    hub.requests.clear()
    assert run(HF_HUB_OFFLINE="1") == path
    assert hub.requests == []
    shutil.rmtree(tmp_path / "home")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(HF_HUB_OFFLINE="1")
    assert "offline mode is on" in caught.value.stderr
