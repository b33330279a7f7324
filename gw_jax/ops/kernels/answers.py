"""What this process believes about its kernels: the answers of checks on this machine.

``implementation="auto"`` reads them when it is traced. It never makes a check itself: ``train.py`` does before its first
step (:mod:`gw_jax.train.kernel_checks`), ``python -m gw_jax.doctor`` and :func:`gw_jax.ops.check_kernels` do on demand.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax

from gw_jax.ops.kernels import check_cache, placement
from gw_jax.ops.kernels.check_cache import Answer
from gw_jax.ops.kernels.spec import KernelSpec

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Question:
    """A kernel whose answer decides what "auto" takes.

    Attributes:
        spec: its sizes, for one device.
        spatial: height and width of the images.
        dtype: name of the type of the input.
    """

    spec: KernelSpec
    spatial: tuple[int, int]
    dtype: str

    @classmethod
    def about(cls, spec: KernelSpec, x: jax.Array) -> "Question":
        """The question for a call with the input ``x``, ``[n, h, w, c]``."""
        return cls(dataclasses.replace(spec, sharding=None), (x.shape[1], x.shape[2]), x.dtype.name)

    @property
    def text(self) -> str:
        """Kernel and shape, such as ``gpu_triton for 28 x 28 x 128, bfloat16, 64 groups``."""
        spec, (h, w) = self.spec, self.spatial
        relu = ", ReLU" if spec.relu else ""
        sizes = f"{h} x {w} x {spec.channels}, {self.dtype}, {spec.num_groups} groups, {spec.num_iterations} iterations"
        return f"{spec.kernel} for {sizes}{relu}"

    @property
    def key(self) -> dict[str, Any]:
        """What the answer depends on, as JSON values."""
        sizes = {field.name: getattr(self.spec, field.name) for field in dataclasses.fields(self.spec)}
        del sizes["sharding"]
        sizes["parts"] = list(self.spec.parts)
        return {
            "machine": check_cache.machine(),
            "device_kind": placement.attached_device_kind().kind,
            "versions": check_cache.versions(),
            "dtype": self.dtype,
            "spatial": list(self.spatial),
            "spec": sizes,
        }


class _Recorder:
    """The questions of one trace, in their order."""

    def __init__(self) -> None:
        self.questions: dict[Question, None] = {}


# What was decided in this process. It counts more than a file: on several hosts it is what all of them agreed on.
_decided: dict[Question, Answer] = {}
# Files that were read, so that a function that is not traced does not read one per call.
_read: dict[Question, Answer] = {}
# A part of the key of jax.jit's caches: a function that was traced for its questions is traced again for its program.
_recorder = jax.make_user_context(None)


def answer_to(question: Question) -> Answer | None:
    """The answer that this process believes, or None where there is none.

    On several hosts only what they agreed on counts: with their own files they might compile different programs.
    """
    if question in _decided:
        return _decided[question]
    if jax.process_count() > 1:
        return None
    if question not in _read and (answer := check_cache.read(question.key)) is not None:
        _read[question] = answer
    return _read.get(question)


def decide(question: Question, answer: Answer) -> None:
    """Makes ``answer`` the one that this process believes."""
    before = _decided.get(question, _read.get(question))
    _decided[question] = answer
    if before is not None and before.passed and not answer.passed:
        # Functions that have the kernel in their programs.
        jax.clear_caches()


def questions_of(function: Callable[..., Any], *arguments: Any) -> list[Question]:
    """The kernels that fit the calls of Group Whitening in ``function``, which is traced for ``arguments`` and not run."""
    recorder = _Recorder()
    with _recorder(recorder):
        jax.eval_shape(function, *arguments)
    return list(recorder.questions)


def not_used_because(spec: KernelSpec, x: jax.Array, device: placement.DeviceKind, *, preferred: bool) -> str | None:
    """Why a kernel that fits is not used on the attached device, as a sentence, or None where it is.

    Args:
        spec: the kernel.
        x: the input, or a traced one.
        device: for which it is traced.
        preferred: whether the caller asked for kernels without a check; one that failed is not used for them either.
    """
    if not placement.compiles_for_attached_device():
        return None
    question = Question.about(spec, x)
    if _recorder.value is not None:
        _recorder.value.questions[question] = None
    answer = answer_to(question)
    if answer is None:
        if preferred:
            return None
        if _recorder.value is None:
            _log_unchecked(device.kind)
        return (
            f"The kernel {question.text} was not checked on this machine; train.py does it before its first step, and "
            "python -m gw_jax.doctor on demand."
        )
    return None if answer.passed else f"The kernel {question.text} failed its check on this machine: {answer.problem}."


@functools.cache
def _log_unchecked(kind: str) -> None:
    _LOGGER.warning(
        "Group Whitening has a faster kernel for %s than the plain XLA that runs now. It is used after a check on this "
        "machine: python -m gw_jax.doctor --model=MODEL --num-groups=N --batch=N, or gw_jax.ops.check_kernels for a "
        "network of your own. (train.py checks by itself.)",
        kind,
    )
