"""The demonstration: one fixed-point classifier trained twice, unrolled and through this package."""
