"""The files of an evaluation in the work directory: ``detections-STEP.json``, and what several processes exchange."""

import contextlib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

import jax

from gw_jax.errors import TrainingError, one_line
from gw_jax.files import replacing
from gw_jax.train.metrics import read_metrics
from gw_jax.train.workdir import warn_unwritable

_NAME = re.compile(r"detections-(\d+)\.json")
_PART = "detections-{step}-process-{process}.jsonl"


def detections_path(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """The file of the evaluation at ``step``."""
    return workdir / f"detections-{step}.json"


def stored_detections(workdir: pathlib.Path) -> dict[int, pathlib.Path]:
    """The files of detections in a work directory by their steps, in order."""
    found = {int(match[1]): path for path in workdir.glob("detections-*.json") if (match := _NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


class DetectionFiles:
    """The files of one evaluation.

    Of the evaluations of a run, the files of the last and of the best one are kept.

    Args:
        workdir: the work directory; it is created if it does not exist.
        step: of the evaluated weights.
    """

    def __init__(self, workdir: pathlib.Path, step: int):
        self._workdir, self._step = workdir, step

    def write_part(self, images: Mapping[int, tuple[bool, str]]) -> None:
        """Writes the results of this process for the first one.

        Args:
            images: by place in the set, whether the image could be read, and its results as JSON.

        Raises:
            TrainingError: they cannot be written.
        """
        path = self._part(jax.process_index())
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary, temporary.open("w") as file:
                for place, (readable, text) in images.items():
                    file.write(f'{{"place": {place}, "readable": {json.dumps(readable)}, "results": {text}}}\n')
        except OSError as error:
            raise TrainingError(
                f"The detections of process {jax.process_index()} cannot be written to {path}: {error.strerror or error}. "
                "An evaluation by several processes needs a work directory that all of them can write."
            ) from error

    def read_parts(self, process_count: int) -> Iterator[tuple[int, tuple[bool, str]]]:
        """What all processes have written; then the files are removed.

        Raises:
            TrainingError: a file cannot be read.
        """
        for process in range(process_count):
            path = self._part(process)
            try:
                with path.open() as file:
                    for line in file:
                        image = json.loads(line)
                        yield image["place"], (image["readable"], json.dumps(image["results"]))
            except (OSError, ValueError, KeyError) as error:
                raise TrainingError(
                    f"The detections of process {process} cannot be read from {path} ({type(error).__name__}: "
                    f"{one_line(str(error), 200)}). All processes must share the work directory."
                ) from error
        # Those of a run that was killed and had more processes, too.
        _remove(self._workdir.glob(_PART.format(step="*", process="*")))

    def write(self, texts: Sequence[str], box_ap: float) -> None:
        """Writes ``detections-STEP.json`` and removes those of earlier steps, except that of the best one.

        A warning says where that is impossible: the metrics are not lost then.

        Args:
            texts: for each image the JSON of its list of results, in the order of the set.
            box_ap: of these results.
        """
        path = detections_path(self._workdir, self._step)
        with warn_unwritable(path):
            self._workdir.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary, temporary.open("w") as file:
                file.write("[")
                separator = "\n"
                for text in texts:
                    if inner := text[1:-1]:
                        file.write(separator + inner)
                        separator = ",\n"
                file.write("\n]\n")
            known = {line["step"]: line["eval/box_ap"] for line in read_metrics(self._workdir) if "eval/box_ap" in line}
            earlier = {step: value for step, value in known.items() if step < self._step} | {self._step: box_ap}
            best = max(earlier, key=lambda step: (earlier[step], step))
            stored = stored_detections(self._workdir)
            _remove(path for step, path in stored.items() if step < self._step and step != best)

    def _part(self, process: int) -> pathlib.Path:
        return self._workdir / _PART.format(step=self._step, process=process)


def _remove(paths: Iterator[pathlib.Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
