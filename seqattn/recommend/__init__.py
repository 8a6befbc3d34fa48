"""Next-item recommendation: estimators, baselines and an exact ranking protocol."""

from seqattn.recommend.baselines import MarkovRecommender, PopularityRecommender

__all__ = ["MarkovRecommender", "PopularityRecommender"]
