"""Whatever a file causes is an error of the project: one short printable line that names the file and the entry."""

import argparse
import re
from collections import OrderedDict

import numpy as np
import pytest

from gw_jax.convert import load_torch, to_torch_state
from gw_jax.convert.load import LoadOptions, read
from gw_jax.errors import CheckpointError, ConfigError
from gw_jax.models.pretrained import save_pretrained
from gw_jax.models.saved_files import read_config
from tests.helpers.nesting import deep, doubled
from tests.helpers.reference import MLP


def error_of(torch, path, content, **arguments):
    """The message with which ``content`` is refused."""
    torch.save(content, path)
    with pytest.raises((CheckpointError, ConfigError)) as raised:
        read(path, LoadOptions(**{"norm_cfg": {"num_groups": 4}, **arguments}))
    message = str(raised.value)
    assert message.isprintable()
    assert len(message) < 1500
    return message


def optimizer(torch, tensors, change=lambda v: v, groups=1):
    keys = list(tensors)
    order = list(range(len(keys)))
    parts = [order] if groups == 1 else [order[::2], order[1::2]]
    return {
        "state": {number: {"momentum_buffer": change(tensors[key])} for number, key in enumerate(keys)},
        "param_groups": [{"lr": 0.1, "params": part} for part in [*parts, []]],
    }


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("net.4.weight", lambda torch, v: (v * 9).to(torch.int8), "'net.4.weight' of .* is a torch.int8 tensor"),
        ("net.4.weight", lambda torch, v: (v * 9).to(torch.int64), "'net.4.weight' of .* is of type int64"),
        ("net.4.weight", lambda torch, v: v.to(torch.float8_e4m3fn), "'net.4.weight' of .* is a torch.float8_e4m3fn"),
        ("net.4.weight", lambda torch, v: v.to("meta"), "'net.4.weight' of .* is a tensor without data"),
        ("net.4.weight", lambda torch, v: v.to_sparse(), "'net.4.weight' of .*torch.sparse_coo"),
        ("net.4.weight", lambda torch, v: torch.quantize_per_tensor(v, 1, 0, torch.qint8), "'net.4.weight' of .*qint8"),
        ("net.4.weight", lambda torch, v: v[:0], "'net.4.weight' of .* has no values"),
        ("net.1.weight", lambda torch, v: v[0, 0].clone().expand(8, 784), "'net.1.weight' of .* is a view of shape"),
        ("net.1.weight", lambda torch, v: v[0, 0].clone().expand(10**6, 10**7), "'net.1.weight' of .* is a view of shape"),
        ("net.4.weight", lambda torch, v: v.double() * 1e300, "'net.4.weight' of .* NaN or infinite"),
        ("net.1.weight", lambda torch, v: v.reshape(-1), "'net.1.weight', .* is of shape"),
        ("net.4.bias", lambda torch, v: "\x1b[2J", "'net.4.bias' of .* is a str"),
        ("net.4.bias", lambda torch, v: {}, "'net.4.bias' of .* is a dict"),
    ],
)
def test_entries(torch, tensors, tmp_path, key, change, message):
    tensors[key] = change(torch, tensors[key])
    content = tensors if hasattr(tensors[key], "detach") else {"model": tensors}
    assert re.search(message, error_of(torch, tmp_path / "f.pth", content))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("net.100001.weight", "net.7 is missing, and the last one here is net.100001"),
        ("net.99999999999999999999.weight", "does not have: net.99999999999999999999.weight"),
        ("net.\u00b2", "does not have: net.\\xb2"),
        ("\x1b]0;owned\x07", "does not have: \\x1b]0;owned\\x07"),
        ("x" * 10**6, "a name of 1000000 characters: 'xxx"),
        (7, "the key 7 of its state dict is a int"),
        ("", "does not have: "),
    ],
)
def test_names(torch, tensors, tmp_path, key, message):
    tensors[key] = torch.zeros(3)
    assert message in error_of(torch, tmp_path / "f.pth", tensors)


def test_an_mlp_needs_two_layers(torch, tensors, tmp_path):
    content = {key: tensors[key] for key in ("net.1.weight", "net.1.bias")}
    assert "at least two of them; net.4 is missing" in error_of(torch, tmp_path / "f.pth", content)


def recursive():
    value = {"a": []}
    value["a"].append(value)
    return value


class Fields(OrderedDict):
    """Pickled as an OrderedDict with attributes that hide its methods."""

    def __reduce__(self):
        return (OrderedDict, (), {"get": 3, "items": None, "keys": 1}, None, iter(list(OrderedDict.items(self))))


@pytest.mark.parametrize("odd", [recursive, deep, doubled])
def test_odd_objects_beside_the_weights(torch, tensors, tmp_path, odd):
    torch.save({"model": Fields(tensors), "epoch": 3, "cfg": odd(), "optimizer": odd()}, tmp_path / "f.pth")
    imported = read(tmp_path / "f.pth", LoadOptions(norm_cfg={"num_groups": 4}))
    assert imported.training.epochs == 4
    assert "holds a" in error_of(torch, tmp_path / "f.pth", odd())
    assert "'net.1.weight' of" in error_of(torch, tmp_path / "f.pth", {"model": {**tensors, "net.1.weight": odd()}})


