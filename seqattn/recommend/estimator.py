"""The recommenders with a network: MQSA-TED, and its member with one branch and no distillation."""

from __future__ import annotations

from typing import Any

from seqattn.attention.pattern import Pattern
from seqattn.recommend.fitting import NetworkRecommender

__all__ = ["MQSATEDRecommender", "SASRecRecommender"]


class MQSATEDRecommender(NetworkRecommender):
    r"""Recommend the next item by multi-query self-attention with transition-aware embedding distillation.

    .. math:: s = \alpha \, \mathrm{short} + (1 - \alpha) \, \mathrm{long}, \qquad
        \mathrm{score}_j = s \cdot E_j, \qquad
        \mathrm{loss} = \mathrm{rec} + \lambda \, \mathrm{kd} + \tfrac{l_2}{2} \lVert \theta \rVert^2

    Two branches of attention read a history, one asking with the last item and one with the mean of the last few; see
    :class:`seqattn.recommend.model.MultiQueryNetwork`. A teacher made of counted transitions is distilled into the
    embeddings of items, see :class:`seqattn.recommend.transitions.Teacher`. The loss is the softmax cross entropy over
    all items; the epoch with the best NDCG at 20 on held-out rows is kept.

    Parameters
    ----------
    d_model, n_heads, n_layers
        Width of embeddings, heads and blocks of each branch.
    max_len
        How many of the last items of a history the network sees. Transitions and seen items come from all of it.
    window
        How many items a query of the long branch is the mean of.
    alpha
        Share of the short branch, from 0 to 1.
    dropout
        Share of units, and of attention, dropped while training.
    kd_weight
        :math:`\lambda`; 0 for no distillation.
    kd_share
        Share of the positions of a step that are distilled, drawn at random; they stand for all. ``"auto"``: 0.25, and
        1 with ``mode="paper"``.
    teacher_mass
        Share that the teacher gives an item's only successor; its temperature follows from it and the size of the
        catalogue. Not used where ``tau_teacher`` is given.
    tau_teacher, tau_student
        Temperatures of teacher and student. With ``mode="paper"`` that of the teacher is that of the student unless
        given.
    span
        Up to how many steps apart two items make a transition.
    max_successors
        Most successors of an item that the teacher keeps; None for all.
    transition_weight
        Weight of what followed the last three items of a history in training, beside the scores of the network; see
        :class:`seqattn.recommend.followed.WithTransitions`. ``"auto"``: of 0, 0.25, 0.5 and 1 the one with the best
        NDCG at 20 on the held-out rows; 0 without such rows and with ``mode="paper"``.
    n_members
        Number of networks whose scores are averaged; time and memory are in proportion.
    l2
        Penalty of the weights. With the sampled loss it reaches a row of the table when a step touches the row, then
        for all steps since it was touched last.
    learning_rate, batch_size
        Rate of Adam, and users per step. ``"auto"``: 0.003 with an average of the weights, 0.001 without.
    average
        Decay of a moving average of the weights over the steps, which is validated and kept; see
        :class:`seqattn.train.average.WeightAverage`. None keeps the weights themselves. ``"auto"``: 0.998; None
        with the sampled loss, whose steps touch few rows of the table, and with ``mode="paper"``.
    epochs, patience
        Most passes over the users, and epochs without a better NDCG at 20 after which training stops; None goes on.
        ``"auto"``: 10 with an average of the weights, 20 without, and None with ``mode="paper"``.
    eval_every, eval_users
        Every how many epochs to validate, and on how many users drawn at random; None for all. The best epoch is
        always scored on all.
    loss
        ``"full"``: over all items, in chunks. ``"sampled"``: over negatives, weighted to stand for the rest.
        ``"auto"``: sampled where a full step would take more than 2e11 operations (5e12 on a GPU), or where
        ``loss_memory_mb`` has no room for the scores of 32 rows.
    n_negatives, negatives
        How many are drawn per step for all rows together, and how: ``"uniform"``, ``"popularity"`` or ``"batch"`` (the
        targets of the step).
    loss_memory_mb
        Most MiB that scores may take in the loss.
    optimizer
        ``"adam"``, ``"lazy_adam"`` (moves the rows that a step touches, each corrected by its own number of steps) or
        ``"row_adagrad"`` (one number of state per row; wants a rate of 0.01 or more). ``"auto"`` takes Adam for the
        full loss and lazy Adam for the sampled one.
    cold_items
        Items that nobody had in training: ``"exclude"`` recommends none of them, ``"keep"`` treats them like others.
    unknown_items
        Items of new histories that were not in the fit: ``"drop"`` leaves them out with a warning, ``"error"`` refuses
        them.
    duplicates
        Rows that come twice, see :meth:`seqattn.data.interactions.Interactions.of`.
    mode
        ``"paper"``: as the authors' code has it. Histories are cut to the last ``max_len`` rows before anything is
        counted or masked; the longest input of training is one shorter; an answer "no item" with score 0 is part of
        the softmax; norms add 1e-24; Adam adds its small number before the correction; all epochs
        run unless ``patience`` is a number.
    attention
        Who sees whom: a pattern of :mod:`seqattn.attention`, or its text.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    precision
        ``"float32"``, ``"bf16"`` (products of matrices in bfloat16) or ``"float64"``.
    random_state
        Seed of first weights, order of users, dropout and negatives.
    verbose
        1 tells of progress on the standard error stream.

    Attributes
    ----------
    history_
        All rows of the fit, those that chose the epoch included: what is known of the users.
    user_ids_, item_ids_
        Ids by code, of the kind in which they were given.
    popularity_
        Rows of each item in the training part.
    module_
        The network, or the members.
    transitions_
        Which item followed which in training, and how often.
    fit_history_
        What happened in each epoch of the first network, a :class:`seqattn.train.history.History`.
    best_epoch_
        The epoch whose weights the first network has.
    validation_curve_
        NDCG at 20 of the first network alone on the rows for validation by epoch; NaN where it was not computed.
    best_score_
        NDCG at 20 of the whole on all users with a row for validation; NaN without any.
    transition_weight_
        Weight of the transitions.
    teacher_mass_
        Share that the teacher gives an item's only successor; None without distillation.
    loss_
        ``"full"`` or ``"sampled"``.

    Notes
    -----
    Differences of the default from the authors' code: those that ``mode="paper"`` takes back, a teacher whose
    temperature follows from ``teacher_mass``, since a fixed one fades as the catalogue grows, an average of the weights
    with a higher rate, and transitions that count beside the network's scores. Users have no weights, so new ones cost
    nothing.

    References
    ----------
    Zhu et al. (2024), Collaborative filtering with transition-aware embedding distillation and multi-query
    self-attention, WSDM, arXiv 2311.01056.

    Examples
    --------
    >>> log = {"user_id": [0, 0, 1, 1, 2, 2], "item_id": list("abcdab"), "timestamp": [0, 1] * 3}
    >>> model = MQSATEDRecommender(d_model=8, epochs=60, dropout=0.0, learning_rate=0.03, random_state=0)
    >>> model = model.fit(log, validation=None)
    >>> model.recommend_for([["a"], ["c"]], k=1)["item_id"].to_list()
    ['b', 'd']
    >>> model.similar_items(["a", "c"], k=1)["similar_id"].to_list()
    ['b', 'd']
    """

    def __init__(
        self,
        *,
        d_model: int = 64,
        n_heads: int = 1,
        n_layers: int = 1,
        max_len: int = 50,
        window: int = 3,
        alpha: float = 0.5,
        dropout: float = 0.5,
        kd_weight: float = 0.1,
        kd_share: float | str = "auto",
        teacher_mass: float = 0.65,
        tau_teacher: float | None = None,
        tau_student: float = 0.1,
        span: int = 1,
        max_successors: int | None = None,
        transition_weight: float | str = "auto",
        n_members: int = 1,
        l2: float = 1e-4,
        learning_rate: float | str = "auto",
        average: float | str | None = "auto",
        batch_size: int = 256,
        epochs: int = 200,
        patience: int | str | None = "auto",
        eval_every: int = 1,
        eval_users: int | None = None,
        loss: str = "auto",
        n_negatives: int = 4096,
        negatives: str = "uniform",
        loss_memory_mb: float = 256,
        optimizer: str = "auto",
        cold_items: str = "exclude",
        unknown_items: str = "drop",
        duplicates: str = "keep",
        mode: str = "default",
        attention: str | Pattern = "dense",
        device: str = "auto",
        precision: str = "float32",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.d_model = d_model
        self.n_heads = n_heads
        self.n_layers = n_layers
        self.max_len = max_len
        self.window = window
        self.alpha = alpha
        self.dropout = dropout
        self.kd_weight = kd_weight
        self.kd_share = kd_share
        self.teacher_mass = teacher_mass
        self.tau_teacher = tau_teacher
        self.tau_student = tau_student
        self.span = span
        self.max_successors = max_successors
        self.transition_weight = transition_weight
        self.n_members = n_members
        self.l2 = l2
        self.learning_rate = learning_rate
        self.average = average
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.eval_every = eval_every
        self.eval_users = eval_users
        self.loss = loss
        self.n_negatives = n_negatives
        self.negatives = negatives
        self.loss_memory_mb = loss_memory_mb
        self.optimizer = optimizer
        self.cold_items = cold_items
        self.unknown_items = unknown_items
        self.duplicates = duplicates
        self.mode = mode
        self.attention = attention
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose


class SASRecRecommender(NetworkRecommender):
    """Recommend the next item by self-attention with a softmax loss: MQSA-TED with ``alpha=1`` and ``kd_weight=0``.

    The yardstick of :class:`MQSATEDRecommender`: the same network without the long branch, the same loss without the
    teacher, the same training.

    Parameters
    ----------
    d_model, n_heads, n_layers, max_len, dropout, l2, learning_rate, average, batch_size, epochs, patience
        As in :class:`MQSATEDRecommender`.
    eval_every, eval_users, loss, n_negatives, negatives, loss_memory_mb, optimizer, cold_items, unknown_items
        As in :class:`MQSATEDRecommender`.
    duplicates, mode, attention, device, precision, random_state, verbose
        As in :class:`MQSATEDRecommender`.

    References
    ----------
    Kang, McAuley (2018), Self-attentive sequential recommendation, ICDM, arXiv 1808.09781.

    Examples
    --------
    >>> log = {
    ...     "user_id": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    ...     "item_id": list("abcabcbca"),
    ...     "timestamp": [0, 1, 2] * 3,
    ... }
    >>> model = SASRecRecommender(d_model=8, epochs=60, dropout=0.0, learning_rate=0.03, random_state=0)
    >>> model.fit(log, validation=None).recommend_for([["a"]], k=1)["item_id"].to_list()
    ['b']
    """

    def __init__(
        self,
        *,
        d_model: int = 64,
        n_heads: int = 1,
        n_layers: int = 1,
        max_len: int = 50,
        dropout: float = 0.5,
        l2: float = 1e-4,
        learning_rate: float | str = "auto",
        average: float | str | None = "auto",
        batch_size: int = 256,
        epochs: int = 200,
        patience: int | str | None = "auto",
        eval_every: int = 1,
        eval_users: int | None = None,
        loss: str = "auto",
        n_negatives: int = 4096,
        negatives: str = "uniform",
        loss_memory_mb: float = 256,
        optimizer: str = "auto",
        cold_items: str = "exclude",
        unknown_items: str = "drop",
        duplicates: str = "keep",
        mode: str = "default",
        attention: str | Pattern = "dense",
        device: str = "auto",
        precision: str = "float32",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.d_model = d_model
        self.n_heads = n_heads
        self.n_layers = n_layers
        self.max_len = max_len
        self.dropout = dropout
        self.l2 = l2
        self.learning_rate = learning_rate
        self.average = average
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.eval_every = eval_every
        self.eval_users = eval_users
        self.loss = loss
        self.n_negatives = n_negatives
        self.negatives = negatives
        self.loss_memory_mb = loss_memory_mb
        self.optimizer = optimizer
        self.cold_items = cold_items
        self.unknown_items = unknown_items
        self.duplicates = duplicates
        self.mode = mode
        self.attention = attention
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose
