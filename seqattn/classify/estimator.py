"""The estimator of the value and shape-aware transformer."""

from __future__ import annotations

from seqattn.classify.fitting import Fitting

__all__ = ["VSFormerClassifier"]


class VSFormerClassifier(Fitting):
    r"""Classify series of several channels by their shapes and values, with attention that is weighted by priors.

    Each case becomes two sets of tokens. *Shape tokens* tell where and how closely the case comes to prototypes from
    the training data, *value tokens* tell mean, deviation and slope of intervals. Both carry their channel, their span
    in time and a prior of how much they say about the classes. A transformer attends to them with scores

    .. math:: s_{ij} = q_i \cdot k_j / \sqrt{d} + \gamma \log \max(p_j, \mathrm{floor}),

    and its decision is linear in all token outputs. Beside it stands a linear readout of the statistics of many more
    shapes and of all intervals, whose logits are added; each part can be switched off.

    Parameters
    ----------
    shapes
        ``"dilated"``: prototypes are short pieces of training cases, stretched at random. ``"motif"``: the paper's, the
        windows of a class that come back most exactly in other cases of the class.
    window_fractions
        Motifs: window lengths as shares of the median length.
    motifs_per_cell
        Motifs: how many per class, channel and window.
    match
        Motifs: ``"znorm"`` compares without level and spread, ``"raw"`` with them.
    locality
        Motifs: share of the length by which a match may lie away from the prototype's own place; None for anywhere.
    profile_cap
        Motifs: most points of a class that are searched at once.
    derivatives
        Whether first differences are further channels.
    granularities
        Into how many equal parts the time axis is cut for value tokens.
    shape_tokens, value_tokens
        Most tokens of each kind.
    tokens
        ``"both"``, ``"shape"`` or ``"value"``: which kinds are used, in the readout too.
    prior
        Form of the prior in attention: ``"key"`` as above, which equals weights times priors with rows normed again;
        ``"logit"`` for scores times :math:`p_i p_j`; ``"none"``.
    prior_strength, prior_floor
        :math:`\gamma`, and the least prior in the logarithm.
    learn_prior_strength
        Whether each head learns its :math:`\gamma`.
    prior_encoding
        Whether the prior is part of the tokens' encoding.
    fusion
        ``"late"``: an encoder per kind of token. ``"joint"``: one for both.
    head
        ``"flatten"``: linear in all token outputs. ``"mean"``: in their mean.
    readout_shapes
        How many dilated shapes the linear readout has in all; 0 for no readout, which is the network of the paper.
    network_weight
        Factor of the networks' mean logits beside those of the readout. None: found on training cases that neither has
        seen; 0.3 where there are none. 0 trains no network.
    max_length
        Longer series are shortened to this many points by means of neighbours.
    d_model, n_heads, n_layers, dropout
        Width, heads and layers of the encoders, and share of units dropped while training.
    label_smoothing
        Share of the target that is spread over all classes.
    class_weight
        Weights of the classes: None, ``"balanced"``, or a mapping from class to weight.
    n_members
        Networks whose logits are averaged. Each does without an equal part of the cases of each class, in its tokens
        and priors too; with one network nothing is left out.
    calibration
        Share of the cases, for example 0.2, that is held out in a first fit to find the temperature of the
        probabilities; then all are fitted. Epochs are chosen before, and held-out cases of the fit choose them in both.
        None leaves the probabilities as they are.
    learning_rate, weight_decay
        Peak of the one-cycle rate, and decoupled decay of AdamW.
    epochs
        Passes over the training cases; ``"auto"`` takes at least 400 steps and 10 passes.
    batch_size
        Cases per step; ``"auto"`` an eighth of them, between 8 and 64.
    validation
        Share of the cases, or None. They choose the number of epochs: tokens and one network are first learnt without
        them; then all are fitted for that many.
    patience
        Epochs without a better validation loss after which training stops; None goes on to the last. It needs held-out
        cases, of ``validation`` here or in the fit.
    attention
        Pattern of which tokens see which: a name or an object of :mod:`seqattn.attention`.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    precision
        As in :func:`seqattn.train.settings.resolve_precision`.
    n_jobs
        Threads of the search for motifs; None for one.
    memory
        Folder, or a :class:`joblib.Memory`, that keeps tokens by the content of what they were learnt of, so that fits
        that differ in the network only do not learn them again. It grows by some 100 kB per training case and is not
        cleared. None keeps nothing. A saved model does not hold it.
    random_state
        Seed of all draws.
    verbose
        1 tells of progress on the standard error stream.

    Attributes
    ----------
    classes_
        The classes, sorted.
    n_channels_, length_range_
        Channels, and shortest and longest training case.
    channel_names_
        Names of the channels, where the series came in frames that have them; else None.
    shapes_, intervals_
        Tables of the tokens, see :class:`seqattn.classify.explain.Explaining`.
    validation_
        Figures of training cases from parts of the model that have not seen them, with ``protocol``: how they came
        about; None where every part has seen every case.
    history_
        What happened in each epoch, of the first member.
    fit_report_
        What was done to the data: sizes, ``capped`` (the parameters that bounded something, or could not be met),
        seconds, and a hash of everything that was learnt before training.

    Notes
    -----
    This is an implementation after the paper: its text leaves windows, distances, the maps from distance ratio and
    entropy to priors, the place of the product in attention and the pooling open, and no code was released. What stands
    here for each is told where it is computed. Dilated shapes, the linear readout and differences are additions;
    ``shapes="motif", readout_shapes=0, derivatives=False`` leaves them out.

    References
    ----------
    Xi, Zuo, Alvarez, Zhang, Choi, Lin (2024), VSFormer: value and shape-aware transformer with prior-enhanced
    self-attention for multivariate time series classification, arXiv 2412.16515.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(20, 2, 30))
    >>> y = np.repeat(["flat", "rising"], 10)
    >>> X[10:] += np.linspace(0, 5, 30)
    >>> model = VSFormerClassifier(
    ...     readout_shapes=64, epochs=1, shape_tokens=8, n_members=1, random_state=0
    ... ).fit(X, y)
    >>> model.predict(X[[0, 15]]).tolist()
    ['flat', 'rising']
    """
