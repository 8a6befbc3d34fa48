"""Event sequences in continuous time: the self-attentive Hawkes process and its baselines."""

from seqattn.hawkes.baselines import EmpiricalMarkov, PoissonProcess, RenewalProcess
from seqattn.hawkes.estimator import SAHP
from seqattn.hawkes.exponential import ExponentialHawkes

__all__ = ["SAHP", "EmpiricalMarkov", "ExponentialHawkes", "PoissonProcess", "RenewalProcess"]
