"""Classification of multivariate time series: the value and shape-aware transformer."""

from seqattn.classify.estimator import VSFormerClassifier

__all__ = ["VSFormerClassifier"]
