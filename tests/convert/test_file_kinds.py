"""Files that are no checkpoints, or damaged or hostile ones: no code is run, and the advice fits the kind of file."""

import io
import os
import resource
import zipfile

import numpy as np
import pytest

from gw_jax.convert import load_torch
from gw_jax.errors import CheckpointError


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


def test_damaged_bytes_of_a_tensor(torch, tensors, tmp_path):
    """PyTorch reads them as numbers; a zip file has checksums."""
    torch.save(tensors, tmp_path / "f.pth")
    data = bytearray((tmp_path / "f.pth").read_bytes())
    data[data.index(tensors["net.1.weight"].numpy().tobytes()) + 1000] ^= 1
    (tmp_path / "f.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"the checksum of its record '.*/data/0' does not match"):
        load_torch(tmp_path / "f.pth")
