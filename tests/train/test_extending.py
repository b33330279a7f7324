"""The code of docs/extending.md: its task trains, is killed, resumes and evaluates through the loop of every task."""

import pathlib
import re
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gw_jax.train import run
from gw_jax.train.command_line import load_config
from tests.helpers.runs import KilledError, evaluations, kill_at, results

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "extending.md"


def block(start):
    """The Python block of the page that contains ``start``."""
    blocks = [textwrap.dedent(text) for text in re.findall(r" *```python\n(.*?)```", PAGE.read_text(), re.DOTALL)]
    (found,) = [text for text in blocks if start in text]
    return found


@pytest.fixture
def config(tmp_path):
    (tmp_path / "fit.py").write_text(block("class FitTask"))
    config = load_config(str(tmp_path / "fit.py"))
    config.num_epochs, config.checkpoint.every_steps = 2, 20
    config.log.every_steps, config.log.plot, config.log.tensorboard, config.log.progress_bar = 15, False, False, False
    return config


@pytest.mark.slow
def test_the_task_trains_is_killed_resumes_and_evaluates(config, tmp_path):
    result = run(config, tmp_path / "whole")
    assert result.metrics["eval/count"] == 256
    first, last = evaluations(tmp_path / "whole")
    assert last["eval/mse"] < first["eval/mse"] < 0.5
    with pytest.raises(KilledError):
        run(config, tmp_path / "killed", hooks=kill_at(73))
    assert run(config, tmp_path / "killed").metrics == result.metrics
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    config.mode, config.checkpoint.evaluate = "evaluate", "last"
    assert run(config, tmp_path / "killed").metrics == result.metrics


def test_the_norm_is_the_root_mean_square(float64):
    scope = {}
    exec(compile(block("class RMSNorm"), str(PAGE), "exec"), scope)
    norm = scope["RMSNorm"](4, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 3, 3, 4))
    expected = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-6)
    np.testing.assert_allclose(norm(jnp.asarray(x), relu=True), np.maximum(expected, 0), rtol=1e-6)
