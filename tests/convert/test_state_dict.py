"""State dicts in files: prefixes, and averaged weights."""

import numpy as np
import pytest

from gw_jax.convert import load_torch
from gw_jax.convert.__main__ import main
from gw_jax.convert.load import LoadOptions, read
from gw_jax.errors import CheckpointError
from gw_jax.models.pretrained import load_pretrained


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
    torch.save({"model": {"depth": 18}, "net": tensors, "ema": {"decay": 0.9}}, tmp_path / "options.pth")
    assert read(tmp_path / "options.pth", LoadOptions(norm_cfg={"num_groups": 4})).report.notices == [
        "the training dict does not say how many epochs were done; 0 were assumed",
        "the optimizer holds no momentum; training starts with none",
    ]
    torch.save({"model_ema": averaged}, tmp_path / "only.pth")
    with pytest.raises(CheckpointError, match="has only averaged weights"):
        load_torch(tmp_path / "only.pth")
    assert main([str(tmp_path / "f.pth"), str(tmp_path / "out"), "--ema", "--norm_cfg=num_groups=4"]) == 0
    assert "averaged weights (EMA) were read" in capsys.readouterr().out
    np.testing.assert_array_equal(load_pretrained(tmp_path / "out").head.bias[...], ema.arrays["head.bias"])
