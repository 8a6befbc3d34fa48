"""Search for good settings with Optuna: one study, any number of workers and machines, an exact total, no lost work.

The only package that knows Optuna: where a study is kept (``storage``), who runs which trial with which settings
(``desk``, ``draws``), and the search itself (``search``).
"""

from __future__ import annotations

from seqattn.tune.search import tune

__all__ = ["tune"]
