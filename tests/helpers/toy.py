"""A task of its own for the tests of the training loop: a small regression, with a network, data and an evaluator."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gw_jax.errors import ConfigError, DataError
from gw_jax.nn import BatchNorm
from gw_jax.train import LogConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from gw_jax.train.task import Curve, Weights
from gw_jax.tree import by_path, variables

NUM_TRAIN, NUM_EVAL = 160, 100


def examples(positions, seed):
    """Inputs ``[n, 8]`` and the values ``[n]`` to be learned."""
    x = np.stack([np.random.default_rng([seed, i]).standard_normal(8) for i in positions])
    return {"x": x.astype(np.float32), "y": (x[:, :4].sum(1) - x[:, 4] * x[:, 5]).astype(np.float32)}


def shard(batch_size, rank, size):
    """The part of a batch that process ``rank`` of ``size`` reads."""
    return slice(rank * (batch_size // size), (rank + 1) * (batch_size // size))


class ToyBatches:
    """Batches by position, in an order that depends on the epoch; ``broken`` is a position that cannot be read."""

    def __init__(self, config, rank, size):
        self.config, self.rank, self.size, self.position, self.failure = config, rank, size, 0, None

    def __next__(self):
        if self.position == self.config.broken and self.rank == self.size - 1:
            self.failure = DataError("The toy data are broken.")
            if self.size == 1:
                raise self.failure
        epoch, batch = divmod(self.position, NUM_TRAIN // self.config.batch_size)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(NUM_TRAIN)
        self.position += 1
        return examples(
            np.split(order, NUM_TRAIN // self.config.batch_size)[batch][
                shard(self.config.batch_size, self.rank, self.size)
            ],
            0,
        )

    def get_state(self):
        return {"next_index": self.position}

    def set_state(self, state):
        self.skip_to(state["next_index"])

    def skip_to(self, step):
        self.position = step

    def close(self):
        pass


class ToyEvalBatches:
    """The evaluation split in batches of 8, padded; ``on_batch`` is called before each of them."""

    failure, on_batch = None, staticmethod(lambda number: None)

    def __init__(self, rank, size):
        self.rank, self.size = rank, size

    def __iter__(self):
        for number, start in enumerate(range(0, NUM_EVAL, 8)):
            self.on_batch(number)
            positions = np.arange(start, start + 8)[shard(8, self.rank, self.size)]
            yield examples(positions, 1) | {"mask": positions < NUM_EVAL}

    def close(self):
        pass


class ToyModel(nnx.Module):
    """Two layers with BatchNorm between them."""

    def __init__(self, width, dtype, rngs):
        self.hidden = nnx.Linear(8, width, param_dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(width, param_dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(width, 1, param_dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.head(jax.nn.relu(self.norm(self.hidden(x))))[:, 0]


class ToyEvaluator:
    """Keeps every prediction on the host, as a metric that is no sum would."""

    def __init__(self):
        self.outputs = []

    def add(self, outputs):
        self.outputs.append(jax.device_get(outputs))

    def result(self):
        error, mask = (np.concatenate([out[name] for out in self.outputs]) for name in ("error", "mask"))
        mse = float(np.mean(error[mask], dtype=np.float64))
        return {"eval/mse": mse, "eval/score": -mse, "eval/count": int(mask.sum())}


class ToyTask:
    """The task; see :class:`gw_jax.train.Task`."""

    best_metric, example_name, steps_per_epoch, eval_name = "eval/score", "examples", 10, None
    description = "least squares"
    terminal_metrics, curves = {"loss": "train/loss"}, (Curve("error", ("train/loss", "eval/mse")),)

    def __init__(self, config):
        self.config, self.batch_size = config, config.batch_size
        self.dtype = jnp.float64 if config.dtype == "float64" else jnp.float32

    def check(self, num_devices, *, training):
        if training and self.batch_size % num_devices:
            raise ConfigError(f"config.batch_size={self.batch_size} does not fit {num_devices} devices.")

    def make_model(self, rngs):
        return ToyModel(self.config.width, self.dtype, rngs)

    def train_batches(self, num_epochs, process_index, process_count):
        return ToyBatches(self.config, process_index, process_count)

    def eval_batches(self, process_index, process_count):
        return ToyEvalBatches(process_index, process_count)

    def loss(self, model, batch, key):
        x = batch["x"].astype(self.dtype) + self.config.noise * jax.random.normal(key, batch["x"].shape, self.dtype)
        errors = (model(x) - batch["y"].astype(self.dtype)) ** 2
        return errors.mean(), {"close": ((errors < 1).sum(), jnp.asarray(len(errors)))}

    def predict(self, model, batch):
        error = (model(batch["x"].astype(self.dtype)) - batch["y"].astype(self.dtype)) ** 2
        return {"error": error, "mask": batch["mask"]}

    def evaluator(self):
        return ToyEvaluator()

    def read_weights(self, directory: pathlib.Path):
        return Weights(dict(np.load(directory / "model.npz")))

    def export(self, directory, params, batch_stats, source):
        directory.mkdir()
        model = self.make_model(nnx.Rngs(0))
        nnx.update(model, params, batch_stats)
        np.savez(directory / "model.npz", **by_path(variables(model)))


@dataclasses.dataclass(slots=True, kw_only=True)
class ToyConfig(TrainConfig):
    """A run of 3 epochs of 10 steps, which takes a second."""

    batch_size: int = 16
    width: int = 16
    noise: float = 0.1
    broken: int | None = None

    def make_task(self):
        return ToyTask(self)


def make_config() -> ToyConfig:
    return ToyConfig(
        num_epochs=3,
        optimizer=OptimizerConfig(learning_rate=0.02),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=1),
        log=LogConfig(every_steps=4, progress_bar=False, plot=False, tensorboard=False),
    )
