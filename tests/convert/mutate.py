"""Converts damaged ``.pth`` files and counts what must not happen.

    python -m tests.convert.mutate --count=3000 --seed=0

prints one JSON object: exceptions other than the project's, crashes, executed code, half outputs, messages that are not one
short printable line, conversions of more than 5 s of processor time, or with a peak memory above three times the file plus
32 MiB.
"""

import argparse
import contextlib
import io
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings

MAX_SECONDS = 5
# Python, JAX and the C library allocate in larger pieces than the smallest files have bytes.
SLACK = 32 << 20
MAX_MESSAGE = 2300
# A child that is busy with one file for so long ends, and counts as crashed.
STUCK_SECONDS = 60

FAULTS = ("exception", "crash", "code run", "half output", "message", "time", "memory")


def memory(field):
    """A field of /proc/self/status in bytes: VmRSS now, VmHWM the highest since :func:`reset_peak`."""
    status = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(field))


def reset_peak():
    """Makes VmHWM start anew."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def left_over(directory):
    """The files that a conversion left beside its input and a whole output."""
    names = {path.name for path in directory.iterdir()} - {"in.pth"}
    out = directory / "out"
    if "out" in names and {"config.json", "model.safetensors"} <= {path.name for path in out.iterdir()}:
        names.discard("out")
    return names


def well_formed(code, message, report):
    """Whether an error is one short printable line, and a success has a printable report and no error."""
    if code == 0:
        return not message and all(line.isprintable() for line in report.split("\n"))
    return code == 1 and message.startswith("error: ") and message[:-1].isprintable() and len(message) <= MAX_MESSAGE


def convert(directory, data):
    """Converts one file. Returns the exit code, the faults, and figures."""
    from gw_jax.convert.__main__ import main

    path, canary = directory / "in.pth", directory / "canary"
    path.write_bytes(data)
    out, err = io.StringIO(), io.StringIO()
    faults, code, detail = [], None, ""
    reset_peak()
    before, started = memory("VmRSS"), time.process_time()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(path), str(directory / "out")])
    except BaseException:
        faults.append("exception")
        detail = traceback.format_exc()[-2000:]
    seconds, peak = time.process_time() - started, memory("VmHWM") - before
    message = err.getvalue()
    if "exception" not in faults and not well_formed(code, message, out.getvalue()):
        faults.append("message")
        detail = repr(message[:500])
    if canary.exists():
        faults.append("code run")
        canary.rmdir()
    if names := left_over(directory) or (code != 0 and (directory / "out").exists()):
        faults.append("half output")
        detail = str(names)
    if seconds > MAX_SECONDS:
        faults.append("time")
    if peak > 3 * len(data) + SLACK:
        faults.append("memory")
    return {"code": code, "faults": faults, "seconds": seconds, "peak": peak, "size": len(data), "detail": detail}


def work(seed, numbers):
    """Converts the files of these numbers; one line before and one after each."""
    import shutil

    from tests.helpers.mutations import contents, mutate, save

    warnings.simplefilter("ignore")
    channel = sys.stdout
    bases = contents()
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary)
        for base in bases:  # What is imported or compiled once counts for no file.
            convert(directory, save(base, "zip"))
            shutil.rmtree(directory / "out", ignore_errors=True)
        for number in numbers:
            print(json.dumps({"begin": number}), file=channel, flush=True)
            signal.alarm(STUCK_SECONDS)
            kind, data = mutate(f"{seed}/{number}", bases, directory / "canary")
            result = convert(directory, data)
            shutil.rmtree(directory / "out", ignore_errors=True)
            print(json.dumps({"number": number, "kind": kind, **result}), file=channel, flush=True)


def run(count, seed, show=print):
    """Converts ``count`` damaged files in child processes. Returns the figures."""
    results, crashes, first = [], [], 0
    while first < count:
        command = [sys.executable, "-m", "tests.convert.mutate", f"--seed={seed}", f"--count={count}", f"--first={first}"]
        with tempfile.TemporaryFile("w+") as log:
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
            begun = first
            for line in child.stdout:
                value = json.loads(line)
                if "begin" in value:
                    begun = value["begin"]
                    continue
                results.append(value)
                if value["faults"]:
                    show(json.dumps(value))
            child.stdout.close()
            if child.wait() == 0:
                break
            log.seek(0)
            crashes.append({"number": begun, "code": child.returncode, "log": log.read()[-500:]})
            show(json.dumps(crashes[-1]))
            first = begun + 1
    counted = {fault: sum(fault in result["faults"] for result in results) for fault in FAULTS}
    counted["crash"] = len(crashes)
    return {
        "files": len(results) + len(crashes),
        "converted": sum(result["code"] == 0 for result in results),
        "refused": sum(result["code"] == 1 for result in results),
        **counted,
        "max_seconds": round(max(result["seconds"] for result in results), 2),
        "max_memory_mib": round(max(result["peak"] for result in results) / 2**20, 1),
        "max_file_mib": round(max(result["size"] for result in results) / 2**20, 2),
    }


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, help="convert from this number on, in this process; for the script itself")
    args = parser.parse_args()
    if args.first is not None:
        work(args.seed, range(args.first, args.count))
        return 0
    figures = run(args.count, args.seed)
    print(json.dumps(figures))
    return int(any(figures[fault] for fault in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
