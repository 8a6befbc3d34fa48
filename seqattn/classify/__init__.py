"""Classification of multivariate time series: VSFormer."""
