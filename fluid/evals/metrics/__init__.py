"""Metrics of sets of images, as numbers of their features: numpy, float64, no network.

Which features they take is the business of fluid.evals.measures.
"""
