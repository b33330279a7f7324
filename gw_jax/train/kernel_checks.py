"""Checks of the kernels of a run, before the first program that could contain them; all hosts use the same ones.

A wrong kernel would train a wrong network without any sign of it. So every process compares the kernels that fit its
network with the definition on one of its devices, and a kernel is used where it was right in all of them.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from gw_jax.ops import kernels
from gw_jax.ops.kernel_check import answered
from gw_jax.ops.kernels import answers, check_cache, placement
from gw_jax.ops.kernels.answers import Question
from gw_jax.ops.kernels.check_cache import Answer
from gw_jax.train.distributed import gather, is_main


class KernelChecks:
    """The kernel checks of a run.

    Args:
        mesh: its devices.
        enabled: whether kernels without a kept answer are checked; else they are not used.

    Attributes:
        say: prints a line; called in process 0 only.
    """

    def __init__(self, mesh: Mesh, *, enabled: bool):
        self._device = mesh.local_devices[0]
        self._enabled = enabled
        self._seen: set[Any] = set()
        self._agreed: set[Question] = set()
        self.say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)

    def before(self, step: Callable[..., Any], *arguments: Any) -> None:
        """Checks the kernels that fit ``step``, a jitted function, for these shapes. Call it before it is compiled.

        The last argument is the batch; the others have the same shapes during a run, so that a step costs a look at the
        batch. All processes call this in the same order with the same shapes. Where there are no kernels, as on CPUs,
        nothing happens.

        Raises:
            TrainingError: a kernel left the device unusable; or as for :func:`gw_jax.train.distributed.gather`.
        """
        if not kernels.has_kernels(placement.attached_device_kind()):
            return
        shapes = (step, *((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arguments[-1])))
        if shapes in self._seen:
            return
        self._seen.add(shapes)
        questions = [each for each in answers.questions_of(step, *arguments) if each not in self._agreed]
        if not questions:
            return
        own = [self._own_answer(question) for question in questions]
        everyone = gather("kernel checks", [check_cache.machine(), [_as_json(answer) for answer in own]])
        agreed = [_agree(answer, [(host, found[index]) for host, found in everyone]) for index, answer in enumerate(own)]
        for question, answer in zip(questions, agreed, strict=True):
            if answer is not None:
                answers.decide(question, answer)
        self._keep_failures(questions, own, everyone)
        self._agreed.update(questions)
        if is_main():
            self._report(questions, agreed)

    def _own_answer(self, question: Question) -> Answer | None:
        """The answer on this host: a kept one, or that of a check."""
        # Not what was decided before in this process: another run may have had other hosts.
        kept = check_cache.read(question.key)
        if kept is not None or not self._enabled:
            return kept
        return answered(question, self._device, repeat=True)

    def _keep_failures(self, questions: list[Question], own: list[Answer | None], everyone: list[Any]) -> None:
        """Processes of one machine share the file of an answer, which the last of them has written."""
        for index, (question, answer) in enumerate(zip(questions, own, strict=True)):
            for host, found in everyone:
                other = found[index]
                if host == check_cache.machine() and other and not other["passed"] and answer and answer.passed:
                    check_cache.write(question.key, Answer(False, other["problem"]))

    def _report(self, questions: list[Question], agreed: list[Answer | None]) -> None:
        for question, answer in zip(questions, agreed, strict=True):
            if answer is not None and not answer.passed:
                again = f" (Checked {answer.age}; python -m gw_jax.doctor checks again.)" if answer.cached else ""
                self.say(
                    f"warning: The kernel {question.text} is not used: {answer.problem}. Plain XLA runs instead.{again}"
                )
        passed = [answer for answer in agreed if answer is not None and answer.passed]
        new = [answer for answer in agreed if answer is not None and not answer.cached]
        unknown = agreed.count(None)
        when = f"{len(new)} checked now, in {sum(answer.seconds for answer in new):.0f} s" if new else "checked before"
        missing = f" {unknown} were not checked (config.check_kernels=False) and are not used." if unknown else ""
        kind, count = placement.attached_device_kind().kind, len(questions)
        self.say(
            f"Kernels of Group Whitening on {kind}: {len(passed)} of {count} that fit the network were right beside the "
            f"definition ({when}).{missing}"
        )


def _as_json(answer: Answer | None) -> dict[str, Any] | None:
    return None if answer is None else {"passed": answer.passed, "problem": answer.problem}


def _agree(own: Answer | None, everyone: list[tuple[str, dict[str, Any] | None]]) -> Answer | None:
    """One answer for all: the first failure, none if any has none, else this process's own."""
    for host, other in everyone:
        if other is not None and not other["passed"]:
            where = f"on {host}, " if len(everyone) > 1 else ""
            problem = f"{where}{other['problem']}"
            return Answer(False, problem) if own is None else dataclasses.replace(own, passed=False, problem=problem)
    return None if any(other is None for _, other in everyone) else own
