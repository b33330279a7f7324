"""The command line: outputs that cannot be written, options without an effect."""

import pathlib
import resource

import pytest

from gw_jax.convert.__main__ import main


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
