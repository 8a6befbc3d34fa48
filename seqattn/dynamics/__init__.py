"""Training dynamics of one-layer attention: who gains and who loses attention while a model learns."""

from seqattn.dynamics import theory
from seqattn.dynamics.classes import SequenceClasses
from seqattn.dynamics.generators import syn, syn_medium, syn_small
from seqattn.dynamics.study import ScanAndSnapStudy, sweep

__all__ = ["ScanAndSnapStudy", "SequenceClasses", "sweep", "syn", "syn_medium", "syn_small", "theory"]
