"""Recommendation of the next item: attention over histories, and what is known of transitions."""
