"""Random damage to ``.pth`` files: to their bytes, zip records, pickles, and to the objects in them."""

import argparse
import contextlib
import io
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import torch

from gw_jax.convert.entries import entries
from gw_jax.models.remembered import abstract_model
from tests.helpers.nesting import deep, doubled
from tests.helpers.reference import make_state

NETWORKS = {
    "resnet": {"name": "resnet18", "num_classes": 5, "width": 8, "norm_options": {"num_groups": 4}},
    "dbn": {"name": "resnet18", "num_classes": 5, "width": 8, "norm": "dbn", "norm_options": {"channels_per_group": 3}},
    "mlp": {"name": "mlp", "num_classes": 10, "width": 16, "depth": 3, "norm_options": {"num_groups": 4}},
    "lenet": {"name": "lenet", "num_classes": 10},
}
MLP_CFG = {"norm": "IGWItN", "norm_cfg": {"T": 5, "num_groups": 4}, "arch_cfg": {}}


def contents():
    """Small state dicts and training dicts, to be damaged."""
    result = []
    for network in NETWORKS.values():
        model = abstract_model(network, None, np.float32)
        state = make_state([(entry.key, entry.shape) for entry in entries(model)])
        tensors = OrderedDict((key, torch.from_numpy(np.array(value))) for key, value in state.items())
        trained = [key for key in tensors if "running" not in key and not key.endswith("tracked")]
        optimizer = {
            "state": {number: {"momentum_buffer": tensors[key] / 2} for number, key in enumerate(trained)},
            "param_groups": [{"lr": 0.1, "momentum": 0.9, "params": list(range(len(trained)))}, {"lr": 0.1, "params": []}],
        }
        training = {
            "model": tensors,
            "cfg": argparse.Namespace(**MLP_CFG, batch_size=[256, 256], best_prec1=torch.tensor(77.72)),
            "optimizer": optimizer,
            "epoch": 41,
            "best_prec1": torch.tensor(77.72),
        }
        result += [tensors, training]
    return result


class Payload:
    """Unpickled freely, it would make a directory."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


class Fields(OrderedDict):
    """Pickled as an OrderedDict that has attributes."""

    def __reduce__(self):
        return (OrderedDict, (), {"get": 3, "items": None, "keys": "x"}, None, iter(list(OrderedDict.items(self))))


def recursive():
    value = [1]
    value.append({"self": value})
    return value


ODD_VALUES = (
    None, True, -1, 10**30, float("nan"), float("inf"), "", "x" * 10**5, "\x1b[2J\n", b"\x00", [], {}, (), [1, "a"],
    {1: 2}, argparse.Namespace(get=1), {"get": 1},
)  # fmt: skip
ODD_KEYS = (
    "", ".", "..", "a" * 10**5, "\x1b]0;x\x07", "layer1.100001.conv1.weight", "net.100001.weight", "net.\u00b2", "net.1",
    "bn1", "net.99999999999999999999.weight", "layer4.1.bn2.DBN_Groups.7.running_mean", "fc.weight.extra", 7, (1, 2), None,
)  # fmt: skip
PREFIXES = ("module.", "_orig_mod.", "model.", "module.encoder_q.", "module.module.", "other.")


def odd_value(rng, canary):
    """A value that does not belong where it is put."""
    make = rng.choice(
        [recursive, deep, doubled, lambda: Payload(canary), lambda: Fields(a=1), lambda: torch.zeros(3)]
        + [lambda value=value: value for value in ODD_VALUES]
    )
    return make()


def odd_tensor(rng, tensor):
    """``tensor`` with another shape, type, layout or values."""
    flat = tensor.reshape(-1)
    changes = [
        lambda: flat,
        lambda: tensor[None],
        lambda: flat[:1].reshape(()),
        lambda: flat[:0],
        lambda: flat[:1].expand(tensor.shape),
        lambda: flat[:1].expand(10 ** rng.randrange(1, 13)),
        lambda: flat[:1].expand(*[100000] * rng.randrange(1, 4)),
        lambda: torch.zeros(*tensor.shape[:-1], 0),
        lambda: torch.zeros(0, *tensor.shape[1:]),
        lambda: tensor.transpose(0, -1) if tensor.ndim > 1 else flat,
        lambda: tensor.to(rng.choice([torch.float16, torch.bfloat16, torch.float64])),
        lambda: tensor.to(rng.choice([torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])),
        lambda: tensor.to("meta"),
        lambda: tensor.to_sparse() if tensor.ndim else tensor,
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        lambda: tensor * rng.choice([float("nan"), float("inf"), 1e38]),
        lambda: tensor.double() * 1e300,
        lambda: torch.nn.Parameter(tensor.float()),
        lambda: torch.tensor(2**40),
    ]
    return rng.choice(changes)()


def change_object(rng, content, canary):
    """A copy of ``content``, with one random node of it replaced, renamed, removed or wrapped."""
    content = _copy(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        where = [content]
        while rng.random() < 0.85:
            inner = [value for value in _values(where[-1]) if isinstance(value, (dict, list, argparse.Namespace))]
            if not inner:
                break
            where.append(rng.choice(inner))
        node = vars(where[-1]) if isinstance(where[-1], argparse.Namespace) else where[-1]
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            continue
        key = rng.choice(keys)
        kind = rng.choice(["value", "tensor", "tensor", "tensor", "remove", "rename", "add", "prefix", "ema"])
        if kind == "value":
            node[key] = odd_value(rng, canary)
        elif kind == "tensor" and isinstance(node[key], torch.Tensor):
            node[key] = odd_tensor(rng, node[key])
        elif kind == "remove":
            del node[key]
        elif isinstance(node, dict) and kind == "rename":
            node[rng.choice(ODD_KEYS)] = node.pop(key)
        elif isinstance(node, dict) and kind == "add":
            node[rng.choice(ODD_KEYS)] = rng.choice([node[key], odd_value(rng, canary)])
        elif isinstance(node, dict) and kind == "prefix":
            prefix = rng.choice(PREFIXES)
            items = [(f"{prefix}{name}" if isinstance(name, str) else name, value) for name, value in node.items()]
            node.clear()
            node.update(items)
        elif isinstance(content, dict) and kind == "ema":
            content[rng.choice(["state_dict_ema", "ema", "state_dict", "net"])] = rng.choice([node, odd_value(rng, canary)])
    return content


def _values(node):
    if isinstance(node, argparse.Namespace):
        node = vars(node)
    return list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []


def _copy(node):
    if isinstance(node, argparse.Namespace):
        return argparse.Namespace(**_copy(vars(node)))
    if isinstance(node, dict):
        return type(node)((key, _copy(value)) for key, value in node.items())
    return [_copy(value) for value in node] if isinstance(node, list) else node


def save(content, container):
    """The bytes of a file."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=container == "zip")
    return buffer.getvalue()


