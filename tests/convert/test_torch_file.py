"""Files: both kinds, both containers, with and without prefix; and those that are no checkpoints."""

import json
import os
import pickle
import sys
from collections import OrderedDict

import numpy as np
import pytest

from gw_jax.convert import load_torch, to_torch_state, write_torch_file
from gw_jax.convert.__main__ import main
from gw_jax.convert.load import LoadOptions, read
from gw_jax.convert.torch_file import read_torch_file
from gw_jax.errors import CheckpointError, ConfigError
from gw_jax.models.pretrained import load_pretrained
from tests.helpers.reference import MLP


@pytest.fixture
def state(reference):
    """The state dict of an MLP with one hidden layer and group whitening."""
    return reference.make_state(MLP)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("container", ["legacy", "zip"])
@pytest.mark.parametrize("kind", ["best", "checkpoint"])
def test_kinds_and_containers(reference, torch, state, tmp_path, kind, container, prefix):
    extra = {"norm": "IGWSVD", "norm_cfg": {"num_groups": 4, "dim": 2}}
    path = reference.write_pth(
        tmp_path / "file.pth", state, kind=kind, container=container, prefix=prefix, momentum=True, **extra
    )
    imported = read(path, LoadOptions(norm_cfg={"num_groups": 4}))
    report = imported.report
    assert report.container == container
    assert ("training dict" in report.kind) == (kind == "checkpoint")
    assert report.num_parameters == 784 * 8 + 8 + 16 + 90
    assert any("'module.'" in notice for notice in report.notices) == bool(prefix)
    assert report.model_config["norm"] == ("gw_zca" if kind == "checkpoint" else "gw")
    if kind == "checkpoint":
        assert imported.training.epochs == 42
        assert imported.training.facts["best_top1"] == pytest.approx(0.7772)
        np.testing.assert_array_equal(imported.training.momentum["head.bias"], state["net.4.bias"] / 2)
    exported = to_torch_state(load_torch(path, norm_cfg={"num_groups": 4})[0])
    assert list(exported) == list(state)
    for key, value in state.items():
        np.testing.assert_array_equal(exported[key], value, strict=True)


def test_a_prefix_on_some_keys_only_stays(reference, torch, state, tmp_path):
    state["module.extra"] = state["net.4.bias"]
    with pytest.raises(CheckpointError, match=r"does not have: module\.extra"):
        load_torch(reference.write_pth(tmp_path / "file.pth", state), norm_cfg={"num_groups": 4})


@pytest.mark.parametrize("container", ["legacy", "zip"])
def test_what_is_written_is_what_pytorch_would_write(torch, state, tmp_path, container):
    write_torch_file(tmp_path / "out.pth", state, container=container)
    assert ((tmp_path / "out.pth").read_bytes()[:2] == b"PK") == (container == "zip")
    again = torch.load(tmp_path / "out.pth", weights_only=True)
    assert type(again) is OrderedDict
    assert [(key, value.dtype, tuple(value.shape)) for key, value in again.items()] == [
        (key, torch.float32, tuple(shape)) for key, shape in MLP
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out.pth"]
    with pytest.raises(CheckpointError, match="exists already; it was not changed"):
        write_torch_file(tmp_path / "out.pth", state)


def test_strict_loading_in_pytorch_accepts_it(torch, state, tmp_path, reference):
    class Whitening(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1, 8))
            self.bias = torch.nn.Parameter(torch.zeros(1, 8))

    layers = [torch.nn.Flatten(), torch.nn.Linear(784, 8), Whitening(), torch.nn.ReLU(), torch.nn.Linear(8, 10)]
    model = torch.nn.Module()
    model.net = torch.nn.Sequential(*layers)
    reference.write_pth(tmp_path / "in.pth", state)
    write_torch_file(tmp_path / "out.pth", to_torch_state(load_torch(tmp_path / "in.pth", norm_cfg={"num_groups": 4})[0]))
    model.load_state_dict(torch.load(tmp_path / "out.pth"), strict=True)
    assert torch.equal(model.net[1].weight, torch.from_numpy(state["net.1.weight"]))


