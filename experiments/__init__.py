"""The reference's MNIST study on 5,000 real digits: ``python -m experiments`` runs all of it; see docs/experiments.md."""
