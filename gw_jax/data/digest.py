"""What identifies a prepared data set, so that a resume notices another one."""

import hashlib
import json
from typing import Any


def digest(builder: Any) -> str:
    """A digest of the description of a prepared set, without reading its examples: 16 hexadecimal digits.

    Its name, version, features, and for each split the number of examples and of their bytes.
    """
    info = builder.info
    splits = {name: [split.num_examples, split.num_bytes] for name, split in info.splits.items()}
    facts = {"name": info.full_name, "splits": splits, "features": _feature_facts(info.features)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _feature_facts(feature: Any) -> Any:
    if hasattr(feature, "items"):
        return {name: _feature_facts(part) for name, part in feature.items()}
    # Not dtype, which imports TensorFlow.
    facts = [type(feature).__name__, str(feature.shape), str(feature.np_dtype)]
    if hasattr(feature, "num_classes"):
        facts += [str(feature.num_classes), ",".join(getattr(feature, "names", None) or [])]
    return facts
