"""Common parts of the ImageNet recipes; each file of ``configs/`` shows only what is its own."""

from gw_jax.classification import (
    ClassificationConfig,
    DataConfig,
    ModelConfig,
    NormConfig,
    OptimizerConfig,
    ScheduleConfig,
)


def imagenet_data(batch_size: int, eval_batch_size: int) -> DataConfig:
    """ImageNet: random crops of 224 pixels and flips in training, the centre of an image resized to 256 in evaluation."""
    return DataConfig(
        name="imagenet2012",
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        image_size=224,
        crop=True,
        eval_resize=256,
        flip=True,
        num_workers=8,
    )


def paper_recipe(model: ModelConfig, *, no_decay: tuple[str, ...] = ()) -> ClassificationConfig:
    """The paper's training on ImageNet: 100 epochs of batches of 256, the learning rate falling from 0.1 every 30 epochs.

    SGD with momentum 0.9 and weight decay 1e-4 on every parameter but those that ``no_decay`` names; seed 1.
    Source: the authors' scripts.
    """
    return ClassificationConfig(
        seed=1,
        num_epochs=100,
        data=imagenet_data(256, 256),
        model=model,
        optimizer=OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=1e-4, no_decay=no_decay),
        schedule=ScheduleConfig(name="step", step_epochs=30, gamma=0.1),
    )


def resnext_iternorm_recipe(name: str, group_size: int) -> ClassificationConfig:
    """The ResNeXt ``name`` with IterNorm, running covariance and 256 channels per group, at S1-B2.

    ``group_size`` is the number of images on each of the authors' GPUs. The reference makes a norm before the last layer,
    as for ResNet-50, and does not apply it: ``config.model.apply_last_norm=True`` whitens the features, which was meant.
    """
    model = ModelConfig(
        name=name,
        norm="iternorm_sigma",
        norm_options=NormConfig(channels_per_group=256, num_iterations=5, group_size=group_size),
        whiten="S1-B2",
        batch_norm_group_size=group_size,
        last_norm=True,
        apply_last_norm=False,
    )
    # The parameters of the last norm are unused and keep their initial values, as in the reference.
    return paper_recipe(model, no_decay=("^last_norm/",))