class Payload:
    """Unpickled freely, it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("container", ["legacy", "zip", "pickle"])
def test_code_in_a_file_is_not_run(torch, tmp_path, container):
    payload, path = Payload(tmp_path / "made"), tmp_path / "file.pth"
    if container == "pickle":
        path.write_bytes(pickle.dumps(payload, protocol=2))
    else:
        torch.save({"model": payload}, path, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(CheckpointError, match=r"mkdir.*It was not run|is truncated, damaged, or not a PyTorch checkpoint"):
        load_torch(path)
    assert not (tmp_path / "made").exists()


def truncated(reference, state, container, share):
    def write(path):
        data = reference.write_pth(path, state, container=container).read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return write


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.95])
@pytest.mark.parametrize("container", ["legacy", "zip"])
def test_truncated_files(reference, torch, state, tmp_path, capsys, container, share):
    path = tmp_path / "file.pth"
    truncated(reference, state, container, share)(path)
    with pytest.raises(CheckpointError, match=r"file.pth cannot be read: it is truncated, damaged, or not a PyTorch"):
        read_torch_file(path)
    assert main([str(path), str(tmp_path / "out")]) == 1
    assert "file.pth cannot be read" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["file.pth"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda torch: [1, 2], "holds a list"),
        (lambda torch: {"epoch": 3, "arch": "x"}, "holds a dict with the keys epoch, arch"),
        (lambda torch: {}, "holds a dict with the keys none"),
        (lambda torch: {"model": {"a": 3}}, "The entry 'a' of .* is a int; dense tensors"),
        (
            lambda torch: {"model": {"a": torch.zeros(2, dtype=torch.complex64)}},
            "'a' of .* is a torch.complex64 tensor",
        ),
        (lambda torch: torch.nn.Linear(2, 2), "holds the Python object torch.nn.modules.linear.Linear"),
    ],
)
def test_other_contents(torch, tmp_path, content, message):
    torch.save(content(torch), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=message):
        read_torch_file(tmp_path / "file.pth")


def test_other_files(torch, tmp_path):
    (tmp_path / "notes.txt").write_text("no weights here\n" * 40)
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(4000))
    for name in ("notes.txt", "noise"):
        with pytest.raises(CheckpointError, match="not a PyTorch checkpoint"):
            read_torch_file(tmp_path / name)
    with pytest.raises(CheckpointError, match="There is no file"):
        read_torch_file(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="is a directory"):
        read_torch_file(tmp_path)


def test_without_pytorch(monkeypatch, tmp_path, capsys, state):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "file.pth").write_bytes(b"anything")
    with pytest.raises(ConfigError, match=r"pip install 'gw_jax\[torch\]'"):
        load_torch(tmp_path / "file.pth")
    with pytest.raises(ConfigError, match=r"pip install 'gw_jax\[torch\]'"):
        write_torch_file(tmp_path / "out.pth", state)
    assert main([str(tmp_path / "file.pth"), str(tmp_path / "out")]) == 1
    assert "gw_jax[torch]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_there_and_back(reference, torch, state, tmp_path, capsys):
    source = reference.write_pth(tmp_path / "in.pth", state, kind="checkpoint", momentum=True)
    options = ["--arch", "MLP", "--norm", "IGWItN", "--norm_cfg", "T=5,num_groups=4,dim=2"]
    assert main([str(source), str(tmp_path / "model"), *options]) == 0
    printed = capsys.readouterr().out
    for line in ("architecture  mlp (the reference's MLP)", "parameters    6,386", "keys          6 used, 0 ignored"):
        assert line in printed
    assert f"sha256        {read_torch_file(source).sha256}" in printed
    assert "42 epochs done, with momentum buffers" in printed
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["training"] == {
        "epochs": 42, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "best_top1": 0.7772,
    }  # fmt: skip
    assert config["source"]["sha256"] in printed
    assert load_pretrained(tmp_path / "model").norms[0].num_groups == 4
    assert main([str(tmp_path / "model"), str(tmp_path / "out.pth")]) == 0
    again = torch.load(tmp_path / "out.pth")
    assert list(again) == list(state)
    assert all(np.array_equal(again[key].numpy(), value) for key, value in state.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model"], "exists already; it was not changed"),
        (["out", "--norm_cfg", "T"], "'T' in 'T' is not key=value"),
        (["out", "--norm_cfg", "groups=4"], "norm_cfg has the keys ['groups']"),
        (["out", "--norm", "gw"], "norm='gw' is not known"),
        (["out", "--arch", "LeNet"], "which is a lenet, but the file holds a mlp"),
        (["out", "--apply_last_norm", "maybe"], "True or False is allowed"),
        (["out.pth"], "a .pth file becomes a directory"),
    ],
)
def test_misuse_of_the_command(reference, torch, state, tmp_path, capsys, arguments, message):
    source = reference.write_pth(tmp_path / "in.pth", state)
    (tmp_path / "model").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main([str(source), str(tmp_path / arguments[0]), *arguments[1:]]) == 1
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_nan_in_a_file_leaves_no_output(reference, torch, state, tmp_path, capsys):
    state["net.4.bias"][3] = np.nan
    source = reference.write_pth(tmp_path / "in.pth", state)
    assert main([str(source), str(tmp_path / "out"), "--norm_cfg", "num_groups=4"]) == 1
    assert "The entry 'net.4.bias'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]
