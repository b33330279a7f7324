"""The detector: Faster and Mask R-CNN over a feature pyramid, for images in a canvas of fixed size."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gw_jax.detection import pooler, postprocess, proposals
from gw_jax.detection.canvas import check_images, check_pyramid, pyramid_masks, require_array
from gw_jax.detection.detections import Detections
from gw_jax.detection.detector_options import (
    BACKBONE_NORMS,
    DetectorNorm,
    architecture_of,
    check_options,
    initialise_backbone,
)
from gw_jax.detection.fpn import FPN
from gw_jax.detection.heads import BOX_SIZE, MASK_SIZE, BoxHead, BoxHeadName, ConvReLU, MaskHead
from gw_jax.detection.layers import DETECTION_NORM_OPTIONS, HeadNorm, NormChoice, Types
from gw_jax.detection.rpn import RPNHead
from gw_jax.errors import ConfigError
from gw_jax.models import Architecture, ResNet, create_model
from gw_jax.models.creation import CreationRecord
from gw_jax.models.resnet import Stem
from gw_jax.ops.checks import accumulation_dtype


class Detector(nnx.Module):
    """Faster or Mask R-CNN; :func:`create_detector` makes it.

    Images ``[n, h, w, 3]``, normalised, stand in the top left corner of a canvas whose sides are multiples of 32. ``valid``
    int32 ``[n, 2]`` is the height and width of each image rounded up to multiples of 32, the area that the reference would
    give it by padding; ``sizes`` int32 ``[n, 2]`` are its own. The canvas and the other images change no result: norms,
    convolutions, proposals and regions see the valid area only.

    Logits, deltas, boxes and scores are at least float32.

    Attributes:
        arguments: of :func:`create_detector`, as JSON values, without types and generators.

    Source: Ren et al., Faster R-CNN (NeurIPS 2015); He et al., Mask R-CNN (ICCV 2017); maskrcnn-benchmark, as the reference
    ran it.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from gw_jax.detection import create_detector
        >>> detector = create_detector("resnet18", width=8, fpn_features=8, norm_options={"num_groups": 4},
        ...                            rngs=nnx.Rngs(0))
        >>> levels = detector.pyramid(jnp.ones((1, 64, 96, 3)), jnp.array([[64, 64]]))
        >>> levels["P2"].shape, float(abs(levels["P2"][:, :, 16:]).max())
        ((1, 16, 24, 8), 0.0)
    """

    def __init__(
        self,
        backbone: ResNet,
        fpn: FPN,
        rpn_head: RPNHead,
        box_head: BoxHead,
        mask_head: MaskHead | None,
        record: CreationRecord,
    ):
        self.backbone = backbone
        self.fpn = fpn
        self.rpn_head = rpn_head
        self.box_head = box_head
        self.mask_head = mask_head
        # Not the attribute of create_model's networks: a detector is no classifier.
        self.record = record

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of :func:`create_detector` that made the detector."""
        return self.record.arguments

    def pyramid(self, images: jax.Array, valid: jax.Array, *, remat: bool = False) -> dict[str, jax.Array]:
        """The features of images ``[n, H, W, 3]``: C2 to C5 of the backbone and P2 to P6.

        They are ``[n, H / s, W / s, c]`` at the strides ``s`` 4, 8, 16 and 32, P6 at 64, rounded up, and exactly 0 outside
        the valid area. No gradient flows into the stem and the ``frozen_stages`` of :func:`create_detector`. With ``remat``
        the gradient recomputes the blocks of the other stages and the pyramid instead of keeping what is inside them.

        Raises:
            ValueError: sides of the canvas that are no multiples of 32, or a ``valid`` that does not fit.
        """
        check_images(images, valid)
        stages = self.backbone.stages(images, valid, frozen_stages=self.arguments["frozen_stages"], remat=remat)
        masks = pyramid_masks(valid, *images.shape[1:3])
        levels = (jax.checkpoint(self.fpn.__call__) if remat else self.fpn)(stages, masks)
        return {**{f"C{level}": features for level, features in enumerate(stages, 2)}, **levels}

    def rpn(self, pyramid: dict[str, jax.Array], valid: jax.Array) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Objectness logits ``[n, h, w, 3]`` and deltas ``[n, h, w, 12]`` of P2 to P6; 0 outside the valid area.

        The channel of a delta is ``anchor * 4 + coordinate``.

        Raises:
            ValueError: ``valid`` is of another shape than the pyramid says.
        """
        height, width = check_pyramid(pyramid, valid)
        return self.rpn_head(pyramid, pyramid_masks(valid, height, width))

    def propose(
        self, pyramid: dict[str, jax.Array], valid: jax.Array, sizes: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The proposals of each image, by falling score: boxes ``[n, 1000, 4]``, scores and ``present`` ``[n, 1000]``.

        Raises:
            ValueError: ``valid`` or ``sizes`` is of another shape than the pyramid says.
        """
        check_pyramid(pyramid, valid, sizes)
        logits, deltas = self.rpn(pyramid, valid)
        return proposals.propose(logits, deltas, valid, sizes)

    def classify(self, pyramid: dict[str, jax.Array], valid: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Class logits ``[n, k, classes]`` and deltas ``[n, k, 4 classes]`` of boxes ``[n, k, 4]``.

        Class 0 is the background. The index of a delta is ``class * 4 + coordinate``.

        Raises:
            ValueError: ``valid`` or ``boxes`` is of another shape than the pyramid says.
        """
        logits, deltas = self.box_head(self._regions(pyramid, valid, boxes, BOX_SIZE))
        n, count = boxes.shape[:2]
        return logits.reshape(n, count, logits.shape[-1]), deltas.reshape(n, count, deltas.shape[-1])

    def mask_logits(
        self, pyramid: dict[str, jax.Array], valid: jax.Array, boxes: jax.Array, labels: jax.Array
    ) -> jax.Array:
        """Mask logits ``[n, k, 28, 28]`` of boxes ``[n, k, 4]`` for the classes ``labels`` ``[n, k]``.

        Raises:
            ValueError: the detector has no mask head; ``valid``, ``boxes`` or ``labels`` is of another shape than the
                pyramid says.
        """
        if self.mask_head is None:
            raise ValueError("The detector has no mask head; make it with create_detector(..., mask_head=True).")
        require_array("boxes", boxes, "[n, k, 4]")
        require_array("labels", labels, "[n, k]")
        if labels.shape != boxes.shape[:2]:
            raise ValueError(f"labels have shape {labels.shape} for boxes of shape {boxes.shape}; give {boxes.shape[:2]}.")
        logits = self.mask_head(self._regions(pyramid, valid, boxes, MASK_SIZE), labels.reshape(-1))
        return logits.reshape(*labels.shape, *logits.shape[1:])

    def detect(self, images: jax.Array, valid: jax.Array, sizes: jax.Array) -> Detections:
        """The detections of images ``[n, H, W, 3]``; use it inside ``jax.jit``, after ``detector.eval()``.

        Raises:
            ValueError: sides of the canvas that are no multiples of 32, or sizes that do not fit.
        """
        check_images(images, valid, sizes)
        pyramid = self.pyramid(images, valid)
        boxes, _, present = self.propose(pyramid, valid, sizes)
        return self.detect_in(pyramid, valid, sizes, boxes, present)

    def detect_in(
        self, pyramid: dict[str, jax.Array], valid: jax.Array, sizes: jax.Array, boxes: jax.Array, present: jax.Array
    ) -> Detections:
        """The detections among proposals: boxes ``[n, k, 4]`` and which of them are ``present`` ``[n, k]``.

        Raises:
            ValueError: ``valid``, ``sizes`` or ``boxes`` is of another shape than the pyramid says.
        """
        check_pyramid(pyramid, valid, sizes)
        logits, deltas = self.classify(pyramid, valid, boxes)
        found, scores, labels, kept = postprocess.postprocess(logits, deltas, boxes, present, sizes)
        masks = None
        if self.mask_head is not None:
            probabilities = jax.nn.sigmoid(self.mask_logits(pyramid, valid, found, labels))
            masks = jnp.where(kept[:, :, None, None], probabilities, 0)
        return Detections(found, scores, labels, kept, masks)

    def _regions(self, pyramid: dict[str, jax.Array], valid: jax.Array, boxes: jax.Array, size: int) -> jax.Array:
        """Features ``[n * k, size, size, c]`` of boxes ``[n, k, 4]``: one leading axis, as kernels of norms need."""
        check_pyramid(pyramid, valid)
        require_array("boxes", boxes, f"[{valid.shape[0]}, k, 4]")
        if boxes.ndim != 3 or boxes.shape[0] != valid.shape[0] or boxes.shape[2] != 4:
            raise ValueError(f"boxes have shape {boxes.shape} for {valid.shape[0]} images; give [{valid.shape[0]}, k, 4].")
        boxes = boxes.astype(accumulation_dtype(boxes.dtype))
        regions = pooler.pool(pyramid, valid, boxes, size)
        return regions.reshape(-1, *regions.shape[2:])


def require_detector(value: object, function: str) -> None:
    """Raises ConfigError unless ``value`` is a detector."""
    if not isinstance(value, Detector):
        raise ConfigError(
            f"{function} got a {type(value).__name__}; a detector of gw_jax.detection.create_detector or load_detector is "
            "needed."
        )


def create_detector(
    backbone: str | Architecture | Mapping[str, Any],
    *,
    num_classes: int = 81,
    norm: DetectorNorm = "gw",
    norm_options: dict[str, Any] | None = None,
    fpn_norm: HeadNorm = "none",
    box_head: BoxHeadName = "2fc",
    box_head_norm: HeadNorm = "none",
    mask_head: bool = False,
    mask_head_norm: HeadNorm = "none",
    conv_relu: ConvReLU = "last",
    frozen_bn_epsilon: float = 0.0,
    width: int = 64,
    stem: Stem = "imagenet",
    fpn_features: int = 256,
    head_features: int = 1024,
    frozen_stages: int = 1,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
) -> Detector:
    """Makes a detector with the initial values of the reference.

    Args:
        backbone: a residual network of :func:`gw_jax.create_model` by name, or its :class:`gw_jax.models.Architecture` (or
            the fields of one, as :attr:`Detector.arguments` holds them).
        num_classes: classes, with the background, which is class 0.
        norm: of the backbone. "gw" is Group Whitening in the stem and after every 3x3 convolution, and frozen batch norms
            elsewhere; "gn", "bn" and "frozen_bn" are the same norm everywhere. "bn" takes the statistics of the batch, over
            all devices and without padding, and needs ``frozen_stages=0``; no published detector has it.
        norm_options: keyword arguments of all norms of the kind ``norm`` in the detector. By default "gw" has 64 groups and
            "gn" 32.
        fpn_norm: of the pyramid's convolutions: "none", "gw" or "gn".
        box_head: "2fc" or "4conv1fc".
        box_head_norm: of the box head's convolutions.
        mask_head: whether there is a mask head.
        mask_head_norm: of its convolutions.
        conv_relu: "last" for one ReLU after the four convolutions of the box head, as in the published code; "each" for one
            after each of them.
        frozen_bn_epsilon: added to the variances of all frozen batch norms; the reference has none.
        width: channels of the backbone's stem.
        stem: of the backbone; only the one for large images has the strides of the pyramid.
        fpn_features: channels of the pyramid and of the heads' convolutions.
        head_features: outputs of the box head's linear layers.
        frozen_stages: stages of the backbone that get no gradient, with the stem; 0 trains all, for a backbone without
            weights of another training.
        dtype: type of the activations, such as ``jnp.bfloat16``. Logits, deltas and boxes are at least float32.
        param_dtype: type of the parameters.
        rngs: the generators that initialise the parameters.

    Raises:
        ValueError: an unknown name, or options that do not fit each other; the message lists the known ones.

    Source: the reference's nine ``e2e_*`` configurations; Group Whitening (CVPR 2021), section 5.2.

    Example:
        >>> from flax import nnx
        >>> from gw_jax.detection import create_detector
        >>> detector = create_detector("resnet18", width=8, fpn_features=8, norm_options={"num_groups": 4},
        ...                            rngs=nnx.Rngs(0))
        >>> type(detector.backbone.stem_norm).__name__, type(detector.backbone.stage1[0].norm2).__name__
        ('GroupWhitening', 'FrozenBatchNorm')
    """
    given = {key: value for key, value in locals().items() if key not in ("dtype", "param_dtype", "rngs")}
    check_options(given)
    name, architecture = architecture_of(backbone)
    options = {**DETECTION_NORM_OPTIONS, "frozen_bn": {"epsilon": frozen_bn_epsilon}}
    options[norm] = {**options.get(norm, {}), **(norm_options or {})}
    types = Types(dtype, param_dtype, rngs)

    def choice(name: HeadNorm) -> NormChoice:
        return NormChoice(name, options.get(name, {}))

    whiten, other_norm = BACKBONE_NORMS[norm]
    network: ResNet = create_model(
        name,
        num_classes=None,
        norm=norm,
        norm_options=options[norm],
        whiten=whiten,
        other_norm=other_norm,
        batch_norm_options=options["frozen_bn"],
        stem=stem,
        width=width,
        **types.arguments(),
    )
    initialise_backbone(network, rngs)
    expansion = 4 if architecture.bottleneck else 1
    in_features = [width * expansion * 2**stage for stage in range(4)]
    arguments = {**given, "backbone": name if isinstance(name, str) else dataclasses.asdict(name)}
    return Detector(
        network,
        FPN(in_features, fpn_features, choice(fpn_norm), types),
        RPNHead(fpn_features, types),
        BoxHead(box_head, fpn_features, head_features, num_classes, choice(box_head_norm), conv_relu, types),
        MaskHead(fpn_features, num_classes, choice(mask_head_norm), types) if mask_head else None,
        CreationRecord(arguments, dtype, param_dtype),
    )
