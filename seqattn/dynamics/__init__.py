"""Training dynamics of one-layer attention: who gains and who loses attention while a model learns."""

from seqattn.dynamics import detect, theory
from seqattn.dynamics.attached import AttentionRecorder
from seqattn.dynamics.classes import SequenceClasses
from seqattn.dynamics.detect import detect_snap
from seqattn.dynamics.generators import syn, syn_medium, syn_small
from seqattn.dynamics.own import bias_report, classes_from_sequences
from seqattn.dynamics.pictures import plot_bias
from seqattn.dynamics.study import ScanAndSnapStudy, sweep

__all__ = [
    "AttentionRecorder",
    "ScanAndSnapStudy",
    "SequenceClasses",
    "bias_report",
    "classes_from_sequences",
    "detect",
    "detect_snap",
    "plot_bias",
    "sweep",
    "syn",
    "syn_medium",
    "syn_small",
    "theory",
]
