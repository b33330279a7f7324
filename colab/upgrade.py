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
