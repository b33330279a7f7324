"""Tasks whose outputs stay on their devices, and tasks that draw: both are optional, and others are as they were."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from gw_jax.errors import DataError
from gw_jax.train import run
from gw_jax.train.experiment import build_experiment
from gw_jax.train.mesh import batch_sharding, local_rows, make_mesh
from gw_jax.train.task import DrawsResult, EvaluatesShards
from tests.helpers import toy
from tests.helpers.runs import results


class ShardEvaluator(toy.ToyEvaluator):
    """Reads its process's rows of outputs that must be sharded, and writes a file."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def add(self, outputs):
        assert not any(array.is_fully_replicated for array in outputs.values())
        self.outputs.append(local_rows(outputs))

    def result(self):
        metrics = super().result()
        self.path.write_text(str(metrics))
        return metrics


class ShardTask(toy.ToyTask):
    def shard_evaluator(self, step, workdir):
        return ShardEvaluator(workdir / f"evaluation-{step}")


class DrawingTask(toy.ToyTask):
    def draw(self, workdir):
        if self.config.width == 3:
            raise DataError("no picture of 3")
        if self.config.width == 4:
            raise OSError(30, "read-only")
        (workdir / "picture").write_text("drawn")
        return workdir / "picture" if self.config.width > 5 else None


@dataclasses.dataclass(slots=True, kw_only=True)
class Config(toy.ToyConfig):
    task: str = "ToyTask"

    def make_task(self):
        return {"ToyTask": toy.ToyTask, "ShardTask": ShardTask, "DrawingTask": DrawingTask}[self.task](self)


def make_config(**fields):
    config = Config(**{field.name: getattr(toy.make_config(), field.name) for field in dataclasses.fields(toy.ToyConfig)})
    return dataclasses.replace(config, num_epochs=1, **fields)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.long), 8])
def test_outputs_that_stay_sharded_give_the_same_metrics(tmp_path, devices):
    chosen = jax.devices()[:devices]
    run(make_config(), tmp_path / "replicated", devices=chosen)
    run(make_config(task="ShardTask"), tmp_path / "sharded", devices=chosen)
    assert results(tmp_path / "sharded") == results(tmp_path / "replicated")
    (file,) = (tmp_path / "sharded").glob("evaluation-*")
    assert file.name == "evaluation-10"


def test_an_evaluation_of_a_checkpoint_has_its_step(tmp_path):
    run(make_config(task="ShardTask"), tmp_path)
    written = (tmp_path / "evaluation-10").read_text()
    (tmp_path / "evaluation-10").unlink()
    run(make_config(task="ShardTask", mode="evaluate"), tmp_path)
    assert (tmp_path / "evaluation-10").read_text() == written


def test_the_step_gives_sharded_outputs_only_where_the_task_reads_them():
    for name, shards in (("ToyTask", False), ("ShardTask", True)):
        experiment = build_experiment(make_config(task=name), jax.devices()[:4])
        assert isinstance(experiment.task, EvaluatesShards) == shards
        batch = experiment.shard_batch(next(iter(experiment.task.eval_batches(0, 1))))
        returned = experiment.eval_step(*experiment.state.eval_weights, batch)
        assert returned["stop"] is None
        for array in jax.tree.leaves(returned["outputs"]):
            assert array.is_fully_replicated != shards
        asked = experiment.eval_step(*experiment.state.eval_weights, {**batch, "stop": batch["mask"].astype(np.uint8)})
        assert int(asked["stop"]) == 1
        assert asked["stop"].is_fully_replicated


def test_local_rows_are_in_order():
    mesh = make_mesh(list(jax.devices()[:8])[::-1])
    array = np.arange(48).reshape(16, 3)
    rows = local_rows({"a": jax.device_put(array, batch_sharding(mesh)), "b": [array]})
    np.testing.assert_array_equal(rows["a"], array)
    np.testing.assert_array_equal(rows["b"][0], array)
    np.testing.assert_array_equal(local_rows(jax.device_put(array, jax.devices()[3])), array)


@pytest.mark.parametrize(
    ("width", "said", "warned"),
    [(6, "Picture: ", ""), (5, "", ""), (4, "", "read-only"), (3, "", "warning: no picture of 3")],
)
@pytest.mark.slow
def test_a_task_may_draw_its_result(tmp_path, capsys, width, said, warned):
    """Where that fails, the run has succeeded nevertheless."""
    config = make_config(task="DrawingTask", width=width)
    assert isinstance(config.make_task(), DrawsResult)
    config.log = dataclasses.replace(config.log, plot=True)
    assert run(config, tmp_path).metrics["eval/count"] == 100
    captured = capsys.readouterr()
    assert ("Picture: " in captured.out) == bool(said)
    assert warned in captured.err
    assert (tmp_path / "picture").exists() == (width > 4)
    assert pathlib.Path(tmp_path / "curves.png").exists()
