"""The shard of a process in batches of all processes."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessShard:
    """The examples of a global batch that one process reads: ``size`` of ``batch_size``, from ``first`` on."""

    batch_size: int
    first: int
    size: int

    @classmethod
    def of(cls, batch_size: int, process_index: int, process_count: int) -> "ProcessShard":
        """The shard of a process, of equal size for all.

        Raises:
            ValueError: the batch cannot be divided by the number of processes.
        """
        if batch_size % process_count:
            raise ValueError(f"A batch of {batch_size} examples cannot be divided among {process_count} processes.")
        size = batch_size // process_count
        return cls(batch_size=batch_size, first=process_index * size, size=size)

    def global_index(self, position: int) -> int:
        """The index in the global order of the example at ``position`` of this process."""
        step, rank = divmod(position, self.size)
        return step * self.batch_size + self.first + rank
