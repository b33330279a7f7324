"""The kernels that fit a network, checked against the definition on this machine."""

import dataclasses

import jax

from gw_jax.doctor.layers import Network, traced
from gw_jax.doctor.report import Section
from gw_jax.ops import kernels
from gw_jax.ops.kernel_check import BOUNDS, answered
from gw_jax.ops.kernels import answers, check_cache, placement
from gw_jax.versions import no_kernels_because


def check_network_kernels(network: Network, section: Section, *, repeat: bool = False) -> None:
    """Checks each kernel that "auto" would use for the network, or reads the kept answer; later programs believe it.

    Args:
        network: the network.
        section: of the report.
        repeat: whether kernels that were right in an earlier check are checked, too.
    """
    kind = placement.attached_device_kind()
    if not kernels.has_kernels(kind):
        section.notes.append(no_kernels_because() or f"There are no kernels for {kind.kind}.")
        return
    questions = traced(network, answers.questions_of)
    if not questions:
        section.notes.append("No layer of the network has a kernel here that could be used; the reasons are below.")
    for question in questions:
        kept = None if repeat else check_cache.read(question.key)
        if kept is not None and kept.passed:
            answer = kept
            answers.decide(question, answer)
        else:
            # A failure is checked again: its cause, such as a driver, may be gone.
            answer = answered(question, jax.local_devices()[0], repeat=True)
        value, gradient = BOUNDS[question.dtype]
        found = "did not run"
        if answer.errors:
            largest = max(error for name, error in answer.errors.items() if name != "output")
            found = (
                f"output {answer.errors['output']:.1e}, gradients {largest:.1e} relative to the largest value (allowed: "
                f"{value:.1e} and {gradient:.1e})"
            )
        source = f"kept from {answer.age}" if answer.cached else f"checked now, {answer.seconds:.0f} s"
        section.add(question.text, f"{'right' if answer.passed else 'WRONG'}: {found}; {source}")
        section.data[question.text] = {**dataclasses.asdict(answer), "errors": dict(answer.errors)}
        if not answer.passed:
            section.problems.append(
                f"The kernel {question.text} failed its check on this device: {answer.problem}. It is not used; plain XLA "
                "computes the same. Please report it with the output of this command."
            )
    if questions and (folder := check_cache.directory()) is not None:
        section.notes.append(f"Answers are kept in {folder / 'kernel_checks'}; --recheck makes all checks again.")
