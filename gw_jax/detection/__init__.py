"""Object detection: Faster and Mask R-CNN with group whitening, in static shapes. Needs jax and flax only."""
