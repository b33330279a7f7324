"""The command that prepares a set from annotations in COCO's format."""

import functools

from gw_jax.detection.prepare import main
from tests.helpers import prepare
from tests.helpers.coco import write_own

refused = functools.partial(prepare.refused, command=main)


def own(tmp_path, change=None, change_eval=None, name="own"):
    """The command for a folder of one's own."""
    files = {
        "--train": tmp_path / "train",
        "--eval": tmp_path / "eval",
    }
    arguments = [name, f"--data_dir={tmp_path / 'data'}"]
    for (flag, folder), changed in zip(files.items(), (change, change_eval), strict=True):
        if not folder.exists():
            write_own(tmp_path, changed, split=folder.name)
        arguments += [flag, str(folder.with_suffix(".json")), str(folder)]
    return arguments
