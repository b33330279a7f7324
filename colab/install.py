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
KEPT = ("jax", "jaxlib", "flax", "numpy")  # pip must not replace these: a runtime's GPU or TPU plugin fits only its own JAX


def installed(names):
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def check_versions(versions):
    """Raises RuntimeError for a version that is too old; returns notices for versions that were not tested."""

    def numbers(version):
        return tuple(map(int, re.findall(r"\d+", version)[:3]))

    notices = []
    for name in TESTED.keys() & versions.keys():
        version, (lowest, newest) = versions[name], TESTED[name]
        if numbers(version) < numbers(lowest):
            raise RuntimeError(
                f"{name} {version} is too old, {lowest} is needed. Set UPGRADE = True in the next cell and run that cell; "
                "when the runtime has restarted, set it back and run the notebook from the top."
            )
        if numbers(version)[:2] > numbers(newest):
            notices.append(
                f"{name} {version} was not tested, {newest} is the newest that was. If a cell fails, "
                f"run: pip install '{name}=={newest}.*', and restart the runtime."
            )
    return sorted(notices)


def check_devices(process, has_gpu, has_torch):
    """Notices on devices and PyTorch; `process` has tried to start JAX."""
    notices = []
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(
            f"JAX does not start: {reason}\nOn Colab choose Runtime > Disconnect and delete runtime, and run the notebook "
            "again. Elsewhere install JAX for your device: https://docs.jax.dev/en/latest/installation.html"
        )
    if process.stdout.startswith("cpu") and has_gpu:
        notices.append(
            "There is a GPU, but JAX does not use it: its plugin is missing, or belongs to another version of JAX. "
            "On Colab choose Runtime > Disconnect and delete runtime. Elsewhere run: pip install 'jax[cuda12]'."
        )
    elif process.stdout.startswith("cpu"):
        notices.append("No GPU or TPU: everything runs on the CPU, too. On Colab: Runtime > Change runtime type.")
    if not has_torch:
        notices.append("No PyTorch: only 02_import_pytorch needs it, and skips what it cannot do without it.")
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


def install(requirement, kept):
    """Installs with pip under the constraint that the packages `kept` stay as they are."""
    with tempfile.TemporaryDirectory() as directory:
        constraints = pathlib.Path(directory, "constraints.txt")
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in kept.items()))
        try:
            run(sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(constraints), requirement)
        except RuntimeError as error:
            raise RuntimeError(
                f"{error}\n\nIf pip names a conflict: gw_jax does not fit {kept}, and nothing was replaced. Set UPGRADE = "
                "True in the next cell and run that cell."
            ) from None
    importlib.invalidate_caches()
    assert installed(kept) == kept, f"pip replaced {kept} by {installed(kept)}; delete this runtime and start again."


def set_up():
    """Makes gw_jax importable. Returns the directory of its checkout, or None if only the package is installed."""
    notices = check_versions(installed(KEPT))
    checkout = find_checkout()
    if checkout:
        sys.path.insert(0, str(checkout))
    elif not importlib.util.find_spec("gw_jax"):
        checkout = clone()
        install(f"{checkout}[examples]", installed(KEPT))
    missing = [name for name in ("jax", "flax", "optax", "mlxtend", "matplotlib") if not importlib.util.find_spec(name)]
    if missing:
        raise RuntimeError(f"{', '.join(missing)} missing: run pip install -e '.[examples]' in the checkout of gw_jax.")
    # In a process of its own: a TPU, and most of a GPU's memory, belong to the first process that starts JAX.
    probe = "import jax; print(jax.default_backend(), jax.local_device_count(), 'x', jax.devices()[0].device_kind)"
    process = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    notices += check_devices(process, bool(shutil.which("nvidia-smi")), bool(importlib.util.find_spec("torch")))
    versions = ", ".join(f"{name} {version}" for name, version in installed(KEPT).items())
    print(f"{versions}, Python {sys.version.split()[0]}. Devices: {process.stdout.strip()}", *notices, sep="\n")
    return checkout


if __name__ == "__main__":
    CHECKOUT = set_up()
