import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from gw_jax.data import EvalBatches, TrainBatches, loader
from gw_jax.data.images import Transform
from gw_jax.data.loader import BatchReader
from gw_jax.data.workers import WorkerDiedError
from gw_jax.errors import DataError
from tests.helpers.imagenet import examples

CROPS = Transform(size=16, crop=True, eval_resize=20)
SOURCE = examples(40)
SOURCE[17]["image"] = b"not an image"
# 2 epochs of 5 batches.
STEPS = 10


def train(num_workers=0, **options):
    return TrainBatches(
        options.pop("source", SOURCE),
        **{"batch_size": 8, "num_epochs": 2, "seed": 0, "transform": CROPS, "num_workers": num_workers, **options},
    )


def bytes_of(batches, count=None):
    return [{name: values.tobytes() for name, values in batch.items()} for batch in itertools.islice(batches, count)]


@pytest.fixture
def workers():
    """Gives the worker processes; in the end there are none."""
    before = set(multiprocessing.active_children())

    def find():
        return sorted(process.pid for process in set(multiprocessing.active_children()) - before)

    yield find
    assert find() == []


@pytest.fixture(scope="module")
def expected():
    """The batches that threads read."""
    return bytes_of(train())


@pytest.mark.slow
def test_workers_and_threads_give_the_same_batches_and_resume_each_other(workers, expected):
    assert len(expected) == STEPS
    two, threads, one = train(2), train(0), train(1)
    assert bytes_of(two, 5) == expected[:5]
    assert len(workers()) == 2
    # Workers report what is broken as threads do.
    assert two.broken.indices == {17}
    threads.set_state(two.get_state())
    two.close()
    assert workers() == []
    assert bytes_of(threads, 2) == expected[5:7]
    one.set_state(threads.get_state())
    assert bytes_of(one) == expected[7:]
    assert workers() == []
    with pytest.raises(StopIteration):
        next(one)


def test_crops_depend_on_the_place_in_the_run_only(expected):
    parts = [list(train(process_index=index, process_count=2, num_threads=1 + 3 * index)) for index in range(2)]
    whole = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*parts, strict=True)]
    assert bytes_of(whole) == expected
    assert bytes_of(train(seed=1)) != expected
    # The second epoch crops otherwise than the first.
    images = {}
    for batch in train():
        for image, label in zip(batch["image"], batch["label"].tolist(), strict=True):
            images.setdefault(label, set()).add(image.tobytes())
    assert {len(crops) for label, crops in images.items() if label not in (17, 18)} == {2}


def test_a_killed_worker_is_replaced_and_no_batch_is_lost_or_doubled(workers, expected, capsys):
    batches = train(1)
    found = bytes_of(batches, 2)
    (killed,) = workers()
    os.kill(killed, signal.SIGKILL)
    found += bytes_of(batches, 7)
    (replacement,) = workers()
    assert replacement != killed
    assert capsys.readouterr().err.count("warning: a reading worker died; the workers are restarted.") == 1
    assert found + bytes_of(batches) == expected


@pytest.mark.slow
def test_workers_that_die_repeatedly_end_the_run(monkeypatch, capsys):
    starts = []
    reader = BatchReader(lambda position: {"image": position}, 8, 10, cyclic=False, num_threads=1, num_workers=1)

    def dying(start):
        # Three end at once, the fourth after four batches, and then no worker reads any more.
        starts.append(reader.position)
        if len(starts) == 4:
            yield from range(4)
        raise WorkerDiedError("exit code -9")

    monkeypatch.setattr(loader, "WatchedIterator", dying)
    assert [reader.read() for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"Reading workers died 4 times in a row .*exit code -9.*config.data.num_workers"):
        reader.read()
    assert starts == [0, 0, 0, 0, 4, 4, 4]
    assert capsys.readouterr().err.count("the workers are restarted") == 6


def test_evaluation_keeps_its_workers_for_the_next_pass(workers):
    threads = EvalBatches(SOURCE[:37], batch_size=16, transform=CROPS)
    batches = EvalBatches(SOURCE[:37], batch_size=16, transform=CROPS, num_workers=1)
    expected = bytes_of(threads)
    assert len(expected) == 3
    assert bytes_of(batches) == expected
    first = workers()
    assert len(first) == 1
    assert bytes_of(batches) == expected
    assert workers() == first
    # A pass that was broken off does not count for the next.
    assert bytes_of(threads, 1) == expected[:1]
    assert bytes_of(threads) == expected
    batches.close()


def test_threads_read_two_batches_ahead():
    asked, changed = [], threading.Condition()

    class Counting(list):
        def __getitem__(self, index):
            with changed:
                asked.append(index)
                changed.notify()
            return super().__getitem__(index)

    batches = train(source=Counting(examples(40)), num_epochs=20)
    for step in range(1, 60):
        next(batches)
        expected = 8 * (step + 2)
        with changed:
            assert changed.wait_for(lambda count=expected: len(asked) >= count, timeout=120)
        assert len(asked) == expected
    batches.close()


# What a spawned process runs again must not start anything.
SCRIPT = """
import multiprocessing, pathlib, sys, time
import numpy as np
from gw_jax.data import TrainBatches

if __name__ == "__main__":
    source = [{"image": np.zeros((32, 32, 3), np.uint8), "label": index} for index in range(64)]
    batches = TrainBatches(source, batch_size=8, num_epochs=2, seed=0, num_workers=1)
    for _ in range(5):
        batch = next(batches)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    if sys.argv[1] == "wait":
        time.sleep(600)
    # In the middle, where workers have read ahead, and at the end.
    batches.close()
    for batch in batches:
        pass
    del batch
    # A thread releases shared memory. Python warns at exit of what is left.
    for _ in range(12_000):
        if "/psm_" not in pathlib.Path("/proc/self/maps").read_text():
            break
        time.sleep(0.01)
"""


def start_script(tmp_path, argument):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(path), argument], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for shared memory in /proc")
def test_closing_leaves_no_shared_memory_behind(tmp_path):
    _, error = start_script(tmp_path, "close").communicate(timeout=120)
    # Every process of Grain says so with a jaxlib older than 0.11.
    assert not [line for line in error.splitlines() if "Grain multiprocess worker profiling" not in line]


def test_workers_end_with_a_run_that_is_killed(tmp_path):
    run = start_script(tmp_path, "wait")
    worker = int(run.stdout.readline())
    run.kill()
    try:
        # Its output ends when the last process that could write to it has ended; the worker could.
        run.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.kill(worker, signal.SIGKILL)
        pytest.fail("The worker outlived its run.")