def test_options_in_a_file(torch, tensors, tmp_path):
    resnet = {"layer1.0.conv1.weight": torch.zeros(8, 8, 3, 3), "conv1.weight": torch.zeros(0, 3, 7, 7)}
    assert "'conv1.weight' of" in error_of(torch, tmp_path / "f.pth", resnet)
    cfg = argparse.Namespace(norm="IGWItN", norm_cfg={"T": [5], "num_groups": 4}, arch_cfg=["last"])
    assert "T=[5] is a list" in error_of(torch, tmp_path / "f.pth", {"model": tensors, "cfg": cfg}, norm_cfg=None)


@pytest.mark.parametrize(
    ("more", "arguments", "message"),
    [
        ({"optimizer": lambda t, s: optimizer(t, s, lambda v: v * float("nan"))}, {}, "'momentum of net.1.weight' of"),
        ({"optimizer": lambda t, s: optimizer(t, s, groups=2)}, {}, "has 2 groups of parameters"),
        ({"optimizer": lambda t, s: optimizer(t, s, lambda v: v[:1])}, {}, "The momentum of 'net.1.weight' is of shape"),
        ({"epoch": lambda t, s: float("nan")}, {}, "The entry 'epoch' of"),
        ({"best_prec1": lambda t, s: t.tensor(float("inf"))}, {}, "The entry 'best_prec1' of"),
        ({"state_dict_ema": lambda t, s: {"a": t.zeros(1), "b": 1}}, {"ema": True}, "'b' of"),
        ({"ema": lambda t, s: {"decay": 0.9}}, {"ema": True}, "has no averaged weights (EMA), only model"),
        ({}, {"ema": True}, "has no averaged weights (EMA), only model"),
    ],
)
def test_training_dicts_that_are_refused(torch, tensors, tmp_path, more, arguments, message):
    content = {"model": tensors, **{key: make(torch, tensors) for key, make in more.items()}}
    assert message in error_of(torch, tmp_path / "f.pth", content, **arguments)


def test_training_dicts_of_other_types(torch, tensors, tmp_path):
    """Numbers in tensors, momentum of half precision, of one element and of no parameter; an optimizer that is a list."""

    def imported(**more):
        torch.save({"model": tensors, **more}, tmp_path / "f.pth")
        return read(tmp_path / "f.pth", LoadOptions(norm_cfg={"num_groups": 4}))

    result = imported(epoch=torch.tensor(4), best_prec1=None, optimizer=optimizer(torch, tensors, lambda v: v.bfloat16()))
    assert result.training.epochs == 5
    expected = tensors["net.4.bias"].bfloat16().float().numpy()
    np.testing.assert_array_equal(result.training.momentum["head.bias"], expected)
    result = imported(optimizer=[optimizer(torch, tensors)])
    assert not result.training.momentum
    assert "the optimizer's state is a list, not a dict; it was left out" in result.report.notices
    assert any("does not say how many epochs" in notice for notice in result.report.notices)
    partial = optimizer(torch, tensors)
    del partial["state"][2]
    assert any(
        "1 parameters have no momentum in the file" in notice for notice in imported(optimizer=partial).report.notices
    )


def test_momentum_of_one_element(torch, reference, tmp_path):
    """It was taken for a number, and left out without a word."""
    entries = [[key, [1 if size == 10 else size for size in shape]] for key, shape in MLP]
    tensors = {key: torch.from_numpy(value) for key, value in reference.make_state(entries).items()}
    torch.save({"model": tensors, "epoch": 1, "optimizer": optimizer(torch, tensors)}, tmp_path / "f.pth")
    imported = read(tmp_path / "f.pth", LoadOptions(norm_cfg={"num_groups": 4}))
    np.testing.assert_array_equal(imported.training.momentum["head.bias"], tensors["net.4.bias"].numpy())
    assert not imported.report.notices


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions(torch, tensors, tmp_path, dtype):
    converted = {key: value.to(getattr(torch, dtype)) for key, value in tensors.items()}
    torch.save(converted, tmp_path / "f.pth")
    model, report = load_torch(tmp_path / "f.pth", norm_cfg={"num_groups": 4})
    # The model remembers how it was made.
    save_pretrained(tmp_path / "model", model)
    assert read_config(tmp_path / "model")["model"] == report.model_config
    state = to_torch_state(model)
    for key, value in converted.items():
        np.testing.assert_array_equal(state[key], value.float().numpy())


def test_shared_storage_is_bounded(torch, tensors, tmp_path):
    """A hundred entries of one storage would be a hundred times the file's memory."""
    base = torch.zeros(10**5)
    content = {**tensors, **{f"layer{number}.weight": base for number in range(100)}}
    assert "several of them share their values" in error_of(torch, tmp_path / "f.pth", content)


@pytest.mark.parametrize("missing", ["net.1.weight", "net.1.bias", "net.2.bias", "net.4.weight", "net.4.bias"])
def test_every_missing_entry_is_named(torch, tensors, tmp_path, missing):
    del tensors[missing]
    assert missing in error_of(torch, tmp_path / "f.pth", tensors)
