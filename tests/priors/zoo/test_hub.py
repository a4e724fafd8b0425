"""Weights of a model hub: names, downloads with their checks, and uploads, against a hub on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import NETWORK, World, photograph
from priors.zoo.hub_server import HubServer
from safetensors.torch import save

import sam4ir
from sam4ir.cli import push as push_command
from sam4ir.engine.restore.settings import network_options
from sam4ir.engine.train.loop import Trainer
from sam4ir.engine.weights import locate
from sam4ir.priors.zoo.download import WeightsError
from sam4ir.priors.zoo.hub import hub_name, hub_weights, without_tokens
from sam4ir.registry import ARCHS
from sam4ir.utils.weights import is_hub_name

HAS_HUB = importlib.util.find_spec("huggingface_hub") is not None
needs_hub = pytest.mark.skipif(not HAS_HUB, reason="needs huggingface_hub: the extra hub")
OPTIONS = {"name": "published", "network_g": NETWORK}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    hub = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    if HAS_HUB:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # its servers are not imitated
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setenv("SAM4IR_HOME", str(tmp_path / "home"))
    yield hub
    hub.close()


def weights() -> bytes:
    """Weights of a network that adds 1/255 to each value."""
    arguments = {name: value for name, value in NETWORK.items() if name != "type"}
    network = ARCHS.get("NAFNet")(**arguments)
    state = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    state["ending.bias"] += 1 / 255
    return save(state)


def published(server: HubServer, **changes: object) -> str:
    options = yaml.safe_dump({**OPTIONS, **changes}).encode()
    return server.put("ann/model", {"model.safetensors": weights(), "options.yml": options, "README.md": b"# model"})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf:ann/model", ("ann", "model", "main", "")),
        ("hf:ann/model@v1.0", ("ann", "model", "v1.0", "")),
        ("hf:ann/some.model-2@v1/sub/net.pth", ("ann", "some.model-2", "v1", "sub/net.pth")),
        ("hf:ann/model/net.pth", ("ann", "model", "main", "net.pth")),
    ],
)
def test_a_name_has_owner_model_revision_and_file(text: str, parts: tuple[str, ...]) -> None:
    assert tuple(hub_name(text)) == parts


@pytest.mark.parametrize("text", ["hf:", "hf:model", "hf:ann/model/../../x", "hf:ann/model@", "hf:../x", "hf:a b/c"])
def test_a_name_of_another_form_is_an_error(text: str) -> None:
    assert is_hub_name(text)
    with pytest.raises(WeightsError, match="hf:owner/name"):
        hub_name(text)


def test_tokens_are_replaced_in_messages() -> None:
    assert without_tokens("for Bearer hf_AbC123 at http://x") == "for Bearer <token> at http://x"


@pytest.mark.skipif(HAS_HUB, reason="huggingface_hub is installed")
def test_without_the_package_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM4IR_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"sam4ir\[hub\]"):
        hub_weights("hf:ann/model")


@needs_hub
def test_a_model_of_the_hub_is_loaded_and_restores(server: HubServer) -> None:
    published(server)
    network = sam4ir.load("hf:ann/model", device="cpu")
    image = photograph(1)
    assert np.array_equal(network(image), np.minimum(image.astype(int) + 1, 255))
    assert any("/cdn/" in request for request in server.requests)  # the redirect of a large file was followed


@needs_hub
def test_a_commit_in_the_cache_needs_no_connection(server: HubServer) -> None:
    commit = published(server)
    name = f"hf:ann/model@{commit}"
    first = locate(name)
    before = len(server.requests)
    assert locate(name) == first
    assert len(server.requests) == before


@needs_hub
def test_a_branch_follows_its_new_commits_and_is_there_without_a_connection(server: HubServer) -> None:
    published(server)
    first = locate("hf:ann/model")
    published(server, name="second")
    second = locate("hf:ann/model")
    assert first != second
    server.close()
    assert locate("hf:ann/model") == second


@needs_hub
def test_a_file_that_arrives_with_other_bytes_is_refused_and_removed(server: HubServer) -> None:
    published(server)
    server.spoiled.add("model.safetensors")
    with pytest.raises(WeightsError, match="sha256"):
        locate("hf:ann/model")
    server.spoiled.clear()
    assert locate("hf:ann/model").is_file()


@needs_hub
def test_an_option_file_that_arrives_with_other_bytes_is_refused(server: HubServer) -> None:
    published(server)
    server.spoiled.add("options.yml")
    with pytest.raises(WeightsError, match="git hash"):
        network_options("hf:ann/model", None, "cpu")


@needs_hub
def test_plugins_of_a_model_are_not_imported(server: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    published(server, plugins=["evil_plugin"])
    described = network_options("hf:ann/model", None, "cpu")
    assert described.options.network_g.type == "NAFNet"


@needs_hub
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:ann/other", "no such model, or it is private"),
        ("hf:ann/model@v9", "no such revision"),
        ("hf:ann/model/net.pth", "has no file net.pth"),
    ],
)
def test_what_the_hub_lacks_is_a_user_error(server: HubServer, name: str, message: str) -> None:
    published(server)
    with pytest.raises(WeightsError, match=message) as error:
        locate(name)
    assert server.token not in str(error.value)


@needs_hub
def test_of_several_weights_files_one_must_be_named(server: HubServer) -> None:
    server.put("ann/two", {"a.safetensors": weights(), "b.safetensors": weights()})
    with pytest.raises(WeightsError, match=r"name one: a\.safetensors, b\.safetensors"):
        locate("hf:ann/two")
    assert locate("hf:ann/two/b.safetensors").name == "b.safetensors"


@needs_hub
def test_a_hub_that_is_not_there_is_a_user_error(server: HubServer) -> None:
    server.close()
    with pytest.raises(WeightsError, match="cannot be reached"):
        locate("hf:ann/model")


def test_a_dry_run_writes_a_card_and_uploads_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(world)
    capsys.readouterr()
    assert push_command.main([str(run), "ann/small", "--licence", "cc-by-4.0", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    head = yaml.safe_load(printed.partition("---\n")[2].partition("\n---\n")[0])
    assert head["license"] == "cc-by-4.0"
    assert head["metrics"] == ["psnr", "ssim"]
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == "small_val"
    for words in (
        "small_val",
        "PSNRLoss",
        "crops of 24",
        'sam4ir.load("hf:ann/small")',
        "| seed | 0 |",
        "--weights hf:",
    ):
        assert words in printed
    assert str(world.root) not in printed.partition("---\n")[2]  # no path of this machine is published


@needs_hub
def test_a_run_is_published_and_loaded_again(
    world: World, server: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(world)
    assert push_command.main([str(run), "ann/small", "--private"]) == 0
    printed = capsys.readouterr()
    assert server.token not in printed.out + printed.err
    assert "ann/small" in server.private
    assert set(server.models["ann/small"]) == {"model.safetensors", "options.yml", "README.md"}
    assert str(world.root).encode() not in server.models["ann/small"]["options.yml"]
    image = photograph(2)
    here, there = sam4ir.load(run, device="cpu"), sam4ir.load("hf:ann/small", device="cpu")
    assert np.array_equal(here(image), there(image))


@needs_hub
def test_an_upload_without_a_right_token_is_a_user_error(
    world: World, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(world)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(WeightsError, match="hf:ann/small") as error:
        push_command.main([str(run), "ann/small"])
    assert "hf_wrong" not in str(error.value)


def trained(world: World) -> Path:
    """Train a run of eight iterations; return its folder."""
    Trainer(world.options(), resume=False).run()
    return world.root / "experiments" / "small"
