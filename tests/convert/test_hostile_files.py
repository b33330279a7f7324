"""What a file can cause is an error of the project: one short printable line that names the file and the entry."""

import argparse
import io
import os
import pathlib
import re
import resource
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from gw_jax.convert import load_torch, to_torch_state
from gw_jax.convert.__main__ import main
from gw_jax.convert.load import LoadOptions, read
from gw_jax.errors import CheckpointError, ConfigError
from gw_jax.models.pretrained import load_pretrained, read_config, save_pretrained

MLP = [
    ["net.1.weight", [8, 784]], ["net.1.bias", [8]], ["net.2.weight", [1, 8]], ["net.2.bias", [1, 8]],
    ["net.4.weight", [10, 8]], ["net.4.bias", [10]],
]  # fmt: skip


@pytest.fixture
def tensors(reference, torch):
    """The state dict of an MLP with one hidden layer and group whitening, as tensors."""
    return OrderedDict((key, torch.from_numpy(value)) for key, value in reference.make_state(MLP).items())


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


def deep():
    value = []
    for _ in range(200):
        value = [value]
    return value


def doubled():
    """Exponentially large when each occurrence is visited."""
    value = ["x"]
    for _ in range(60):
        value = [value, value]
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
        ({"state_dict_ema": lambda t, s: {"a": 1}}, {"ema": True}, "'a' of"),
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


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("module.", "'module.'"),
        ("_orig_mod.", "'_orig_mod.'"),
        ("module.module.", "'module.module.'"),
        ("module._orig_mod.model.", "'module._orig_mod.model.'"),
        ("module.encoder_q.", "'module.encoder_q.'"),
    ],
)
def test_prefixes(torch, tensors, tmp_path, prefix, said):
    content = {prefix + key: value for key, value in tensors.items()}
    if "encoder" in prefix:
        content |= {"module.encoder_k.net.1.weight": tensors["net.1.weight"], "module.queue": torch.zeros(3)}
    torch.save({"state_dict": content}, tmp_path / "f.pth")
    report = read(tmp_path / "f.pth", LoadOptions(norm_cfg={"num_groups": 4})).report
    assert said in report.notices[0]
    assert len(report.keys_used) == len(tensors)
    assert report.keys_ignored == (["encoder_k.net.1.weight", "queue"] if "encoder" in prefix else [])


def test_averaged_weights(torch, tensors, tmp_path, capsys):
    averaged = {"module." + key: value * 2 for key, value in tensors.items()}
    torch.save({"state_dict": tensors, "model_ema": {**averaged, "n_averaged": torch.tensor(7)}}, tmp_path / "f.pth")
    plain, ema = (read(tmp_path / "f.pth", LoadOptions(norm_cfg={"num_groups": 4}, ema=ema)) for ema in (False, True))
    np.testing.assert_array_equal(ema.arrays["head.bias"], 2 * plain.arrays["head.bias"])
    assert "not the averaged ones (EMA) were read, under 'state_dict'; for the others" in plain.report.notices[0]
    assert "the averaged weights (EMA) were read, under 'model_ema'" in ema.report.notices[0]
    assert ema.report.keys_ignored == ["n_averaged"]
    torch.save({"model_ema": averaged}, tmp_path / "only.pth")
    with pytest.raises(CheckpointError, match="has only averaged weights"):
        load_torch(tmp_path / "only.pth")
    assert main([str(tmp_path / "f.pth"), str(tmp_path / "out"), "--ema", "--norm_cfg=num_groups=4"]) == 0
    assert "averaged weights (EMA) were read" in capsys.readouterr().out
    np.testing.assert_array_equal(load_pretrained(tmp_path / "out").head.bias[...], ema.arrays["head.bias"])


def test_shared_storage_is_bounded(torch, tensors, tmp_path):
    """A hundred entries of one storage would be a hundred times the file's memory."""
    base = torch.zeros(10**5)
    content = {**tensors, **{f"layer{number}.weight": base for number in range(100)}}
    assert "several of them share their values" in error_of(torch, tmp_path / "f.pth", content)


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """The zip file ``path`` with ``change(name, bytes)`` in place of its records."""
    with zipfile.ZipFile(path) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, value in records:
            archive.writestr(name, change(name, value))


def test_compressed_records_are_refused(torch, tensors, tmp_path):
    """A record of zeros can be a thousand times as large as its compressed form."""
    torch.save(tensors, tmp_path / "f.pth")
    rewritten(tmp_path / "f.pth", lambda name, value: value if "data/0" not in name else bytes(10**8), zipfile.ZIP_DEFLATED)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="is a compressed zip file"):
        load_torch(tmp_path / "f.pth")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_records_shorter_than_the_pickle_claims(torch, tensors, tmp_path):
    """Read behind their end, they would give the memory of the process away or end it."""
    torch.save(tensors, tmp_path / "f.pth")
    rewritten(tmp_path / "f.pth", lambda name, value: value[:4] if "data/5" in name else value)
    with pytest.raises(CheckpointError, match=r"damaged: the entry 'net.4.bias' needs 40 bytes, and no record has as many"):
        load_torch(tmp_path / "f.pth")


