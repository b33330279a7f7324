"""Sets that several commands prepare at once, and commands that are interrupted or killed."""

import signal
import subprocess
import sys

import pytest
from PIL import Image

from gw_jax.data.prepare.build import preparation_lock
from gw_jax.detection.data import coco_set
from gw_jax.detection.prepare import main
from tests.helpers.coco_command import own, refused


def test_one_process_prepares_at_a_time(tmp_path):
    command = own(tmp_path)
    builder = coco_set.coco_builder("own", str(tmp_path / "data"), coco_set.Content([], {}, {}, {}, ""))
    with preparation_lock(builder, wait=False):
        assert "Another command is preparing" in refused(*command)
    main(command)


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    command, example = own(tmp_path), coco_set._example

    def interrupted(image):
        if image.path.parent.name == "eval":
            raise KeyboardInterrupt
        return example(image)

    monkeypatch.setattr(coco_set, "_example", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(command)
    assert [path.name for path in (tmp_path / "data/own").iterdir()] == [".1.0.0.lock"]


def test_an_image_that_changes_meanwhile_is_noticed(tmp_path, monkeypatch):
    command, example = own(tmp_path), coco_set._example

    def edited(image):
        Image.new("RGB", (40, 30)).save(tmp_path / "train/a.png")
        return example(image)

    monkeypatch.setattr(coco_set, "_example", edited)
    assert "a.png was changed while the set was prepared" in refused(*command)
    assert [path.name for path in (tmp_path / "data/own").iterdir()] == [".1.0.0.lock"]


# Stops in the middle of writing, and says whether packages were imported that preparing does not need.
SLOW = """
import sys, time
from gw_jax.data.prepare.names import check_new_name
from gw_jax.detection.config import DetectorConfig
from gw_jax.detection.data import coco_set
from gw_jax.detection.prepare import main
from gw_jax.detection.recipes import faster_rcnn_recipe

example = coco_set._example

def slowly(image):
    if image.path.parent.name == "eval":
        # What TFDS prints is not shown.
        print(sorted({"tensorflow", "pycocotools", "grain"} & set(sys.modules)), flush=True, file=sys.__stdout__)
        time.sleep(600)
    return example(image)

coco_set._example = slowly
main(sys.argv[1:])
"""


def test_a_killed_command_leaves_no_set_and_the_next_one_cleans_up(tmp_path, capsys):
    command = own(tmp_path)
    killed = subprocess.Popen([sys.executable, "-c", SLOW, *command], stdout=subprocess.PIPE, text=True)
    # The first line in brackets; without one the command has ended by itself.
    imported = next((line for line in iter(killed.stdout.readline, "") if line.startswith("[")), None)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert imported == "[]\n"
    (leftover,) = (tmp_path / "data/own").glob("*incomplete*")
    assert not (tmp_path / "data/own/1.0.0").exists()
    main(command)
    output = capsys.readouterr()
    assert f"Removing {leftover}, which a stopped command left unfinished." in output.err
    assert sorted(path.name for path in (tmp_path / "data/own").iterdir()) == [".1.0.0.lock", "1.0.0"]
