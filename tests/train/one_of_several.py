"""One process of several: ``one_of_several.py PORT COUNT INDEX TIMEOUT [VICTIM]``.

All processes compute together, again and again; process VICTIM is killed after three rounds.
"""

import os
import signal
import sys

import jax


def main(port, count, index, timeout, victim=None):
    from gw_jax.errors import UserError
    from gw_jax.train import distributed

    jax.config.update("jax_num_cpu_devices", 1)
    try:
        distributed.initialize(f"127.0.0.1:{port}", int(count), int(index), timeout_s=float(timeout))
        with distributed.reporting_failures():
            work(index == victim, rounds=3 if victim is None else 1000)
            distributed.finish()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        distributed.leave(1, str(error))


def work(is_victim, rounds):
    from jax.experimental import multihost_utils

    from gw_jax.train import distributed

    distributed.check_same_everywhere({"a": 1})
    assert distributed.broadcast_from_main("step", {"step": jax.process_index()}) == {"step": 0}
    assert distributed.any_process("flag", jax.process_index() == 1)
    assert distributed.run_on_main("count", jax.process_count) == jax.process_count()
    for step in range(rounds):
        everyone = multihost_utils.process_allgather(jax.numpy.asarray(jax.process_index()))
        assert everyone.tolist() == list(range(jax.process_count()))
        if is_victim and step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
