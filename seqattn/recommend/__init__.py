"""Next-item recommendation: estimators, baselines and an exact ranking protocol."""

from seqattn.recommend.baselines import MarkovRecommender, PopularityRecommender
from seqattn.recommend.estimator import MQSATEDRecommender, SASRecRecommender

__all__ = ["MQSATEDRecommender", "MarkovRecommender", "PopularityRecommender", "SASRecRecommender"]
