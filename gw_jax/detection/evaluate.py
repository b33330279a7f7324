"""Average precision of stored detections: ``python -m gw_jax.detection.evaluate ANNOTATIONS DETECTIONS``.

ANNOTATIONS is a file in COCO's format, DETECTIONS one in its result format, such as ``detections-STEP.json`` of a run, or
what another program wrote. All images of ANNOTATIONS count. Prints the metrics of a run's evaluation as one JSON object; a
run itself is evaluated by ``train.py --config.mode=evaluate``.
"""

import argparse
import json
import sys

from gw_jax.detection.coco_metrics import evaluate_file
from gw_jax.errors import UserError, one_line


def main(arguments: list[str] | None = None) -> int:
    """Does what the command line says. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gw_jax.detection.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("annotations", metavar="ANNOTATIONS", help="the ground truth")
    parser.add_argument("detections", metavar="DETECTIONS", help="what was found in its images")
    args = parser.parse_args(arguments)
    try:
        print(json.dumps(evaluate_file(args.detections, args.annotations)))
    except UserError as error:
        print(f"error: {one_line(str(error), 2000)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