def test_code_hidden_from_the_top(torch, tensors, tmp_path):
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "made"),))

    for content, advice in (
        ({"state_dict": tensors, "extra": Payload()}, "weights_only=False)['state_dict']"),
        ({"weights": Payload()}, "weights_only=False).state_dict()"),
    ):
        for container in (True, False):
            torch.save(content, tmp_path / "f.pth", _use_new_zipfile_serialization=container)
            with pytest.raises(CheckpointError, match=r"mkdir, not only tensors; .* It was not run") as raised:
                load_torch(tmp_path / "f.pth")
            assert advice in str(raised.value)
    assert not (tmp_path / "made").exists()


def script_module(torch, path):
    module = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    torch.jit.save(module, path)


def safetensors(torch, path):
    import safetensors.numpy

    safetensors.numpy.save_file({"a": np.zeros(3)}, path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (script_module, r"is a TorchScript program, .*torch.jit.load\('f.pth'\).state_dict\(\)"),
        (safetensors, r"is a safetensors file\. .*gw_jax.load_pretrained"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a git-lfs pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page, .* download the file itself"),
        (b"\x1f\x8b\x08" + b"0" * 99, "is a gzip file. Unpack it"),
        (b"\x89HDF\r\n\x1a\n" + b"0" * 99, "is an HDF5 file"),
        (b"0" * 257 + b"ustar" + b"0" * 300, "is a tar archive. Unpack it"),
        (b"", "it is empty"),
    ],
)
def test_advice_fits_the_kind_of_file(torch, tmp_path, write, message):
    path = tmp_path / "f.pth"
    path.write_bytes(write) if isinstance(write, bytes) else write(torch, path)
    with pytest.raises(CheckpointError, match=message):
        load_torch(path)


def test_a_zip_file_around_a_checkpoint(torch, tensors, tmp_path):
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    with zipfile.ZipFile(tmp_path / "f.pth", "w") as archive:
        archive.writestr("inner.pth", buffer.getvalue())
    with pytest.raises(CheckpointError, match=r"not one of torch\.save; it holds inner\.pth"):
        load_torch(tmp_path / "f.pth")


@pytest.mark.parametrize("missing", ["net.1.weight", "net.1.bias", "net.2.bias", "net.4.weight", "net.4.bias"])
def test_every_missing_entry_is_named(torch, tensors, tmp_path, missing):
    del tensors[missing]
    assert missing in error_of(torch, tmp_path / "f.pth", tensors)


def test_output_that_cannot_be_written(torch, tensors, tmp_path, capsys, monkeypatch):
    torch.save(tensors, tmp_path / "in.pth")
    options = ["--norm_cfg=num_groups=4"]
    assert main([str(tmp_path / "in.pth"), str(tmp_path / "model"), *options]) == 0
    (tmp_path / "file").write_text("")
    for target in (tmp_path / ("n" * 300), tmp_path / "file" / "out", pathlib.Path("/proc/nothing/out")):
        for source, suffix in (("in.pth", ""), ("model", ".pth")):
            arguments = options if source == "in.pth" else []
            capsys.readouterr()
            assert main([str(tmp_path / source), f"{target}{suffix}", *arguments]) == 1
            assert "cannot be written: " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in.pth", "model"]


def test_a_full_disk(torch, tensors, tmp_path, capsys):
    """A limit of the file size stands for the end of the disk."""
    torch.save(tensors, tmp_path / "in.pth")
    assert main([str(tmp_path / "in.pth"), str(tmp_path / "model"), "--norm_cfg=num_groups=4"]) == 0
    capsys.readouterr()
    commands = (["in.pth", "out"], ["model", "out.pth"], ["model", "out.pth", "--container=zip"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for source, target, *options in commands:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            code = main([str(tmp_path / source), str(tmp_path / target), *options])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert code == 1
        message = capsys.readouterr().err
        assert "cannot be written: " in message
        assert "Nothing was left there" in message
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "model"]


def test_damaged_bytes_of_a_tensor(torch, tensors, tmp_path):
    """PyTorch reads them as numbers; a zip file has checksums."""
    torch.save(tensors, tmp_path / "f.pth")
    data = bytearray((tmp_path / "f.pth").read_bytes())
    data[data.index(tensors["net.1.weight"].numpy().tobytes()) + 1000] ^= 1
    (tmp_path / "f.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"the checksum of its record '.*/data/0' does not match"):
        load_torch(tmp_path / "f.pth")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.pth", "out", "--container=zip"], "--container is for writing a .pth file"),
        (["model", "out.pth", "--arch=MLP"], "--arch is for reading a .pth file"),
        (["model", "out.pth", "--ema"], "--ema is for reading a .pth file"),
        (["nothing.pth", "out"], "There is no file"),
        (["n" * 300, "out"], "cannot be read: File name too long"),
    ],
)
def test_options_without_effect(torch, tensors, tmp_path, capsys, arguments, message):
    torch.save(tensors, tmp_path / "in.pth")
    main([str(tmp_path / "in.pth"), str(tmp_path / "model"), "--norm_cfg=num_groups=4"])
    capsys.readouterr()
    source, target, *options = arguments
    assert main([str(tmp_path / source), str(tmp_path / target), *options]) == 1
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path / "model"), str(tmp_path / "out.pth"), "--container=tar"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "model"]