def change_bytes(rng, data, end=None):
    """``data`` with a few bits, bytes or blocks changed before ``end``; sometimes cut."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        place = rng.randrange(min(len(data), end or len(data)) or 1)
        length = rng.choice([1, 1, 4, 8, 100, 1000])
        kind = rng.choice(["bit", "bit", "byte", "insert", "delete", "cut", "repeat", "zero", "number"])
        if kind == "bit" and data:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == "byte" and data:
            data[place] = rng.randrange(256)
        elif kind == "insert":
            data[place:place] = rng.randbytes(length)
        elif kind == "delete":
            del data[place : place + length]
        elif kind == "cut":
            del data[place:]
        elif kind == "repeat":
            data[place:place] = data[place : place + length]
        elif kind == "zero":
            data[place : place + length] = bytes(len(data[place : place + length]))
        elif kind == "number":
            data[place : place + 4] = struct.pack("<I", rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**24]))
    return bytes(data)


def change_records(rng, data):
    """A zip file with changed records, whose checksums are still right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(record.filename, archive.read(record)) for record in archive.infolist()]
    pickled = next(index for index, (name, _) in enumerate(records) if name.endswith("data.pkl"))
    kind = rng.choice(
        ["pickle", "pickle", "pickle", "drop", "rename", "double", "swap", "shorten", "extend", "deflate", "add"]
    )
    index = rng.randrange(len(records))
    name, value = records[index]
    compression = zipfile.ZIP_STORED
    if kind == "pickle":
        records[pickled] = (records[pickled][0], change_bytes(rng, records[pickled][1]))
    elif kind == "drop":
        del records[index]
    elif kind == "rename":
        records[index] = (rng.choice(["../../evil", name + "\x1b[2J", "archive/data/0", "x" * 300]), value)
    elif kind == "double":
        records.append((name, rng.randbytes(len(value))))
    elif kind == "swap":
        other = rng.randrange(len(records))
        records[index], records[other] = (name, records[other][1]), (records[other][0], value)
    elif kind == "shorten":
        records[index] = (name, value[: rng.randrange(len(value) + 1)])
    elif kind == "extend":
        records[index] = (name, value + bytes(rng.randrange(1, 10**5)))
    elif kind == "deflate":
        compression = zipfile.ZIP_DEFLATED
        records[index] = (name, bytes(rng.choice([len(value), 10**8])))
    else:
        records.append((f"{name.split('/')[0]}/{rng.choice(['constants.pkl', 'code/x.py', 'version', 'byteorder'])}", b"1"))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, value in records:
            archive.writestr(name, value)
    return buffer.getvalue()


def mutate(seed, bases, canary):
    """The kind of damage, and the bytes of a damaged file."""
    for attempt in range(100):
        # Not every change suits every tensor.
        with contextlib.suppress(RuntimeError, IndexError, TypeError, ValueError, NotImplementedError, RecursionError):
            return _mutate(random.Random(f"{seed}/{attempt}"), bases, canary)
    raise RuntimeError(f"No damage suits seed {seed}.")


def _mutate(rng, bases, canary):
    content, container = rng.choice(bases), rng.choice(["legacy", "zip"])
    kind = rng.choice(["object", "object", "object", "bytes", "head", "records", "free pickle"])
    if kind == "free pickle":
        return kind, pickle.dumps({"model": Payload(canary), "state": odd_value(rng, canary)}, protocol=rng.randrange(5))
    if kind == "object":
        return kind, save(change_object(rng, content, canary), container)
    data = save(content, container)
    if kind == "bytes":
        return kind, change_bytes(rng, data)
    # The pickles of the legacy container come first; the zip container has its directory at the end.
    if kind == "head" or container == "legacy":
        return "head", change_bytes(rng, data, end=rng.choice([200, 20_000]))
    return kind, change_records(rng, data)
