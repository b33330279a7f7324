"""Fails unless a run of the quickstart, which may be short, reached 90 % top-1: ``check_quickstart.py WORKDIR``."""

import json
import pathlib
import sys

lines = map(json.loads, (pathlib.Path(sys.argv[1]) / "metrics.jsonl").read_text().splitlines())
top1 = [line["eval/top1"] for line in lines if "eval/top1" in line]
print(f"quickstart: top-1 {top1}")
if not top1 or top1[-1] < 0.9:
    sys.exit("error: the quickstart reached less than 90 % top-1")
