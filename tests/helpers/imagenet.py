"""ImageNet in small: JPEG files, and archives that are laid out as the official ones."""

import io
import tarfile

import numpy as np
from PIL import Image

SYNSETS = ("n01440764", "n01443537", "n01484850")
PER_CLASS = 4
# Of the first images of the official validation set: sea snake, alp, Shetland sheepdog, soup bowl, cradle.
VALIDATION_LABELS = (65, 970, 230, 809, 516)
TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def jpeg(seed, width=48, height=40):
    """A JPEG file of random blocks, so that it is unlike others also where it was compressed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize((width, height)).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def examples(count):
    """A source in memory: JPEG files whose labels are their indices."""
    return [
        {"image": jpeg(index, 30 + index % 7, 36 - index % 5), "label": index, "file_name": b"n%08d_1.JPEG" % index}
        for index in range(count)
    ]


def train_files():
    """Name, label and bytes of the training images."""
    return [
        (f"{synset}_{index}.JPEG", label, jpeg(100 * label + index))
        for label, synset in enumerate(SYNSETS)
        for index in range(PER_CLASS)
    ]


def validation_files():
    """Name, label and bytes of the validation images."""
    return [
        (f"ILSVRC2012_val_{index:08d}.JPEG", label, jpeg(1000 + index))
        for index, label in enumerate(VALIDATION_LABELS, start=1)
    ]


def tar(members):
    """The bytes of a tar archive of pairs of name and bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_archives(directory):
    """Writes both archives: a tar of tars, one per class, and a tar of images, here not in the order of their names."""
    files = train_files()
    classes = [
        (f"{synset}.tar", tar((name, content) for name, _, content in files if name.startswith(synset)))
        for synset in SYNSETS
    ]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / TRAIN).write_bytes(tar(classes))
    (directory / VALIDATION).write_bytes(tar((name, content) for name, _, content in reversed(validation_files())))
