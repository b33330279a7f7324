"""A human-readable report on how a ``.pth`` file was read."""

import dataclasses
from typing import Any

from gw_jax.convert.fill import listed
from gw_jax.errors import one_line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The report on one file.

    Attributes:
        path: the file.
        sha256: its checksum.
        container: "legacy" or "zip".
        kind: state dict or training dict.
        architecture: this project's name of the network.
        reference_name: the reference's, or None.
        evidence: how the architecture was found.
        model_config: the arguments of :func:`gw_jax.create_model`.
        num_parameters: trained values.
        keys_used: entries of the file that were read into the model.
        keys_ignored: entries that do not affect the function, and were left out.
        guesses: options that neither the file nor the caller determines.
        notices: further remarks.
    """

    path: str
    sha256: str
    container: str
    kind: str
    architecture: str
    reference_name: str | None
    evidence: str
    model_config: dict[str, Any]
    num_parameters: int
    keys_used: list[str]
    keys_ignored: list[str]
    guesses: list[str]
    notices: list[str]

    def __str__(self) -> str:
        """The report, one fact per line."""
        reference = f" (the reference's {self.reference_name})" if self.reference_name else ""
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.model_config.items() if key != "name")
        ignored = f"{len(self.keys_ignored)} ignored"
        if self.keys_ignored:
            ignored += f": {listed(self.keys_ignored, 3)}"
        lines = [
            f"file          {self.path}: {self.kind}, {self.container} container",
            f"sha256        {self.sha256}",
            f"architecture  {self.architecture}{reference}",
            f"found by      {self.evidence}",
            f"arguments     {arguments}",
            f"parameters    {self.num_parameters:,}",
            f"keys          {len(self.keys_used)} used, {ignored}",
            *(f"guessed       {guess}" for guess in self.guesses),
            *(f"notice        {notice}" for notice in self.notices),
        ]
        return "\n".join(one_line(line) for line in lines)
