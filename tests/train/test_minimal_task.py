"""A task of about forty lines trains, is killed, resumes and evaluates through the loop that every task shares."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gw_jax.errors import ConfigError
from gw_jax.train import LogConfig, TrainConfig, run
from tests.helpers.runs import KilledError, evaluations, kill_at, results


class Batches:
    """Batches by position: points of a plane."""

    failure, position = None, 0

    def __init__(self, count):
        self.count = count

    def __next__(self):
        self.position += 1
        x = np.random.default_rng(self.position).standard_normal((16, 3)).astype(np.float32)
        return {"x": x, "y": x @ np.array([[1.0], [-2.0], [0.5]], np.float32)}

    def __iter__(self):
        self.position = 10_000
        return (next(self) for _ in range(self.count))

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]

    def skip_to(self, step):
        self.position = step

    def close(self):
        pass


class SumOfErrors:
    """An evaluator: adds up on the host."""

    def __init__(self):
        self.errors = []

    def add(self, outputs):
        self.errors.append(float(outputs))

    def result(self):
        return {"eval/error": sum(self.errors), "eval/fit": -sum(self.errors), "eval/count": 16 * len(self.errors)}


class PlaneTask:
    """Fits a plane."""

    best_metric, example_name, batch_size, steps_per_epoch = "eval/fit", "points", 16, 10
    terminal_metrics, curves, eval_name = {"loss": "train/loss"}, (), None

    def check(self, num_devices, *, training):
        if self.batch_size % num_devices:
            raise ConfigError(f"16 points cannot be split evenly over {num_devices} devices.")

    def make_model(self, rngs):
        return nnx.Linear(3, 1, rngs=rngs)

    def train_batches(self, num_epochs, process_index, process_count):
        return Batches(10 * num_epochs)

    def eval_batches(self, process_index, process_count):
        return Batches(4)

    def loss(self, model, batch, key):
        error = ((model(batch["x"]) - batch["y"]) ** 2).mean()
        return error, {"error": (error, jnp.ones(()))}

    def predict(self, model, batch):
        return ((model(batch["x"]) - batch["y"]) ** 2).sum()

    def evaluator(self):
        return SumOfErrors()


@dataclasses.dataclass(slots=True, kw_only=True)
class PlaneConfig(TrainConfig):
    """A run of 3 epochs."""

    num_epochs: int = 3

    def make_task(self):
        return PlaneTask()


def test_it_trains_is_killed_resumes_and_evaluates(tmp_path):
    config = PlaneConfig(log=LogConfig(every_steps=3, plot=False, tensorboard=False, progress_bar=False))
    config.checkpoint.every_steps = 4
    result = run(config, tmp_path / "whole")
    assert result.metrics["eval/count"] == 64
    assert result.metrics["eval/error"] < evaluations(tmp_path / "whole")[0]["eval/error"] / 2
    with pytest.raises(KilledError):
        run(config, tmp_path / "killed", hooks=kill_at(17))
    assert run(config, tmp_path / "killed").metrics == result.metrics
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    config.mode, config.checkpoint.evaluate = "evaluate", "last"
    assert run(config, tmp_path / "killed").metrics == result.metrics
