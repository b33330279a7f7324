"""One process of a run on several hosts: ``several_hosts.py PORT COUNT INDEX DEVICES WORKDIR [FIELD=JSON ...]``.

The data and the network are those of conftest.py, in double precision.
"""

import json
import pathlib
import sys

import jax


def main(port, count, index, devices, workdir, *changes):
    jax.config.update("jax_num_cpu_devices", int(devices))
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import conftest
    import gw_jax.train.setup

    from gw_jax.errors import UserError
    from gw_jax.models.resnet import ARCHITECTURES, Architecture
    from gw_jax.train import distributed, run

    ARCHITECTURES["resnet6"] = Architecture(False, (1, 1, 0, 0))
    gw_jax.train.setup.open_dataset = lambda name, data_dir, **_: conftest.make_shapes()
    config = conftest.make_config()
    for change in changes:
        path, value = change.split("=", 1)
        conftest.set_field(config, path, json.loads(value))
    try:
        distributed.initialize(f"127.0.0.1:{port}", int(count), int(index))
        with distributed.telling_failures():
            run(config, workdir)
            distributed.finish()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        distributed.leave(1, str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
